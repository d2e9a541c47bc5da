"""relu, round_bfloat16, softmax, softmax_cross_entropy and dropout, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import integers, reals
from pyconv.validation.checks import (
    UNDERFLOW,
    softmax_cross_entropy_bounds,
    softmax_error,
    softmax_gradient_bound,
)
from pyconv.validation.reference import (
    UNIT_ROUNDOFF,
    assert_same,
    assert_same_bits,
    assert_within,
    sum_bound,
)

SHAPES = [(), (0,), (1,), (3,), (15,), (16,), (17,), (31,), (33,), (2, 3, 5, 7), (70_001,)]
LOGITS = [(1, 1), (1, 10), (5, 10), (2, 3), (3, 15), (3, 16), (3, 17), (2, 33), (4, 100), (2, 1000)]
LOGITS += [(300, 10)]


# --------------------------------------------------------------------------------------------- relu


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_relu(target, shape, guarded):
    x, dy = integers("x", shape), integers("dy", shape)
    y = kernels.relu(x)
    assert_same(y, reference.relu(x))
    expected = reference.relu_backward(dy, y)
    assert_same(kernels.relu_backward(dy, y), expected)
    for offset in (1, 7):
        out = guarded.empty(shape, offset=offset)
        assert kernels.relu(guarded.like(x, offset), out=out) is out
        assert_same(out, y)
        out = guarded.empty(shape, offset=offset)
        kernels.relu_backward(guarded.like(dy, offset), guarded.like(y, offset), out=out)
        assert_same(out, expected)
        in_place = guarded.like(x, offset)
        assert kernels.relu(in_place, out=in_place) is in_place
        assert_same(in_place, y)
        in_place = guarded.like(dy, offset)
        assert kernels.relu_backward(in_place, y, out=in_place) is in_place
        assert_same(in_place, expected)
    guarded.check()


def test_relu_of_special_values(target):
    """Every value at every lane. On the CPU a denormal counts as zero."""
    zeros = () if target.startswith("cuda") else (1e-45, -1e-45)
    values = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, -1e-45, -1.0], np.float32)
    for shift in range(len(values)):
        x = np.resize(np.roll(values, shift), 67)
        read = np.where(np.isin(x, np.array(zeros, np.float32)), np.float32(0), x)
        y = kernels.relu(x)
        assert_same(y, reference.relu(read))
        dy = np.resize(values, 67)
        assert_same(kernels.relu_backward(dy, x), reference.relu_backward(dy, read))


# ----------------------------------------------------------------------------------- round_bfloat16


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_bfloat16(target, shape, guarded):
    x = reals("x", shape)
    y = kernels.round_bfloat16(x)
    assert_same(y, reference.round_bfloat16(x))
    assert_same_bits(kernels.round_bfloat16(y), y)
    for offset in (1, 7):
        out = guarded.empty(shape, offset=offset)
        assert kernels.round_bfloat16(guarded.like(x, offset), out=out) is out
        assert_same_bits(out, y)
        in_place = guarded.like(x, offset)
        assert kernels.round_bfloat16(in_place, out=in_place) is in_place
        assert_same_bits(in_place, y)
    guarded.check()


def test_round_bfloat16_around_every_number(target):
    """Every bfloat16, denormals, infinities and NaN included, and around it and its midpoints."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    x = np.add.outer(np.uint32([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]), upper).view(np.float32)
    y = kernels.round_bfloat16(x)
    assert not (y.view(np.uint32) & 0xFFFF).any()
    is_nan = np.isnan(x)
    assert_same(np.isnan(y), is_nan)
    expected = reference.round_bfloat16(x[~is_nan])
    assert_same(y[~is_nan], expected)
    assert_same(np.signbit(y), np.signbit(x))


