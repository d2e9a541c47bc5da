"""conv2d_pool and its gradients, on every path: fused on CUDA, composed on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import pyconv
from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import CONV_CASES, ConvCase, integers, reals
from pyconv.validation.reference import assert_same, assert_same_bits, assert_within, sum_bound


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
def test_a_part_of_a_batch_drops_what_the_whole_does(target, case):
    x, w = integers("x", case.x), integers("w", case.w)
    for first in (4, 1000, 2**34):
        y, winner = kernels.conv2d_pool(x, w, None, **case.geometry, rate=0.5, seed=5, first=first)
        expected = reference.conv2d_pool(x, w, None, 0.5, 5, first=first, **case.geometry)
        assert_same(y, expected[0], f"{case} first={first}")
        np.testing.assert_array_equal(winner, expected[1], f"{case} first={first}")


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


class TestThrough:
    """The gradient through a second layer to the weights of the first, on the CPU."""

    # Few and many images, fewer and more than fill blocks and chunks, and what the kernels of the
    # two layers choose among.
    PAIRS = (
        (ConvCase("same", (70, 20, 18, 3), (3, 3), 33, padding="same", activation="relu"), {}),
        (ConvCase("valid", (5, 12, 12, 3), (3, 3), 16, activation="relu"), {"padding": "same"}),
        (ConvCase("linear", (18, 66, 40, 1), (5, 5), 32, padding="same"), {}),
        (ConvCase("strided", (35, 70, 70, 8), (3, 3), 24, strides=2, activation="relu"), {}),
        (
            ConvCase("groups", (17, 60, 60, 8), (1, 1), 40, groups=2, activation="relu"),
            {"groups": 4, "padding": 1},
        ),
        (ConvCase("large", (270, 40, 40, 2), (3, 3), 17, padding="same", activation="relu"), {}),
    )
    pairs = pytest.mark.parametrize("first, second", PAIRS, ids=lambda p: getattr(p, "name", ""))

    @staticmethod
    def run(values, first, second, threads=None, **arrays):
        """The gradients through both layers, and those of one layer after the other."""
        if threads:
            pyconv.set_num_threads(threads)
        x, w1 = values("x", first.x), values("w1", first.w)
        y = kernels.conv2d(x, w1, None, **first.geometry, activation=first.activation)
        w2 = values("w2", (3, 3, first.filters // second.get("groups", 1), 12))
        pooled, winner = kernels.conv2d_pool(y, w2, None, **second, rate=0.5, seed=3)
        dy = values("dy", pooled.shape)
        of_first = {f"first_{name}": value for name, value in first.geometry.items()}
        through = kernels.conv2d_pool_backward_through(
            dy,
            winner,
            w2,
            y,
            x,
            first.w,
            **second,
            rate=0.5,
            **of_first,
            first_activation=first.activation,
            **arrays,
        )
        dx = kernels.conv2d_pool_backward(dy, winner, y, w2, **second, rate=0.5)[0]
        separate = kernels.conv2d_backward_weights(
            dx, x, first.w, **first.geometry, activation=first.activation, y=y
        )
        return through, separate, (dx, x)

    @pairs
    def test_integers_are_exact(self, isa, first, second):
        def few(name, shape):  # sums over many images stay below 2**24
            return np.sign(integers(name, shape))

        through, separate, _ = self.run(few, first, second)
        for got, expected in zip(through, separate):
            assert np.abs(expected).max() < 2**24
            assert_same(got, expected, first.name)

    @pairs
    def test_reals_are_within_the_rounding_bound(self, isa, first, second):
        through, separate, (dx, x) = self.run(reals, first, second)
        geometry = {**first.geometry, "activation": None}
        sizes = kernels.conv2d_backward_weights(np.abs(dx), np.abs(x), first.w, **geometry)
        n, oh, ow, _ = dx.shape
        for got, expected, size in zip(through, separate, sizes):
            # Two sums of the same terms, in different orders.
            bound = 2 * sum_bound(n * oh * ow + 2, size.astype(np.float64))
            assert_within(got, expected.astype(np.float64), bound, first.name)

    @pairs
    def test_same_bits_for_any_threads(self, isa, first, second):
        before = pyconv.get_num_threads()
        try:
            results = [self.run(reals, first, second, threads)[0] for threads in (1, 2, 3, 7)]
        finally:
            pyconv.set_num_threads(before)
        for result in results[1:]:
            for got, expected in zip(result, results[0]):
                assert_same_bits(got, expected, first.name)

    def test_given_arrays_are_overwritten_and_nothing_around_them(self, isa, guarded):
        first, second = self.PAIRS[0]
        expected = self.run(reals, first, second)[0]
        dw, db = guarded.empty(first.w, offset=3), guarded.empty((first.filters,), offset=5)
        through = self.run(reals, first, second, dw=dw, db=db)[0]
        assert through[0] is dw and through[1] is db
        for got, wanted in zip(through, expected):
            assert_same_bits(got, wanted)
        guarded.check()

    def test_wrong_arrays_are_refused(self):
        x, w1 = np.ones((2, 8, 8, 3), np.float32), np.ones((3, 3, 3, 4), np.float32)
        w2 = np.ones((3, 3, 4, 8), np.float32)
        y = kernels.conv2d(x, w1)
        pooled, winner = kernels.conv2d_pool(y, w2)

        def through(dy=pooled, winner=winner, w=w2, y=y, x=x, shape=w1.shape, **options):
            return kernels.conv2d_pool_backward_through(dy, winner, w, y, x, shape, **options)

        through()
        for wrong in (
            {"dy": pooled[:1]},
            {"y": y[:, :5]},
            {"x": x[:, :7]},
            {"shape": (3, 3, 2, 4)},
            {"w": w2[:, :, :3]},
            {"winner": winner.astype(np.float32)},
            {"dw": np.empty((3, 3, 3, 5), np.float32)},
            {"db": np.empty(5, np.float32)},
            {"strides": 0},
            {"first_padding": "full"},
            {"rate": 1.0},
        ):
            with pytest.raises((TypeError, ValueError)):
                through(**wrong)
