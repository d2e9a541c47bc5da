"""cvt, with its rounding modes and saturation."""

from ..errors import PTXError
from ..ptx_types import (
    CXX_TYPE,
    HALF_TYPES,
    PACKED_HALF_TYPES,
    SIZE,
    bit_width,
    is_float,
    is_signed,
)
from .arithmetic import ROUNDING
from .registry import emits

TO_INTEGER_MODES = ("rni", "rzi", "rmi", "rpi")
MODES = (*ROUNDING, *TO_INTEGER_MODES, "rna")


def _mode(instruction) -> str | None:
    return next((m for m in instruction.modifiers if m in MODES), None)


def _rounded_to_integer(value, source_type, mode):
    floating = "double" if source_type == "f64" else "float"
    return f"round_to_integer<{floating}>({value}, {TO_INTEGER_MODES.index(mode)})"


@emits("cvt")
def convert(translator, instruction):
    destination_type, source_type = instruction.parts[-2:]
    if destination_type in PACKED_HALF_TYPES:
        return _pack_halves(translator, instruction, destination_type)
    destination, source = instruction.operands
    if destination_type == "tf32":
        ties_away = "true" if _mode(instruction) == "rna" else "false"
        value = translator.read(source, "f32")
        return translator.write(destination, "b32", f"float_to_tf32({value}, {ties_away})")
    value = translator.read(source, source_type)
    if source_type == "f32" and instruction.has("ftz"):
        value = f"flush_denormal({value})"
    if is_float(source_type) and is_float(destination_type):
        expression = _float_to_float(instruction, value, destination_type, source_type)
    elif is_float(source_type):
        integer = _rounded_to_integer(value, source_type, _mode(instruction))
        expression = f"float_to_integer<{CXX_TYPE[destination_type]}>({integer})"
    elif is_float(destination_type):
        expression = _integer_to_float(instruction, value, destination_type)
    else:
        expression = _integer_to_integer(instruction, value, destination_type)
    return translator.write(destination, destination_type, expression)


def _pack_halves(translator, instruction, destination_type):
    if _mode(instruction) != "rn":
        raise PTXError("cvt mode")
    cxx_type = CXX_TYPE[destination_type[:-2]]
    destination, high, low = instruction.operands

    def half(operand):
        value = translator.read(operand, "f32")
        if instruction.has("relu"):
            value = f"std::fmax({value}, 0.f)"
        return f"(u32)bits_as<u16>(({cxx_type})({value}))"

    return translator.write(destination, "b32", f"{half(low)} | {half(high)} << 16")


def _float_to_float(instruction, value, destination_type, source_type):
    cxx_type = CXX_TYPE[destination_type]
    mode = _mode(instruction)
    if mode in TO_INTEGER_MODES:
        expression = f"({cxx_type}){_rounded_to_integer(value, source_type, mode)}"
    elif mode in ("rz", "rm", "rp") and SIZE[destination_type] < SIZE[source_type]:
        raise PTXError("cvt mode")
    elif destination_type in HALF_TYPES or source_type in HALF_TYPES:
        expression = f"({cxx_type})(float)({value})"
    else:
        expression = f"({cxx_type})({value})"
    if instruction.has("sat"):
        expression = f"saturate<{cxx_type}>({expression})"
    if destination_type == "f32" and instruction.has("ftz"):
        expression = f"flush_denormal({expression})"
    return expression


def _integer_to_float(instruction, value, destination_type):
    mode = _mode(instruction)
    if mode not in (None, "rn"):
        if destination_type != "f32":
            raise PTXError("cvt mode")
        return f"integer_to_float((i64){value}, {ROUNDING[mode]})"
    through_float = "(float)" if destination_type in HALF_TYPES else ""
    return f"({CXX_TYPE[destination_type]}){through_float}({value})"


def _integer_to_integer(instruction, value, destination_type):
    cxx_type = CXX_TYPE[destination_type]
    if not instruction.has("sat"):
        return f"({cxx_type})({value})"
    width = bit_width(destination_type)
    low, high = 0, (1 << width) - 1
    if is_signed(destination_type):
        low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
    high_literal = f"{high}{'ull' if high > 2**62 else 'll'}"
    clamped = f"std::max<i128>((i128){low}ll, std::min<i128>((i128){high_literal}, (i128){value}))"
    return f"({cxx_type}){clamped}"
