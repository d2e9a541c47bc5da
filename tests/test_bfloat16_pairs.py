"""Numbers of bfloat16 multiplied in pairs, as AVX512-BF16 does: the same bits as one by one.

Where the processor has no such instruction the other paths do the same with several, and the
emulated AVX-512 path has the instruction emulated.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import pyconv
from pyconv import backend, kernels
from pyconv.layers import Conv2D, Dense, Flatten, Input, MaxPooling2D
from pyconv.models import Sequential
from pyconv.validation import reference
from pyconv.validation.cases import CONV_CASES, DENSE_CASES, ConvCase, DenseCase, reals
from pyconv.validation.reference import assert_same_bits, assert_within, sum_bound

# What the tables of cases are too small for: several panels of weights, packed by whoever uses
# them or all at once, kept, in more than one block of channels; odd numbers of channels.
CONVOLUTIONS = (
    ConvCase("1x1", (8, 8, 8, 64), (1, 1), 64),
    ConvCase("1x1_odd", (2, 9, 7, 257), (1, 1), 131),
    ConvCase("3x3_steps", (3, 11, 12, 33), (3, 3), 48, strides=2),
    ConvCase("5x5", (1, 10, 9, 17), (5, 5), 70, padding="same"),
    ConvCase("groups", (2, 8, 9, 20), (3, 3), 72, groups=4, padding=1),
    ConvCase("many_weights", (4, 4, 4, 512), (1, 1), 512),
    ConvCase("few_pixels", (1, 2, 2, 1024), (1, 1), 512),
)
DENSE = (
    DenseCase("wide", 64, 300, 257),
    DenseCase("few_rows", 5, 1000, 513),
    DenseCase("deep", 3, 2049, 64),
)


@pytest.fixture
def pair_mode(isa, math_mode):
    """`set_pair_mode`, undone after the test; multiplying directly."""
    math_mode("direct")
    cpu = backend.cpu()
    before = cpu.pair_mode()
    yield cpu.set_pair_mode
    cpu.set_pair_mode(before)


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return reference.round_bfloat16(reals(name, shape)).astype(np.float32)


def both_ways(pair_mode, kernel, *arguments, **options) -> np.ndarray:
    """What the kernel returns in pairs, after it has been compared with one by one."""
    results = []
    for mode in ("never", "always"):
        pair_mode(mode)
        results.append(kernel(*arguments, **options))
    assert_same_bits(results[1], results[0])
    return results[1]


def first_of(kernel):
    return lambda *arguments, **options: kernel(*arguments, **options)[0]


def check_conv(pair_mode, case: ConvCase) -> None:
    x, w = drawn(f"{case.name} x", case.x), drawn(f"{case.name} w", case.w)
    b = reals("b", (case.filters,))
    linear = reference.conv2d(x, w, **case.geometry)
    magnitude = reference.conv2d(np.abs(x), np.abs(w), np.abs(b), **case.geometry)
    bound = sum_bound(math.prod(case.w[:3]) + 1, magnitude)
    dy = drawn(f"{case.name} dy", linear.shape)
    for activation in (None, "relu"):
        options = case.geometry | {"activation": activation, "bfloat16": True}
        y = both_ways(pair_mode, kernels.conv2d, x, w, b, **options)
        expected = reference.relu(linear + b) if activation else linear + b
        assert_within(y, expected, bound, case.name)
        options["y"] = y if activation else None
        dx = both_ways(pair_mode, kernels.conv2d_backward_data, dy, w, case.x, **options)
        assert_same_bits(kernels.conv2d_backward(dy, x, w, **options)[0], dx, case.name)
    if min(linear.shape[1:3]) >= 2:
        pooled = {**case.geometry, "rate": 0.3, "bfloat16": True}
        y = both_ways(pair_mode, first_of(kernels.conv2d_pool), x, w, b, **pooled)
        kept = reference.conv2d_pool(x, w, b, rate=0.3, **case.geometry)[0]
        n, rows, columns, filters = y.shape
        windows = bound[:, : 2 * rows, : 2 * columns].reshape(n, rows, 2, columns, 2, filters)
        assert_within(y, kept, 2 * windows.max((2, 4)), case.name)


@pytest.mark.parametrize("case", CONV_CASES, ids=lambda c: c.name)
def test_conv2d(pair_mode, case):
    check_conv(pair_mode, case)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda c: c.name)
@pytest.mark.parametrize("threads", [1, 3])
def test_conv2d_of_many_channels(pair_mode, case, threads):
    before = pyconv.get_num_threads()
    pyconv.set_num_threads(threads)
    try:
        check_conv(pair_mode, case)
    finally:
        pyconv.set_num_threads(before)


@pytest.mark.parametrize("case", DENSE_CASES + DENSE, ids=lambda c: c.name)
def test_dense(pair_mode, case):
    n, inputs, units = case.batch, case.inputs, case.units
    x, w = drawn("x", (n, inputs)), drawn("w", (inputs, units))
    dy, b = drawn("dy", (n, units)), reals("b", (units,))
    for activation in (None, "relu"):
        y = both_ways(pair_mode, kernels.dense, x, w, b, activation, bfloat16=True)
        options = {"activation": activation, "bfloat16": True, "y": y if activation else None}
        dx = both_ways(pair_mode, kernels.dense_backward_data, dy, w, **options)
        assert_same_bits(kernels.dense_backward(dy, x, w, **options)[0], dx)


def has_instruction(isa: str) -> bool:
    """Whether this path can multiply in pairs: AVX-512 natively by one instruction only."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return isa != "avx512" or "avx512_bf16" in flags or "avx512f" not in flags


