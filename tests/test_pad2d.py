"""pad2d and its gradient: bits are copied, so every comparison is for equality."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import reals
from pyconv.validation.reference import assert_same_bits

CASES = {
    "one": ((2, 4, 5, 3), 1),
    "none": ((2, 4, 5, 8), 0),
    "pair": ((2, 4, 5, 16), (2, 0)),
    "sides": ((3, 6, 4, 33), ((0, 3), (1, 2))),
    "one pixel": ((1, 1, 1, 1), ((5, 4), (3, 2))),
    "crop": ((2, 6, 7, 4), -2),
    "crop and pad": ((2, 6, 7, 5), ((-2, 3), (4, -1))),
    "crop past the image": ((1, 4, 5, 4), ((-5, 3), (7, -6))),
    "large": ((2, 60, 50, 20), ((1, 0), (0, 1))),
}
all_cases = pytest.mark.parametrize("case", CASES)


@all_cases
def test_bits_are_copied(target, case, guarded):
    shape, padding = CASES[case]
    x = reals(case, shape)
    x[0, 0, 0, 0], x[-1, -1, -1, -1] = np.nan, -0.0
    expected = reference.pad2d(x, padding).astype(np.float32)
    assert_same_bits(kernels.pad2d(x, padding), expected)
    dy = reals(f"{case} dy", expected.shape)
    of_dx = reference.pad2d_backward(dy, padding).astype(np.float32)
    assert_same_bits(kernels.pad2d_backward(dy, padding), of_dx)
    for offset in (1, 7):
        out = guarded.empty(expected.shape, offset=offset)
        assert kernels.pad2d(guarded.like(x, offset), padding, out=out) is out
        assert_same_bits(out, expected, f"y {case} offset={offset}")
        out = guarded.empty(shape, offset=offset)
        assert kernels.pad2d_backward(guarded.like(dy, offset), padding, out=out) is out
        assert_same_bits(out, of_dx, f"dx {case} offset={offset}")
        guarded.check()


def test_empty_batch(target):
    assert kernels.pad2d(np.zeros((0, 2, 3, 4), np.float32), (1, 2)).shape == (0, 4, 7, 4)


sides = st.tuples(st.integers(-5, 5), st.integers(-5, 5))


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(*[st.integers(0, 3)], *[st.integers(1, 9)] * 2, st.integers(1, 20)),
    padding=st.tuples(sides, sides),
)
def test_any_padding(target, shape, padding):
    x = reals("x", shape)
    try:
        expected = reference.pad2d(x, padding).astype(np.float32)
    except ValueError:
        with pytest.raises(ValueError, match="at least one row and column"):
            kernels.pad2d(x, padding)
        return
    assert_same_bits(kernels.pad2d(x, padding), expected)


@pytest.mark.parametrize("padding", ["same", 1.5, (1, 2, 3), None, True])
def test_bad_padding(padding):
    with pytest.raises(ValueError, match="padding: expected"):
        kernels.pad2d(np.zeros((1, 2, 3, 4), np.float32), padding)


def test_wrong_output(target):
    x = np.zeros((1, 2, 3, 4), np.float32)
    with pytest.raises(ValueError, match="out: expected shape"):
        kernels.pad2d(x, 1, out=np.zeros((1, 4, 4, 4), np.float32))
