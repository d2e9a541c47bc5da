"""The reference, checked by finite differences, published vectors and padding by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pyconv.validation import reference
from pyconv.validation.cases import CONV_CASES, DENSE_CASES, POOL_CASES, integers, reals

# Central differences of a smooth f err by h^2 f'''/6 + eps |f| / h. With h = 2^-17 and sums below
# 1e3 that is 3e-8 in the worst case; conv2d and dense are linear in each argument, so they only pay
# the rounding.
STEP = 2.0**-17
TOLERANCE = 1e-7


def assert_gradient(function, arguments, gradients, dy) -> None:
    """d(sum(dy * function(*arguments))) by central differences, at up to 40 entries each."""
    rng = np.random.default_rng(1)
    for index, gradient in enumerate(gradients):
        argument = arguments[index]
        assert gradient.shape == argument.shape
        for flat in rng.permutation(argument.size)[:40]:
            values = []
            for step in (STEP, -STEP):
                moved = argument.copy()
                moved.reshape(-1)[flat] += step
                changed = [*arguments[:index], moved, *arguments[index + 1 :]]
                values.append(np.sum(dy * function(*changed)))
            slope = (values[0] - values[1]) / (2 * STEP)
            assert abs(slope - gradient.reshape(-1)[flat]) < TOLERANCE * max(1.0, abs(slope))


def assert_no_kink(case, z) -> None:
    """No step carries a unit across ReLU's kink: factors are at most 1, so z moves by one."""
    assert case.activation is None or np.abs(z).min() > STEP


def small(cases):
    return [c for c in cases if np.prod(c.x) <= 2000]


@pytest.mark.parametrize("case", small(CONV_CASES), ids=lambda c: c.name)
def test_conv2d_gradients(case):
    x, w = (reals(name, shape).astype(float) for name, shape in (("x", case.x), ("w", case.w)))
    b = reals("b", (case.filters,)).astype(float)

    def function(x, w, b):
        return reference.conv2d(x, w, b, **case.geometry, activation=case.activation)

    y = function(x, w, b)
    assert_no_kink(case, reference.conv2d(x, w, b, **case.geometry))
    dy = reals("dy", y.shape).astype(float)
    gradients = reference.conv2d_backward(
        dy, x, w, **case.geometry, activation=case.activation, y=y
    )
    assert_gradient(function, [x, w, b], gradients, dy)


@pytest.mark.parametrize("case", small(POOL_CASES), ids=lambda c: c.name)
def test_max_pool2d_gradients(case):
    # A permutation has no ties, and neighbours lie further apart than the step.
    x = np.random.default_rng(0).permutation(np.prod(case.x)).reshape(case.x) / 64.0
    y, argmax = reference.max_pool2d(x, **case.geometry)
    dy = reals("dy", y.shape).astype(float)
    dx = reference.max_pool2d_backward(dy, argmax, x.shape, **case.geometry)
    assert_gradient(lambda x: reference.max_pool2d(x, **case.geometry)[0], [x], [dx], dy)


@pytest.mark.parametrize("case", small(POOL_CASES), ids=lambda c: c.name)
def test_avg_pool2d_gradients(case):
    x = reals("x", case.x).astype(float)
    dy = reals("dy", reference.avg_pool2d(x, **case.geometry).shape).astype(float)
    dx = reference.avg_pool2d_backward(dy, case.x, **case.geometry)
    assert_gradient(lambda x: reference.avg_pool2d(x, **case.geometry), [x], [dx], dy)


@pytest.mark.parametrize("padding", [1, 0, (2, 0), ((0, 3), (1, 2)), -1, ((-2, 1), (0, -1))])
def test_pad2d_gradient(padding):
    x = reals("x", (2, 4, 3, 2)).astype(float)
    dy = reals("dy", reference.pad2d(x, padding).shape).astype(float)
    dx = reference.pad2d_backward(dy, padding)
    assert_gradient(lambda x: reference.pad2d(x, padding), [x], [dx], dy)


@pytest.mark.parametrize("case", DENSE_CASES, ids=lambda c: c.name)
def test_dense_gradients(case):
    x = reals("x", (case.batch, case.inputs)).astype(float)
    w = reals("w", (case.inputs, case.units)).astype(float)
    b = reals("b", (case.units,)).astype(float)
    y = reference.dense(x, w, b, case.activation)
    assert_no_kink(case, reference.dense(x, w, b))
    dy = reals("dy", y.shape).astype(float)
    gradients = reference.dense_backward(dy, x, w, case.activation, y=y)
    assert_gradient(
        lambda x, w, b: reference.dense(x, w, b, case.activation), [x, w, b], gradients, dy
    )


