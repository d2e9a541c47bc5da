"""dense and its gradients, on every instruction set."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import DENSE_CASES, DenseCase, integers, reals
from pyconv.validation.reference import assert_same, assert_same_bits, assert_within, sum_bound

all_cases = pytest.mark.parametrize("case", DENSE_CASES, ids=lambda c: c.name)


@cache
def problem(case: DenseCase, numbers=integers) -> SimpleNamespace:
    p = SimpleNamespace(
        x=numbers(f"{case.name} x", (case.batch, case.inputs)),
        w=numbers(f"{case.name} w", (case.inputs, case.units)),
        b=numbers(f"{case.name} b", (case.units,)),
        dy=numbers(f"{case.name} dy", (case.batch, case.units)),
        y=np.maximum(numbers(f"{case.name} y", (case.batch, case.units)), 0),
    )
    for array in vars(p).values():
        array.flags.writeable = False
    return p


@all_cases
def test_integers_are_exact(target, case):
    p = problem(case)
    for activation in (None, "relu"):
        what = f"{case} activation={activation}"
        for b in (None, p.b):
            y = kernels.dense(p.x, p.w, b, activation)
            assert_same(y, reference.dense(p.x, p.w, b, activation), f"y {what}")
        options = {"activation": activation, "y": None if activation is None else p.y}
        dx, dw, db = reference.dense_backward(p.dy, p.x, p.w, **options)
        assert_same(kernels.dense_backward_data(p.dy, p.w, **options), dx, f"dx {what}")
        got = kernels.dense_backward_weights(p.dy, p.x, **options)
        assert_same(got[0], dw, f"dw {what}")
        assert_same(got[1], db, f"db {what}")
        for got, expected in zip(kernels.dense_backward(p.dy, p.x, p.w, **options), (dx, dw, db)):
            assert_same(got, expected, f"dense_backward {what}")


@all_cases
def test_reals_are_within_the_rounding_bound(target, case):
    p = problem(case, reals)
    sizes = np.abs(p.x), np.abs(p.w), np.abs(p.b), np.abs(p.dy)
    for activation in (None, "relu"):
        what = f"{case} activation={activation}"
        y = kernels.dense(p.x, p.w, p.b, activation)
        bound = sum_bound(case.inputs + 1, reference.dense(*sizes[:3]))
        assert_within(y, reference.dense(p.x, p.w, p.b, activation), bound, f"y {what}")
        options = {"activation": activation, "y": None if activation is None else p.y}
        magnitudes = reference.dense_backward(sizes[3], *sizes[:2], **options)
        for got, expected, magnitude, terms, name in zip(
            kernels.dense_backward(p.dy, p.x, p.w, **options),
            reference.dense_backward(p.dy, p.x, p.w, **options),
            magnitudes,
            (case.units, case.batch, case.batch),
            ("dx", "dw", "db"),
        ):
            assert_within(got, expected, sum_bound(terms, magnitude), f"{name} {what}")


@all_cases
def test_outputs_are_overwritten_and_nothing_around_them(target, case, guarded):
    p = problem(case, reals)
    options = {"activation": case.activation, "y": p.y}
    y = kernels.dense(p.x, p.w, p.b, case.activation)
    gradients = kernels.dense_backward(p.dy, p.x, p.w, **options)
    for offset in (1, 7):
        x, w, b, dy = (guarded.like(a, offset) for a in (p.x, p.w, p.b, p.dy))
        out = guarded.empty(y.shape, offset=offset)
        assert kernels.dense(x, w, b, case.activation, out=out) is out
        assert_same_bits(out, y, f"y {case} offset={offset}")
        outs = [guarded.empty(a.shape, offset=offset) for a in (x, w, b)]
        got = kernels.dense_backward(dy, x, w, **options, dx=outs[0], dw=outs[1], db=outs[2])
        for mine, returned, expected in zip(outs, got, gradients):
            assert returned is mine
            assert_same_bits(mine, expected, f"gradient {case} offset={offset}")
        out = guarded.empty(x.shape, offset=offset)
        assert kernels.dense_backward_data(dy, w, **options, out=out) is out
        assert_same_bits(out, gradients[0], f"dx {case} offset={offset}")
        dw, db = (guarded.empty(a.shape, offset=offset) for a in (w, b))
        kernels.dense_backward_weights(dy, x, **options, dw=dw, db=db)
        assert_same_bits(dw, gradients[1], f"dw {case} offset={offset}")
        assert_same_bits(db, gradients[2], f"db {case} offset={offset}")
        guarded.check()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_stay_in_their_row(target, value):
    for case in DENSE_CASES:
        p = problem(case)
        x, w = np.array(p.x), np.where(p.w == 0, np.float32(1), p.w)
        expected = reference.dense(x, w)
        row = case.batch // 2
        x[row, case.inputs // 2] = value
        y = kernels.dense(x, w)
        assert not np.isfinite(y[row]).any(), case
        others = np.arange(case.batch) != row
        assert_same(y[others], expected[others], str(case))


def test_relu_backward_masks_even_nan(target):
    p = problem(DENSE_CASES[-1])
    dy = np.where(p.y > 0, p.dy, np.float32(np.nan))
    expected = reference.dense_backward(p.dy, p.x, p.w, "relu", y=p.y)
    for got, want in zip(kernels.dense_backward(dy, p.x, p.w, "relu", y=p.y), expected):
        assert_same(got, want)


def test_empty_batch(target):
    x, w, b = (np.ones(shape, np.float32) for shape in ((0, 5), (5, 7), (7,)))
    y = kernels.dense(x, w, b, "relu")
    assert y.shape == (0, 7)
    dx, dw, db = kernels.dense_backward(y, x, w, "relu", y=y)
    assert dx.shape == (0, 5)
    assert_same(dw, np.zeros((5, 7), np.float32))
    assert_same(db, np.zeros(7, np.float32))


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(st.integers(0, 20), st.integers(0, 70), st.integers(0, 70)),
    inner=st.sampled_from([0, 0, 0, 1]),
    activation=st.sampled_from([None, "relu"]),
)
def test_any_shape(target, shape, inner, activation):
    batch, inputs, units = shape
    x, w = integers("x", (batch, inputs)), integers("w", (inputs + inner, units))
    dy = integers("dy", (batch, units))
    if inner or not inputs or not units:
        with pytest.raises(ValueError):
            kernels.dense(x, w, None, activation)
        with pytest.raises(ValueError):
            kernels.dense_backward(dy, x, w, activation, y=dy)
        return
    y = kernels.dense(x, w, None, activation)
    assert_same(y, reference.dense(x, w, None, activation))
    expected = reference.dense_backward(dy, x, w, activation, y=y)
    for got, want in zip(kernels.dense_backward(dy, x, w, activation, y=y), expected):
        assert_same(got, want)
