"""Winograd's algorithm on every instruction set: against the reference, within its own bound.

The bound is that of `sum_bound`, with the magnitude that the transforms' factors make of it: the
algorithm itself on absolute values. A product meets the roundings of the sum over channels (or, in
the weight gradient, over tiles) and those of the transforms.
"""

from __future__ import annotations

import numpy as np
import pytest

from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import CONV_CASES, ConvCase, named, reals
from pyconv.validation.reference import (
    WINOGRAD_ROUNDINGS,
    assert_same_bits,
    assert_within,
    sum_bound,
)

CASES = tuple(
    case
    for case in CONV_CASES
    if case.kernel == (3, 3)
    and case.groups == 1
    and case.strides in (1, (1, 1))
    and case.dilation_rate in (1, (1, 1))
)
# More tiles than a block or stage has, borders in every position, channels that fill no vector.
CASES += (
    ConvCase("winograd_blocks", (40, 9, 11, 24), (3, 3), 36, padding="same"),
    ConvCase("winograd_large", (2, 37, 41, 17), (3, 3), 72, padding="same", activation="relu"),
    ConvCase("winograd_wide", (1, 6, 6, 130), (3, 3), 150, padding="same"),
    ConvCase("winograd_full", (3, 5, 7, 8), (3, 3), 16, padding=2),
    ConvCase("winograd_past", (2, 7, 5, 8), (3, 3), 16, padding=((2, 3), (1, 4))),
)
all_cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


@pytest.fixture(autouse=True, params=[4, 6], ids=["F4", "F6"])
def m(request, math_mode):
    """The side of a tile of outputs."""
    math_mode(f"winograd{request.param}")
    return request.param


def pads(case: ConvCase) -> tuple:
    *_, sides, _ = reference.conv_geometry(case.x, case.w, 1, case.padding, 1, 1)
    return sides


