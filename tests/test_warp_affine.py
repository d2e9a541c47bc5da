"""warp_affine: whole pixels bit for bit, everything else within a derived bound."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import FILL_MODES, reals
from pyconv.validation.reference import UNIT_ROUNDOFF, assert_same_bits, assert_within

SHAPES = [(3, 8, 8, 3), (2, 7, 12, 1), (2, 5, 4, 4), (1, 1, 6, 2), (1, 6, 1, 3), (2, 1, 1, 5)]

fill_modes = pytest.mark.parametrize("fill_mode", FILL_MODES)


def bound(x, cval=0.0) -> float:
    """In a + w (b - a), the difference, w and the product round by u, relative to w |b - a| <= 2 M,
    where M is the largest value, and the sum by u M: 7 u M. Mixing along the other axis passes that
    on and adds as much again; 1.001 covers the terms of order u^2."""
    return 1.001 * 2 * 7 * UNIT_ROUNDOFF * float(np.abs(x).max(initial=abs(cval)))


def translation(rows, columns) -> np.ndarray:
    return np.array([[[1, 0, rows], [0, 1, columns]]], np.float64)


def random_matrices(n, seed=0) -> np.ndarray:
    """Rotations, zooms, shears and flips about anything, by several sizes of an image."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(-2, 2, (n, 2, 2)), rng.uniform(-20, 20, (n, 2, 1))], axis=2)


@fill_modes
@pytest.mark.parametrize("shape", SHAPES)
def test_reals(fill_mode, shape):
    x = reals(str(shape), shape)
    indices = np.arange(40) % shape[0]
    matrices = random_matrices(40)
    matrices[:20, :, 2] *= 0.2  # half of them mostly inside
    got = kernels.warp_affine(x, matrices, indices, fill_mode, 0.25)
    expected = reference.warp_affine(x, matrices, indices, fill_mode, 0.25)
    assert_within(got, expected, bound(x, 0.25), f"{fill_mode} {shape}")


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 2, st.integers(1, 5)),
    numbers=st.lists(
        st.integers(-3, 3) | st.integers(-6, 6).map(lambda n: n / 2) | st.floats(-20, 20),
        min_size=6,
        max_size=6,
    ),
    fill_mode=st.sampled_from(FILL_MODES),
    cval=st.floats(-2, 2, width=32),
)
def test_any_map(shape, numbers, fill_mode, cval):
    x = reals("x", (1, *shape))
    matrices = np.array(numbers, np.float64).reshape(1, 2, 3)
    got = kernels.warp_affine(x, matrices, None, fill_mode, cval)
    expected = reference.warp_affine(x, matrices, None, fill_mode, cval)
    assert_within(got, expected, bound(x, cval))


# Where pixel i of an axis of this size stands, as the documentation draws it.
SOURCE = {
    "nearest": lambda i, n: min(max(i, 0), n - 1),
    "reflect": lambda i, n: min(i % (2 * n), 2 * n - 1 - i % (2 * n)),
    "wrap": lambda i, n: i if 0 <= i < n else (i % (n - 1) or (n - 1 if i < 0 else 0)),
    "constant": lambda i, n: i if 0 <= i < n else None,
}


