"""Branches, calls, barriers, traps, and hints that do nothing here."""

from ..errors import PTXError
from ..names import function_name, mangle
from .registry import emits
from .warp import collective


@emits("bra")
def branch(translator, instruction):
    return f"goto {mangle(instruction.operands[0])};"


@emits("brx")
def indexed_branch(translator, instruction):
    index, table = instruction.operands
    labels = translator.branch_targets[table]
    cases = " ".join(f"case {i}: goto {mangle(label)};" for i, label in enumerate(labels))
    return f"switch ({translator.read(index, 'u32')}) {{ {cases} }}"


@emits("ret")
def return_from_function(translator, instruction):
    return "return;"


@emits("exit")
def exit_thread(translator, instruction):
    return "return;" if translator.function.is_kernel else "exit_thread(t);"


@emits("trap", "brkpt")
def trap(translator, instruction):
    return f'fail(t, Fault::kTrap, {instruction.line}, "trap");'


@emits("call")
def call(translator, instruction):
    operands = list(instruction.operands)
    result = operands.pop(0) if operands[0].startswith("(") else "()"
    name = operands.pop(0)
    arguments = operands.pop(0) if operands else "()"

    def slot(variable):
        return f"((u8*)local + {translator.variables[variable].offset})"

    slots = [
        slot(argument.strip()) for argument in arguments.strip("()").split(",") if argument.strip()
    ]
    result_name = result.strip("() ")
    if name == "__assertfail":
        message, file, line = slots[:3]
        values = f"*(char**){message}, *(char**){file}, *(u32*){line}"
        return (
            f'fail(t, Fault::kAssert, {instruction.line}, "assert failed: %s (%s:%u)", {values});'
        )
    if name == "vprintf":
        return (
            f"*(u32*){slot(result_name)} = device_printf(*(char**){slots[0]}, *(u8**){slots[1]});"
        )
    if name not in translator.module.device_functions:
        raise PTXError(f"call of {name}")
    passed = ", ".join(["t", slot(result_name) if result_name else "nullptr", *slots])
    return f"{function_name(name)}({passed});"


@emits("bar", "barrier")
def barrier(translator, instruction):
    modifiers = [m for m in instruction.modifiers if m not in ("cta", "aligned")]
    operands = instruction.operands
    # bar.sync is barrier.sync.aligned: all threads of a warp must arrive at the same instruction.
    is_aligned = instruction.base == "bar" or instruction.has("aligned")
    where = f"{'true' if is_aligned else 'false'}, {instruction.line}"
    if modifiers[0] == "warp":
        mask = translator.read(operands[0], "u32")
        return collective(translator, instruction, [], mask, "kSyncWarp", "nullptr", [])
    if modifiers[0] == "sync":
        identifier = translator.read(operands[0], "u32")
        expected = translator.read(operands[1], "u32") if len(operands) > 1 else "0"
        return f"wait_at_barrier(t, {identifier}, {expected}, false, {where});"
    if modifiers[0] != "red":
        raise PTXError("barrier variant")
    destination, identifier, *rest = operands
    predicate = translator.read(rest[-1], "pred")
    expected = translator.read(rest[0], "u32") if len(rest) > 1 else "0"
    identifier = translator.read(identifier, "u32")
    wait = f"wait_at_barrier(t, {identifier}, {expected}, {predicate}, {where});"
    operation = modifiers[1]
    result = {
        "popc": "t.barrier_true_count",
        "and": "(t.barrier_true_count == t.barrier_arrived)",
        "or": "(t.barrier_true_count != 0)",
    }[operation]
    assign = translator.write(destination, "u32" if operation == "popc" else "pred", result)
    return f"{{ {wait} {assign} }}"


@emits("nanosleep")
def sleep(translator, instruction):
    return "yield(t);"


@emits(
    "membar",
    "fence",
    "prefetch",
    "prefetchu",
    "pmevent",
    "discard",
    "applypriority",
    "griddepcontrol",
    "createpolicy",
    "setmaxnreg",
)
def no_effect(translator, instruction):
    """Fences order nothing here, since fibers see each other's writes at once."""
    return ";"