def test_pointwise_gradients():
    x, dy = (reals(name, (7, 5)).astype(float) for name in ("x", "dy"))
    assert np.abs(x).min() > 1e-3
    assert_gradient(reference.relu, [x], [reference.relu_backward(dy, reference.relu(x))], dy)
    y = reference.softmax(x)
    assert_gradient(reference.softmax, [x], [reference.softmax_backward(dy, y)], dy)
    for name in ("sigmoid", "tanh", "leaky_relu", "softplus"):
        dx = reference.activate_backward(dy, reference.activate(x, name), name)
        assert_gradient(lambda x, name=name: reference.activate(x, name), [x], [dx], dy)
    labels = np.abs(reals("labels", (7, 5))).astype(float)
    dlogits = reference.softmax_cross_entropy(x, labels)[2]
    assert_gradient(
        lambda z: reference.softmax_cross_entropy(z, labels)[0], [x], [dlogits], np.full(7, 1 / 7)
    )
    dx = reference.dropout_backward(dy, 0.4, 5, 6)
    assert_gradient(lambda x: reference.dropout(x, 0.4, 5, 6), [x], [dx], dy)


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4, 5), (1, 1)])
def test_batch_norm_gradients(shape):
    x, dy = (reals(name, shape).astype(float) for name in ("x", "dy"))
    gamma, beta, moving = (reals(name, shape[-1:]).astype(float) for name in ("g", "b", "m"))

    def function(x, gamma, beta):
        return reference.batch_norm_training(x, gamma, beta, moving, moving, epsilon=0.1)[0]

    _, mean, inverse, _, _ = reference.batch_norm_training(
        x, gamma, beta, moving, moving, epsilon=0.1
    )
    gradients = reference.batch_norm_backward(dy, x, gamma, mean, inverse)
    assert_gradient(function, [x, gamma, beta], gradients, dy)


def test_batch_norm_by_hand():
    x, moving = np.array([[1.0], [5.0]]), np.array([8.0])
    y, mean, inverse, new_mean, new_variance = reference.batch_norm_training(
        x, np.array([2.0]), np.array([0.5]), moving, moving, momentum=0.75, epsilon=12.0
    )
    assert (mean, inverse) == (3.0, 0.25) and y.tolist() == [[-0.5], [1.5]]
    assert (new_mean, new_variance) == (6.75, 7.0)
    assert reference.batch_norm(x, None, None, mean, 4.0, 12.0).tolist() == [[-0.5], [0.5]]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    """Random123's kat_vectors."""
    assert reference.philox4x32(counter, key).tolist() == expected


def test_dropout_uses_the_documented_counter():
    seed, offset = 0x0123456789ABCDEF, 0xFEDCBA9876543210
    keeps = reference.dropout_keeps(11, 0.3, seed, offset)
    for index, kept in enumerate(keeps):
        counter = [index // 4, 0, 0x76543210, 0xFEDCBA98]
        draw = reference.philox4x32(counter, [0x89ABCDEF, 0x01234567])[index % 4]
        assert kept == (draw >= 0.3 * 2**32)
    assert reference.dropout_keeps(100, 0.0, 1).all()
    assert abs(reference.dropout_keeps(100_000, 0.3, 1).mean() - 0.7) < 5 * np.sqrt(0.21 / 1e5)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "before", "after", "out"),
    [
        (5, 3, 1, 1, 1, 1, 5),
        (5, 2, 1, 1, 0, 1, 5),  # an odd total: the extra goes to the end
        (6, 3, 2, 1, 0, 1, 3),
        (7, 3, 2, 1, 1, 1, 4),
        (8, 7, 2, 1, 2, 3, 4),
        (2, 5, 1, 1, 2, 2, 2),
        (9, 2, 4, 1, 0, 1, 3),
        (8, 2, 4, 1, 0, 0, 2),  # the stride exceeds the kernel: never negative
        (7, 3, 2, 2, 2, 2, 4),
        (1, 1, 1, 1, 0, 0, 1),
    ],
)
def test_same_padding_is_tensorflows(size, kernel, stride, dilation, before, after, out):
    square = [(n, n) for n in (size, kernel, stride, dilation)]
    pads = reference.paddings("same", *square)
    assert pads == ((before, after), (before, after))
    assert reference.output_size(square[0], square[1], square[2], pads, square[3]) == (out, out)


def test_explicit_padding_forms():
    for padding in (2, (2, 2), ((2, 2), (2, 2))):
        assert reference.paddings(padding, *[(9, 9)] * 4) == ((2, 2), (2, 2))
    assert reference.paddings((1, 2), *[(9, 9)] * 4) == ((1, 1), (2, 2))
    assert reference.paddings(((1, 2), (3, 4)), *[(9, 9)] * 4) == ((1, 2), (3, 4))