# ------------------------------------------------------------------------------------------ softmax


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("shape", LOGITS, ids=str)
def test_softmax(target, shape, scale, guarded):
    z, dy = reals("z", shape) * np.float32(scale), reals("dy", shape)
    expected = reference.softmax(z)
    y = kernels.softmax(z)
    assert_within(y, expected, softmax_error(z)[1] * expected + UNDERFLOW, f"y {shape}")

    dx = kernels.softmax_backward(dy, y)
    expected = reference.softmax_backward(dy, y)
    assert_within(dx, expected, softmax_gradient_bound(dy, y), f"dx {shape}")
    for offset in (1, 7):
        out = guarded.empty(shape, offset=offset)
        assert kernels.softmax(guarded.like(z, offset), out=out) is out
        assert_same_bits(out, y)
        out = guarded.empty(shape, offset=offset)
        kernels.softmax_backward(guarded.like(dy, offset), guarded.like(y, offset), out=out)
        assert_same_bits(out, dx)
        in_place = guarded.like(z, offset)
        assert kernels.softmax(in_place, out=in_place) is in_place
        assert_same_bits(in_place, y)
        in_place = guarded.like(dy, offset)
        kernels.softmax_backward(in_place, guarded.like(y, offset), out=in_place)
        assert_same_bits(in_place, dx)
    guarded.check()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("shape", LOGITS, ids=str)
def test_softmax_cross_entropy(target, shape, scale, soft, guarded):
    z = reals("z", shape) * np.float32(scale)
    n, k = shape
    labels = (
        np.abs(reals("labels", shape)) if soft else np.eye(k, dtype=np.float32)[np.arange(n) % k]
    )
    got = kernels.softmax_cross_entropy(z, labels)
    expected = reference.softmax_cross_entropy(z, labels)
    bounds = softmax_cross_entropy_bounds(z, labels)
    for mine, wanted, bound, name in zip(got, expected, bounds, ("loss", "p", "dlogits")):
        assert_within(mine, wanted, bound, f"{name} {shape}")
    loss, p, dz = got
    assert_same_bits(p, kernels.softmax(z), "the same softmax")

    for offset in (1, 7):
        outs = [guarded.empty(a.shape, offset=offset) for a in (loss, p, dz)]
        got = kernels.softmax_cross_entropy(
            guarded.like(z, offset),
            guarded.like(labels, offset),
            loss=outs[0],
            probabilities=outs[1],
            dlogits=outs[2],
        )
        for out, returned, expected in zip(outs, got, (loss, p, dz)):
            assert returned is out
            assert_same_bits(out, expected)
    guarded.check()


@pytest.mark.parametrize("k", [2, 10, 16, 19])
def test_softmax_of_extreme_logits(target, k):
    """Stable for any finite logits: a far smaller one is 0, and is free where its label is 0."""
    largest = np.finfo(np.float32).max
    for value in (88.0, 1e4, 1e30, largest):
        z = np.full((3, k), -value, np.float32)
        z[0, 0] = z[1, k - 1] = value  # row 2: all equal, and huge
        labels = np.zeros((3, k), np.float32)
        labels[0, 0] = labels[1, k - 1] = labels[2, 0] = 1
        loss, p, dz = kernels.softmax_cross_entropy(z, labels)
        assert_same(p[:2], labels[:2], f"p {value}")
        assert_within(p[2], np.full(k, 1 / k), UNIT_ROUNDOFF * 4, f"p {value}")
        assert_within(loss, [0, 0, np.log(k)], 8 * UNIT_ROUNDOFF * np.log(k) + 1e-37, f"{value}")
        assert_same(dz[:2], np.zeros((2, k), np.float32), f"dz {value}")
        assert_same_bits(kernels.softmax(z), p)


def test_softmax_nan_stays_in_its_row(target):
    for k in (10, 16, 17):
        z = reals("z", (3, k)).copy()
        clean = kernels.softmax(z)
        z[1, k - 1] = np.nan
        y = kernels.softmax(z)
        assert np.isnan(y[1]).all()
        assert_same_bits(y[[0, 2]], clean[[0, 2]])
        loss = kernels.softmax_cross_entropy(z, np.eye(k, dtype=np.float32)[:3])[0]
        assert np.isnan(loss).tolist() == [False, True, False]


