"""add, sub, mul, mad, fma, div, rem, min, max, abs, neg and the approximate functions."""

from ..errors import PTXError
from ..ptx_types import (
    CXX_TYPE,
    HALF_TYPES,
    PACKED_HALF_TYPES,
    bit_width,
    is_float,
    is_signed,
    unsigned,
)
from .registry import emits

ROUNDING = {"rn": 0, "rm": 1, "rp": 2, "rz": 3}  # as enum Rounding in runtime/arithmetic.hpp
BINARY_OPERATOR = {"add": "+", "sub": "-", "mul": "*", "div": "/"}

# Halves are computed in float and rounded once; fma in double, which holds the product exactly.
HALF_EXPRESSION = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "fma": "(float)((double){0} * {1} + {2})",
    "min": "float_min<float>({0}, {1})",
    "max": "float_max<float>({0}, {1})",
    "neg": "-({0})",
    "abs": "std::fabs({0})",
}

APPROXIMATION = {
    "rcp": "1.0 / {0}",
    "sqrt": "std::sqrt({0})",
    "rsqrt": "1.0 / std::sqrt({0})",
    "sin": "std::sin({0})",
    "cos": "std::cos({0})",
    "lg2": "std::log2({0})",
    "ex2": "std::exp2({0})",
    "tanh": "std::tanh({0})",
}


def rounding_of(instruction) -> int:
    return next((ROUNDING[m] for m in instruction.modifiers if m in ROUNDING), 0)


def read_flushed(translator, instruction, operand, ptx_type) -> str:
    """Reads an operand, flushing denormals if the instruction has .ftz."""
    value = translator.read(operand, ptx_type)
    return f"flush_denormal({value})" if instruction.has("ftz") and ptx_type == "f32" else value


def write_float(translator, instruction, expression) -> str:
    """Writes a float result with .ftz and .sat applied."""
    if instruction.has("ftz"):
        expression = f"flush_denormal({expression})"
    if instruction.has("sat"):
        expression = f"saturate<{CXX_TYPE[instruction.type]}>({expression})"
    return translator.write(instruction.operands[0], instruction.type, expression)


@emits("add", "sub", "mul", "div", "rem", "mad", "fma", "min", "max", "abs", "neg")
def arithmetic(translator, instruction):
    if instruction.has("cc"):
        return add_with_carry(translator, instruction)
    if instruction.type in PACKED_HALF_TYPES:
        return _packed_half(translator, instruction)
    if instruction.type in HALF_TYPES:
        return _half(translator, instruction)
    if is_float(instruction.type):
        return _float(translator, instruction)
    return _integer(translator, instruction)


@emits("addc", "subc")
def add_with_carry(translator, instruction):
    """The .cc forms set the carry; addc and subc use it."""
    ptx_type = instruction.type
    word = unsigned(ptx_type)
    destination, a, b = instruction.operands
    operator = "+" if instruction.base.startswith("add") else "-"
    carry_in = f" {operator} carry" if instruction.base.endswith("c") else ""
    left = f"(u128)({word}){translator.read(a, ptx_type)}"
    right = f"(u128)({word}){translator.read(b, ptx_type)}"
    result = translator.write(destination, ptx_type, f"({word})wide")
    carry_out = f" carry = (wide >> {bit_width(ptx_type)}) & 1;" if instruction.has("cc") else ""
    return f"{{ const u128 wide = {left} {operator} {right}{carry_in}; {result}{carry_out} }}"


def _packed_half(translator, instruction):
    element = instruction.type[:-2]
    cxx_type = CXX_TYPE[element]

    def half(index):
        shift = 16 * index
        operands = [
            f"(float)bits_as<{cxx_type}>((u16)({translator.read(operand, 'b32')} >> {shift}))"
            for operand in instruction.operands[1:]
        ]
        expression = HALF_EXPRESSION[instruction.base].format(*operands)
        return f"(u32)bits_as<u16>(({cxx_type})({expression}))"

    return translator.write(instruction.operands[0], "b32", f"{half(0)} | {half(1)} << 16")


def _half(translator, instruction):
    operands = [f"(float){translator.read(o, instruction.type)}" for o in instruction.operands[1:]]
    expression = HALF_EXPRESSION[instruction.base].format(*operands)
    return translator.write(
        instruction.operands[0], instruction.type, f"({CXX_TYPE[instruction.type]})({expression})"
    )


def _float(translator, instruction):
    ptx_type = instruction.type
    cxx_type = CXX_TYPE[ptx_type]
    base = "fma" if instruction.base == "mad" else instruction.base
    operands = [
        read_flushed(translator, instruction, o, ptx_type) for o in instruction.operands[1:]
    ]
    rounding = rounding_of(instruction)
    if rounding and base in ("add", "sub", "mul", "div", "fma"):
        if ptx_type != "f32":
            raise PTXError("f64 directed rounding")
        expression = f"rounded_{base}({', '.join(operands)}, {rounding})"
    elif base in BINARY_OPERATOR:
        expression = f"({operands[0]} {BINARY_OPERATOR[base]} {operands[1]})"
    elif base == "fma":
        expression = "std::fma(" + ", ".join(f"({cxx_type}){operand}" for operand in operands) + ")"
    elif base in ("min", "max"):
        expression = f"float_{base}<{cxx_type}>({operands[0]}, {operands[1]})"
        if instruction.has("NaN"):
            nan = "0x7fffffffu" if ptx_type == "f32" else "0x7fffffffffffffffull"
            either_nan = " || ".join(f"({operand}) != ({operand})" for operand in operands)
            expression = f"({either_nan} ? bits_as<{cxx_type}>({nan}) : {expression})"
    elif base == "abs":
        expression = f"std::fabs({operands[0]})"
    elif base == "neg":
        expression = f"(-({operands[0]}))"
    else:
        raise PTXError("float operation")
    return write_float(translator, instruction, expression)


