"""One optimizer step at a time, from the kernel's own float32 state, against float64.

Bounds: every step counts the roundings of its formula in units of u = 2^-24. Scalars such as 1 -
rho are taken to be computed in double and rounded once: 1 - 0.999 in float32 would be off by 216 u,
which these bounds catch.
"""

from __future__ import annotations

import numpy as np
import pytest

from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import reals
from pyconv.validation.reference import UNIT_ROUNDOFF, assert_within

SHAPES = [(0,), (1,), (15,), (16,), (17,), (33,), (3, 3, 5, 7), (40_001,)]
all_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
STEPS = 3
TINY = 2.0**-125  # squares of tiny gradients may underflow


def roundings(count, magnitude):
    return 1.001 * UNIT_ROUNDOFF * count * np.abs(magnitude) + TINY


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
        expected, v = reference.sgd_step(before, g, v_before, 0.05, momentum, nesterov)
        moved = 0.05 * np.abs(g.astype(float))
        if momentum:
            # lr g: 2 roundings. momentum v: 2. Their sum: 1.
            moved += momentum * np.abs(v_before)
            assert_within(velocity, v, roundings(3, moved), f"velocity {step}")
            # Nesterov once more: momentum (v): 2, lr g: 2, the sum: 1, on top of v's 3.
            moved = momentum * moved + moved if nesterov else moved
        bound = roundings(6, moved) + roundings(1, np.abs(before) + moved)
        assert_within(w, expected, bound, f"w {step}")
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
        # (1 - rho) g^2: 3 roundings, rho v: 2, their sum: 1; all terms >= 0.
        assert_within(velocity, v, roundings(4, v), f"velocity {step}")
        # v + eps: v's 4, eps's 1 and the sum's; the root halves them and rounds (2: a root may come
        # from rsqrt and a Newton step); lr g: 2; the quotient: 2. The last difference rounds its
        # result.
        update = np.abs(expected - before)
        bound = roundings(5 / 2 + 2 + 2 + 2, update) + roundings(1, np.abs(before) + update)
        assert_within(w, expected, bound, f"w {step}")
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
        # m + (g - m)(1 - beta): the difference, 1 - beta and the product round, then the sum rounds
        # its result.
        change = np.abs(g - m_before) * (1 - 0.9)
        of_m_error = roundings(3, change) + roundings(1, of_m)
        assert_within(m, of_m, of_m_error, f"m {step}")
        # The same with g^2, rounded.
        square = g.astype(float) ** 2
        change = (square + np.abs(square - v_before) * 3) * (1 - 0.999)
        of_v_error = roundings(1, change) + roundings(1, of_v)
        assert_within(v, of_v, of_v_error, f"v {step}")
        # v's relative error halves in the root; root 2, + eps 2, m alpha 2, the quotient 2.
        alpha = 0.002 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        root = np.sqrt(of_v)
        of_root = np.minimum(of_v_error / np.maximum(root, 1e-30), np.sqrt(of_v_error))
        denominator = root + 1e-7
        update = np.abs(of_m) * alpha / denominator
        bound = alpha * of_m_error / denominator + update * of_root / denominator
        bound += roundings(8, update) + roundings(1, np.abs(before) + update)
        assert_within(w, expected, bound, f"w {step}")
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
