"""One optimizer step at a time, from the kernel's own float32 state, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import reals
from pyconv.validation.checks import adam_bounds, rmsprop_bounds, sgd_bounds
from pyconv.validation.reference import assert_within

SHAPES = [(0,), (1,), (15,), (16,), (17,), (33,), (3, 3, 5, 7), (40_001,)]
all_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
STEPS = 3


def state(guarded, shape, slots, offset):
    """Weights of order 1, slots of zeros, guarded."""
    w = guarded.like(reals("w", shape), offset)
    zeros = [guarded.like(np.zeros(shape, np.float32), offset) for _ in range(slots)]
    return w, *zeros


def gradient(guarded, shape, step, offset):
    """From 1e-6 to 1, both signs, some of them exactly 0."""
    g = reals(f"g{step}", shape) * np.float32(10) ** (6 * (reals(f"e{step}", shape) - 1) / 2)
    g.reshape(-1)[::7] = 0
    return guarded.like(g.astype(np.float32), offset)


@pytest.mark.parametrize("offset", [0, 1, 7])
@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.0, True), (0.9, False), (0.9, True)]
)
@all_shapes
def test_sgd(target, shape, momentum, nesterov, offset, guarded):
    w, velocity = state(guarded, shape, 1, offset)
    for step in range(STEPS):
        g = gradient(guarded, shape, step, offset)
        before, v_before = w.astype(float), velocity.astype(float)
        slot = velocity if momentum else None
        assert kernels.sgd_step(w, g, slot, 0.05, momentum, nesterov) is None
        arguments = (before, g.astype(float), v_before, 0.05, momentum, nesterov)
        expected, v = reference.sgd_step(*arguments)
        of_w, of_v = sgd_bounds(*arguments)
        if momentum:
            assert_within(velocity, v, of_v, f"velocity {step}")
        assert_within(w, expected, of_w, f"w {step}")
    guarded.check()


@pytest.mark.parametrize("offset", [0, 1, 7])
@pytest.mark.parametrize("rho", [0.9, 0.999])
@all_shapes
def test_rmsprop(target, shape, rho, offset, guarded):
    w, velocity = state(guarded, shape, 1, offset)
    for step in range(STEPS):
        g = gradient(guarded, shape, step, offset)
        before, v_before = w.astype(float), velocity.astype(float)
        assert kernels.rmsprop_step(w, g, velocity, 0.001, rho, 1e-7) is None
        expected, v = reference.rmsprop_step(before, g, v_before, 0.001, rho, 1e-7)
        of_w, of_v = rmsprop_bounds(before, expected, v)
        assert_within(velocity, v, of_v, f"velocity {step}")
        assert_within(w, expected, of_w, f"w {step}")
    guarded.check()


@pytest.mark.parametrize("offset", [0, 1, 7])
@all_shapes
def test_adam(target, shape, offset, guarded):
    w, m, v = state(guarded, shape, 2, offset)
    for step in range(1, STEPS + 1):
        g = gradient(guarded, shape, step, offset)
        before, m_before, v_before = (a.astype(float) for a in (w, m, v))
        assert kernels.adam_step(w, g, m, v, step, 0.002, 0.9, 0.999, 1e-7) is None
        expected, of_m, of_v = reference.adam_step(
            before, g, m_before, v_before, step, 0.002, 0.9, 0.999, 1e-7
        )
        bounds = adam_bounds(before, g.astype(float), m_before, v_before, step, 0.002, of_m, of_v)
        for got, wanted, bound, name in zip((w, m, v), (expected, of_m, of_v), bounds, "wmv"):
            assert_within(got, wanted, bound, f"{name} {step}")
    guarded.check()


def test_defaults_are_keras(target):
    g = reals("g", (40,))
    for step, slots in ((kernels.rmsprop_step, 1), (kernels.adam_step, 2)):
        runs = []
        for tail in ((), (0.9, 1e-7) if slots == 1 else (0.9, 0.999, 1e-7)):
            w, *state_ = (reals(name, (40,)) ** 2 for name in ("w", "m", "v")[: slots + 1])
            count = (2,) if slots == 2 else ()
            step(w, g, *state_, *count, 0.01, *tail)
            runs.append(w)
        np.testing.assert_array_equal(*runs)


def test_nan_gradient_stays_in_its_lane(target):
    for size in (16, 19, 40):
        for step, slots, tail in (
            (kernels.sgd_step, 1, (0.1, 0.9)),
            (kernels.rmsprop_step, 1, (0.1,)),
            (kernels.adam_step, 2, (1, 0.1)),
        ):
            w, g = reals("w", (size,)), reals("g", (size,))
            g[size - 2] = np.nan
            step(w, g, *(np.zeros(size, np.float32) for _ in range(slots)), *tail)
            assert np.flatnonzero(np.isnan(w)).tolist() == [size - 2]