def test_pairs_are_multiplied(isa, pair_mode):
    """Seen by what becomes of other numbers: the lower halves of their bits do not count."""
    if not has_instruction(isa):
        pytest.skip("this processor has no AVX512-BF16")
    x, w = reals("x", (2, 6, 6, 32)), reals("w", (1, 1, 32, 40))
    dy = reals("dy", (2, 6, 6, 40))

    def upper(array):
        return (array.view(np.uint32) & 0xFFFF0000).view(np.float32)

    cut = upper(x), upper(w)
    assert (kernels.conv2d(x, w) != kernels.conv2d(*cut)).any()
    pair_mode("always")
    assert_same_bits(kernels.conv2d(x, w, bfloat16=True), kernels.conv2d(*cut))
    assert_same_bits(
        kernels.conv2d_backward_data(dy, w, x.shape, bfloat16=True),
        kernels.conv2d_backward_data(upper(dy), cut[1], x.shape),
    )
    assert_same_bits(kernels.conv2d(x, w), kernels.conv2d(x, w, bfloat16=False))
    pair_mode("never")
    assert_same_bits(kernels.conv2d(x, w, bfloat16=True), kernels.conv2d(x, w))


@pytest.mark.parametrize("channels", [2, 5, 16])
def test_special_numbers(pair_mode, channels):
    """-0, infinities, NaN and denormals, alone among zeros and numbers."""
    specials = np.array([-0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3e38], np.float32)
    for special in kernels.round_bfloat16(specials):
        for at in range(channels):
            for rest in (0.0, -0.0, 1.5):
                x = np.full((1, 3, 4, channels), rest, np.float32)
                x[..., at] = special
                for weight in (-1.0, 2.0):
                    w = np.full((1, 1, channels, 24), weight, np.float32)
                    b = np.full(24, -0.0, np.float32)
                    both_ways(pair_mode, kernels.conv2d, x, w, b, bfloat16=True)


def test_models(pair_mode, global_policy):
    """Training and inference, with weights that are kept packed, and after they have changed."""
    global_policy("mixed_bfloat16")
    x = reals("x", (32, 8, 8, 3))
    y = np.eye(10, dtype=np.float32)[np.arange(32) % 10]

    def results() -> np.ndarray:
        pyconv.utils.set_random_seed(1)
        model = Sequential(
            [
                Input((8, 8, 3)),
                Conv2D(24, 3, activation="relu"),
                MaxPooling2D(3, strides=1),
                Conv2D(40, 1),
                Flatten(),
                Dense(33, activation="relu"),
                Dense(10, activation="softmax"),
            ]
        )
        model.compile("rmsprop", "categorical_crossentropy")
        found = []
        for _ in range(3):
            model.train_on_batch(x, y)
            for n in (1, 2, 32):
                found.append(model.predict_on_batch(x[:n]).ravel())
        return np.concatenate([*found, *(w.ravel() for w in model.get_weights())])

    both_ways(pair_mode, results)


def test_modes():
    cpu = backend.cpu()
    before = cpu.pair_mode()
    assert before == "fast"
    for mode in ("never", "always", "fast"):
        cpu.set_pair_mode(mode)
        assert cpu.pair_mode() == mode
    with pytest.raises(ValueError, match="'fast', 'never' or 'always'. Received: 'sometimes'"):
        cpu.set_pair_mode("sometimes")
    assert cpu.pair_mode() == "fast"
