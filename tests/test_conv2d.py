"""conv2d and its gradients, on every instruction set, over the whole table of cases."""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import CONV_CASES, ConvCase, integers, named, reals
from pyconv.validation.reference import assert_same, assert_same_bits, assert_within, sum_bound

all_cases = pytest.mark.parametrize("case", CONV_CASES, ids=lambda c: c.name)
BIAS_AND_ACTIVATION = tuple(product((False, True), (None, "relu")))


@cache
def problem(case: ConvCase, numbers=integers) -> SimpleNamespace:
    """Inputs (read-only: kernels must not need more) and what the reference makes of them."""
    p = SimpleNamespace(
        x=numbers(f"{case.name} x", case.x),
        w=numbers(f"{case.name} w", case.w),
        b=numbers(f"{case.name} b", (case.filters,)),
    )
    p.linear = reference.conv2d(p.x, p.w, **case.geometry)
    p.dy = numbers(f"{case.name} dy", p.linear.shape)
    # ReLU's output as a backward pass gets it: about half of it 0. Independent of x, w and b, which
    # is all the same.
    p.y = np.maximum(numbers(f"{case.name} y", p.linear.shape), 0)
    p.gradients = {
        activation: reference.conv2d_backward(
            p.dy, p.x, p.w, **case.geometry, activation=activation, y=p.y
        )
        for activation in (None, "relu")
    }
    for array in (p.x, p.w, p.b, p.dy, p.y):
        array.flags.writeable = False
    return p


def backward_options(case, p, activation):
    return case.geometry | {"activation": activation, "y": None if activation is None else p.y}


@all_cases
def test_forward_of_integers_is_exact(target, case):
    p = problem(case)
    for with_bias, activation in BIAS_AND_ACTIVATION:
        b = p.b if with_bias else None
        y = kernels.conv2d(p.x, p.w, b, **case.geometry, activation=activation)
        expected = p.linear + (p.b if with_bias else 0)
        expected = reference.relu(expected) if activation else expected
        assert_same(y, expected, f"{case} bias={with_bias} activation={activation}")


@all_cases
def test_backward_of_integers_is_exact(target, case):
    p = problem(case)
    for activation in (None, "relu"):
        what = f"{case} activation={activation}"
        options = backward_options(case, p, activation)
        dx, dw, db = p.gradients[activation]
        assert_same(kernels.conv2d_backward_data(p.dy, p.w, case.x, **options), dx, f"dx {what}")
        got = kernels.conv2d_backward_weights(p.dy, p.x, case.w, **options)
        assert_same(got[0], dw, f"dw {what}")
        assert_same(got[1], db, f"db {what}")
        for got, expected, name in zip(
            kernels.conv2d_backward(p.dy, p.x, p.w, **options), (dx, dw, db), ("dx", "dw", "db")
        ):
            assert_same(got, expected, f"{name} of conv2d_backward {what}")


@all_cases
def test_reals_are_within_the_rounding_bound(target, case):
    p = problem(case, reals)
    n, oh, ow, f = p.linear.shape
    kh, kw, c, _ = case.w
    magnitude = reference.conv2d(np.abs(p.x), np.abs(p.w), np.abs(p.b), **case.geometry)
    for activation in (None, "relu"):
        what = f"{case} activation={activation}"
        # ReLU brings nothing apart.
        y = kernels.conv2d(p.x, p.w, p.b, **case.geometry, activation=activation)
        expected = p.linear + p.b
        expected = reference.relu(expected) if activation else expected
        assert_within(y, expected, sum_bound(kh * kw * c + 1, magnitude), f"y {what}")

        options = backward_options(case, p, activation)
        dx, dw, db = kernels.conv2d_backward(p.dy, p.x, p.w, **options)
        of_dx, of_dw, of_db = reference.conv2d_backward(
            np.abs(p.dy), np.abs(p.x), np.abs(p.w), **options
        )
        expected = p.gradients[activation]
        terms = kh * kw * f // case.groups
        assert_within(dx, expected[0], sum_bound(terms, of_dx), f"dx {what}")
        assert_within(dw, expected[1], sum_bound(n * oh * ow, of_dw), f"dw {what}")
        assert_within(db, expected[2], sum_bound(n * oh * ow, of_db), f"db {what}")


