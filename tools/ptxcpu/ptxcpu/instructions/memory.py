"""mov, ld, st, atom, red, cvta, isspacep and cp.async."""

from ..errors import PTXError
from ..parser import vector_elements
from ..ptx_types import CXX_TYPE, SIZE, bit_width, unsigned
from .registry import emits

SPACES = (
    "global",
    "shared",
    "local",
    "param",
    "const",
    "shared::cta",
    "param::entry",
    "param::func",
)
VECTOR_WIDTHS = {"v2": 2, "v4": 4, "v8": 8}

ATOMIC_RESULT = {
    "add": "old + value",
    "min": "std::min(old, value)",
    "max": "std::max(old, value)",
    "inc": "old >= value ? 0 : old + 1",
    "dec": "(old == 0 || old > value) ? value : old - 1",
    "and": "old & value",
    "or": "old | value",
    "xor": "old ^ value",
    "exch": "value",
    "cas": "old == value ? swap : old",
}


def _space(instruction) -> str:
    return next((m for m in instruction.modifiers if m in SPACES), "generic")


@emits("mov")
def move(translator, instruction):
    destination, source = instruction.operands
    ptx_type = instruction.type
    if destination.startswith("{"):
        return _unpack(translator, destination, source, ptx_type)
    if source.startswith("{"):
        return _pack(translator, destination, source, ptx_type)
    return translator.write(destination, ptx_type, translator.read(source, ptx_type))


def _unpack(translator, destination, source, ptx_type):
    elements = vector_elements(destination)
    width = bit_width(ptx_type) // len(elements)
    code = f"{{ const u64 packed = (u64){translator.read(source, unsigned(ptx_type))}; "
    for i, element in enumerate(elements):
        if element != "_":
            code += (
                translator.write(element, f"b{width}", f"(u{width})(packed >> {width * i})") + " "
            )
    return code + "}"


def _pack(translator, destination, source, ptx_type):
    elements = vector_elements(source)
    width = bit_width(ptx_type) // len(elements)
    terms = [
        f"((u64)(u{width}){translator.read(element, f'b{width}')} << {width * i})"
        for i, element in enumerate(elements)
    ]
    return translator.write(destination, unsigned(ptx_type), " | ".join(terms))


@emits("ld", "ldu", "st")
def load_store(translator, instruction):
    ptx_type = instruction.type
    element_size = SIZE[ptx_type]
    cxx_type = CXX_TYPE[ptx_type]
    count = next((VECTOR_WIDTHS[m] for m in instruction.modifiers if m in VECTOR_WIDTHS), 1)
    size = count * element_size
    space = _space(instruction)
    if instruction.base == "st":
        address, source = instruction.operands
        code = f"{{ u8* p = {translator.pointer(space, address, size, instruction, 'Write')}; "
        for i, element in enumerate(vector_elements(source)):
            code += (
                f"store<{cxx_type}>(p + {i * element_size}, {translator.read(element, ptx_type)}); "
            )
        return code + "}"
    destination, address = instruction.operands
    # All elements are loaded before any is written: the address register may be a destination too.
    code = f"{{ const u8* p = {translator.pointer(space, address, size, instruction, 'Read')}; "
    for i in range(count):
        code += f"const {cxx_type} value{i} = load<{cxx_type}>(p + {i * element_size}); "
    for i, element in enumerate(vector_elements(destination)):
        if element != "_":
            code += translator.write(element, ptx_type, f"value{i}") + " "
    return code + "}"


@emits("atom", "red")
def atomic(translator, instruction):
    ptx_type = instruction.type
    is_vector = any(m in VECTOR_WIDTHS for m in instruction.modifiers)
    if is_vector or ptx_type in ("f16x2", "bf16x2", "b128"):
        raise PTXError("vector atomics")
    operation = next(m for m in instruction.modifiers if m in ATOMIC_RESULT)
    operands = list(instruction.operands)
    destination = operands.pop(0) if instruction.base == "atom" else None
    cxx_type = CXX_TYPE[ptx_type]
    code = f"{{ const {cxx_type} value = {translator.read(operands[1], ptx_type)}; "
    if operation == "cas":
        code += f"const {cxx_type} swap = {translator.read(operands[2], ptx_type)}; "
    pointer = translator.pointer(
        _space(instruction), operands[0], SIZE[ptx_type], instruction, "Atomic"
    )
    update = f"[&]({cxx_type} old) {{ return ({cxx_type})({ATOMIC_RESULT[operation]}); }}"
    code += f"const {cxx_type} before = atomic_update<{cxx_type}>({pointer}, {update}); "
    code += translator.write(destination, ptx_type, "before") if destination else "(void)before;"
    return code + " }"


@emits("cvta")
def convert_address(translator, instruction):
    """Generic, global and local addresses are host addresses; shared ones are offsets."""
    destination, source = instruction.operands
    ptx_type = instruction.type
    value = translator.read(source, ptx_type)
    if _space(instruction).startswith("shared"):
        if instruction.has("to"):
            value = f"({value} - (u64)t.shared)"
        else:
            value = f"((u64)t.shared + (u32){value})"
    return translator.write(destination, ptx_type, value)


@emits("isspacep")
def is_in_space(translator, instruction):
    destination, source = instruction.operands
    space = instruction.parts[-1]
    address = translator.read(source, "u64")
    if space.startswith("shared"):
        condition = f"is_shared_address(t, {address})"
    elif space.startswith("local"):
        condition = f"is_local_address(t, {address})"
    else:
        condition = f"!(is_shared_address(t, {address}) || is_local_address(t, {address}))"
    return translator.write(destination, "pred", condition)


@emits("cp")
def copy_async(translator, instruction):
    if instruction.parts[1] != "async":
        raise PTXError("cp variant")
    line = instruction.line
    kind = instruction.parts[2]
    if kind == "commit_group":
        return "commit_async_group(t);"
    if kind == "wait_group":
        return f"wait_async_groups(t, {translator.read(instruction.operands[0], 'u32')}, {line});"
    if kind == "wait_all":
        return f"wait_all_async_copies(t, {line});"
    if kind not in ("ca", "cg"):
        raise PTXError("cp.async variant")
    destination, source, size, *rest = instruction.operands
    if kind == "cg" and int(size) != 16:
        raise PTXError("cp.async.cg size")
    bytes_copied = translator.read(size, "u32")
    source_bytes = bytes_copied
    if rest:
        source_bytes = _source_bytes(translator, rest[0], bytes_copied)
    to = translator.address_value(translator.parse_address(destination), 32)
    start = translator.address_value(translator.parse_address(source), 64)
    site = translator.module.new_site()
    return f"issue_async_copy(t, {to}, {start}, {bytes_copied}, {source_bytes}, {site}, {line});"


def _source_bytes(translator, operand, bytes_copied):
    """The optional operand is either a byte count or a predicate that says to ignore the source."""
    register = translator.find_register(operand.lstrip("!"))
    if register and register.cxx_type == "bool":
        return f"({translator.read(operand, 'pred')} ? 0u : {bytes_copied})"
    return translator.read(operand, "u32")
