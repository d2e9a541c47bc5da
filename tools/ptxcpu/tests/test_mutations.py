"""Broken kernels: the emulator must notice each mistake, in the schedules that are listed."""

import numpy as np
import pytest
from conftest import KERNELS, SCHEDULES, Module, PTXError

ALL = ["forward", "reverse", "random", "race"]


@pytest.fixture
def compile_mutant(tmp_path):
    def compile_with(kernel, *replacements):
        source = (KERNELS / f"{kernel}.cu").read_text()
        for old, new in replacements:
            assert old in source, old
            source = source.replace(old, new, 1)
        path = tmp_path / f"{kernel}.cu"
        path.write_text(source)
        return Module.from_cu(path)

    return compile_with


def run_matmul(module, normal, schedule, rows=64):
    a, b, c = normal(rows, 64), normal(64, 64), np.zeros((rows, 64), np.float32)
    module.launch("matmul", (4, 4), (16, 16), [a, b, c, rows, 64, 64], **SCHEDULES[schedule])
    return np.allclose(c, a @ b, atol=1e-3)


def run_gemm(module, normal, schedule):
    a, b, c = normal(128, 96), normal(96, 128), np.zeros((128, 128), np.float32)
    module.launch("mmagemm", (2, 2), 128, [a, b, c, 128, 128, 96], **SCHEDULES[schedule])
    return np.allclose(c, a @ b, atol=0.05)  # tf32 keeps 10 bits of the mantissa


MATMUL_FIRST_BARRIER = ("    __syncthreads();\n#pragma", "#pragma")
MATMUL_SECOND_BARRIER = ("Bs[k][tx];\n    __syncthreads();", "Bs[k][tx];\n")
GEMM_LAST_BARRIER = ("__syncthreads();\n    buf ^= 1;", "buf ^= 1;")


@pytest.mark.parametrize("mutation", [MATMUL_FIRST_BARRIER, MATMUL_SECOND_BARRIER])
@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_missing_barrier_gives_wrong_results(compile_mutant, normal, mutation, schedule):
    assert not run_matmul(compile_mutant("matmul", mutation), normal, schedule)


@pytest.mark.parametrize("mutation", [MATMUL_FIRST_BARRIER, MATMUL_SECOND_BARRIER])
def test_race_detector_names_the_missing_barrier(compile_mutant, normal, mutation):
    with pytest.raises(PTXError, match="matmul: PTX line .* shared memory race"):
        run_matmul(compile_mutant("matmul", mutation), normal, "race")


def test_wrong_index_in_a_tile(compile_mutant, normal):
    module = compile_mutant("matmul", ("As[ty][k] *", "As[ty][k + 1] *"))
    assert not run_matmul(module, normal, "forward")


@pytest.mark.parametrize("schedule", ALL)
def test_missing_bounds_test(compile_mutant, normal, schedule):
    module = compile_mutant("matmul", ("row < M && k0", "k0"))
    with pytest.raises(PTXError, match="ld.global.* of 4 bytes at .* is out of bounds"):
        run_matmul(module, normal, schedule, rows=60)


@pytest.mark.parametrize("schedule", ALL)
def test_unchanged_gemm_passes(compile_mutant, normal, schedule):
    assert run_gemm(compile_mutant("mma_gemm"), normal, schedule)


GEMM_WAIT = ("cp.async.wait_group 1;", "cp.async.wait_group 2;")


@pytest.mark.parametrize("schedule", ["forward", "random"])
def test_wait_for_too_few_copies_gives_wrong_results(compile_mutant, normal, schedule):
    """Not visible in reverse order, where a copy happens when it is issued."""
    assert not run_gemm(compile_mutant("mma_gemm", GEMM_WAIT), normal, schedule)


def test_race_detector_names_the_copy_not_waited_for(compile_mutant, normal):
    with pytest.raises(
        PTXError, match="read of .*, where a cp.async of thread .* was not waited for"
    ):
        run_gemm(compile_mutant("mma_gemm", GEMM_WAIT), normal, "race")


def test_missing_barrier_in_a_pipeline_needs_the_right_order(compile_mutant, normal):
    module = compile_mutant("mma_gemm", GEMM_LAST_BARRIER)
    assert not run_gemm(module, normal, "reverse")
    with pytest.raises(PTXError, match="shared memory race"):
        run_gemm(module, normal, "race")


@pytest.mark.parametrize("schedule", ALL)
def test_swapped_fragment_registers(compile_mutant, normal, schedule):
    swap = ('"r"(a[i][1]), "r"(a[i][2])', '"r"(a[i][2]), "r"(a[i][1])')
    assert not run_gemm(compile_mutant("mma_gemm", swap), normal, schedule)


@pytest.mark.parametrize("schedule", ALL)
def test_misaligned_copy(compile_mutant, normal, schedule):
    module = compile_mutant("mma_gemm", ("#define PA 20", "#define PA 18"))
    with pytest.raises(PTXError, match="cp.async misaligned"):
        run_gemm(module, normal, schedule)


@pytest.mark.parametrize("schedule", ALL)
def test_shuffle_in_divergent_code(compile_mutant, normal, schedule):
    module = compile_mutant(
        "warp_sum", ("for (int o = 16", "if (threadIdx.x % 32 < 16) for (int o = 16")
    )
    with pytest.raises(PTXError, match="reads lane 16, which is not active"):
        module.launch(
            "warpsum", 2, 128, [normal(256), np.zeros(8, np.float32), 256], **SCHEDULES[schedule]
        )


@pytest.mark.parametrize("schedule", ALL)
def test_misaligned_vector_load(compile_mutant, normal, schedule):
    shifted = ("__ldg(a + i)", "__ldg((const float4*)((const float*)a + 1) + i)")
    module = compile_mutant("vector_load", shifted)
    with pytest.raises(PTXError, match="of 16 bytes at .* is misaligned"):
        out = np.zeros((64, 4), np.float32)
        module.launch("ldg4", 1, 64, [normal(65, 4), out, 64, 0.5], **SCHEDULES[schedule])


@pytest.mark.parametrize("schedule", ALL)
def test_barrier_in_divergent_code(compile_mutant, normal, schedule):
    """Half of each warp waits at the barrier, the other half at the next one."""
    module = compile_mutant(
        "matmul", ("    __syncthreads();\n#pragma", "    if (ty % 2) __syncthreads();\n#pragma")
    )
    with pytest.raises(PTXError, match="race" if schedule == "race" else "divergent barrier"):
        run_matmul(module, normal, schedule)


def test_kernel_that_ends_before_its_copies(compile_mutant, normal):
    module = compile_mutant("cp_async", ('  asm volatile("cp.async.wait_group 0;");\n', ""))
    with pytest.raises(PTXError, match="cp.async groups not waited for"):
        out = np.zeros(298, np.float32)
        module.launch("cpasync", 2, 64, [normal(298), out, 298], shared=1024)
