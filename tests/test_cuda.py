"""What is special to CUDA code, emulated and on a device: tensor cores, the network.

The kernel tests run over the whole table of cases on these too (`target` in conftest.py).
"""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest

import pyconv
from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import CONV_CASES, integers, reals, tutorial_batch, tutorial_weights
from pyconv.validation.reference import (
    UNIT_ROUNDOFF,
    assert_same,
    assert_same_bits,
    assert_within,
    sum_bound,
)


@contextlib.contextmanager
def on_cpu():
    before = pyconv.get_device()
    pyconv.set_device("cpu")
    yield
    pyconv.set_device(before)


# ------------------------------------------------------------------------------------- tensor cores


@pytest.fixture
def tf32(cuda_target):
    if cuda_target == "cuda_sm75":
        pytest.skip("no tensor cores for TF32")
    pyconv.set_math_mode("tf32")
    assert pyconv.get_math_mode() == "tf32"
    yield
    pyconv.set_math_mode("fp32")


def is_tf32(case) -> bool:
    return (
        case.kernel == (3, 3)
        and case.strides == case.dilation_rate == case.groups == 1
        and case.x[3] % 8 == case.filters % 8 == 0
    )


TF32_CASES = [case for case in CONV_CASES if is_tf32(case)]


@pytest.mark.parametrize("case", TF32_CASES, ids=lambda c: c.name)
def test_tf32_of_integers_is_exact(tf32, case):
    """Integers up to 4 have 3 bits: rounding to TF32's 11 changes none."""
    x, w, b = integers("x", case.x), integers("w", case.w), integers("b", (case.filters,))
    y = kernels.conv2d(x, w, b, **case.geometry, activation="relu")
    assert_same(y, reference.conv2d(x, w, b, **case.geometry, activation="relu"))
    dy = integers("dy", y.shape)
    got = kernels.conv2d_backward(dy, x, w, **case.geometry, activation="relu", y=y)
    wanted = reference.conv2d_backward(dy, x, w, **case.geometry, activation="relu", y=y)
    for mine, theirs in zip(got, wanted):
        assert_same(mine, theirs)


@pytest.mark.parametrize("case", TF32_CASES, ids=lambda c: c.name)
def test_tf32_of_reals_is_within_its_bound(tf32, case):
    """Each factor is rounded to 11 significant bits: by at most 2^-11 of its value, to nearest. A
    product of two errs by 2 * 2^-11 (1 + 2^-12); the sums round as in float32."""
    rounding = 2 * 2.0**-11 * (1 + 2.0**-12)
    x, w = reals("x", case.x), reals("w", case.w)
    y = kernels.conv2d(x, w, **case.geometry)
    magnitude = reference.conv2d(np.abs(x), np.abs(w), **case.geometry)
    bound = rounding * magnitude + sum_bound(9 * case.x[3], magnitude * (1 + rounding))
    expected = reference.conv2d(x, w, **case.geometry)
    assert_within(y, expected, bound, f"y {case}")
    error = np.abs(y - expected).max()
    assert error > 16 * UNIT_ROUNDOFF * magnitude.mean(), "float32, not TF32"

    dy = reals("dy", y.shape)
    dx = kernels.conv2d_backward_data(dy, w, case.x, **case.geometry)
    of_dx = reference.conv2d_backward_data(np.abs(dy), np.abs(w), case.x, **case.geometry)
    bound = rounding * of_dx + sum_bound(9 * case.filters, of_dx * (1 + rounding))
    assert_within(dx, reference.conv2d_backward_data(dy, w, case.x, **case.geometry), bound)

    dw, db = kernels.conv2d_backward_weights(dy, x, case.w, **case.geometry)
    pixels = math.prod(dy.shape[:3])
    _, of_dw, of_db = reference.conv2d_backward(np.abs(dy), np.abs(x), np.abs(w), **case.geometry)
    _, wanted, wanted_db = reference.conv2d_backward(dy, x, w, **case.geometry)
    assert_within(dw, wanted, rounding * of_dw + sum_bound(pixels, of_dw * (1 + rounding)))
    assert_within(db, wanted_db, sum_bound(pixels, of_db))  # no product


def test_tf32_pooling_is_that_of_its_own_convolution(tf32):
    for case in TF32_CASES:
        x, w, b = reals("x", case.x), reals("w", case.w), reals("b", (case.filters,))
        y = kernels.conv2d(x, w, b, **case.geometry, activation="relu")
        if min(y.shape[1:3]) < 2:
            continue
        pooled, winner = kernels.conv2d_pool(x, w, b, **case.geometry)
        expected, argmax = kernels.max_pool2d(y)
        assert_same_bits(pooled, expected, str(case))
        np.testing.assert_array_equal(winner, np.where(expected > 0, argmax, 4))


def has_a_window(case) -> bool:
    geometry = case.strides, case.padding, case.dilation_rate
    return min(kernels.window_output_size(case.x[1:3], case.kernel, *geometry)) >= 2


@pytest.mark.parametrize("case", list(filter(has_a_window, TF32_CASES)), ids=lambda c: c.name)
def test_tf32_gradients_of_pooled_integers_are_exact(tf32, case):
    x, w = integers("x", case.x), integers("w", case.w)
    expected, winner = reference.conv2d_pool(x, w, **case.geometry)
    dy = integers("dy", expected.shape)
    winner = winner.astype(np.uint8)
    got = kernels.conv2d_pool_backward(dy, winner, x, w, **case.geometry)
    wanted = reference.conv2d_pool_backward(dy, winner, x, w, **case.geometry)
    for mine, theirs in zip(got, wanted, strict=True):
        assert_same(mine, theirs)


# ------------------------------------------------------------------------------------- the network


def test_ten_training_steps_agree_with_the_cpu(cuda_target):
    """The tutorial's network, with dropout: the masks are the same on every device, so the weights
    differ by rounding only. RMSprop divides by the root of a gradient's square: where a gradient
    is itself rounding error, its step is not. So the steps are compared as a whole."""
    x, y = tutorial_batch()

    def train() -> tuple[list[float], list[np.ndarray]]:
        pyconv.utils.set_random_seed(0)
        model = pyconv.applications.tutorial_network()
        model.set_weights(tutorial_weights())
        model.compile("rmsprop", "categorical_crossentropy")
        losses = [model.train_on_batch(x, y) for _ in range(10)]
        return losses, model.get_weights()

    losses, weights = train()
    with on_cpu():
        cpu_losses, cpu_weights = train()
    np.testing.assert_allclose(losses, cpu_losses, rtol=2e-3)
    for mine, theirs, start in zip(weights, cpu_weights, tutorial_weights()):
        moved = np.linalg.norm(theirs - start)
        assert np.linalg.norm(mine - theirs) < 0.02 * moved


def test_the_network_predicts_and_evaluates_as_on_the_cpu(cuda_target):
    x = pyconv.datasets.shapes.load_data()[1][0][:40].astype(np.float32) / 255
    model = pyconv.applications.tutorial_network()
    got = model.predict(x, batch_size=16)
    with on_cpu():
        expected = model.predict(x, batch_size=16)
    assert_within(got, expected, 1e-5 * np.ones_like(expected))
