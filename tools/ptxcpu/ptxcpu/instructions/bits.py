"""Logic, shifts, bit fields and permutations."""

from ..errors import PTXError
from ..ptx_types import CXX_TYPE, SIZE, bit_width, is_signed, unsigned
from .registry import emits


def boolean(condition) -> str:
    return "true" if condition else "false"


@emits("and", "or", "xor")
def logic(translator, instruction):
    operator = {"and": "&", "or": "|", "xor": "^"}[instruction.base]
    destination, a, b = instruction.operands
    ptx_type = instruction.type
    left, right = translator.read(a, ptx_type), translator.read(b, ptx_type)
    return translator.write(
        destination, ptx_type, f"({CXX_TYPE[ptx_type]})({left} {operator} {right})"
    )


@emits("not")
def bitwise_not(translator, instruction):
    destination, a = instruction.operands
    ptx_type = instruction.type
    value = translator.read(a, ptx_type)
    expression = f"!{value}" if ptx_type == "pred" else f"({CXX_TYPE[ptx_type]})~{value}"
    return translator.write(destination, ptx_type, expression)


@emits("cnot")
def logical_not(translator, instruction):
    destination, a = instruction.operands
    return translator.write(
        destination, instruction.type, f"{translator.read(a, instruction.type)} == 0"
    )


@emits("shl", "shr")
def shift(translator, instruction):
    destination, a, count = instruction.operands
    ptx_type = instruction.type
    function = "shift_left" if instruction.base == "shl" else "shift_right"
    arguments = f"{translator.read(a, ptx_type)}, {translator.read(count, 'u32')}"
    return translator.write(destination, ptx_type, f"{function}<{CXX_TYPE[ptx_type]}>({arguments})")


@emits("shf")
def funnel_shift(translator, instruction):
    destination, a, b, count = instruction.operands
    ptx_type = instruction.type
    values = f"{translator.read(a, ptx_type)}, {translator.read(b, ptx_type)}"
    mode = f"{boolean(instruction.has('l'))}, {boolean(instruction.has('clamp'))}"
    expression = f"funnel_shift({values}, {translator.read(count, 'u32')}, {mode})"
    return translator.write(destination, ptx_type, expression)


@emits("lop3")
def logic3(translator, instruction):
    if instruction.has("or") or instruction.has("and"):
        raise PTXError("lop3 with predicate")
    destination, a, b, c, table = instruction.operands
    ptx_type = instruction.type
    values = ", ".join(translator.read(operand, ptx_type) for operand in (a, b, c))
    return translator.write(
        destination, ptx_type, f"logic3({values}, {translator.read(table, 'u32')})"
    )


@emits("prmt")
def permute(translator, instruction):
    if len(instruction.parts) != 2:
        raise PTXError("prmt mode")
    destination, a, b, selector = instruction.operands
    ptx_type = instruction.type
    values = f"{translator.read(a, ptx_type)}, {translator.read(b, ptx_type)}"
    expression = f"permute_bytes({values}, {translator.read(selector, 'u32')})"
    return translator.write(destination, ptx_type, expression)


@emits("bfi")
def bit_field_insert(translator, instruction):
    destination, a, b, position, length = instruction.operands
    ptx_type = instruction.type
    values = f"{translator.read(a, ptx_type)}, {translator.read(b, ptx_type)}"
    field = f"{translator.read(position, 'u32')}, {translator.read(length, 'u32')}"
    return translator.write(
        destination, ptx_type, f"insert_bits<{CXX_TYPE[ptx_type]}>({values}, {field})"
    )


@emits("bfe")
def bit_field_extract(translator, instruction):
    destination, a, position, length = instruction.operands
    ptx_type = instruction.type
    field = f"{translator.read(position, 'u32')}, {translator.read(length, 'u32')}"
    types = f"{CXX_TYPE[ptx_type]}, {unsigned(ptx_type)}"
    expression = f"extract_bits<{types}>({translator.read(a, ptx_type)}, {field})"
    return translator.write(destination, ptx_type, expression)


@emits("brev")
def bit_reverse(translator, instruction):
    destination, a = instruction.operands
    ptx_type = instruction.type
    value = translator.read(a, ptx_type)
    return translator.write(destination, ptx_type, f"reverse_bits<{CXX_TYPE[ptx_type]}>({value})")


@emits("clz")
def count_leading_zeros(translator, instruction):
    destination, a = instruction.operands
    width = bit_width(instruction.type)
    value = translator.read(a, unsigned(instruction.type))
    unused = " - 32" if SIZE[instruction.type] == 4 else ""
    expression = f"({value} ? __builtin_clzll((u64){value}){unused} : {width})"
    return translator.write(destination, "u32", expression)


@emits("popc")
def population_count(translator, instruction):
    destination, a = instruction.operands
    value = translator.read(a, unsigned(instruction.type))
    return translator.write(destination, "u32", f"__builtin_popcountll((u64){value})")


@emits("bfind")
def find_leading_bit(translator, instruction):
    destination, a = instruction.operands
    width = bit_width(instruction.type)
    value = translator.read(a, unsigned(instruction.type))
    found = f"find_leading_bit((u64){value}, {boolean(is_signed(instruction.type))}, {width})"
    if instruction.has("shiftamt"):
        found = f"({found} == 0xffffffffu ? 0xffffffffu : {width - 1}u - {found})"
    return translator.write(destination, "u32", found)