@all_cases
def test_outputs_are_overwritten_and_nothing_around_them(target, case, guarded):
    """Given outputs and misaligned arrays: the same bits as without, and every element written."""
    p = problem(case, reals)
    y = kernels.conv2d(p.x, p.w, p.b, **case.geometry, activation=case.activation)
    options = backward_options(case, p, case.activation)
    gradients = kernels.conv2d_backward(p.dy, p.x, p.w, **options)
    for offset in (1, 7):
        x, w, b, dy = (guarded.like(a, offset) for a in (p.x, p.w, p.b, p.dy))
        out = guarded.empty(y.shape, offset=offset)
        got = kernels.conv2d(x, w, b, **case.geometry, activation=case.activation, out=out)
        assert got is out
        assert_same_bits(out, y, f"y {case} offset={offset}")

        outs = [guarded.empty(a.shape, offset=offset) for a in (x, w, b)]
        got = kernels.conv2d_backward(dy, x, w, **options, dx=outs[0], dw=outs[1], db=outs[2])
        for mine, returned, expected in zip(outs, got, gradients):
            assert returned is mine
            assert_same_bits(mine, expected, f"gradient {case} offset={offset}")

        out = guarded.empty(case.x, offset=offset)
        assert kernels.conv2d_backward_data(dy, w, case.x, **options, out=out) is out
        assert_same_bits(out, gradients[0], f"dx {case} offset={offset}")
        dw, db = (guarded.empty(a.shape, offset=offset) for a in (w, b))
        got = kernels.conv2d_backward_weights(dy, x, case.w, **options, dw=dw, db=db)
        assert got[0] is dw and got[1] is db
        assert_same_bits(dw, gradients[1], f"dw {case} offset={offset}")
        assert_same_bits(db, gradients[2], f"db {case} offset={offset}")
        guarded.check()


@all_cases
def test_two_runs_give_the_same_bits(target, case):
    p = problem(case, reals)
    options = backward_options(case, p, "relu")
    first, second = (
        (
            kernels.conv2d(p.x, p.w, p.b, **case.geometry, activation="relu"),
            *kernels.conv2d_backward(p.dy, p.x, p.w, **options),
        )
        for _ in range(2)
    )
    for a, b in zip(first, second):
        assert_same_bits(a, b, str(case))