@fill_modes
@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -3), (-2, 5), (6, 9), (-17, 23)])
@pytest.mark.parametrize("flips", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_whole_pixels_keep_their_bits(fill_mode, shift, flips):
    """Shifts and flips, of NaN, infinities and zeros of both signs as well."""
    x = reals("x", (1, 6, 8, 3))
    x.reshape(-1)[::7] = np.resize(np.array([np.nan, np.inf, -np.inf, -0.0, 0.0], "f"), 21)
    x.view(np.uint32)[0, 2, 3] = 0x7FC12345  # a NaN that carries something
    offsets = [s + (n - 1 if f < 0 else 0) for s, f, n in zip(shift, flips, (6, 8))]
    matrices = np.array([[[flips[0], 0, offsets[0]], [0, flips[1], offsets[1]]]], np.float64)
    expected = np.full_like(x, -7)
    for row, column in np.ndindex(6, 8):
        at = SOURCE[fill_mode](flips[0] * row + offsets[0], 6)
        of = SOURCE[fill_mode](flips[1] * column + offsets[1], 8)
        if at is not None and of is not None:
            expected[0, row, column] = x[0, at, of]
    assert_same_bits(kernels.warp_affine(x, matrices, None, fill_mode, -7.0), expected)


@fill_modes
def test_edges(fill_mode):
    """On an edge and one ulp past it."""
    x = np.array([10, 20, 40], np.float32).reshape(1, 1, 3, 1)
    tiny = np.nextafter(2.0, 3.0) - 2.0
    past = {"nearest": (10, 40), "constant": (-1, -1), "reflect": (10, 40), "wrap": (40, 10)}
    for at, expected in [
        (0.0, 10),
        (2.0, 40),
        (-tiny, past[fill_mode][0]),
        (2 + tiny, past[fill_mode][1]),
    ]:
        got = kernels.warp_affine(x, translation(0, at), None, fill_mode, -1.0)[0, 0, 0, 0]
        assert abs(got - expected) <= bound(x), f"{at!r}: {got}, expected {expected}"


def test_half_a_pixel_is_the_mean():
    x = np.array([[1, 2], [4, 8]], np.float32).reshape(1, 2, 2, 1)
    got = kernels.warp_affine(x, translation(0.5, 0.5), fill_mode="reflect")
    np.testing.assert_array_equal(got[0, ..., 0], [[3.75, 5], [6, 8]])


@fill_modes
@pytest.mark.parametrize("shape", SHAPES)
def test_upright_maps_are_no_special_case(fill_mode, shape):
    """They have a path of their own, which a coefficient too small to matter keeps them off."""
    x = reals("x", shape)
    matrices = random_matrices(20)
    matrices[:, 0, 1] = matrices[:, 1, 0] = 0
    matrices[::4, [0, 1], [0, 1]] = 1
    matrices[::3, :, 2] *= 0.1
    indices = np.arange(20) % shape[0]
    expected = kernels.warp_affine(x, matrices, indices, fill_mode, 0.5)
    matrices[:, 0, 1] = 1e-300
    got = kernels.warp_affine(x, matrices, indices, fill_mode, 0.5)
    assert_same_bits(got, expected)
    assert_within(got, reference.warp_affine(x, matrices, indices, fill_mode, 0.5), bound(x, 0.5))


@fill_modes
def test_threads_change_no_bit(fill_mode):
    x = reals("x", (3, 100, 90, 3))  # an image is several items
    matrices = random_matrices(5)
    matrices[2:, 0, 1] = matrices[2:, 1, 0] = 0
    indices = np.array([2, 0, 1, 1, 2])
    expected = kernels.warp_affine(x, matrices, indices, fill_mode, threads=1)
    for threads in (2, 3, 7):
        got = kernels.warp_affine(x, matrices, indices, fill_mode, threads=threads)
        assert_same_bits(got, expected, f"{threads} threads")


@fill_modes
@pytest.mark.parametrize("shape", SHAPES)
def test_output_is_overwritten_and_nothing_around_it(fill_mode, shape, guarded):
    x = reals("x", shape)
    matrices = random_matrices(6)
    indices = np.arange(6) % shape[0]
    expected = kernels.warp_affine(x, matrices, indices, fill_mode)
    out = guarded.empty((6, *shape[1:]), offset=3)
    got = kernels.warp_affine(guarded.like(x, 1), matrices, indices, fill_mode, out=out)
    assert got is out
    assert_same_bits(out, expected)
    guarded.check()


@fill_modes
@pytest.mark.parametrize("value", [1e17, -1e300, 1.7e308])
def test_coordinates_that_overflow_stay_inside(fill_mode, value, guarded):
    x = guarded.like(reals("x", (1, 5, 6, 3)))
    for position in range(6):
        matrices = translation(0.5, 0.5)
        matrices[0, position // 3, position % 3] = value
        out = guarded.empty(x.shape)
        kernels.warp_affine(x, matrices, None, fill_mode, out=out)
        assert np.isfinite(out).all()
    guarded.check()


def test_nothing_to_do():
    x = reals("x", (2, 4, 5, 3))
    assert kernels.warp_affine(x, np.empty((0, 2, 3)), np.empty(0, np.int64)).shape == (0, 4, 5, 3)
    assert kernels.warp_affine(x[:0], np.empty((0, 2, 3))).shape == (0, 4, 5, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1]}, TypeError, "x: expected a NumPy array. Received: list"),
        ({"x": np.zeros((2, 4, 5, 3))}, TypeError, "x: expected dtype float32. Received: float64"),
        ({"x": reals("x", (4, 5, 3))}, ValueError, "x: expected 4 axes"),
        ({"x": reals("x", (2, 0, 5, 3))}, ValueError, "at least one row, column and channel"),
        ({"x": reals("x", (2, 4, 5, 6))[..., ::2]}, ValueError, "C-contiguous"),
        ({"matrices": np.zeros((2, 3, 3))}, ValueError, r"matrices: expected shape \(2, 2, 3\)"),
        ({"matrices": np.zeros((3, 2, 3))}, ValueError, r"matrices: expected shape \(2, 2, 3\)"),
        ({"matrices": np.zeros((2, 2, 3), "f")}, TypeError, "expected dtype float64"),
        ({"matrices": np.full((2, 2, 3), np.nan)}, ValueError, "matrices: expected finite numbers"),
        ({"matrices": np.full((2, 2, 3), -np.inf)}, ValueError, "Received: -inf in matrix 0"),
        ({"indices": np.array([0, 2])}, ValueError, "from 0 to below 2, .* Received: 2"),
        ({"indices": np.array([-1, 0])}, ValueError, "Received: -1"),
        ({"indices": np.array([0, 1], np.int32)}, TypeError, "expected dtype int64"),
        ({"indices": np.array([[0], [1]])}, ValueError, "indices: expected shape"),
        ({"fill_mode": "mirror"}, ValueError, "'nearest', 'constant', .* Received: 'mirror'"),
        ({"threads": 0}, ValueError, "threads: expected a count from 1 to 1024. Received: 0"),
        ({"out": np.zeros((2, 4, 5, 2), "f")}, ValueError, "out: expected shape"),
    ],
)
def test_bad_input(change, error, message):
    valid = {
        "x": reals("x", (2, 4, 5, 3)),
        "matrices": np.tile(np.eye(2, 3), (2, 1, 1)),
        "indices": np.array([0, 1]),
    }
    kernels.warp_affine(**valid)
    with pytest.raises(error, match=message):
        kernels.warp_affine(**valid | change)


def test_an_output_must_be_apart():
    x = reals("x", (2, 4, 5, 3))
    with pytest.raises(ValueError, match="out: expected memory of its own"):
        kernels.warp_affine(x, np.tile(np.eye(2, 3), (2, 1, 1)), out=x)


def test_the_gil_is_released():
    """A call that takes a while does not hold up another Python thread."""
    x, matrices = reals("x", (1, 400, 400, 3)), random_matrices(60)
    ticks, done = 0, threading.Event()

    def warp():
        kernels.warp_affine(x, matrices, np.zeros(60, np.int64), threads=1)
        done.set()

    thread = threading.Thread(target=warp)
    thread.start()
    while not done.wait(0.001):
        ticks += 1
    thread.join()
    assert ticks > 5
