"""Batch normalization, forward and backward, on every instruction set and in CUDA."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import integers, reals
from pyconv.validation.checks import (
    norm_gradient_bounds,
    norm_training_bounds,
    normalized_bound,
    rows_of,
)
from pyconv.validation.reference import UNIT_ROUNDOFF, assert_same, assert_same_bits, assert_within

SHAPES = [
    *((1, 1), (2, 1), (3, 5), (1, 17), (700, 1), (600, 3), (513, 16)),
    *((64, 31), (64, 33), (40, 64), (33, 65), (1030, 128), (5, 1030)),
    *((2, 3, 4), (2, 5, 7, 8), (3, 8, 8, 40), (2, 16, 17, 96), (4, 13, 13, 20)),
]


def inputs(shape, offset=0.0, scale=1.0):
    """x, gamma, beta, moving mean and variance, dy."""
    x = (reals("x", shape) * scale + offset).astype(np.float32)
    gamma, beta, mean = (reals(name, shape[-1:]) for name in ("gamma", "beta", "mean"))
    return x, gamma, beta, mean, np.abs(reals("variance", shape[-1:])), reals("dy", shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inference(target, shape, guarded):
    x, gamma, beta, mean, variance, _ = inputs(shape)
    for g, b in ((gamma, beta), (None, beta), (gamma, None), (None, None)):
        y = kernels.batch_norm(x, g, b, mean, variance)
        expected = reference.batch_norm(x, g, b, mean, variance)
        scale = (1 if g is None else g) / np.sqrt(variance + 1e-3)
        assert_within(y, expected, normalized_bound(x, expected, mean, scale), f"{shape}")
    for offset in (1, 7):
        arrays = [guarded.like(a, offset) for a in (x, mean, variance)]
        out = guarded.empty(shape, offset=offset)
        assert kernels.batch_norm(arrays[0], None, None, *arrays[1:], out=out) is out
        assert_same_bits(out, y)
        kernels.batch_norm(arrays[0], None, None, *arrays[1:], out=arrays[0])
        assert_same_bits(arrays[0], y)
    guarded.check()


def check_training(shape, offset, scale, momentum=0.75, epsilon=1e-3):
    x, gamma, beta, *moving, dy = inputs(shape, offset, scale)
    before = [array.copy() for array in moving]
    y, mean, inverse = kernels.batch_norm_training(x, gamma, beta, *moving, momentum, epsilon)
    expected = reference.batch_norm_training(x, gamma, beta, *before, momentum, epsilon)
    bounds = norm_training_bounds(x, gamma, momentum, epsilon, expected)
    names = ("y", "mean", "inverse", "moving mean", "moving variance")
    for name, *of in zip(names, (y, mean, inverse, *moving), expected, bounds, strict=True):
        assert_within(*of, f"{name} {shape} {offset}")

    # The gradients are of what the forward pass handed on.
    got = kernels.batch_norm_backward(dy, x, gamma, mean, inverse)
    expected = reference.batch_norm_backward(dy, x, gamma, mean, inverse)
    bounds = norm_gradient_bounds(dy, x, gamma, mean, inverse, expected)
    for name, *of in zip(("dx", "dgamma", "dbeta"), got, expected, bounds, strict=True):
        assert_within(*of, f"{name} {shape} {offset}")


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training(target, shape, offset):
    check_training(shape, offset, 1.0)


def test_a_variance_far_below_the_mean(target):
    """Where E[x^2] - E[x]^2 in float32 would have no digit left, and be negative perhaps."""
    x = (1e4 + reals("x", (3000, 5))).astype(np.float32)
    moving = np.zeros((2, 5), np.float32)
    kernels.batch_norm_training(x, None, None, *moving, 0.0)
    np.testing.assert_allclose(moving[1], rows_of(x).var(axis=0), rtol=1e-4)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    channels=st.integers(1, 140),
    offset=st.sampled_from([0.0, -30.0]),
    momentum=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
)
def test_any_shape(target, shape, channels, offset, momentum):
    check_training((*shape, channels), offset, 2.0, momentum)


@pytest.mark.parametrize("channels", [1, 3, 16, 33, 64])
def test_exact_where_numbers_are(target, channels, guarded):
    """x is a constant +- 3, so the variance is 9; with an epsilon of 7 every step is exact."""
    shape = (4, 8, 16, channels)
    center, gamma, beta, moving = (integers(n, shape[-1:]) for n in ("c", "g", "b", "m"))
    signs = np.where(np.arange(4 * 8 * 16) % 2, 3.0, -3.0).reshape(4, 8, 16, 1)
    x, dy = (center + signs).astype(np.float32), integers("dy", shape)
    moved = [moving.copy(), np.abs(moving)]
    expected = reference.batch_norm_training(x, gamma, beta, *moved, 0.5, 7.0)
    y, mean, inverse = kernels.batch_norm_training(x, gamma, beta, *moved, 0.5, 7.0)
    for got, wanted in zip((y, mean, inverse, *moved), expected):
        assert_same(got, wanted.astype(np.float32))
    gradients = kernels.batch_norm_backward(dy, x, gamma, mean, inverse)
    wanted = reference.batch_norm_backward(dy, x, gamma, mean, inverse)
    for got, of in zip(gradients, wanted):
        assert_same(got, of.astype(np.float32))
    assert_same(
        kernels.batch_norm(x, gamma, beta, center, np.full(channels, 9.0, np.float32), 7.0), y
    )

    for offset in (1, 7):
        outs = [guarded.empty(a.shape, offset=offset) for a in (y, mean, inverse)]
        given = [guarded.like(a, offset) for a in (x, gamma, beta, moving, np.abs(moving))]
        got = kernels.batch_norm_training(
            *given, 0.5, 7.0, out=outs[0], mean=outs[1], inverse=outs[2]
        )
        for out, returned, wanted in zip((*outs, *given[3:]), (*got, *given[3:]), expected):
            assert returned is out
            assert_same(out, wanted.astype(np.float32))
        in_place = guarded.like(x, offset)
        kernels.batch_norm_training(in_place, gamma, beta, *moved, 0.5, 7.0, out=in_place)
        assert_same_bits(in_place, y)
        outs = [guarded.empty(a.shape, offset=offset) for a in gradients]
        given = [guarded.like(a, offset) for a in (dy, x, gamma, mean, inverse)]
        kernels.batch_norm_backward(*given, dx=outs[0], dgamma=outs[1], dbeta=outs[2])
        for out, of in zip(outs, gradients):
            assert_same_bits(out, of)
        kernels.batch_norm_backward(*given, dx=given[0])
        assert_same_bits(given[0], gradients[0])
    guarded.check()


def test_gamma_and_beta_may_be_missing(target):
    x, gamma, beta, *moving, dy = inputs((50, 17))
    ones, zeros = np.ones_like(gamma), np.zeros_like(beta)
    with_both = kernels.batch_norm_training(x, ones, zeros, *moving)
    without = kernels.batch_norm_training(x, None, None, *moving)
    for a, b in zip(with_both, without):
        assert_same_bits(a, b)
    for a, b in zip(
        kernels.batch_norm_backward(dy, x, ones, *without[1:]),
        kernels.batch_norm_backward(dy, x, None, *without[1:]),
    ):
        assert_same_bits(a, b)


def test_nan_stays_in_its_channel(target):
    for bad in (np.nan, np.inf):
        x, gamma, beta, *moving, dy = inputs((600, 37))
        clean = kernels.batch_norm_training(x, gamma, beta, *(m.copy() for m in moving))[0]
        x[555, 36] = bad
        y, mean, inverse = kernels.batch_norm_training(x, gamma, beta, *moving)
        assert np.isnan(y[:, 36]).all() and np.isnan(moving[1][36])
        assert_same_bits(y[:, :36], clean[:, :36])
        assert np.isfinite(moving[0][:36]).all() and np.isfinite(moving[1][:36]).all()
        dx, dgamma, dbeta = kernels.batch_norm_backward(dy, x, gamma, mean, inverse)
        assert np.isnan(dx[:, 36]).all() and np.isfinite(dx[:, :36]).all()
        assert np.isnan(dgamma[36]) and np.isfinite(dgamma[:36]).all()
        assert np.isfinite(dbeta).all()


def test_a_channel_of_equal_values(target):
    x = np.full((100, 3), 7.0, np.float32)
    moving = np.zeros((2, 3), np.float32)
    y, _, inverse = kernels.batch_norm_training(x, None, None, *moving, 0.5, 0.25)
    assert_same(y, np.zeros_like(x))
    assert_same(moving, np.float32([[3.5] * 3, [0.0] * 3]))
    assert_same(inverse, np.full(3, 2.0, np.float32))


def test_a_variance_is_never_negative(target):
    """Where a mean of equal values rounds."""
    for value in (0.1, 1e-3, 123456.7):
        x = np.full((700, 5), value, np.float32)
        moving = np.full((2, 5), -1.0, np.float32)
        _, mean, inverse = kernels.batch_norm_training(x, None, None, *moving, 0.0, 1e-12)
        assert (moving[1] >= 0).all()
        assert_within(mean, x[0].astype(float), UNIT_ROUNDOFF * value, "mean")
        assert np.isfinite(inverse).all()


def test_an_empty_batch(target):
    x, channel = np.zeros((0, 4, 3), np.float32), np.ones(3, np.float32)
    assert kernels.batch_norm(x, channel, channel, channel, channel).shape == x.shape
    dx, dgamma, dbeta = kernels.batch_norm_backward(x, x, channel, channel, channel)
    assert dx.shape == x.shape
    assert_same(dgamma, np.zeros(3, np.float32))
    assert_same(dbeta, np.zeros(3, np.float32))
    moving = channel.copy()
    with pytest.raises(ValueError, match="at least one sample"):
        kernels.batch_norm_training(x, channel, channel, moving, channel.copy())
    assert_same(moving, channel)


def test_what_is_refused(target):
    x, channel = np.ones((2, 3), np.float32), np.ones(3, np.float32)
    for epsilon in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="epsilon: expected a finite number"):
            kernels.batch_norm(x, None, None, channel, channel, epsilon)
    for momentum in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="momentum: expected a number from 0 to 1"):
            kernels.batch_norm_training(x, None, None, channel, channel.copy(), momentum)
    with pytest.raises(ValueError, match=r"x: expected shape \(n, ..., channels\)"):
        kernels.batch_norm(channel, None, None, channel, channel)
    with pytest.raises(ValueError, match="at least one channel"):
        kernels.batch_norm(x[:, :0].copy(), None, None, channel, channel)
    with pytest.raises(ValueError, match="overlaps with moving_mean"):
        kernels.batch_norm_training(x, None, None, channel, channel)