def test_conv2d_by_hand():
    x = np.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    w = np.array([[1.0, 10.0], [100.0, 1000.0]]).reshape(2, 2, 1, 1)
    y = reference.conv2d(x, w, np.array([0.5]))
    assert y.reshape(2, 2).tolist() == [[5421.5, 6532.5], [8754.5, 9865.5]]
    y = reference.conv2d(x, w, padding="same", strides=2)
    assert y.reshape(2, 2).tolist() == [[5421.0, 603.0], [87.0, 9.0]]


def test_max_pool2d_edges():
    nan, inf = np.nan, np.inf
    window = np.array([[1, nan, nan, 2], [3, 3, 1, 3], [-inf] * 4, [-0.0, 0.0, -0.0, 0.0]])
    y, argmax = reference.max_pool2d(window.reshape(4, 2, 2, 1))
    assert argmax.reshape(-1).tolist() == [1, 0, 0, 0]
    np.testing.assert_array_equal(y.reshape(-1), [nan, 3, -inf, -0.0])
    assert np.signbit(y[3]).all()
    y, argmax = reference.max_pool2d(np.full((1, 1, 1, 1), -inf), 3, 1, "same")
    assert argmax.item() == 4 and y.item() == -inf
    with pytest.raises(ValueError, match="padding alone"):
        reference.max_pool2d(np.zeros((1, 4, 4, 1)), 2, 2, 2)


def test_avg_pool2d_by_hand():
    x = np.array([[1.0, 2.0, 6.0], [3.0, 4.0, 10.0]]).reshape(1, 2, 3, 1)
    assert reference.avg_pool2d(x).reshape(-1).tolist() == [2.5]
    # The window that sticks out divides by what lies inside.
    assert reference.avg_pool2d(x, padding="same").reshape(-1).tolist() == [2.5, 8.0]
    dx = reference.avg_pool2d_backward(
        np.array([4.0, 2.0]).reshape(1, 1, 2, 1), x.shape, 2, 2, "same"
    )
    assert dx.reshape(2, 3).tolist() == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]


def test_round_bfloat16_by_hand():
    tie = 1 + 2.0**-8  # between 1 and 1 + 2^-7
    x = [
        1.0,
        tie,
        3 * tie - 2,
        np.nextafter(tie, 2),
        -tie,
        3.4e38,
        3.39e38,
        2.0**-134,
        3e-45,
        np.inf,
    ]
    y = [1.0, 1.0, 1 + 2.0**-6, 1 + 2.0**-7, -1.0, np.inf, 255 * 2.0**120, 0.0, 0.0, np.inf]
    assert reference.round_bfloat16(x).tolist() == y
    assert reference.round_bfloat16([1.5 * 2.0**-133, 2.0**-133]).tolist() == [2.0**-132, 2.0**-133]
    assert np.isnan(reference.round_bfloat16(np.nan))


def test_pad2d_by_hand():
    x = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    y = reference.pad2d(x, ((1, 0), (0, 1)))
    assert y.reshape(3, 3).tolist() == [[0, 0, 0], [1, 2, 0], [3, 4, 0]]
    assert reference.pad2d(x, ((-1, 0), (1, -1))).reshape(-1).tolist() == [0, 3]
    with pytest.raises(ValueError, match="nothing remains"):
        reference.pad2d(x, -1)


def test_integer_cases_are_exact_in_float32():
    for case in CONV_CASES:
        pads = reference.conv_geometry(case.x, case.w, *case.geometry.values())[2:]
        assert case.x[0] * np.prod(pads[1]) < 2**20 and np.prod(case.w) < 2**20
    values = integers("any", (10_000,))
    assert set(values) == set(range(-4, 5))


def test_case_names_are_unique():
    for table in (CONV_CASES, POOL_CASES, DENSE_CASES):
        assert len({case.name for case in table}) == len(table)


def test_optimizers_by_hand():
    w, g = np.array([1.0]), np.array([2.0])
    assert reference.sgd_step(w, g, None, 0.1)[0] == 0.8
    moved, velocity = reference.sgd_step(w, g, np.array([0.5]), 0.1, 0.9)
    assert np.isclose(velocity, 0.25) and np.isclose(moved, 1.25)
    moved, velocity = reference.sgd_step(w, g, np.array([0.5]), 0.1, 0.9, nesterov=True)
    assert np.isclose(velocity, 0.25) and np.isclose(moved, 1.0 + 0.9 * 0.25 - 0.2)
    moved, velocity = reference.rmsprop_step(w, g, np.array([6.0]), 0.1, 0.5, 4.0)
    assert velocity == 5.0 and np.isclose(moved, 1.0 - 0.2 / 3.0)
    # The first step of Adam is the learning rate, whatever the gradient.
    moved, m, v = reference.adam_step(w, g, np.zeros(1), np.zeros(1), 1, 0.1, epsilon=0.0)
    assert np.isclose(moved, 0.9) and np.isclose(m, 0.2) and np.isclose(v, 0.004)
