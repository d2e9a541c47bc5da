"""What is not a valid call raises TypeError or ValueError and says what it received."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest

from pyconv import kernels

REFUSED = (TypeError, ValueError)


def f32(*shape):
    return np.ones(shape, np.float32)


# Each entry: a function, valid positional arguments, valid keyword arguments (outputs included).
X, W, B, Y = (2, 5, 6, 4), (3, 3, 4, 8), (8,), (2, 3, 4, 8)


def calls() -> dict:
    argmax = np.zeros((2, 2, 3, 4), np.uint8)
    masked = {"activation": "relu", "y": f32(*Y)}
    dense_masked = {"activation": "relu", "y": f32(3, 7)}
    return {
        "conv2d": (kernels.conv2d, [f32(*X), f32(*W), f32(*B)], {"out": f32(*Y)}),
        "conv2d_backward_data": (
            kernels.conv2d_backward_data,
            [f32(*Y), f32(*W), X],
            {**masked, "out": f32(*X)},
        ),
        "conv2d_backward_weights": (
            kernels.conv2d_backward_weights,
            [f32(*Y), f32(*X), W],
            {**masked, "dw": f32(*W), "db": f32(*B)},
        ),
        "conv2d_backward": (
            kernels.conv2d_backward,
            [f32(*Y), f32(*X), f32(*W)],
            {**masked, "dx": f32(*X), "dw": f32(*W), "db": f32(*B)},
        ),
        "max_pool2d": (
            kernels.max_pool2d,
            [f32(*X)],
            {"out": f32(2, 2, 3, 4), "argmax": argmax.copy()},
        ),
        "max_pool2d_backward": (
            kernels.max_pool2d_backward,
            [f32(2, 2, 3, 4), argmax, X],
            {"out": f32(*X)},
        ),
        "avg_pool2d": (kernels.avg_pool2d, [f32(*X)], {"out": f32(2, 2, 3, 4)}),
        "avg_pool2d_backward": (
            kernels.avg_pool2d_backward,
            [f32(2, 2, 3, 4), X],
            {"out": f32(*X)},
        ),
        "pad2d": (kernels.pad2d, [f32(*X)], {"out": f32(2, X[1] + 2, X[2] + 2, 4)}),
        "dense": (kernels.dense, [f32(3, 5), f32(5, 7), f32(7)], {"out": f32(3, 7)}),
        "dense_backward_data": (
            kernels.dense_backward_data,
            [f32(3, 7), f32(5, 7)],
            {**dense_masked, "out": f32(3, 5)},
        ),
        "dense_backward_weights": (
            kernels.dense_backward_weights,
            [f32(3, 7), f32(3, 5)],
            {**dense_masked, "dw": f32(5, 7), "db": f32(7)},
        ),
        "dense_backward": (
            kernels.dense_backward,
            [f32(3, 7), f32(3, 5), f32(5, 7)],
            {**dense_masked, "dx": f32(3, 5), "dw": f32(5, 7), "db": f32(7)},
        ),
        "relu": (kernels.relu, [f32(3, 5)], {"out": f32(3, 5)}),
        "round_bfloat16": (kernels.round_bfloat16, [f32(3, 5)], {"out": f32(3, 5)}),
        "relu_backward": (kernels.relu_backward, [f32(3, 5), f32(3, 5)], {"out": f32(3, 5)}),
        "activate": (kernels.activate, [f32(3, 5), "tanh"], {"out": f32(3, 5)}),
        "activate_backward": (
            kernels.activate_backward,
            [f32(3, 5), f32(3, 5), "tanh"],
            {"out": f32(3, 5)},
        ),
        "batch_norm": (kernels.batch_norm, [f32(3, 5), *map(f32, [5] * 4)], {"out": f32(3, 5)}),
        "batch_norm_training": (
            kernels.batch_norm_training,
            [f32(3, 5), *map(f32, [5] * 4)],
            {"out": f32(3, 5), "mean": f32(5), "inverse": f32(5)},
        ),
        "batch_norm_backward": (
            kernels.batch_norm_backward,
            [f32(3, 5), f32(3, 5), *map(f32, [5] * 3)],
            {"dx": f32(3, 5), "dgamma": f32(5), "dbeta": f32(5)},
        ),
        "softmax": (kernels.softmax, [f32(3, 5)], {"out": f32(3, 5)}),
        "softmax_backward": (kernels.softmax_backward, [f32(3, 5), f32(3, 5)], {"out": f32(3, 5)}),
        "softmax_cross_entropy": (
            kernels.softmax_cross_entropy,
            [f32(3, 5), f32(3, 5)],
            {"loss": f32(3), "probabilities": f32(3, 5), "dlogits": f32(3, 5)},
        ),
        "dropout": (kernels.dropout, [f32(3, 5), 0.5, 1], {"out": f32(3, 5)}),
        "dropout_backward": (kernels.dropout_backward, [f32(3, 5), 0.5, 1], {"out": f32(3, 5)}),
        "sgd_step": (kernels.sgd_step, [f32(3, 5), f32(3, 5), f32(3, 5), 0.1, 0.9], {}),
        "rmsprop_step": (kernels.rmsprop_step, [f32(3, 5), f32(3, 5), f32(3, 5), 0.1], {}),
        "adam_step": (
            kernels.adam_step,
            [f32(3, 5), f32(3, 5), f32(3, 5), f32(3, 5), 1, 0.1],
            {},
        ),
    }


# The bias may be None, and gamma and beta.
OPTIONAL = {("conv2d", 2), ("dense", 2), ("batch_norm_backward", 2)}
OPTIONAL |= {(name, key) for name in ("batch_norm", "batch_norm_training") for key in (1, 2)}
STEPS = ("sgd_step", "rmsprop_step", "adam_step")  # written in place
ARRAYS = [
    (name, key)
    for name, (_, args, kwargs) in calls().items()
    for key, value in [*enumerate(args), *kwargs.items()]
    if isinstance(value, np.ndarray)
]
each_array = pytest.mark.parametrize(("name", "key"), ARRAYS)


def attempt(name, key, replacement):
    """Calls function `name` with one argument, given by position or keyword, replaced."""
    function, args, kwargs = calls()[name]
    (args if isinstance(key, int) else kwargs)[key] = replacement
    return function(*args, **kwargs)


def original(name, key) -> np.ndarray:
    _, args, kwargs = calls()[name]
    return args[key] if isinstance(key, int) else kwargs[key]


def is_output(name, key) -> bool:
    if name == "batch_norm_training" and key in (3, 4):  # the moving averages
        return True
    return (isinstance(key, str) and key != "y") or (name in STEPS and key != 1)


@pytest.mark.parametrize("name", calls())
def test_the_calls_themselves_are_valid(name):
    function, args, kwargs = calls()[name]
    function(*args, **kwargs)


@each_array
def test_not_an_array(name, key):
    array = original(name, key)
    for wrong in (array.tolist(), "array", 1.0, object(), memoryview(array), [array]):
        with pytest.raises(TypeError):
            attempt(name, key, wrong)
    required = not is_output(name, key) or name in STEPS
    if required and (name, key) not in OPTIONAL:
        with pytest.raises(REFUSED):
            attempt(name, key, None)


@each_array
def test_wrong_dtype(name, key):
    array = original(name, key)
    dtypes = [np.float64, np.float16, np.int32, np.int64, np.uint8, np.complex64, bool, object]
    dtypes += ["V4", "M8[s]", "S4", ">f4" if np.little_endian else "<f4"]
    for dtype in dtypes:
        if array.dtype == np.dtype(dtype):
            continue
        wrong = np.zeros(array.shape, dtype)
        with pytest.raises(TypeError) as caught:
            attempt(name, key, wrong)
        assert str(array.dtype) in str(caught.value) and str(wrong.dtype) in str(caught.value)


@each_array
def test_wrong_memory_order(name, key):
    array = original(name, key)
    wide = np.ones((*array.shape[:-1], array.shape[-1] * 2), array.dtype)
    wrong = [wide[..., ::2], np.broadcast_to(array[..., :1], array.shape), wide[..., -1::-2]]
    if array.ndim > 1:
        wrong.append(np.asfortranarray(array))
    if array.itemsize > 1:
        raw = np.zeros(array.nbytes + 1, np.uint8)
        wrong.append(raw[1:].view(array.dtype).reshape(array.shape))  # not even 4-byte aligned
    for array in wrong:
        with pytest.raises(ValueError):
            attempt(name, key, array)


@each_array
def test_wrong_rank_and_shape(name, key):
    array = original(name, key)
    if (name, key) in (("max_pool2d", 0), ("avg_pool2d", 0)):
        pytest.skip("another height may have the same output")
    for shape in (
        (),
        (0,),
        (1, *array.shape),
        array.shape[1:],
        (*array.shape, 1),
        (array.size + 1,),
        *[
            (*array.shape[:axis], size + change, *array.shape[axis + 1 :])
            for axis, size in enumerate(array.shape)
            for change in (-1, 1)
        ],
    ):
        with pytest.raises(ValueError):
            attempt(name, key, np.ones(shape, array.dtype))


@each_array
def test_outputs_must_be_writeable_and_apart(name, key):
    if not is_output(name, key):
        return
    locked = original(name, key)
    locked.flags.writeable = False
    with pytest.raises(ValueError):
        attempt(name, key, locked)

    function, args, kwargs = calls()[name]
    for other in [*range(len(args)), *kwargs]:
        values = args if isinstance(other, int) else kwargs
        if other == key or not isinstance(values[other], np.ndarray):
            continue
        mine = original(name, key)
        theirs = values[other]
        # Two arrays whose last and first 4 bytes are the same.
        raw = np.zeros(mine.nbytes + theirs.nbytes - 4, np.uint8)
        first = raw[: mine.nbytes].view(mine.dtype).reshape(mine.shape)
        last = raw[mine.nbytes - 4 :].view(theirs.dtype).reshape(theirs.shape)
        function, args_, kwargs_ = calls()[name]
        (args_ if isinstance(key, int) else kwargs_)[key] = first
        (args_ if isinstance(other, int) else kwargs_)[other] = last
        with pytest.raises(ValueError):
            function(*args_, **kwargs_)


def test_subclasses_are_arrays_too():
    class Mine(np.ndarray):
        pass

    y = kernels.conv2d(f32(*X).view(Mine), f32(*W).view(Mine))
    np.testing.assert_array_equal(y, kernels.conv2d(f32(*X), f32(*W)))
    masked = np.ma.masked_array(f32(3, 5), mask=True)
    with contextlib.suppress(TypeError):  # either is fine; a crash is not
        kernels.relu(masked)


BAD_PAIRS = [0, -1, (1, 0), (-1, 1), (1,), (1, 1, 1), (), None, 1.5, "2", (1.0, 1), (None, 1)]
BAD_PAIRS += [[[1, 1]], object(), -(2**63), 2**64, -(2**100), 2**100, (2**64, 1), float("nan")]


@pytest.mark.parametrize("value", BAD_PAIRS, ids=repr)
@pytest.mark.parametrize("option", ["strides", "dilation_rate", "pool_size", "pool_strides"])
def test_bad_strides_dilation_and_pool_size(option, value):
    x, w = f32(*X), f32(*W)
    if option == "pool_strides" and value is None:
        return  # the pool size
    with pytest.raises(REFUSED):
        if option == "pool_size":
            kernels.max_pool2d(x, value)
        elif option == "pool_strides":
            kernels.max_pool2d(x, 2, value)
        else:
            kernels.conv2d(x, w, **{option: value})
    with pytest.raises(REFUSED):
        if option == "pool_size":
            kernels.max_pool2d_backward(f32(2, 2, 3, 4), np.zeros((2, 2, 3, 4), np.uint8), X, value)
        elif option == "pool_strides":
            dy, argmax = f32(2, 2, 3, 4), np.zeros((2, 2, 3, 4), np.uint8)
            kernels.max_pool2d_backward(dy, argmax, X, 2, value)
        else:
            kernels.conv2d_backward(f32(*Y), x, w, **{option: value})


BAD_PADDING = ["SAME ", "full", "", -1, (1, -1), ((0, 0), (0, -1)), (1,), (1, 1, 1), None, 1.5]
BAD_PADDING += [((1, 1),), ((1, 1), (1,)), ((1, 1), 1.0), object(), b"same", 2**63, 2**64, 2**100]
BAD_PADDING += [-(2**63), -(2**100), ((2**63, 2**63), (0, 0)), float("nan")]


@pytest.mark.parametrize("value", BAD_PADDING, ids=repr)
def test_bad_padding(value):
    with pytest.raises(REFUSED):
        kernels.conv2d(f32(*X), f32(*W), padding=value)
    with pytest.raises(REFUSED):
        kernels.conv2d_backward(f32(*Y), f32(*X), f32(*W), padding=value)
    for pool in (kernels.max_pool2d, kernels.avg_pool2d):
        with pytest.raises(REFUSED):
            pool(f32(*X), padding=value)


@pytest.mark.parametrize("value", [2**31, 2**63, 2**64, -(2**31), -(2**63), float("nan")])
def test_bad_pad2d(value):
    with pytest.raises((*REFUSED, MemoryError)):
        kernels.pad2d(f32(*X), value)


def test_unknown_padding_and_activation_name_the_known_ones():
    with pytest.raises(ValueError, match=r"(?s)valid.*full|full.*valid"):
        kernels.conv2d(f32(*X), f32(*W), padding="full")
    for call in (
        lambda: kernels.conv2d(f32(*X), f32(*W), activation="tanh"),
        lambda: kernels.dense(f32(3, 5), f32(5, 7), activation="tanh"),
    ):
        with pytest.raises(ValueError, match=r"(?s)relu.*tanh|tanh.*relu"):
            call()
    for activation in (1, b"relu", kernels.relu):
        with pytest.raises(REFUSED):
            kernels.conv2d(f32(*X), f32(*W), activation=activation)


HUGE = [2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**61, 2**62, 2**63 - 1]


@pytest.mark.parametrize("value", HUGE)
def test_huge_values_do_not_overflow(value):
    """Each is either legal, and then right, or refused: nothing wraps around."""
    x, w = f32(1, 5, 6, 1), f32(3, 3, 1, 1)
    many = f32(1, 5, 6, 64), f32(3, 3, 64, 1)  # channels, which have kernels of their own
    try:
        y = kernels.conv2d(x, w, strides=value)
    except ValueError:
        assert value > 2**31 - 1
    else:
        np.testing.assert_array_equal(y, [[[[9.0]]]])
        dx, dw, db = kernels.conv2d_backward(f32(1, 1, 1, 1), x, w, strides=value)
        assert dx.sum() == 9 and (dw == 1).all() and db == 1
        assert kernels.conv2d(x, w, padding="same", strides=value).shape == (1, 1, 1, 1)
        y, argmax = kernels.max_pool2d(x, 2, value)
        assert y.shape == (1, 1, 1, 1) and argmax.item() == 0
        y, argmax = kernels.max_pool2d(many[0], 2, value)
        dx = kernels.max_pool2d_backward(y, argmax, many[0].shape, 2, value)
        assert (dx[:, 0, 0] == 1).all() and dx.sum() == 64
    with pytest.raises(ValueError):
        kernels.conv2d(x, w, dilation_rate=value)
    with pytest.raises(ValueError):
        kernels.max_pool2d(x, value)
    # 'same' makes room for any dilation; only the middle tap meets the image. Refusing it is fine
    # as well.
    middle = np.zeros_like(w)
    middle[1, 1] = x.size
    try:
        np.testing.assert_array_equal(kernels.conv2d(x, w, padding="same", dilation_rate=value), x)
        dx, dw, db = kernels.conv2d_backward(x, x, w, padding="same", dilation_rate=value)
    except (ValueError, MemoryError):
        pass
    else:
        np.testing.assert_array_equal(dx, x)
        np.testing.assert_array_equal(dw, middle)
        assert db == x.size
        y = kernels.conv2d(*many, padding="same", dilation_rate=value)
        np.testing.assert_array_equal(y, np.full(y.shape, 64, np.float32))
        dx, dw, db = kernels.conv2d_backward(y, *many, padding="same", dilation_rate=value)
        assert (dx == 64).all() and dw.sum() == 64 * y.sum() and db == y.sum()
    if value > 2**20:  # a legal request for more memory than there is
        for call in (kernels.conv2d, kernels.conv2d_backward_data):
            with pytest.raises((ValueError, MemoryError)):
                if call is kernels.conv2d:
                    call(x, w, padding=value)
                else:
                    call(f32(1, 3, 4, 1), w, x.shape, padding=value)
    with pytest.raises((ValueError, MemoryError)):
        kernels.max_pool2d(x, 2, 2, value)


def test_padding_that_dilation_asks_for_does_not_overflow():
    """A padded copy of this image would take 2^31 * 2^31 floats: 2^64 bytes, 0 in 64 bits."""
    x, w = f32(1, 2, 2, 1), f32(3, 3, 1, 1)
    try:
        _, dw, _ = kernels.conv2d_backward(x, x, w, padding="same", dilation_rate=2**30 - 1)
    except (ValueError, MemoryError):
        return
    assert dw[1, 1] == 4 and dw.sum() == 4


def test_depthwise_with_huge_strides_takes_no_time():
    """It once asked the cache for as many rows as the stride has."""
    x, w, y = f32(1, 7, 5, 8), f32(1, 3, 1, 8), f32(1, 1, 1, 8)
    start = time.monotonic()
    kernels.conv2d(x, w, padding="same", strides=2**31 - 1, groups=8)
    kernels.conv2d_backward(y, x, w, padding="same", strides=2**31 - 1, groups=8)
    assert time.monotonic() - start < 1


def test_padding_and_strides_whose_products_do_not_fit_64_bits():
    """Two windows of the convolution that see padding only, 2^30 pixels and more apart."""
    stride = 2**30
    x, w = f32(1, 3, 3, 4), f32(1, 1, 4, 8)
    geometry = {"strides": stride, "padding": ((0, stride), (0, stride))}
    y, winner = kernels.conv2d_pool(x, w, **geometry)
    np.testing.assert_array_equal(y, np.full((1, 1, 1, 8), 4.0))
    dx, dw, db = kernels.conv2d_pool_backward(y, winner, x, w, **geometry)
    expected = np.zeros_like(x)
    expected[0, 0, 0] = 32
    np.testing.assert_array_equal(dx, expected)
    assert (dw == 4).all() and (db == 4).all()


@pytest.mark.parametrize("scale", [10**400, -(10**400)])
def test_integers_that_no_float_holds(scale):
    with np.errstate(invalid="ignore"):
        y = kernels.gather(f32(2, 3), np.array([0]), scale)
    assert np.isinf(y).all()
    with pytest.raises(ValueError):
        kernels.dropout(f32(3), scale, 1)


@pytest.mark.parametrize("groups", [0, -1, 3, 5, 8, 2**62, 2**64, 1.0, None, "2", (2,)])
def test_bad_groups(groups):
    with pytest.raises(REFUSED):
        kernels.conv2d(f32(*X), f32(3, 3, 2, 8), groups=groups)
    with pytest.raises(REFUSED):
        kernels.conv2d_backward(f32(*Y), f32(*X), f32(3, 3, 2, 8), groups=groups)


@pytest.mark.parametrize(
    ("x", "w", "padding"),
    [
        ((1, 2, 5, 1), (3, 3, 1, 1), "valid"),
        ((1, 5, 2, 1), (3, 3, 1, 1), "valid"),
        ((1, 0, 5, 1), (3, 3, 1, 1), "same"),
        ((1, 5, 0, 1), (3, 3, 1, 1), 2),
        ((1, 5, 5, 0), (3, 3, 0, 4), "same"),
        ((1, 5, 5, 4), (3, 3, 4, 0), "same"),
        ((1, 5, 5, 4), (0, 3, 4, 4), "same"),
        ((1, 5, 5, 4), (3, 0, 4, 4), "valid"),
        ((0, 2, 5, 1), (3, 3, 1, 1), "valid"),
        ((0, 5, 5, 0), (3, 3, 0, 1), "valid"),
    ],
)
def test_empty_dimensions(x, w, padding):
    with pytest.raises(ValueError):
        kernels.conv2d(f32(*x), f32(*w), padding=padding)
    dy = f32(x[0], 1, 1, w[3])
    with pytest.raises(ValueError):
        kernels.conv2d_backward(dy, f32(*x), f32(*w), padding=padding)


@pytest.mark.parametrize("shape", [(1, 1, 4, 2), (1, 0, 4, 2), (1, 4, 4, 0), (0, 1, 4, 2)], ids=str)
def test_pooling_of_empty_dimensions(shape):
    with pytest.raises(ValueError):
        kernels.max_pool2d(f32(*shape))


@pytest.mark.parametrize(
    "shape",
    [
        (2, 5, 6),
        (2, 5, 6, 4, 1),
        (2, 5, 6, -4),
        (2, 5, 6, 2**62),
        (2**40, 2**40, 6, 4),
        (2, 5, 6, 4.0),
        None,
        4,
        "2564",
        (2, 7, 6, 4),
        (3, 5, 6, 4),
        (2, 5, 6, 2**64),
    ],
    ids=repr,
)
def test_bad_shape_arguments(shape):
    with pytest.raises(REFUSED):
        kernels.conv2d_backward_data(f32(*Y), f32(*W), shape)
    with pytest.raises(REFUSED):
        kernels.conv2d_backward_weights(f32(*Y), f32(*X), shape)
    with pytest.raises(REFUSED):
        kernels.max_pool2d_backward(f32(2, 2, 3, 4), np.zeros((2, 2, 3, 4), np.uint8), shape)


def test_relu_backward_needs_y():
    for call in (
        lambda: kernels.conv2d_backward(f32(*Y), f32(*X), f32(*W), activation="relu"),
        lambda: kernels.conv2d_backward_data(f32(*Y), f32(*W), X, activation="relu"),
        lambda: kernels.conv2d_backward_weights(f32(*Y), f32(*X), W, activation="relu"),
        lambda: kernels.dense_backward(f32(3, 7), f32(3, 5), f32(5, 7), "relu"),
        lambda: kernels.dense_backward_data(f32(3, 7), f32(5, 7), "relu"),
        lambda: kernels.dense_backward_weights(f32(3, 7), f32(3, 5), "relu"),
    ):
        with pytest.raises(ValueError, match="y"):
            call()


@pytest.mark.parametrize("rate", [1.0, 1.5, -0.1, -1e-300, np.nan, np.inf, -np.inf, "0.5", None])
def test_bad_dropout_rate(rate):
    for function in (kernels.dropout, kernels.dropout_backward):
        with pytest.raises(REFUSED):
            function(f32(3, 5), rate, 1)


@pytest.mark.parametrize("value", [-1, 2**64, -(2**63), 2**100, 1.5, "1", None])
def test_bad_dropout_seed_and_offset(value):
    with pytest.raises(REFUSED):
        kernels.dropout(f32(3, 5), 0.5, value)
    with pytest.raises(REFUSED):
        kernels.dropout(f32(3, 5), 0.5, 1, value)


def test_in_place_means_the_same_array():
    """relu and dropout may write onto their input, not onto a shifted part of it."""
    raw = np.ones(41, np.float32)
    for function in (
        lambda x, out: kernels.relu(x, out=out),
        lambda x, out: kernels.relu_backward(x, np.ones_like(x), out=out),
        lambda x, out: kernels.dropout(x, 0.5, 1, out=out),
        lambda x, out: kernels.dropout_backward(x, 0.5, 1, out=out),
    ):
        with pytest.raises(ValueError):
            function(raw[:40], raw[1:])
        with pytest.raises(ValueError):
            function(raw[1:], raw[:40])


def test_bad_optimizer_arguments():
    w, g, v = f32(20), f32(20), f32(20)
    with pytest.raises(ValueError):
        kernels.sgd_step(w, g, None, 0.1, 0.9)  # momentum needs a velocity
    kernels.sgd_step(w, g, None, 0.1)
    for step in (0, -1):
        with pytest.raises(ValueError):
            kernels.adam_step(w, g, v, v.copy(), step, 0.1)
    for rate in ("0.1", None, [0.1]):
        with pytest.raises(TypeError):
            kernels.rmsprop_step(w, g, v, rate)
    for step in (2**64, (1,), [1], "1", None, 1.5):
        with pytest.raises(TypeError):
            kernels.adam_step(w, g, v, v.copy(), step, 0.1)
    for step in (2**63, 2**64 - 1, np.int8(1)):
        kernels.adam_step(w, g, v, v.copy(), step, 0.1)


def test_softmax_needs_rows():
    for shape in ((), (5,), (2, 3, 4), (3, 0)):
        with pytest.raises(ValueError):
            kernels.softmax(f32(*shape))
        with pytest.raises(ValueError):
            kernels.softmax_cross_entropy(f32(*shape), f32(*shape))


def test_messages_say_what_was_received():
    with pytest.raises(ValueError, match=r"(?s)Received.*\(2, 5, 6\)"):
        kernels.conv2d(f32(2, 5, 6), f32(*W))
    with pytest.raises(TypeError, match=r"(?s)float32.*Received.*float64"):
        kernels.conv2d(np.ones(X), f32(*W))
    with pytest.raises(ValueError, match="Received"):
        kernels.conv2d(f32(*X), f32(3, 3, 5, 8))
    with pytest.raises(ValueError, match="Received"):
        kernels.dropout(f32(3), 1.0, 1)


def test_arguments_that_equal_good_ones_are_still_looked_at():
    """Geometries are remembered, and True equals 1."""
    x, w = np.ones((1, 4, 4, 2), np.float32), np.ones((3, 3, 2, 2), np.float32)
    kernels.conv2d(x, w, strides=1, groups=1)
    kernels.conv2d(x, w, strides=(1, 1), dilation_rate=(1, 1))
    for wrong in (
        {"strides": True},
        {"strides": (True, 1)},
        {"dilation_rate": True},
        {"dilation_rate": (1, True)},
        {"groups": True},
        {"groups": [1]},
        {"padding": ["valid"]},
        {"activation": ["relu"]},
    ):
        with pytest.raises((TypeError, ValueError), match=f"{next(iter(wrong))}: expected"):
            kernels.conv2d(x, w, **wrong)