def test_softmax_cross_entropy_of_a_part_of_a_batch(target):
    z = reals("z", (12, 10))
    labels = np.eye(10, dtype=np.float32)[np.arange(12) % 10]
    alone = kernels.softmax_cross_entropy(z, labels)
    part = kernels.softmax_cross_entropy(z, labels, batch=48)
    assert_same_bits(part[0], alone[0])
    assert_same_bits(part[1], alone[1])
    assert_same_bits(part[2], alone[2] / 4)  # a power of two: exact
    assert_same_bits(kernels.softmax_cross_entropy(z, labels, batch=12)[2], alone[2])
    for batch in (0, -1, 2.0, "all"):
        with pytest.raises(ValueError, match="batch: expected"):
            kernels.softmax_cross_entropy(z, labels, batch=batch)


def test_softmax_of_an_empty_batch(target):
    z = np.zeros((0, 10), np.float32)
    assert kernels.softmax(z).shape == (0, 10)
    assert kernels.softmax_backward(z, z).shape == (0, 10)
    loss, p, dz = kernels.softmax_cross_entropy(z, z)
    assert loss.shape == (0,) and p.shape == dz.shape == (0, 10)


# ------------------------------------------------------------------------------------------ dropout


SEEDS = [(0, 0), (1, 2), (0x0123456789ABCDEF, 0xFEDCBA9876543210), (2**64 - 1, 2**64 - 1)]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.5, 0.999])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dropout(target, shape, rate, guarded):
    x = reals("x", shape)
    for seed, offset in SEEDS:
        y = kernels.dropout(x, rate, seed, offset)
        expected = reference.dropout(x, rate, seed, offset)
        assert_same(y != 0, expected != 0, f"mask {seed} {offset}")
        # The factor 1 / (1 - rate) and the product round once each: K = 1.
        assert_within(y, expected, sum_bound(2, np.abs(expected)), f"{seed} {offset}")
        if rate in (0.0, 0.5):
            assert_same(y, expected)
        assert_same_bits(kernels.dropout_backward(x, rate, seed, offset), y)
        for place in (1, 7):
            out = guarded.empty(shape, offset=place)
            assert kernels.dropout(guarded.like(x, place), rate, seed, offset, out=out) is out
            assert_same_bits(out, y)
            in_place = guarded.like(x, place)
            kernels.dropout_backward(in_place, rate, seed, offset, out=in_place)
            assert_same_bits(in_place, y)
    guarded.check()


def test_dropout_defaults_and_extremes(target):
    x = np.ones(1000, np.float32)
    assert_same_bits(kernels.dropout(x, 0.5, 7), kernels.dropout(x, 0.5, 7, 0))
    assert (kernels.dropout(x, 0.5, 7) != kernels.dropout(x, 0.5, 7, 1)).any()
    assert (kernels.dropout(x, 0.5, 7) != kernels.dropout(x, 0.5, 8)).any()
    # The largest rate below 1: the threshold rounds up to 2^32, above every draw.
    assert not kernels.dropout(x, np.nextafter(1.0, 0.0), 7).any()
    # 2^-33 * 2^32 = 1/2: only a draw of 0 falls below.
    assert kernels.dropout(x, 2.0**-33, 7).all()


@pytest.mark.parametrize("first", [0, 4, 20, 1000, 4 * 257, 2**40])
def test_dropout_of_a_part(target, first):
    x = reals("x", (first % 1024 + 700,))
    whole = reference.dropout(x, 0.4, 3, 5, first - first % 1024)
    part = x[first % 1024 :]
    for function in (kernels.dropout, kernels.dropout_backward):
        y = function(part, 0.4, 3, 5, first)
        assert_same(y != 0, whole[first % 1024 :] != 0)
        assert_within(y, whole[first % 1024 :], sum_bound(2, np.abs(whole[first % 1024 :])))


@pytest.mark.parametrize("first", [2, -4, 1.0, 2**64])
def test_dropout_refuses_parts_that_begin_elsewhere(target, first):
    with pytest.raises(ValueError, match="first: expected"):
        kernels.dropout(np.ones(8, np.float32), 0.5, 7, 0, first)


def test_dropped_nan_and_inf_are_zero(target):
    x = np.resize(np.array([np.nan, np.inf, -np.inf], np.float32), 200)
    assert_same(kernels.dropout(x, 0.4, 3), reference.dropout(x, 0.4, 3))
