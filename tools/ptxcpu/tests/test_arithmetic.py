"""Instructions one by one: against the host compiler's code, Python integers and NumPy."""

import ctypes
import math
import subprocess

import numpy as np
import pytest
from conftest import KERNELS, compile_kernel

COUNT = 4096
HOST_COLUMNS = 60  # NF in alu_operations.h
INTRINSIC_COLUMNS = 40


def integers(rng):
    values = rng.integers(0, 2**32, COUNT, dtype=np.uint32)
    values[::3] >>= rng.integers(0, 32, len(values[::3]), dtype=np.uint32)  # all magnitudes
    values[:8] = [0, 1, 2**31, 2**31 - 1, 2**32 - 1, 255, 128, 32768]
    rng.shuffle(values)
    return values


def floats(rng, dtype):
    values = (rng.standard_normal(COUNT) * 10.0 ** rng.integers(-8, 9, COUNT)).astype(dtype)
    values[::4] = rng.integers(-40, 40, len(values[::4])) / 4  # ties for the rounding modes
    values[:10] = [0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-42, 1, 0.5, -2.5]
    rng.shuffle(values)
    return values


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(5)
    return [
        *(integers(rng) for _ in range(3)),
        *(floats(rng, np.float32) for _ in range(3)),
        *(floats(rng, np.float64) for _ in range(2)),
    ]


