"""Small kernels against NumPy, on two architectures and with every schedule."""

import numpy as np
import pytest
from conftest import compile_kernel

ARCHITECTURES = ["sm_75", "sm_80"]


@pytest.fixture(params=ARCHITECTURES)
def arch(request):
    return request.param


def to_tf32(x):
    """cvt.rna.tf32.f32"""
    return ((x.view(np.uint32) + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)


def test_vector_add(arch, schedule, normal):
    a, b, c = normal(1000), normal(1000), np.zeros(1000, np.float32)
    compile_kernel("vector_add", arch).launch("vecadd", 4, 256, [a, b, c, 1000], **schedule)
    np.testing.assert_array_equal(c, a + b)


def test_called_function_returns_a_value(arch, rng):
    base, result = rng.uniform(0.5, 2.0, 100), np.zeros(100)
    compile_kernel("power", arch).launch("power", 1, 128, [base, result, 3.7, 100])
    np.testing.assert_allclose(result, base**3.7, rtol=1e-15)


def test_tiled_matmul(arch, schedule, normal):
    a, b, c = normal(64, 64), normal(64, 64), np.zeros((64, 64), np.float32)
    compile_kernel("matmul", arch).launch(
        "matmul", (4, 4), (16, 16), [a, b, c, 64, 64, 64], **schedule
    )
    np.testing.assert_allclose(c, a.astype(float) @ b, atol=2e-5)


def test_shuffle_sum(arch, schedule, normal):
    a, sums = normal(250), np.zeros(8, np.float32)
    compile_kernel("warp_sum", arch).launch("warpsum", 2, 128, [a, sums, 250], **schedule)
    expected = np.append(a, np.zeros(6)).reshape(8, 32).sum(1)
    np.testing.assert_allclose(sums, expected, atol=1e-5)


def test_float_atomics(arch, schedule, normal):
    a, out = normal(100), np.zeros(107, np.float32)
    compile_kernel("atomic_add", arch).launch("atom", 1, 128, [a, out, 100], **schedule)
    np.testing.assert_allclose(out[:7], [a[i::7].sum() for i in range(7)], atol=1e-5)


def test_vector_load(arch, schedule, normal):
    a, out, scale = normal(64, 4), np.zeros((64, 4), np.float32), 0.5
    compile_kernel("vector_load", arch).launch("ldg4", 1, 64, [a, out, 64, scale], **schedule)
    expected = np.stack(
        [a[:, 0] * scale, a[:, 1] * scale + 1, a[:, 2] - scale, np.maximum(a[:, 3], scale)], axis=1
    )
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_ldmatrix(arch, schedule, rng):
    data, out = rng.integers(0, 2**32, 128, dtype=np.uint32), np.zeros(192, np.uint32)
    compile_kernel("ldmatrix", arch).launch("ldm", 1, 32, [data, out], **schedule)
    matrices = data.view(np.uint16).reshape(4, 8, 8)
    plain = [np.ascontiguousarray(m).view(np.uint32).ravel() for m in matrices]
    transposed = [np.ascontiguousarray(m.T).view(np.uint32).ravel() for m in matrices[:2]]
    np.testing.assert_array_equal(out, np.concatenate(plain + transposed))


def test_mma_tf32(schedule, normal):
    a, b, c, d = normal(16, 8), normal(8, 8), normal(16, 8), np.zeros((16, 8), np.float32)
    compile_kernel("mma_tf32").launch("mma_tf32", 1, 32, [a, b, c, d], **schedule)
    np.testing.assert_allclose(d, to_tf32(a).astype(float) @ to_tf32(b) + c, atol=2e-6)


def test_cp_async_with_zero_fill(schedule, normal):
    n = 298
    a, out = normal(n), np.zeros(n, np.float32)
    compile_kernel("cp_async").launch("cpasync", 2, 64, [a, out, n], shared=1024, **schedule)
    padded = np.append(a, np.zeros(512 - n, np.float32)).reshape(2, 256)
    np.testing.assert_array_equal(out, padded[:, ::-1].ravel()[:n])


def test_pipelined_mma_gemm(schedule, normal):
    a, b, c = normal(128, 96), normal(96, 128), np.zeros((128, 128), np.float32)
    compile_kernel("mma_gemm").launch("mmagemm", (2, 2), 128, [a, b, c, 128, 128, 96], **schedule)
    np.testing.assert_allclose(c, to_tf32(a).astype(float) @ to_tf32(b), atol=1e-4)


def test_convolution(arch, schedule, normal):
    batch, channels, height, width, filters, size = 2, 3, 9, 10, 5, 3
    x, w = normal(batch, channels, height, width), normal(filters, channels, size, size)
    bias, y = normal(filters), np.zeros((batch, filters, height, width), np.float32)
    arguments = [x, w, bias, y, batch, channels, height, width, filters, size]
    compile_kernel("conv", arch).launch("conv2d", -(-y.size // 128), 128, arguments, **schedule)
    padded = np.pad(x.astype(float), ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = bias[None, :, None, None] + sum(
        np.einsum("nchw,kc->nkhw", padded[:, :, i : i + height, j : j + width], w[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )
    np.testing.assert_allclose(y, np.where(expected > 0, expected, 0.01 * expected), atol=1e-5)


def test_max_pool(arch, schedule, normal):
    x, y, argmax = normal(6, 8, 8), np.zeros((6, 4, 4), np.float32), np.zeros((6, 4, 4), np.uint8)
    compile_kernel("conv", arch).launch("maxpool", 1, 128, [x, y, argmax, 6, 8, 8], **schedule)
    windows = x.reshape(6, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(6, 4, 4, 4)
    np.testing.assert_array_equal(y, windows.max(-1))
    np.testing.assert_array_equal(argmax, windows.argmax(-1))


def test_softmax(arch, schedule, normal):
    x, y = normal(4, 50), np.zeros((4, 50), np.float32)
    compile_kernel("conv", arch).launch("softmaxrow", 4, 32, [x, y, 50], **schedule)
    exponentials = np.exp(x.astype(float) - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, exponentials / exponentials.sum(1, keepdims=True), atol=1e-6)
