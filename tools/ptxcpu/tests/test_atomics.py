"""Atomics in shared and global memory, device variables, constant memory, switches and printf."""

import numpy as np
import pytest
from conftest import compile_kernel


@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
def test_atomics(arch, schedule):
    rng = np.random.default_rng(2)
    n = 500
    a = rng.integers(0, 2**31, n, dtype=np.uint32)
    x = rng.standard_normal(n).astype(np.float32)
    words = np.zeros(16, np.uint32)
    words[5] = 2**32 - 1
    floats = np.array([0, -9], np.float32)
    longs = np.zeros(2, np.uint64)
    compile_kernel("atomics", arch).launch(
        "at", 4, 128, [a, x, words, floats, longs, n], **schedule
    )
    total = int(a.sum(dtype=np.uint64))
    assert words[0] == words[4] == total & 0xFFFFFFFF
    assert words[1] == words[6] == a.max()
    assert words[5] == a.min()
    assert words[7] == np.bitwise_xor.reduce(a)
    assert words[8] == np.bitwise_or.reduce(np.uint32(1) << (a & 31))
    assert longs[0] == total
    assert longs[1] == int(a.max()) ** 2
    assert words[2] == n  # a compare-and-swap loop that counts
    assert floats[0] == pytest.approx(x.sum(), abs=1e-3)
    assert floats[1] == x.max()
    assert list(words[9:13]) == [128 % 10, 128 % 10, 128 % 10, 116 % 10]  # atomicInc wraps after 9


def test_device_variables_and_printf(capfd):
    rng = np.random.default_rng(2)
    x = rng.standard_normal(64).astype(np.float32)
    y = np.zeros(64, np.float32)
    module = compile_kernel("atomics")
    counter = module.symbol("counter", np.int32, (1,))
    counter[:] = 0
    module.launch("cst", 1, 64, [x, y, 64, 0])
    i = np.arange(64)
    weights = np.arange(1, 10)
    cases = [
        x * weights[i % 9],
        x + 3,
        x / np.float32(7),
        np.sqrt(abs(x)),
        -x,
        x * x,
        x[(i + i % 9) % 64] * 2,
    ]
    expected = np.select([i % 7 == k for k in range(7)], cases).astype(np.float32)
    np.testing.assert_array_equal(y, expected)
    assert counter[0] == 64
    assert capfd.readouterr().out == f"hello 5 {y[5]:.6f}\n"