@pytest.fixture(scope="module")
def host_results(inputs, tmp_path_factory):
    library = tmp_path_factory.mktemp("alu") / "host.so"
    flags = ["-O2", "-fwrapv", "-ffp-contract=off", "-march=native", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, "-o", library, KERNELS / "alu_host.cpp"], check=True)
    out = np.zeros((COUNT, HOST_COLUMNS), np.uint64)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*inputs, out)]
    ctypes.CDLL(str(library)).host(*pointers, ctypes.c_int(COUNT))
    return out


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
def test_same_bits_as_the_host_compiler(arch, inputs, host_results):
    out = np.zeros((COUNT, HOST_COLUMNS), np.uint64)
    compile_kernel("alu", arch).launch("k", COUNT // 128, 128, [*inputs, out, COUNT])
    different = np.flatnonzero((out != host_results).any(axis=0))
    assert different.size == 0, f"columns {different}"


@pytest.fixture(scope="module")
def intrinsics(inputs):
    """Results of kernel `intr`, one column each, with its inputs; z is clipped for exp and tanh."""
    a, b, c, x, y, z, _, _ = inputs
    z = np.clip(z, -20, 20)
    out = np.zeros((COUNT, INTRINSIC_COLUMNS), np.uint32)
    compile_kernel("alu", "sm_90").launch("intr", COUNT // 128, 128, [a, b, c, x, y, z, out, COUNT])
    return np.ascontiguousarray(out.T), (a, b, c, x, y, z)


def signed(value):
    return value - (1 << 32) if value >> 31 else value


def permute_bytes(a, b, selector):
    word = a | b << 32
    return sum(((word >> (8 * (selector >> (4 * i) & 7))) & 255) << (8 * i) for i in range(4))


def dot_4_bytes(a, b, c):
    def byte(value, i):
        return ((value >> (8 * i) & 255) ^ 128) - 128

    return c + sum(byte(a, i) * byte(b, i) for i in range(4))


INTEGER_COLUMNS = {
    0: lambda a, b, c: a.bit_count(),
    1: lambda a, b, c: 32 - a.bit_length(),
    2: lambda a, b, c: (a & -a).bit_length(),
    3: lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    4: lambda a, b, c: permute_bytes(a, b, c & 0x7777),
    5: lambda a, b, c: ((b << 32 | a) << (c & 31)) >> 32,
    6: lambda a, b, c: (b << 32 | a) >> (c & 31),
    7: lambda a, b, c: (a * b) >> 32,
    8: lambda a, b, c: (signed(a) * signed(b)) >> 32,
    21: dot_4_bytes,
    32: lambda a, b, c: abs(a - b) + c,
    33: lambda a, b, c: (a << 32 | b).bit_count(),
    34: lambda a, b, c: 64 - (a << 32 | b).bit_length(),
}


@pytest.mark.parametrize("column", INTEGER_COLUMNS)
def test_integer_intrinsics(column, intrinsics):
    results, (a, b, c, *_) = intrinsics
    rows = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    expected = [INTEGER_COLUMNS[column](*row) & 0xFFFFFFFF for row in rows]
    np.testing.assert_array_equal(results[column], np.array(expected, np.uint32))


INT32 = (-(2**31), 2**31 - 1)


@pytest.mark.parametrize(
    "column, rounding, limits",
    [
        (9, np.floor, INT32),
        (10, np.ceil, INT32),
        (11, np.rint, INT32),
        (12, np.trunc, INT32),
        (13, np.trunc, (0, 2**32 - 1)),
    ],
)
def test_float_to_integer(column, rounding, limits, intrinsics):
    results, (_, _, _, x, *_) = intrinsics
    values = np.nan_to_num(rounding(x.astype(float)), nan=0, posinf=limits[1], neginf=limits[0])
    expected = np.clip(values, *limits).astype(np.int64).astype(np.uint32)
    np.testing.assert_array_equal(results[column], expected)


def round_directed(exact, direction):
    """float32 nearest to `exact` (long double) on the given side of it."""
    nearest = exact.astype(np.float32)
    rounded = nearest.astype(np.longdouble)
    if direction == "down":
        return np.where(rounded > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    if direction == "up":
        return np.where(rounded < exact, np.nextafter(nearest, np.float32(np.inf)), nearest)
    return np.where(np.abs(rounded) > np.abs(exact), np.nextafter(nearest, np.float32(0)), nearest)


def test_directed_rounding(intrinsics):
    results, (_, _, _, x, y, z) = intrinsics
    with np.errstate(all="ignore"):
        wide_x, wide_y, wide_z = (v.astype(np.longdouble) for v in (x, y, z))
        cases = {
            14: (wide_x + wide_y, "down"),
            15: (wide_x * wide_y, "up"),
            16: (wide_x * wide_y + wide_z, "zero"),
        }
        for column, (exact, direction) in cases.items():
            expected = round_directed(exact, direction)
            got = results[column].view(np.float32)
            usable = np.isfinite(x) & np.isfinite(y) & np.isfinite(z) & (np.abs(expected) < 3e38)
            # A denormal added to a normal number is lost in the 64 bits of the long double.
            tiny = np.minimum.reduce([np.abs(x), np.abs(y), np.abs(z)]) < 1e-37
            usable &= ~tiny
            np.testing.assert_array_equal(got[usable], expected[usable])


def test_half_formats_and_saturation(intrinsics):
    results, (a, _, _, x, y, _) = intrinsics
    with np.errstate(all="ignore"):
        saturated = np.where(np.isnan(x), 0, np.clip(x, 0, 1)).astype(np.float32)
        np.testing.assert_array_equal(results[17].view(np.float32), saturated)
        np.testing.assert_array_equal(
            results[18].astype(np.uint16).view(np.float16), x.astype(np.float16)
        )
        halves = (a & 0xFFFF).astype(np.uint16).view(np.float16)
        np.testing.assert_array_equal(results[19].view(np.float32), halves.astype(np.float32))
        bits = x.view(np.uint32).astype(np.uint64)
        bfloat = np.where(np.isnan(x), 0x7FFF, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
        np.testing.assert_array_equal(results[20], bfloat.astype(np.uint32))
        np.testing.assert_array_equal(results[22].view(np.float32), np.fmin(x, y))
        np.testing.assert_array_equal(results[23].view(np.float32), np.fmax(x, y))


MATH_FUNCTIONS = {  # column: (exact function of x, y, z; allowed error in units of the last place)
    24: (lambda x, y, z: np.exp(z), 2),
    25: (lambda x, y, z: np.log(np.abs(x)), 2),
    26: (lambda x, y, z: np.sin(x), 2),
    27: (lambda x, y, z: np.tanh(z), 2),
    28: (lambda x, y, z: np.abs(z) ** np.where(y > 0, 1.5, float(np.float32(-0.7))), 2),
    29: (lambda x, y, z: np.exp(z), 20),
    30: (lambda x, y, z: 1 / np.sqrt(np.abs(z)), 1),
    31: (lambda x, y, z: np.array([math.erf(v) for v in z]), 2),
}


@pytest.mark.parametrize("column", MATH_FUNCTIONS)
def test_math_functions(column, intrinsics):
    results, (_, _, _, x, y, z) = intrinsics
    function, allowed = MATH_FUNCTIONS[column]
    with np.errstate(all="ignore"):
        exact = function(x.astype(float), y, z.astype(float))
        expected = exact.astype(np.float32)
        got = results[column].view(np.float32)
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
        normal = np.isfinite(expected) & (np.abs(expected) > 1e-37)
        error = np.abs(got[normal].astype(float) - exact[normal]) / np.spacing(
            np.abs(expected[normal])
        )
    assert error.max() < allowed


def test_warp_instructions(rng):
    v = rng.integers(0, 2**20, 32, dtype=np.uint32)
    out = np.zeros((32, 16), np.uint32)
    compile_kernel("alu", "sm_90").launch("warp", 1, 32, [v, out])
    lane = np.arange(32)

    def shifted(source, in_range):
        return np.where(in_range, v[np.clip(source, 0, 31)], v)

    def everywhere(value):
        return np.full(32, value)

    expected = [
        v[(lane * 7 + 3) & 31],
        shifted(lane - 3, lane >= 3),
        shifted(lane + 5, lane + 5 < 32),
        v[lane ^ 9],
        v[(lane & ~7) + 5],
        shifted(lane - 2, (lane & 7) >= 2),
        shifted(lane + 2, (lane & 7) + 2 < 8),
        v[lane ^ 1],
        everywhere(sum(int(v[i] & 1) << i for i in range(32))),
        everywhere(1),
        everywhere(int((v != 0).all())),
        np.array([sum(1 << j for j in range(32) if v[j] & 3 == v[i] & 3) for i in range(32)]),
        everywhere(int(v.sum(dtype=np.uint64)) & 0xFFFFFFFF),
        everywhere(v.max()),
        np.where(lane < 16, v[lane ^ 1], sum(int((v[i] >> 1) & 1) << i for i in range(16, 32))),
        everywhere(int((v & 1).sum()) + 1100),
    ]
    np.testing.assert_array_equal(out, np.array(expected).T.astype(np.uint32))
