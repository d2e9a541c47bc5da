"""max_pool2d and its gradient: a maximum is exact, so every comparison but one is for equality."""

from __future__ import annotations

import contextlib
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import POOL_CASES, PoolCase, integers, reals
from pyconv.validation.reference import assert_same, assert_same_bits, assert_within, sum_bound

all_cases = pytest.mark.parametrize("case", POOL_CASES, ids=lambda c: c.name)


@cache
def problem(case: PoolCase, numbers=integers) -> SimpleNamespace:
    x = numbers(f"{case.name} x", case.x)
    y, argmax = reference.max_pool2d(x, **case.geometry)
    dy = numbers(f"{case.name} dy", y.shape)
    dx = reference.max_pool2d_backward(dy, argmax, case.x, **case.geometry)
    for array in (x, dy, argmax):
        array.flags.writeable = False
    return SimpleNamespace(x=x, y=y.astype(np.float32), argmax=argmax, dy=dy, dx=dx)


@all_cases
def test_integers_with_many_ties_are_exact(target, case):
    p = problem(case)
    y, argmax = kernels.max_pool2d(p.x, **case.geometry)
    assert_same_bits(y, p.y, f"y {case}")
    assert_same(argmax, p.argmax, f"argmax {case}")
    dx = kernels.max_pool2d_backward(p.dy, p.argmax, case.x, **case.geometry)
    assert_same(dx, p.dx, f"dx {case}")


@all_cases
def test_reals(target, case):
    p = problem(case, reals)
    y, argmax = kernels.max_pool2d(p.x, **case.geometry)
    assert_same_bits(y, p.y, f"y {case}")
    assert_same(argmax, p.argmax, f"argmax {case}")
    # An input collects at most one gradient from each window that covers it.
    pool, strides, _, _ = reference.pool_geometry(case.x, *case.geometry.values())
    terms = -(-pool[0] // strides[0]) * -(-pool[1] // strides[1])
    dx = kernels.max_pool2d_backward(p.dy, p.argmax, case.x, **case.geometry)
    magnitude = reference.max_pool2d_backward(np.abs(p.dy), p.argmax, case.x, **case.geometry)
    assert_within(dx, p.dx, sum_bound(terms, magnitude), f"dx {case}")


@all_cases
def test_special_values(target, case):
    """NaN, infinities, zeros of both signs and ties, in the vector body and in the tail alike."""
    values = np.array([np.nan, -np.inf, np.inf, 0.0, -0.0, 1.0, -1.0, 1.0], np.float32)
    x = values[np.floor(np.abs(reals(case.name, case.x)) * 8).astype(int)]
    x[:, : case.x[1] // 2] = -np.inf  # and windows of nothing but -inf
    y, argmax = kernels.max_pool2d(x, **case.geometry)
    of_y, of_argmax = reference.max_pool2d(x, **case.geometry)
    assert_same(y, of_y, f"y {case}")
    assert_same(argmax, of_argmax, f"argmax {case}")
    assert (np.signbit(y) == np.signbit(of_y))[~np.isnan(y)].all(), f"sign of zero {case}"


@all_cases
def test_gradient_of_special_values(target, case):
    """A NaN or inf reaches the one input that won its window."""
    p = problem(case)
    dy = np.array(p.dy)
    position = tuple(size // 2 for size in dy.shape)
    for value in (np.nan, np.inf):
        dy[position] = value
        dx = kernels.max_pool2d_backward(dy, p.argmax, case.x, **case.geometry)
        expected = reference.max_pool2d_backward(dy, p.argmax, case.x, **case.geometry)
        assert_same(dx, expected, f"{value} {case}")


@all_cases
def test_outputs_are_overwritten_and_nothing_around_them(target, case, guarded):
    p = problem(case, reals)
    dx = kernels.max_pool2d_backward(p.dy, p.argmax, case.x, **case.geometry)
    for offset in (1, 7):
        x, dy, argmax_in = (guarded.like(a, offset) for a in (p.x, p.dy, p.argmax))
        y = guarded.empty(p.y.shape, offset=offset)
        argmax = guarded.empty(p.y.shape, p.argmax.dtype, offset)
        got = kernels.max_pool2d(x, **case.geometry, out=y, argmax=argmax)
        assert got[0] is y and got[1] is argmax
        assert_same_bits(y, p.y, f"y {case} offset={offset}")
        assert_same(argmax, p.argmax, f"argmax {case} offset={offset}")
        out = guarded.empty(case.x, offset=offset)
        assert kernels.max_pool2d_backward(dy, argmax_in, case.x, **case.geometry, out=out) is out
        assert_same_bits(out, dx, f"dx {case} offset={offset}")
        guarded.check()


def test_empty_batch(target):
    y, argmax = kernels.max_pool2d(np.zeros((0, 4, 6, 3), np.float32))
    assert y.shape == argmax.shape == (0, 2, 3, 3) and argmax.dtype == np.uint8
    assert kernels.max_pool2d_backward(y, argmax, (0, 4, 6, 3)).shape == (0, 4, 6, 3)


@pytest.mark.parametrize("case", POOL_CASES[::3], ids=lambda c: c.name)
def test_argmax_of_someone_else_cannot_reach_outside(target, case, guarded):
    """Positions past the window or in the padding are refused or ignored, and harm no memory."""
    p = problem(case)
    top = np.iinfo(p.argmax.dtype)
    pool, _, _, _ = reference.pool_geometry(case.x, *case.geometry.values())
    for value in (top.max, top.min, top.max // 2):
        argmax = np.full_like(p.argmax, value)
        out = guarded.empty(case.x)
        with contextlib.suppress(ValueError):
            kernels.max_pool2d_backward(p.dy, argmax, case.x, **case.geometry, out=out)
            if value not in range(pool[0] * pool[1]):
                assert not np.any(out), f"{value} {case}"
        guarded.check()


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    x_shape=st.tuples(*[st.integers(0, 3)], *[st.integers(1, 9)] * 2, st.integers(1, 20)),
    pool_size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.sampled_from(["valid", "same"]) | st.integers(0, 4),
)
def test_any_geometry(target, x_shape, pool_size, strides, padding):
    x = integers("x", x_shape)
    geometry = (pool_size, strides, padding)
    try:
        of_y, of_argmax = reference.max_pool2d(x, *geometry)
    except ValueError:
        with pytest.raises(ValueError):
            kernels.max_pool2d(x, *geometry)
        return
    y, argmax = kernels.max_pool2d(x, *geometry)
    assert_same(y, of_y)
    assert_same(argmax, of_argmax)
    dy = integers("dy", y.shape)
    dx = kernels.max_pool2d_backward(dy, argmax, x_shape, *geometry)
    assert_same(dx, reference.max_pool2d_backward(dy, of_argmax, x_shape, *geometry))
