"""avg_pool2d and its gradient. Sums of integers are exact, and so is their mean, rounded once."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import POOL_CASES, PoolCase, integers, reals
from pyconv.validation.checks import largest_windows, windows_around
from pyconv.validation.reference import (
    UNIT_ROUNDOFF,
    assert_same,
    assert_same_bits,
    assert_within,
    sum_bound,
)

all_cases = pytest.mark.parametrize("case", POOL_CASES, ids=lambda c: c.name)


@cache
def problem(case: PoolCase, numbers=integers) -> SimpleNamespace:
    x = numbers(f"{case.name} x", case.x)
    y = reference.avg_pool2d(x, **case.geometry)
    dy = numbers(f"{case.name} dy", y.shape)
    dx = reference.avg_pool2d_backward(dy, case.x, **case.geometry)
    for array in (x, dy):
        array.flags.writeable = False
    return SimpleNamespace(x=x, y=y, dy=dy, dx=dx)


@all_cases
def test_means_of_integers_are_rounded_once(target, case):
    p = problem(case)
    y = kernels.avg_pool2d(p.x, **case.geometry)
    assert_same(y, p.y.astype(np.float32), f"y {case}")


@all_cases
def test_gradient_of_integers(target, case):
    """Exact where all windows have a power of two of pixels; else shares of dy are rounded."""
    p = problem(case)
    dx = kernels.avg_pool2d_backward(p.dy, case.x, **case.geometry)
    pool, strides, pads, out = reference.pool_geometry(case.x, *case.geometry.values())
    pixels = reference.pixels_in_windows(case.x, pool, strides, pads, out)
    if (np.log2(pixels) % 1 == 0).all():
        assert_same(dx, p.dx, f"dx {case}")
    magnitude = reference.avg_pool2d_backward(np.abs(p.dy), case.x, **case.geometry)
    # One rounding of the share, and those of the sum of products.
    assert_within(dx, p.dx, sum_bound(windows_around(case) + 1, magnitude), f"dx {case}")


@all_cases
def test_reals(target, case):
    p = problem(case, reals)
    rows, columns = largest_windows(case)
    magnitude = reference.avg_pool2d(np.abs(p.x), **case.geometry)
    y = kernels.avg_pool2d(p.x, **case.geometry)
    # As documented: rows + columns, not rows * columns; sum_bound counts the division too.
    assert_within(y, p.y, sum_bound(rows + columns, magnitude), f"y {case}")
    dx = kernels.avg_pool2d_backward(p.dy, case.x, **case.geometry)
    magnitude = reference.avg_pool2d_backward(np.abs(p.dy), case.x, **case.geometry)
    assert_within(dx, p.dx, sum_bound(windows_around(case) + 1, magnitude), f"dx {case}")


def test_a_large_image_is_averaged_accurately(target):
    """Pixel after pixel, the sum of 10^4 equal numbers would be off by some 100 roundings."""
    x = np.full((2, 112, 96, 5), 0.1, np.float32)
    y = kernels.avg_pool2d(x, (112, 96))
    error = np.abs(y.astype(float) / float(np.float32(0.1)) - 1).max()
    assert error <= (112 + 96) * UNIT_ROUNDOFF
    assert_within(y, reference.avg_pool2d(x, (112, 96)), sum_bound(208, np.abs(y)))


@all_cases
def test_nan_and_inf_reach_only_their_windows(target, case):
    p = problem(case)
    position = tuple(size // 2 for size in case.x)
    one = np.zeros(case.x)
    one[position] = 1
    seen = reference.avg_pool2d(one, **case.geometry) != 0
    back = tuple(size // 2 for size in p.dy.shape)
    one = np.zeros(p.dy.shape)
    one[back] = 1
    covered = reference.avg_pool2d_backward(one, case.x, **case.geometry) != 0
    clean = kernels.avg_pool2d_backward(p.dy, case.x, **case.geometry)
    for value in (np.nan, np.inf, -np.inf):
        x = p.x.copy()
        x[position] = value
        y = kernels.avg_pool2d(x, **case.geometry)
        assert_same(y[seen], np.full(seen.sum(), value, np.float32), f"{value} {case}")
        assert_same(y[~seen], p.y[~seen].astype(np.float32), f"{value} {case}")
        dy = p.dy.copy()
        dy[back] = value
        dx = kernels.avg_pool2d_backward(dy, case.x, **case.geometry)
        assert_same(dx[covered], np.full(covered.sum(), value, np.float32), f"{value} {case}")
        assert_same_bits(dx[~covered], clean[~covered], f"{value} {case}")


@all_cases
def test_outputs_are_overwritten_and_nothing_around_them(target, case, guarded):
    p = problem(case, reals)
    y = kernels.avg_pool2d(p.x, **case.geometry)
    dx = kernels.avg_pool2d_backward(p.dy, case.x, **case.geometry)
    for offset in (1, 7):
        x, dy = guarded.like(p.x, offset), guarded.like(p.dy, offset)
        out = guarded.empty(y.shape, offset=offset)
        assert kernels.avg_pool2d(x, **case.geometry, out=out) is out
        assert_same_bits(out, y, f"y {case} offset={offset}")
        out = guarded.empty(case.x, offset=offset)
        assert kernels.avg_pool2d_backward(dy, case.x, **case.geometry, out=out) is out
        assert_same_bits(out, dx, f"dx {case} offset={offset}")
        guarded.check()


def test_empty_batch(target):
    y = kernels.avg_pool2d(np.zeros((0, 4, 6, 3), np.float32))
    assert y.shape == (0, 2, 3, 3)
    assert kernels.avg_pool2d_backward(y, (0, 4, 6, 3)).shape == (0, 4, 6, 3)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    x_shape=st.tuples(*[st.integers(0, 3)], *[st.integers(1, 9)] * 2, st.integers(1, 40)),
    pool_size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.sampled_from(["valid", "same"]) | st.integers(0, 4),
)
def test_any_geometry(target, x_shape, pool_size, strides, padding):
    x = integers("x", x_shape)
    geometry = (pool_size, strides, padding)
    try:
        expected = reference.avg_pool2d(x, *geometry)
    except ValueError:
        with pytest.raises(ValueError):
            kernels.avg_pool2d(x, *geometry)
        return
    y = kernels.avg_pool2d(x, *geometry)
    assert_same(y, expected.astype(np.float32))
    dy = integers("dy", y.shape)
    dx = kernels.avg_pool2d_backward(dy, x_shape, *geometry)
    # At most 16 windows around a pixel, and gradients up to 4.
    expected = reference.avg_pool2d_backward(dy, x_shape, *geometry)
    magnitude = reference.avg_pool2d_backward(np.abs(dy), x_shape, *geometry)
    assert_within(dx, expected, sum_bound(17, magnitude))
