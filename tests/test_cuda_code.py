"""What nvcc made of the CUDA kernels: registers, spills, the instructions of the main loops.

No GPU is needed, and nothing here proves a speed: these are the conditions without which there is
none, and they fail when a change breaks one (test_a_bad_kernel_fails).
docs/cuda.md has the figures.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import sass
from sass import Instruction, count, covered, functions, main_loop, resources

SPEC = importlib.util.find_spec("pyconv._cuda")
pytestmark = [
    pytest.mark.skipif(SPEC is None, reason="built without CUDA kernels"),
    pytest.mark.skipif(
        sass.tools() is None, reason="no cuobjdump and nvdisasm: pip install 'pyconv[test-cuda]'"
    ),
]
EXTENSION = Path(SPEC.origin) if SPEC is not None and SPEC.origin else Path()
LOOKED_AT = ("75", "80", "90")
architectures = pytest.mark.parametrize("architecture", LOOKED_AT)

REGISTERS = 65536  # of a multiprocessor
# Threads of a block, and the blocks that are to be resident.
GEMM_THREADS, WEIGHTS_THREADS, TF32_THREADS = 128, 96, 128


def built_architectures() -> list[str]:
    from pyconv import _cuda

    return _cuda.architectures()


def slow_instructions(loop: list[Instruction]) -> list[str]:
    """What has no place in a main loop. Calls to the loop's exit are the compiler's own."""
    slow = ("ATOM", "RED.", "REDG", "MUFU", "DFMA", "LDL", "STL")
    return [i.text for i in loop if i.opcode.startswith(slow)]


def scalar_shared_loads(loop: list[Instruction]) -> int:
    return count(loop, "LDS") - wide_shared_loads(loop)


def wide_shared_loads(loop: list[Instruction]) -> int:
    return sum(i.opcode.startswith("LDS") and ".128" in i.opcode for i in loop)


def check_product(
    code: list[Instruction], usage: dict[str, int], share: float, reuse: float, registers: int
) -> list[str]:
    """What is wrong with a float32 matrix product's kernel; nothing, if all is well."""
    wrong = []
    if usage["STACK"] or usage["LOCAL"]:
        wrong.append(f"registers are spilled: {usage}")
    if usage["REG"] > registers:
        wrong.append(f"{usage['REG']} registers, more than {registers}")
    loop = main_loop(code, "FFMA")
    ffma, loads = count(loop, "FFMA"), wide_shared_loads(loop)
    if ffma < share * len(loop):
        wrong.append(f"{ffma} of {len(loop)} instructions multiply, less than {share:.0%}")
    if ffma < reuse * loads:
        wrong.append(f"{ffma} multiply-adds for {loads} reads of shared memory")
    if scalar_shared_loads(loop):
        wrong.append("shared memory is read value by value")
    if slow_instructions(loop):
        wrong.append(f"in the loop: {slow_instructions(loop)}")
    return wrong


def test_the_file_has_code_for_every_architecture_and_ptx():
    def listed(kind: str) -> set[str]:
        return set(re.findall(r"\.sm_(\d+)\.", sass.cuobjdump(kind, EXTENSION)))

    promised = built_architectures()
    assert listed("-lelf") == set(promised)
    assert listed("-lptx") == {promised[-1]}


def test_nothing_is_spilled():
    for architecture in built_architectures():
        spilled = {
            name: usage
            for name, usage in resources(EXTENSION, architecture).items()
            if usage["STACK"] or usage["LOCAL"]
        }
        assert not spilled, f"sm_{architecture}: {spilled}"


@architectures
def test_no_atomics(architecture):
    """Sums have one order."""
    for name, code in functions(EXTENSION, architecture).items():
        assert not count(code, "ATOM", "RED.", "REDG"), name


