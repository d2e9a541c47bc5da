"""Which entry of its matrix each register of each lane holds, for mma.sync and ldmatrix.

The expected positions are the formulas of the PTX ISA, chapter "Warp Level Matrix Instructions":
sections "Matrix Fragments for mma.m16n8k4", "... mma.m16n8k8" and "... mma.m16n8k16 with floating
point type", and section "ldmatrix". There, groupID is laneid / 4, threadID_in_group is laneid % 4,
and i numbers the elements of a fragment; a 32-bit register holds one tf32 or two f16 or bf16.

One entry at a time is one and the others zero, so a product shows where that entry is. What no
program can see is not tested: an order of k that A and B share.
"""

import numpy as np
import pytest
from conftest import Module

# (row, column) of element i; g is groupID and t is threadID_in_group.
ACCUMULATOR = (4, lambda g, t, i: (g if i < 2 else g + 8, 2 * t + (i & 1)))

# (shape, type): (K, A, B), where A and B are (elements in a fragment, position).
FRAGMENTS = {
    ("m16n8k4", "tf32"): (
        4,
        (2, lambda g, t, i: (g if i == 0 else g + 8, t)),
        (1, lambda g, t, i: (t, g)),
    ),
    ("m16n8k8", "tf32"): (
        8,
        (4, lambda g, t, i: (g if i in (0, 2) else g + 8, t if i in (0, 1) else t + 4)),
        (2, lambda g, t, i: (t if i == 0 else t + 4, g)),
    ),
    ("m16n8k8", "f16"): (
        8,
        (4, lambda g, t, i: (g if i in (0, 1) else g + 8, 2 * t + (i & 1))),
        (2, lambda g, t, i: (2 * t + (i & 1), g)),
    ),
    ("m16n8k16", "f16"): (
        16,
        (
            8,
            lambda g, t, i: (
                g if i in (0, 1, 4, 5) else g + 8,
                2 * t + (i & 1) + (0 if i < 4 else 8),
            ),
        ),
        (4, lambda g, t, i: (2 * t + (i & 1) + (0 if i < 2 else 8), g)),
    ),
}
for shape in ("m16n8k8", "m16n8k16"):
    FRAGMENTS[shape, "bf16"] = FRAGMENTS[shape, "f16"]

# The same layouts in CuTe (CUTLASS, mma_traits_sm80.hpp): (shape, stride) pairs of the thread and
# the value index; the first mode varies fastest, and matrices are column-major.
CUTE_ACCUMULATOR = ([(4, 32), (8, 1)], [(2, 16), (2, 8)])
CUTE_A_16_BY_16 = ([(4, 32), (8, 1)], [(2, 16), (2, 8), (2, 128)])
CUTE_B_8_BY_16 = ([(4, 16), (8, 1)], [(2, 8), (2, 64)])
CUTE = {
    ("m16n8k4", "tf32"): (([(4, 16), (8, 1)], [(2, 8)]), ([(4, 8), (8, 1)], [(1, 0)])),
    ("m16n8k8", "tf32"): (([(4, 16), (8, 1)], [(2, 8), (2, 64)]), ([(4, 8), (8, 1)], [(2, 32)])),
    ("m16n8k8", "f16"): (CUTE_ACCUMULATOR, ([(4, 16), (8, 1)], [(2, 8)])),
    ("m16n8k16", "f16"): (CUTE_A_16_BY_16, CUTE_B_8_BY_16),
}

ENCODE = {  # to the bits of one element
    "tf32": lambda x: x.astype(np.float32).view(np.uint32),
    "f32": lambda x: x.astype(np.float32).view(np.uint32),
    "f16": lambda x: x.astype(np.float16).view(np.uint16).astype(np.uint32),
    "bf16": lambda x: x.astype(np.float32).view(np.uint32) >> 16,
}


