"""PTX types: their size, the C++ type that computes with them and the C++ type of a register."""

CXX_TYPE = {
    "pred": "bool",
    "u8": "u8",
    "s8": "i8",
    "b8": "u8",
    "u16": "u16",
    "s16": "i16",
    "b16": "u16",
    "f16": "f16",
    "bf16": "bf16",
    "u32": "u32",
    "s32": "i32",
    "b32": "u32",
    "f16x2": "u32",
    "bf16x2": "u32",
    "tf32": "u32",
    "f32": "float",
    "u64": "u64",
    "s64": "i64",
    "b64": "u64",
    "f64": "double",
}

SIZE = {
    "pred": 1,
    "u8": 1,
    "s8": 1,
    "b8": 1,
    "u16": 2,
    "s16": 2,
    "b16": 2,
    "f16": 2,
    "bf16": 2,
    "u32": 4,
    "s32": 4,
    "b32": 4,
    "f16x2": 4,
    "bf16x2": 4,
    "tf32": 4,
    "f32": 4,
    "u64": 8,
    "s64": 8,
    "b64": 8,
    "f64": 8,
}

# Registers are untyped bits in PTX, apart from floats and predicates; 8-bit values live in 16-bit
# registers.
REGISTER_TYPE = {
    "pred": "bool",
    "b8": "u16",
    "u8": "u16",
    "s8": "u16",
    "b16": "u16",
    "u16": "u16",
    "s16": "u16",
    "f16": "u16",
    "bf16": "u16",
    "b32": "u32",
    "u32": "u32",
    "s32": "u32",
    "f16x2": "u32",
    "f32": "float",
    "b64": "u64",
    "u64": "u64",
    "s64": "u64",
    "f64": "double",
}

FLOAT_TYPES = ("f32", "f64", "f16", "bf16")
HALF_TYPES = ("f16", "bf16")
PACKED_HALF_TYPES = ("f16x2", "bf16x2")


def is_float(ptx_type: str) -> bool:
    return ptx_type in FLOAT_TYPES


def is_signed(ptx_type: str) -> bool:
    return ptx_type.startswith("s")


def bit_width(ptx_type: str) -> int:
    return 8 * SIZE[ptx_type]


def unsigned(ptx_type: str) -> str:
    """The unsigned integer type of the same size."""
    return f"u{bit_width(ptx_type)}"