# Share of multiply-adds, and multiply-adds for a 16-byte read of shared memory, of the kernels with
# tiles of 64 and 32 columns. Gradients that are put together on the way take more instructions. On
# sm_75, where the source comes through registers too, the compiler puts some loads right before
# their use: not held to anything yet.
@architectures
@pytest.mark.parametrize(
    "source", ["Plain, Store", "Plain, Pool", "Masked, Store", "Pooled, Store"]
)
@pytest.mark.parametrize(("columns", "reuse"), [(64, 16), (32, 10)])
def test_gemm(architecture, source, columns, reuse):
    shares = {
        ("Plain", 64): 0.80 if architecture != "75" else 0.77,
        ("Plain", 32): 0.70 if architecture != "75" else 0.67,
        ("Masked", 64): 0.74,
        ("Masked", 32): 0.61,
        ("Pooled", 64): 0.68,
        ("Pooled", 32): 0.52,
    }
    kind = source.partition(",")[0]
    blocks = 3 if kind == "Plain" else 2
    name = f"gemm_kernel<{columns}, {source}>"
    code = functions(EXTENSION, architecture)[name]
    wrong = check_product(
        code,
        resources(EXTENSION, architecture)[name],
        shares[kind, columns],
        reuse,
        min(255, REGISTERS // (GEMM_THREADS * blocks) // 8 * 8),
    )
    assert not wrong, f"sm_{architecture} {name}: {wrong}"
    loop = main_loop(code, "FFMA")
    if architecture != "75":
        assert any("LDGSTS" in i.opcode and ".128" in i.opcode for i in loop)
        assert covered(loop, "FFMA") >= 128, "the latency of loads is exposed"


@architectures
@pytest.mark.parametrize("source", ["Plain", "Masked", "Pooled"])
@pytest.mark.parametrize(("columns", "share", "reuse"), [(64, 0.70, 16), (32, 0.60, 10)])
def test_weight_gradient(architecture, source, columns, share, reuse):
    name = f"weights_kernel<{columns}, {source}>"
    code = functions(EXTENSION, architecture)[name]
    wrong = check_product(
        code,
        resources(EXTENSION, architecture)[name],
        share,
        reuse,
        REGISTERS // (WEIGHTS_THREADS * (4 if source == "Plain" else 3)) // 8 * 8,
    )
    assert not wrong, f"sm_{architecture} {name}: {wrong}"
    if architecture != "75":
        assert covered(main_loop(code, "FFMA"), "FFMA") >= 128, "the latency of loads is exposed"


@pytest.mark.parametrize(("architecture", "most"), [("80", 7.5), ("90", 4.5)])
@pytest.mark.parametrize(
    "source", ["Plain, Store", "Plain, Pool", "Masked, Store", "Pooled, Store"]
)
def test_tensor_cores(architecture, most, source):
    """Every tap of the 3x3 kernel is one product a fragment, read by ldmatrix; no rounding in the
    loop but on the way into shared memory."""
    for columns, limit in ((64, most), (32, 7.5)):
        name = f"tf32_kernel<{columns}, {source}>"
        loop = main_loop(functions(EXTENSION, architecture)[name], "HMMA")
        products = count(loop, "HMMA.1688.F32.TF32")
        assert products == 2 * columns // 8 * 9 == count(loop, "HMMA")
        assert len(loop) <= limit * products, f"{len(loop)} instructions for {products}"
        assert count(loop, "LDS.") == 0, "operands are read by ldmatrix only"
        assert not slow_instructions(loop)
        assert resources(EXTENSION, architecture)[name]["REG"] <= REGISTERS // (TF32_THREADS * 2)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_a_bad_kernel_fails(tmp_path):
    """The checks can fail: each finds what was planted for it."""
    cubin = tmp_path / "bad.cubin"
    source = Path(__file__).parent / "cuda" / "bad_gemm.cu"
    subprocess.run(["nvcc", "-O3", "-arch=sm_90", "-cubin", "-o", cubin, source], check=True)
    code = functions(cubin, "90")["bad_gemm"]
    assert count(code, "ATOM", "RED.", "REDG")
    wrong = " ".join(check_product(code, resources(cubin, "90")["bad_gemm"], 0.8, 16, 8))
    for found in ("spilled", "registers, more", "multiply, less", "value by value", "in the loop"):
        assert found in wrong, f"{found}: {wrong}"