def positions(fragment):
    """[lane, element] -> row, and the same for the column."""
    elements, position = fragment
    table = [[position(lane // 4, lane % 4, i) for i in range(elements)] for lane in range(32)]
    rows, columns = np.moveaxis(np.array(table), 2, 0)
    return rows, columns


def cute_positions(layout):
    """[lane, element] -> position in the column-major matrix."""
    thread_modes, value_modes = layout
    values = int(np.prod([shape for shape, _ in value_modes]))
    indices = np.zeros((32, values), int)
    for lane in range(32):
        for value in range(values):
            for coordinate, modes in ((lane, thread_modes), (value, value_modes)):
                for shape, stride in modes:
                    indices[lane, value] += coordinate % shape * stride
                    coordinate //= shape
    return indices


def pack(elements, ptx_type):
    """Elements [..., lane, element] to registers [..., lane, register]."""
    bits = ENCODE[ptx_type](elements)
    if ptx_type in ("tf32", "f32"):
        return np.ascontiguousarray(bits)
    return np.ascontiguousarray(bits[..., 0::2] | bits[..., 1::2] << 16)


def unpack(registers, ptx_type):
    """Registers of an accumulator, [..., lane, register], to elements [..., lane, element]."""
    if ptx_type == "f32":
        return registers.view(np.float32)
    return registers.view(np.float16).astype(np.float32)


def kernel_source(shape, ptx_type, accumulator, registers):
    """Every block multiplies fragments of its own."""

    def placeholders(first, count):
        return "{" + ",".join(f"%{first + i}" for i in range(count)) + "}"

    def elements(name, text):
        return [text.format(name=name, i=i, n=registers[name]) for i in range(registers[name])]

    a, b, d = registers["a"], registers["b"], registers["d"]
    operands = [placeholders(0, d), placeholders(d, a), placeholders(d + a, b), placeholders(0, d)]
    load = "unsigned {name}{i} = {name}[lane * {n} + {i}];"
    loads = "\n    ".join(line for name in "abd" for line in elements(name, load))
    inputs = elements("a", '"r"(a{i})') + elements("b", '"r"(b{i})')
    return f"""
extern "C" __global__ void multiply(const unsigned* a, const unsigned* b, unsigned* d) {{
    const int lane = blockIdx.x * 32 + threadIdx.x;
    {loads}
    asm volatile(
        "mma.sync.aligned.{shape}.row.col.{accumulator}.{ptx_type}.{ptx_type}.{accumulator} "
        "{", ".join(operands)};"
        : {", ".join(elements("d", '"+r"(d{i})'))}
        : {", ".join(inputs)});
    {" ".join(elements("d", "d[lane * {n} + {i}] = d{i};"))}
}}
"""


VARIANTS = [(*variant, "f32") for variant in FRAGMENTS]
VARIANTS += [(*variant, "f16") for variant in FRAGMENTS if variant[1] == "f16"]


@pytest.fixture(params=VARIANTS, ids="-".join, scope="module")
def variant(request, tmp_path_factory):
    """The K and the fragments of A and B, and a function that multiplies batches of fragments."""
    shape, ptx_type, accumulator = request.param
    k, a_fragment, b_fragment = FRAGMENTS[shape, ptx_type]
    per_register = 1 if ptx_type == "tf32" else 2
    registers = {
        "a": a_fragment[0] // per_register,
        "b": b_fragment[0] // per_register,
        "d": 4 if accumulator == "f32" else 2,
    }
    source = tmp_path_factory.mktemp("mma") / "multiply.cu"
    source.write_text(kernel_source(shape, ptx_type, accumulator, registers))
    module = Module.from_cu(source)

    def multiply(a, b, c):
        """Elements [batch, lane, element] of A, B and C to those of D."""
        batch = max(len(a), len(b), len(c))
        a, b, c = (
            np.ascontiguousarray(np.broadcast_to(x, (batch, *x.shape[1:]))) for x in (a, b, c)
        )
        d = pack(c, accumulator)
        module.launch("multiply", batch, 32, [pack(a, ptx_type), pack(b, ptx_type), d])
        return unpack(d, accumulator)

    return k, a_fragment, b_fragment, multiply


def one_at_a_time(fragment):
    """[batch, lane, element]: each entry of the batch has a single one."""
    count = 32 * fragment[0]
    return np.eye(count, dtype=np.float32).reshape(count, 32, fragment[0])


def numbered(rows, columns):
    """A matrix of different integers that every format holds exactly."""
    return np.arange(1, rows * columns + 1, dtype=np.float32).reshape(rows, columns)


def test_a_entries(variant):
    """A one at (m, k) of A copies row k of B to row m of D."""
    k, a_fragment, b_fragment, multiply = variant
    b = numbered(k, 8)
    d = multiply(
        one_at_a_time(a_fragment), b[positions(b_fragment)][None], np.zeros((1, 32, 4), np.float32)
    )
    rows, columns = positions(a_fragment)
    expected = np.zeros((32 * a_fragment[0], 16, 8), np.float32)
    expected[np.arange(len(expected)), rows.ravel()] = b[columns.ravel()]
    d_rows, d_columns = positions(ACCUMULATOR)
    np.testing.assert_array_equal(d, expected[:, d_rows, d_columns])


def test_b_entries(variant):
    """A one at (k, n) of B copies column k of A to column n of D."""
    k, a_fragment, b_fragment, multiply = variant
    a = numbered(16, k)
    d = multiply(
        a[positions(a_fragment)][None], one_at_a_time(b_fragment), np.zeros((1, 32, 4), np.float32)
    )
    rows, columns = positions(b_fragment)
    expected = np.zeros((32 * b_fragment[0], 16, 8), np.float32)
    expected[np.arange(len(expected)), :, columns.ravel()] = a[:, rows.ravel()].T
    d_rows, d_columns = positions(ACCUMULATOR)
    np.testing.assert_array_equal(d, expected[:, d_rows, d_columns])


def test_accumulator_entries(variant):
    """C and D have the same layout; the other two tests say which."""
    _, a_fragment, b_fragment, multiply = variant
    c = one_at_a_time(ACCUMULATOR)
    zeros = [np.zeros((1, 32, count), np.float32) for count, _ in (a_fragment, b_fragment)]
    np.testing.assert_array_equal(multiply(*zeros, c), c)


def test_product_of_full_matrices(variant, rng):
    k, a_fragment, b_fragment, multiply = variant
    a, b, c = (
        rng.integers(-8, 9, extents).astype(np.float32) for extents in ((16, k), (k, 8), (16, 8))
    )
    fragments = zip((a, b, c), (a_fragment, b_fragment, ACCUMULATOR), strict=True)
    d = multiply(*(matrix[positions(fragment)][None] for matrix, fragment in fragments))
    np.testing.assert_array_equal(d[0], (a @ b + c)[positions(ACCUMULATOR)])


@pytest.mark.parametrize("shape, ptx_type", CUTE)
def test_tables_are_those_of_cute(shape, ptx_type):
    _, a_fragment, b_fragment = FRAGMENTS[shape, ptx_type]
    a_layout, b_layout = CUTE[shape, ptx_type]
    rows, columns = positions(a_fragment)
    np.testing.assert_array_equal(rows + 16 * columns, cute_positions(a_layout))
    rows, columns = positions(b_fragment)  # CuTe's B is n by k
    np.testing.assert_array_equal(columns + 8 * rows, cute_positions(b_layout))
    rows, columns = positions(ACCUMULATOR)
    np.testing.assert_array_equal(rows + 16 * columns, cute_positions(CUTE_ACCUMULATOR))


def ldmatrix_source():
    """Kernels load_x1, load_x1_trans, ...: each lane passes the address that it is given."""
    kernels = []
    for count in (1, 2, 4):
        for modifier in ("", ".trans"):
            registers = ", ".join(f"%{i}" for i in range(count))
            results = ", ".join(f'"=r"(r[{i}])' for i in range(count))
            kernels.append(f"""
extern "C" __global__ void load_x{count}{modifier.replace(".", "_")}(
    const unsigned* rows, const unsigned* offsets, unsigned* out) {{
    __shared__ __align__(16) unsigned memory[32 * 4];
    for (int i = 0; i < 4; ++i) memory[threadIdx.x * 4 + i] = rows[threadIdx.x * 4 + i];
    __syncthreads();
    const unsigned base = static_cast<unsigned>(__cvta_generic_to_shared(memory));
    unsigned r[{count}];
    asm volatile(
        "ldmatrix.sync.aligned.m8n8.x{count}{modifier}.shared.b16 {{{registers}}}, [%{count}];"
        : {results} : "r"(base + offsets[threadIdx.x]));
    for (int i = 0; i < {count}; ++i) out[threadIdx.x * {count} + i] = r[i];
}}
""")
    return "".join(kernels)


@pytest.fixture(scope="module", params=["sm_75", "sm_80"])
def ldmatrix(request, tmp_path_factory):
    source = tmp_path_factory.mktemp("ldmatrix") / "load.cu"
    source.write_text(ldmatrix_source())
    return Module.from_cu(source, arch=request.param)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_entries(count, transposed, ldmatrix, rng):
    """Lane 8 i + r gives the address of row r of matrix i. Register i of a lane holds the entries
    (g, 2 t) and (g, 2 t + 1) of matrix i, or of its transpose."""
    entries = np.arange(32 * 8, dtype=np.uint16).reshape(32, 8)  # all different
    place = rng.permutation(32)  # of the row that lane i points to
    out = np.zeros((32, count), np.uint32)
    kernel = f"load_x{count}" + ("_trans" if transposed else "")
    ldmatrix.launch(kernel, 1, 32, [entries.view(np.uint32), (16 * place).astype(np.uint32), out])
    halves = out.view(np.uint16).reshape(32, count, 2)
    for lane in range(32):
        g, t = lane // 4, lane % 4
        for i in range(count):
            matrix = entries[place[8 * i : 8 * i + 8]]
            for half in range(2):
                row, column = (2 * t + half, g) if transposed else (g, 2 * t + half)
                assert halves[lane, i, half] == matrix[row, column], (lane, i, half)
