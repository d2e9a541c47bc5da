"""sigmoid, tanh, leaky_relu and softplus, on every instruction set and in CUDA."""

from __future__ import annotations

import numpy as np
import pytest

from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import integers, reals
from pyconv.validation.checks import activation_bound
from pyconv.validation.reference import assert_same, assert_same_bits, assert_within

SHAPES = [(), (0,), (1,), (3,), (15,), (16,), (17,), (31,), (33,), (2, 3, 5, 7), (70_001,)]


@pytest.mark.parametrize("name", kernels.POINTWISE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_places(target, name, shape, guarded):
    x, dy = np.asarray(reals("x", shape) * np.float32(20)), reals("dy", shape)
    y = kernels.activate(x, name)
    expected = reference.activate(x, name)
    assert_within(y, expected, activation_bound(name, False, expected), f"{name} {shape}")
    dx = kernels.activate_backward(dy, y, name)
    expected = reference.activate_backward(dy, y, name)
    assert_within(dx, expected, activation_bound(name, True, expected), f"{name} backward {shape}")
    for offset in (1, 7):
        out = guarded.empty(shape, offset=offset)
        assert kernels.activate(guarded.like(x, offset), name, out=out) is out
        assert_same_bits(out, y)
        in_place = guarded.like(x, offset)
        kernels.activate(in_place, name, out=in_place)
        assert_same_bits(in_place, y)
        out = guarded.empty(shape, offset=offset)
        kernels.activate_backward(guarded.like(dy, offset), guarded.like(y, offset), name, out=out)
        assert_same_bits(out, dx)
        for which in (0, 1):
            arrays = [guarded.like(dy, offset), guarded.like(y, offset)]
            kernels.activate_backward(*arrays, name, out=arrays[which])
            assert_same_bits(arrays[which], dx)
    guarded.check()


@pytest.mark.parametrize("name", kernels.POINTWISE)
def test_the_whole_range_of_float32(target, name):
    """From the smallest denormal to the largest number, of both signs; more where things happen."""
    step = 4093 if target.startswith("cuda") else 251
    bits = np.arange(1, 0x7F800000, step * 16, dtype=np.uint32)
    x = np.concatenate([bits.view(np.float32), np.linspace(0, 120, 3_000_000 // step)])
    x = np.concatenate([x, -x]).astype(np.float32)
    y = kernels.activate(x, name)
    expected = reference.activate(x, name)
    assert_within(y, expected, activation_bound(name, False, expected), name)
    dy = np.ones_like(y)
    expected = reference.activate_backward(dy, y, name)
    assert_within(
        kernels.activate_backward(dy, y, name),
        expected,
        activation_bound(name, True, expected),
        name,
    )


def test_special_values_at_every_lane(target):
    nan, inf = np.nan, np.inf
    x = np.array([nan, inf, -inf, 0.0, -0.0, 1e4, -1e4, 3e38, -3e38], np.float32)
    limits = {
        "sigmoid": [nan, 1, 0, 0.5, 0.5, 1, 0, 1, 0],
        "tanh": [nan, 1, -1, 0, 0, 1, -1, 1, -1],
        "leaky_relu": [nan, inf, -inf, 0, 0, 1e4, -5e3, 3e38, -1.5e38],
        "softplus": [nan, inf, 0, np.log(2), np.log(2), 1e4, 0, 3e38, 0],
    }
    for name, expected in limits.items():
        for shift in range(len(x)):
            values = np.resize(np.roll(x, shift), 67)
            y = kernels.activate(values, name, 0.5)
            assert_same(y, np.resize(np.roll(np.float32(expected), shift), 67), name)
            gradient = kernels.activate_backward(np.ones_like(y), y, name, 0.5)
            assert (np.isnan(gradient) == (np.isnan(y) & (name != "leaky_relu"))).all()
            assert np.nanmin(gradient) >= 0 and np.nanmax(gradient) <= 1
            # NaN comes through from above.
            assert np.isnan(kernels.activate_backward(y * np.float32(nan), y, name)).all()


@pytest.mark.parametrize("slope", [0.0, 0.25, 0.5, 1.0, 2.0])
def test_leaky_relu_is_exact(target, slope):
    x, dy = integers("x", (1003,)), integers("dy", (1003,))
    y = kernels.activate(x, "leaky_relu", slope)
    assert_same(y, np.where(x > 0, x, slope * x).astype(np.float32))
    dx = kernels.activate_backward(dy, y, "leaky_relu", slope)
    assert_same(dx, np.where(x > 0, dy, slope * dy).astype(np.float32))


def test_what_is_refused():
    x = np.ones(3, np.float32)
    for call in (
        lambda name, *slope: kernels.activate(x, name, *slope),
        lambda name, *slope: kernels.activate_backward(x, x, name, *slope),
    ):
        for name in ("relu", "Tanh", ""):
            with pytest.raises(ValueError, match=f"name: expected 'sigmoid', .*'{name}'"):
                call(name)
        for slope in (-0.1, np.nan, np.inf):
            with pytest.raises(ValueError, match="negative_slope: expected a finite number"):
                call("leaky_relu", slope)
        for bad in (("tanh", "0.1"), ("tanh", None), (None,), (1,)):
            with pytest.raises(TypeError):
                call(*bad)