def assert_gradients(m, case, got, expected, dense_dy, x, w, more=0) -> None:
    """dx, dw and db of the dense gradient are within their bounds."""
    dx, dw, db = got
    n, oh, ow, f = dense_dy.shape
    if max(before for before, _ in pads(case)) <= 2:
        size = reference.winograd_backward_data(m, dense_dy, w, case.x, case.padding, of=np.abs)
        bound = sum_bound(f + WINOGRAD_ROUNDINGS[m] + more, size)
    else:  # with more padding it is computed directly
        size = reference.conv2d_backward_data(np.abs(dense_dy), np.abs(w), case.x, **case.geometry)
        bound = sum_bound(9 * f + more, size)
    assert_within(dx, expected[0], bound, f"dx {case}")
    tiles = n * -(-oh // m) * -(-ow // m)
    size = reference.winograd_backward_weights(m, dense_dy, x, case.padding, of=np.abs)
    assert_within(
        dw, expected[1], sum_bound(tiles + WINOGRAD_ROUNDINGS[m] + more, size), f"dw {case}"
    )
    size = np.abs(dense_dy).sum((0, 1, 2))
    assert_within(db, expected[2], sum_bound(n * oh * ow + more, size), f"db {case}")


@all_cases
def test_the_reference_algorithm_is_convolution(m, case):
    x, w, b = reals("x", case.x), reals("w", case.w), reals("b", (case.filters,))
    y = reference.conv2d(x, w, b, **case.geometry)
    np.testing.assert_allclose(reference.winograd_conv2d(m, x, w, b, case.padding), y, atol=1e-10)
    dy = reals("dy", y.shape)
    dx, dw, _ = reference.conv2d_backward(dy, x, w, **case.geometry)
    got = reference.winograd_backward_weights(m, dy, x, case.padding)
    np.testing.assert_allclose(got, dw, atol=1e-10)
    if max(before for before, _ in pads(case)) <= 2:
        got = reference.winograd_backward_data(m, dy, w, case.x, case.padding)
        np.testing.assert_allclose(got, dx, atol=1e-10)


@all_cases
@pytest.mark.parametrize("activation", [None, "relu"])
def test_reals_are_within_the_rounding_bound(isa, m, case, activation):
    x, w, b = reals("x", case.x), reals("w", case.w), reals("b", (case.filters,))
    y = kernels.conv2d(x, w, b, **case.geometry, activation=activation)
    expected = reference.conv2d(x, w, b, **case.geometry, activation=activation)
    size = reference.winograd_conv2d(m, x, w, b, case.padding, of=np.abs)
    assert_within(y, expected, sum_bound(case.w[2] + WINOGRAD_ROUNDINGS[m], size), f"y {case}")

    dy = reals("dy", y.shape)
    mask = np.maximum(reals("y", y.shape), 0)
    options = case.geometry | {"activation": activation, "y": mask if activation else None}
    got = kernels.conv2d_backward(dy, x, w, **options)
    expected = reference.conv2d_backward(dy, x, w, **options)
    dense = dy * (mask > 0) if activation else dy
    assert_gradients(m, case, got, expected, dense, x, w)


@all_cases
def test_pooled_reals_are_within_the_rounding_bound(isa, m, case):
    x, w, b = reals("x", case.x), reals("w", case.w), reals("b", (case.filters,))
    convolved = reference.conv2d(x, w, b, **case.geometry)
    if min(convolved.shape[1:3]) < 2:
        pytest.skip("the output is smaller than a pooling window")
    y, winner = kernels.conv2d_pool(x, w, b, **case.geometry, rate=0.3, seed=3)
    expected, _ = reference.conv2d_pool(x, w, b, 0.3, 3, **case.geometry)
    size = reference.winograd_conv2d(m, x, w, b, case.padding, of=np.abs)
    bound = sum_bound(case.w[2] + WINOGRAD_ROUNDINGS[m] + 2, reference.max_pool2d(size)[0] / 0.7)
    assert_within(y, expected, bound, f"y {case}")
    assert ((winner == 4) == (y == 0)).all()
    # What wins is as large as the largest, but for the bound.
    windows = convolved[:, : 2 * y.shape[1], : 2 * y.shape[2]]
    windows = windows.reshape(y.shape[0], y.shape[1], 2, y.shape[2], 2, -1)
    windows = windows.transpose(0, 1, 3, 5, 2, 4).reshape(*y.shape, 4)
    chosen = np.take_along_axis(windows, np.minimum(winner, 3)[..., None], -1)[..., 0]
    short = np.where(winner < 4, windows.max(-1) - chosen, 0)
    assert (short <= 2 * bound).all()

    dy = reals("dy", y.shape)
    got = kernels.conv2d_pool_backward(dy, winner, x, w, **case.geometry, rate=0.3)
    expected = reference.conv2d_pool_backward(dy, winner, x, w, 0.3, **case.geometry)
    dense = reference.conv2d_pool_gradient(dy, winner, convolved.shape, 0.3)
    # Dropout's factor and product come on top.
    assert_gradients(m, case, got, expected, dense, x, w, more=2)


@all_cases
def test_outputs_are_overwritten_and_nothing_around_them(isa, case, guarded):
    x, w, b = reals("x", case.x), reals("w", case.w), reals("b", (case.filters,))
    y = kernels.conv2d(x, w, b, **case.geometry)
    dy = reals("dy", y.shape)
    gradients = kernels.conv2d_backward(dy, x, w, **case.geometry)
    for offset in (1, 7):
        mine = [guarded.like(a, offset) for a in (x, w, b, dy)]
        out = guarded.empty(y.shape, offset=offset)
        kernels.conv2d(*mine[:3], **case.geometry, out=out)
        assert_same_bits(out, y, str(case))
        outs = [guarded.empty(a.shape, offset=offset) for a in (x, w, b)]
        kernels.conv2d_backward(
            mine[3], *mine[:2], **case.geometry, dx=outs[0], dw=outs[1], db=outs[2]
        )
        for got, expected in zip(outs, gradients):
            assert_same_bits(got, expected, str(case))
        guarded.check()


@pytest.mark.parametrize("case", named(CONV_CASES, ("tutorial_conv2_n2", "in3_out17")), ids=str)
def test_nothing_depends_on_threads_or_the_batch(isa, case, num_threads):
    """An image's outputs are the same alone and in a batch, on any number of threads."""
    n = 30
    x = reals("x", (n, *case.x[1:]))
    w, b = reals("w", case.w), reals("b", (case.filters,))
    num_threads(1)
    y = kernels.conv2d(x, w, b, **case.geometry)
    gradients = kernels.conv2d_backward(y, x, w, **case.geometry)
    assert_same_bits(kernels.conv2d(x[7:8].copy(), w, b, **case.geometry), y[7:8])
    for threads in (2, 3, 7):
        num_threads(threads)
        assert_same_bits(kernels.conv2d(x, w, b, **case.geometry), y)
        for got, expected in zip(
            kernels.conv2d_backward(y, x, w, **case.geometry), gradients, strict=True
        ):
            assert_same_bits(got, expected)


def test_empty_batch(isa):
    x, w = np.ones((0, 6, 6, 8), np.float32), np.ones((3, 3, 8, 8), np.float32)
    y = kernels.conv2d(x, w)
    dx, dw, db = kernels.conv2d_backward(y, x, w)
    assert y.shape == (0, 4, 4, 8) and dx.shape == x.shape and not dw.any() and not db.any()


def test_the_default_takes_it_where_it_pays(isa, m, math_mode):
    side = {4: 16, 6: 30}[m] + 2  # without a remainder
    x, w = reals("x", (8, side, side, 32)), reals("w", (3, 3, 32, 32))
    winograd = kernels.conv2d(x, w)
    math_mode("fp32")
    assert_same_bits(kernels.conv2d(x, w), winograd)
    math_mode("direct")
    assert (kernels.conv2d(x, w) != winograd).any()
    math_mode("fp32")
    narrow, kernel = reals("x", (8, 18, 18, 3)), reals("w", (3, 3, 3, 32))
    default = kernels.conv2d(narrow, kernel)
    math_mode("direct")
    assert_same_bits(kernels.conv2d(narrow, kernel), default)