def _integer(translator, instruction):
    ptx_type = instruction.type
    cxx_type = CXX_TYPE[ptx_type]
    base = instruction.base
    destination = instruction.operands[0]
    operands = [translator.read(operand, ptx_type) for operand in instruction.operands[1:]]
    if base in ("mul", "mad"):
        return _integer_multiply(translator, instruction, operands)
    if base == "add" and instruction.has("sat"):
        total = f"(i64){operands[0]} + {operands[1]}"
        expression = f"(i32)std::max<i64>(INT32_MIN, std::min<i64>(INT32_MAX, {total}))"
    elif base in ("add", "sub"):
        expression = f"({cxx_type})({operands[0]} {BINARY_OPERATOR[base]} {operands[1]})"
    elif base in ("div", "rem"):
        expression = f"integer_{base}<{cxx_type}>({operands[0]}, {operands[1]})"
    elif base in ("min", "max"):
        expression = f"std::{base}<{cxx_type}>({operands[0]}, {operands[1]})"
    elif base == "abs":
        expression = f"({cxx_type})({operands[0]} < 0 ? -{operands[0]} : {operands[0]})"
    elif base == "neg":
        expression = f"({cxx_type})(-{operands[0]})"
    else:
        raise PTXError("integer operation")
    return translator.write(destination, ptx_type, expression)


def _integer_multiply(translator, instruction, operands):
    ptx_type = instruction.type
    width = bit_width(ptx_type)
    cxx_type = CXX_TYPE[ptx_type]
    destination = instruction.operands[0]
    wide_cxx_type = f"{'i' if is_signed(ptx_type) else 'u'}{2 * width}"
    product = f"(({wide_cxx_type}){operands[0]} * ({wide_cxx_type}){operands[1]})"
    if instruction.has("wide"):
        wide_type = f"{'s' if is_signed(ptx_type) else 'u'}{2 * width}"
        if instruction.base == "mad":
            product += f" + {translator.read(instruction.operands[3], wide_type)}"
        return translator.write(destination, wide_type, product)
    if instruction.has("hi"):
        expression = f"({cxx_type})({product} >> {width})"
    else:
        expression = f"({cxx_type})({operands[0]} * {operands[1]})"
    if instruction.base == "mad":
        expression += f" + {operands[2]}"
    return translator.write(destination, ptx_type, expression)


@emits("mul24", "mad24")
def multiply24(translator, instruction):
    ptx_type = instruction.type
    operands = [translator.read(operand, ptx_type) for operand in instruction.operands[1:]]

    def low24(value):
        if ptx_type == "s32":
            return f"((i64)((i32)({value} << 8) >> 8))"
        return f"((u64)({value} & 0xffffff))"

    product = f"({low24(operands[0])} * {low24(operands[1])})"
    if instruction.has("hi"):
        product = f"({product} >> 16)"
    expression = f"({CXX_TYPE[ptx_type]}){product}"
    if instruction.base == "mad24":
        expression += f" + {operands[2]}"
    return translator.write(instruction.operands[0], ptx_type, expression)


@emits("sad")
def sum_of_absolute_difference(translator, instruction):
    a, b, c = (translator.read(operand, instruction.type) for operand in instruction.operands[1:])
    expression = f"{c} + ({a} < {b} ? {b} - {a} : {a} - {b})"
    return translator.write(instruction.operands[0], instruction.type, expression)


@emits("dp4a")
def dot_product_4_bytes(translator, instruction):
    a_type, b_type = instruction.parts[-2:]
    destination, a, b, c = instruction.operands

    def byte(operand, ptx_type, index):
        narrow = "i8" if ptx_type == "s32" else "u8"
        return f"(i32)({narrow})({translator.read(operand, 'u32')} >> {8 * index})"

    terms = [f"(u32)({byte(a, a_type, i)} * {byte(b, b_type, i)})" for i in range(4)]
    return translator.write(destination, "u32", " + ".join([translator.read(c, "u32"), *terms]))


@emits("rcp", "sqrt", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh")
def special_function(translator, instruction):
    """Approximations are computed in double and rounded, which is more exact than the hardware."""
    ptx_type = instruction.type
    operand = read_flushed(translator, instruction, instruction.operands[1], ptx_type)
    directed = rounding_of(instruction) if ptx_type == "f32" else 0
    if instruction.base == "sqrt" and not instruction.has("approx"):
        exact = (
            f"rounded_sqrt({operand}, {operand}, {directed})"
            if directed
            else f"std::sqrt({operand})"
        )
        return write_float(translator, instruction, exact)
    if instruction.base == "rcp" and not instruction.has("approx"):
        quotient = f"({CXX_TYPE[ptx_type]})(1 / {operand})"
        exact = f"rounded_div(1.f, {operand}, {directed})" if directed else quotient
        return write_float(translator, instruction, exact)
    value = APPROXIMATION[instruction.base].format(f"(double)({operand})")
    return write_float(translator, instruction, f"({CXX_TYPE[ptx_type]})({value})")


@emits("copysign")
def copysign(translator, instruction):
    destination, sign, magnitude = instruction.operands
    ptx_type = instruction.type
    expression = (
        f"std::copysign({translator.read(magnitude, ptx_type)}, {translator.read(sign, ptx_type)})"
    )
    return translator.write(destination, ptx_type, expression)
