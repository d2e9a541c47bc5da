"""conv2d_pool and its gradients, on every path: fused on CUDA, composed on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import reference
from cases import CONV_CASES, ConvCase, integers, reals
from pyconv import kernels
from reference import assert_same, assert_same_bits, assert_within, sum_bound


def output_shape(case: ConvCase) -> tuple[int, ...]:
    return reference.conv2d(np.zeros(case.x), np.zeros(case.w), **case.geometry).shape


CASES = tuple(case for case in CONV_CASES if min(output_shape(case)[1:3]) >= 2)
# The fast kernels' tiles, in every position: more images, rows and columns than one of them takes.
CASES += (
    ConvCase("n40_tiles", (40, 9, 11, 16), (3, 3), 36),
    ConvCase("large", (2, 37, 41, 8), (3, 3), 72, padding="same"),
)
all_cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


@all_cases
def test_integers_are_exact(target, case):
    x, w, b = integers("x", case.x), integers("w", case.w), integers("b", (case.filters,))
    for bias in (None, b):
        for rate in (0.0, 0.5):  # scales by 1 and 2: exact
            y, winner = kernels.conv2d_pool(x, w, bias, **case.geometry, rate=rate, seed=5)
            expected = reference.conv2d_pool(x, w, bias, rate, 5, **case.geometry)
            assert_same(y, expected[0], f"y {case} rate={rate}")
            np.testing.assert_array_equal(winner, expected[1], f"{case} rate={rate}")
            dy = integers("dy", y.shape)
            got = kernels.conv2d_pool_backward(dy, winner, x, w, **case.geometry, rate=rate)
            wanted = reference.conv2d_pool_backward(dy, winner, x, w, rate, **case.geometry)
            for name, mine, theirs in zip(("dx", "dw", "db"), got, wanted):
                assert_same(mine, theirs, f"{name} {case} rate={rate}")


@all_cases
def test_reals_are_within_the_rounding_bound(target, case):
    x, w, b = reals("x", case.x), reals("w", case.w), reals("b", (case.filters,))
    rate = 0.3
    y, winner = kernels.conv2d_pool(x, w, b, **case.geometry, rate=rate, seed=3, offset=9)
    # The maximum of values that each err by their bound errs by the largest of these.
    magnitude = reference.conv2d(np.abs(x), np.abs(w), np.abs(b), **case.geometry)
    terms = case.w[0] * case.w[1] * case.w[2] + 3  # bias, dropout's factor and product
    bound = reference.max_pool2d(magnitude)[0] * (1 / (1 - rate))
    expected = reference.conv2d_pool(x, w, b, rate, 3, 9, **case.geometry)[0]
    assert_within(y, expected, sum_bound(terms, bound), f"y {case}")

    dy = reals("dy", y.shape)
    got = kernels.conv2d_pool_backward(dy, winner, x, w, **case.geometry, rate=rate)
    wanted = reference.conv2d_pool_backward(dy, winner, x, w, rate, **case.geometry)
    of = reference.conv2d_pool_backward(
        np.abs(dy), winner, np.abs(x), np.abs(w), rate, **case.geometry
    )
    n, oh, ow, f = magnitude.shape
    terms = (case.w[0] * case.w[1] * f // case.groups, n * oh * ow, n * oh * ow)
    for name, mine, theirs, count, size in zip(("dx", "dw", "db"), got, wanted, terms, of):
        assert_within(mine, theirs, sum_bound(count + 2, size), f"{name} {case}")


@all_cases
def test_given_arrays_are_overwritten_and_nothing_around_them(target, case, guarded):
    x, w, b = reals("x", case.x), reals("w", case.w), reals("b", (case.filters,))
    y, winner = kernels.conv2d_pool(x, w, b, **case.geometry, rate=0.5, seed=1)
    dy = reals("dy", y.shape)
    gradients = kernels.conv2d_pool_backward(dy, winner, x, w, **case.geometry, rate=0.5)
    for offset in (1, 7):
        mine = [guarded.like(a, offset) for a in (x, w, b)]
        out = guarded.empty(y.shape, offset=offset)
        won = guarded.empty(y.shape, np.uint8, offset)
        kernels.conv2d_pool(*mine, **case.geometry, rate=0.5, seed=1, out=out, winner=won)
        assert_same_bits(out, y, str(case))
        np.testing.assert_array_equal(won, winner)
        outs = [guarded.empty(a.shape, offset=offset) for a in gradients]
        kernels.conv2d_pool_backward(
            guarded.like(dy, offset),
            guarded.like(winner, offset),
            *mine[:2],
            **case.geometry,
            rate=0.5,
            dx=outs[0],
            dw=outs[1],
            db=outs[2],
        )
        for got, expected in zip(outs, gradients):
            assert_same_bits(got, expected, str(case))
        guarded.check()


def test_nan_wins_its_window_and_lets_no_gradient_through(target):
    x = reals("x", (1, 6, 6, 8))
    x[0, 2, 3, 1] = np.nan
    w = reals("w", (1, 1, 8, 12))
    y, winner = kernels.conv2d_pool(x, w)
    expected = reference.conv2d_pool(x, w)
    assert np.isnan(y[0, 1, 1]).all() and np.isfinite(np.delete(y.reshape(9, 12), 4, 0)).all()
    np.testing.assert_array_equal(winner, expected[1])
    assert (winner[0, 1, 1] == 4).all()


def test_dx_is_optional(target):
    x, w = reals("x", (2, 6, 6, 4)), reals("w", (3, 3, 4, 8))
    y, winner = kernels.conv2d_pool(x, w)
    dx, dw, db = kernels.conv2d_pool_backward(y, winner, x, w)
    none, dw_alone, db_alone = kernels.conv2d_pool_backward(y, winner, x, w, need_dx=False)
    assert none is None and dx.shape == x.shape
    assert_same_bits(dw_alone, dw)
    assert_same_bits(db_alone, db)


def test_empty_batch(target):
    x, w = np.ones((0, 6, 6, 4), np.float32), np.ones((3, 3, 4, 8), np.float32)
    y, winner = kernels.conv2d_pool(x, w)
    assert y.shape == winner.shape == (0, 2, 2, 8)
    dx, dw, db = kernels.conv2d_pool_backward(y, winner, x, w)
    assert dx.shape == x.shape and not dw.any() and not db.any()


@pytest.mark.parametrize("size", [(3, 6), (6, 3)])
def test_an_output_smaller_than_a_window_is_refused(target, size):
    x, w = np.ones((1, *size, 4), np.float32), np.ones((3, 3, 4, 8), np.float32)
    with pytest.raises(ValueError):
        kernels.conv2d_pool(x, w)


def test_wrong_arrays_are_refused(target):
    x, w = np.ones((2, 6, 6, 4), np.float32), np.ones((3, 3, 4, 8), np.float32)
    y, winner = kernels.conv2d_pool(x, w)
    with pytest.raises((TypeError, ValueError)):
        kernels.conv2d_pool_backward(y, winner.astype(np.int32), x, w)
    with pytest.raises(ValueError):
        kernels.conv2d_pool_backward(y[:, :1], winner, x, w)
    with pytest.raises(ValueError):
        kernels.conv2d_pool(x, w, rate=1.0)
    with pytest.raises((TypeError, ValueError)):
        kernels.conv2d_pool(x, w, out=np.empty(y.shape), winner=winner)


def test_gather(target, guarded):
    rng = np.random.default_rng(0)
    indices = np.array([3, 0, 6, 6, -5, 99], np.int64)
    for row in [(), (1,), (3,), (4, 4, 3), (33,)]:
        for source in (
            rng.integers(0, 256, (7, *row), np.uint8),
            rng.random((7, *row), np.float32),
        ):
            out = guarded.empty((6, *row), offset=3)
            assert kernels.gather(source, indices, 0.5, out=out) is out
            expected = source[[3, 0, 6, 6, 0, 6]].astype(np.float32) * np.float32(0.5)
            assert_same(out, expected, f"{source.dtype} {row}")
            guarded.check()
    assert kernels.gather(source, indices[:0]).shape == (0, 33)
    with pytest.raises(TypeError, match="float32 or uint8"):
        kernels.gather(source.astype(np.float64), indices)
    with pytest.raises(ValueError):
        kernels.gather(source[:0], indices)
