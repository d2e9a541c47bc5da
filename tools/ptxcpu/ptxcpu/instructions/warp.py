"""Warp collectives: shfl, vote, match, redux, elect, activemask, mma and ldmatrix."""

import re

from ..errors import PTXError
from ..parser import vector_elements
from ..ptx_types import unsigned
from .registry import emits

FULL_MASK = "0xffffffffu"
SHUFFLE = {
    "up": "kShuffleUp",
    "down": "kShuffleDown",
    "bfly": "kShuffleButterfly",
    "idx": "kShuffleIndex",
}
VOTE = {"all": "kVoteAll", "any": "kVoteAny", "uni": "kVoteUniform", "ballot": "kVoteBallot"}
REDUCTION = ("add", "min", "max", "and", "or", "xor")  # as enum ReduceOperation in runtime/warp.hpp
MMA_ELEMENT = {"tf32": "Tf32Element", "f16": "F16Element", "bf16": "Bf16Element"}


def collective(translator, instruction, inputs, mask, kind, function, outputs, aligned=False):
    """Passes `inputs` in Thread::in, waits for the lanes in `mask` and reads the results.

    `outputs` are (destination, PTX type, expression of Thread::out).
    """
    site = translator.module.new_site()
    code = "{ " + "".join(f"t.in[{i}] = {value}; " for i, value in enumerate(inputs))
    is_aligned = "true" if aligned else "false"
    arguments = f"{mask}, {kind}, {site}, {is_aligned}, {function}, {instruction.line}"
    code += f"join_collective(t, {arguments}); "
    for destination, ptx_type, expression in outputs:
        code += translator.write(destination, ptx_type, expression) + " "
    return code + "}"


@emits("shfl")
def shuffle(translator, instruction):
    destination, *inputs, mask = instruction.operands
    kind = SHUFFLE[instruction.parts[2]]
    names = [name.strip() for name in destination.split("|")]
    outputs = [(names[0], "b32", "t.out[0]")]
    if len(names) > 1:
        outputs.append((names[1], "pred", "t.out[1] != 0"))
    values = [translator.read(operand, "b32") for operand in inputs]
    mask = translator.read(mask, "u32")
    return collective(translator, instruction, values, mask, kind, f"shuffle<{kind}>", outputs)


@emits("vote")
def vote(translator, instruction):
    destination, predicate, mask = instruction.operands
    kind = VOTE[instruction.parts[2]]
    result_type = "b32" if kind == "kVoteBallot" else "pred"
    value = translator.read(predicate, "pred")
    mask = translator.read(mask, "u32")
    outputs = [(destination, result_type, "t.out[0]")]
    return collective(translator, instruction, [value], mask, kind, f"vote<{kind}>", outputs)


@emits("match")
def match(translator, instruction):
    if instruction.parts[1] != "any":
        raise PTXError("match variant")
    destination, a, mask = instruction.operands
    value = translator.read(a, unsigned(instruction.type))
    halves = [f"(u32){value}", f"(u32)((u64){value} >> 32)"]
    outputs = [(destination, "b32", "t.out[0]")]
    mask = translator.read(mask, "u32")
    return collective(translator, instruction, halves, mask, "kMatchAny", "match_any", outputs)


@emits("redux")
def reduce(translator, instruction):
    destination, a, mask = instruction.operands
    operation = REDUCTION.index(instruction.parts[2])
    signed = "true" if instruction.type == "s32" else "false"
    outputs = [(destination, "u32", "t.out[0]")]
    return collective(
        translator,
        instruction,
        [translator.read(a, "u32")],
        translator.read(mask, "u32"),
        f"kReduce + {operation}",
        f"reduce<{operation}, {signed}>",
        outputs,
    )


@emits("elect")
def elect(translator, instruction):
    """The elected lane is the lowest one: a minimum over the lane numbers."""
    destination, mask = instruction.operands
    lane, is_elected = (name.strip() for name in destination.split("|"))
    outputs = [(lane, "u32", "t.out[0]"), (is_elected, "pred", "t.out[0] == t.lane")]
    mask = translator.read(mask, "u32")
    function = "reduce<kReduceMin, false>"
    return collective(
        translator, instruction, ["t.lane"], mask, "kReduce + kReduceMin", function, outputs
    )


@emits("activemask")
def active_mask(translator, instruction):
    return translator.write(instruction.operands[0], "u32", "t.warp->alive")


@emits("mma")
def matrix_multiply(translator, instruction):
    shape = next(m for m in instruction.modifiers if re.match(r"^m\d+n\d+k\d+$", m))
    m, n, k = map(int, re.match(r"m(\d+)n(\d+)k(\d+)", shape).groups())
    result_type, a_type, b_type, accumulator_type = instruction.parts[-4:]
    element = MMA_ELEMENT.get(a_type)
    is_row_column = instruction.has("row") and instruction.has("col")
    if (m, n) != (16, 8) or not element or a_type != b_type or not is_row_column:
        raise PTXError("mma variant")
    d, a, b, c = (vector_elements(operand) for operand in instruction.operands)
    flags = ", ".join("true" if t == "f32" else "false" for t in (result_type, accumulator_type))
    inputs = [translator.read(register, "b32") for register in a + b + c]
    outputs = [(register, "b32", f"t.out[{i}]") for i, register in enumerate(d)]
    function = f"mma_m16n8<{element}, {k}, {flags}>"
    return collective(
        translator, instruction, inputs, FULL_MASK, "kMma", function, outputs, aligned=True
    )


@emits("ldmatrix")
def load_matrix(translator, instruction):
    if not instruction.has("m8n8") or instruction.type != "b16":
        raise PTXError("ldmatrix variant")
    count = int(next(m for m in instruction.modifiers if m in ("x1", "x2", "x4"))[1])
    destination, source = instruction.operands
    address = translator.parse_address(source)
    if any(m.startswith("shared") for m in instruction.modifiers):
        offset = translator.address_value(address, 32)
    else:
        offset = f"(u32)({translator.address_value(address, 64)} - (u64)t.shared)"
    transposed = "true" if instruction.has("trans") else "false"
    outputs = [
        (register, "b32", f"t.out[{i}]") for i, register in enumerate(vector_elements(destination))
    ]
    function = f"ldmatrix<{count}, {transposed}>"
    return collective(
        translator, instruction, [offset], FULL_MASK, "kLdmatrix", function, outputs, aligned=True
    )