SPREAD_CASES = named(
    CONV_CASES,
    (
        *("in3_out17", "in17_out48", "in1_out64", "in64_out1", "k1x1", "k2x2_same", "k5x5"),
        *("stride2_same_odd", "stride3", "stride_above_kernel", "dilation2_same", "groups2"),
        *("depthwise17_stride2", "pad_asymmetric", "pad_above_kernel", "tutorial_conv6_n2"),
        *("channels33", "stride_leftover", "n13_tail"),
        *("depthwise33_relu", "depthwise_stride2_same", "depthwise_dilated"),
    ),
)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("case", SPREAD_CASES, ids=lambda c: c.name)
def test_nan_and_inf_reach_only_what_sees_them(target, case, value):
    """One bad input pixel, then one bad gradient. No weight is 0, as inf * 0 is NaN by itself."""
    x, w = (np.array(problem(case).x), np.array(problem(case).w))
    w[w == 0] = 1
    n, h, width, c = case.x
    for position in {(0, 0, 0, 0), (n - 1, h // 2, width // 2, c - 1), (0, h - 1, width - 1, 0)}:
        bad = x.copy()
        bad[position] = value
        got = kernels.conv2d(bad, w, **case.geometry)
        assert_same(got, reference_of_one(bad, w, case, position), f"{case} bad x{position}")
        got = kernels.conv2d(bad, w, **case.geometry, activation="relu")
        expected = reference.relu(reference_of_one(bad, w, case, position))
        assert_same(got, expected, f"{case} relu bad x{position}")

    dy = np.array(problem(case).dy)
    bad = dy.copy()
    position = tuple(size // 2 for size in dy.shape)
    bad[position] = value
    one = np.zeros_like(dy)
    one[position] = 1
    dx = kernels.conv2d_backward_data(bad, w, case.x, **case.geometry)
    touched = reference.conv2d_backward_data(one, w, case.x, **case.geometry) != 0
    finite = reference.conv2d_backward_data(np.where(one, 0, dy), w, case.x, **case.geometry)
    assert not np.isfinite(dx[touched]).any(), f"{case} bad dy{position}"
    assert_same(dx[~touched], finite[~touched], f"{case} bad dy{position}")


def reference_of_one(x, w, case, position):
    """The reference's y for x[position] = NaN or inf, but no 0 * inf where it is not seen."""
    value = float(x[position])
    rest, one = x.copy(), np.zeros_like(x)
    rest[position], one[position] = 0, 1
    y = reference.conv2d(rest, w, **case.geometry)
    factor = reference.conv2d(one, w, **case.geometry)
    seen = factor != 0
    y[seen] = value * factor[seen]
    return y


def test_relu_backward_masks_even_nan(target):
    """dy counts where y > 0 and is nothing elsewhere, whatever it is; a NaN in y is not > 0."""
    (case,) = named(CONV_CASES, ("in3_out17",))
    p = problem(case)
    dy, y = np.array(p.dy), np.array(p.y)
    dy[y == 0] = np.nan
    options = case.geometry | {"activation": "relu", "y": y}
    for got, expected in zip(kernels.conv2d_backward(dy, p.x, p.w, **options), p.gradients["relu"]):
        assert_same(got, expected)
    y[y == 0] = np.nan
    for got, expected in zip(kernels.conv2d_backward(dy, p.x, p.w, **options), p.gradients["relu"]):
        assert_same(got, expected)


def test_inputs_never_read_have_zero_gradient(target):
    for case in CONV_CASES:
        if "stride_above" not in case.name and "leftover" not in case.name:
            continue
        p = problem(case)
        ones = np.ones_like(p.dy), np.ones(case.w, np.float32)
        unread = reference.conv2d_backward_data(*ones, case.x, **case.geometry) == 0
        assert unread.any(), case
        dx = kernels.conv2d_backward_data(p.dy, p.w, case.x, **case.geometry)
        assert (dx[unread] == 0).all(), case


def test_empty_batch(target):
    x, w, b = (np.ones(shape, np.float32) for shape in ((0, 5, 6, 3), (3, 3, 3, 8), (8,)))
    y = kernels.conv2d(x, w, b, padding="same", activation="relu")
    assert y.shape == (0, 5, 6, 8) and y.dtype == np.float32
    dx, dw, db = kernels.conv2d_backward(y, x, w, padding="same", activation="relu", y=y)
    assert dx.shape == x.shape
    assert_same(dw, np.zeros(w.shape, np.float32))
    assert_same(db, np.zeros(b.shape, np.float32))


def test_spellings_of_geometry_agree():
    x, w = integers("x", (1, 6, 7, 3)), integers("w", (3, 3, 3, 4))
    y = kernels.conv2d(x, w, strides=2, padding=1, dilation_rate=1)
    for strides, padding in product((2, (2, 2), [2, 2]), (1, (1, 1), ((1, 1), (1, 1)))):
        assert_same_bits(kernels.conv2d(x, w, strides=strides, padding=padding), y)
    positional = kernels.conv2d(x, w, None, 2, 1, 1, 1, None)
    assert_same_bits(positional, y)


# Valid and invalid alike: what the reference rejects, the kernel must reject.
sizes = st.integers(1, 8)
paddings = st.one_of(
    st.sampled_from(["valid", "same"]),
    st.integers(0, 4),
    st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2),
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    x_shape=st.tuples(st.integers(0, 3), sizes, sizes, st.integers(1, 20)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    filters=st.integers(1, 20),
    strides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=paddings,
    dilation_rate=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 1, 1, 2, 3, 4]),
    activation=st.sampled_from([None, "relu"]),
    with_bias=st.booleans(),
)
def test_any_geometry(
    target, x_shape, kernel, filters, strides, padding, dilation_rate, groups, activation, with_bias
):
    x = integers("x", x_shape)
    w = integers("w", (*kernel, max(x_shape[3] // groups, 1), filters))
    b = integers("b", (filters,)) if with_bias else None
    geometry = (strides, padding, dilation_rate, groups, activation)
    try:
        expected = reference.conv2d(x, w, b, *geometry)
    except ValueError:
        with pytest.raises(ValueError):
            kernels.conv2d(x, w, b, *geometry)
        with pytest.raises(ValueError):
            dy = np.zeros((max(x_shape[0], 1), 1, 1, filters), np.float32)
            kernels.conv2d_backward_data(dy, w, x_shape, *geometry, y=dy)
        return
    y = kernels.conv2d(x, w, b, *geometry)
    assert_same(y, expected)
    dy = integers("dy", y.shape)
    gradients = kernels.conv2d_backward(dy, x, w, *geometry, y=y)
    for got, want in zip(gradients, reference.conv2d_backward(dy, x, w, *geometry, y=y)):
        assert_same(got, want)


@pytest.mark.parametrize("case", SPREAD_CASES, ids=lambda c: c.name)
def test_agrees_with_torch(case):
    torch = pytest.importorskip("torch")
    p = problem(case, reals)
    strides, dilation, (rows, columns), (oh, ow) = reference.conv_geometry(
        case.x, case.w, *case.geometry.values()
    )
    x, w, b = (torch.tensor(a, requires_grad=True) for a in (p.x, p.w, p.b))
    y = torch.nn.functional.conv2d(
        torch.nn.functional.pad(x.permute(0, 3, 1, 2), (*columns, *rows)),
        w.permute(3, 2, 0, 1),
        b,
        stride=strides,
        dilation=dilation,
        groups=case.groups,
    ).permute(0, 2, 3, 1)
    y.backward(torch.tensor(p.dy))
    # Both round: twice the bound. The longest of the sums stands for all.
    of_y = reference.conv2d(np.abs(p.x), np.abs(p.w), np.abs(p.b), **case.geometry)
    of_gradients = reference.conv2d_backward(
        np.abs(p.dy), np.abs(p.x), np.abs(p.w), **case.geometry
    )
    terms = max(
        math.prod(case.w[:3]) + 1, math.prod(case.kernel) * case.filters, len(p.x) * oh * ow
    )
    for got, peer, magnitude in zip(
        (
            kernels.conv2d(p.x, p.w, p.b, **case.geometry),
            *kernels.conv2d_backward(p.dy, p.x, p.w, **case.geometry),
        ),
        (y.detach(), x.grad, w.grad, b.grad),
        (of_y, *of_gradients),
    ):
        assert_within(got, peer.numpy(), 2 * sum_bound(terms, magnitude), str(case))
