"""Networks of any layers with any arguments, run and trained on any arrays; and augmentation."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from typing import Any

import numpy as np
from kernel_calls import choose_path
from source import Source

from pyconv import layers
from pyconv.models import Sequential
from pyconv.preprocessing.image import ImageDataGenerator
from pyconv.utils import set_random_seed

# RuntimeError: what needs a compiled or a trained model.
REFUSED = (TypeError, ValueError, RuntimeError, MemoryError, NotImplementedError)

_MOST = 100_000  # elements of any array between layers

_ACTIVATIONS = [None, "relu", "softmax", "sigmoid", "tanh", "leaky_relu", "softplus", "linear"]
_WINDOW = {
    "strides": [1, 2, (2, 1), 2**31],
    "padding": ["valid", "same", "SAME"],
    "dilation_rate": [1, 2, (1, 3), 2**40],
}
_WEIGHTS = {
    "activation": _ACTIVATIONS,
    "use_bias": [True, False],
    "dtype": ["float32", "mixed_bfloat16", "float16", None],
    "kernel_initializer": ["he_normal", "zeros", "Orthogonal", "ones"],
}
_ARGUMENTS: dict[Any, dict[str, list[Any]]] = {
    layers.Dense: {"units": [1, 3, 10, 2**40, 2**62], **_WEIGHTS},
    layers.Conv2D: {
        "filters": [1, 3, 8, 2**40],
        "kernel_size": [1, 3, (2, 1), 5, 2**22],
        "groups": [1, 1, 2, 3],
        **_WINDOW,
        **_WEIGHTS,
    },
    layers.DepthwiseConv2D: {
        "kernel_size": [1, 3, (2, 1), 2**22],
        "depth_multiplier": [1, 2, 2**40],
        "activation": _ACTIVATIONS,
        **_WINDOW,
    },
    layers.MaxPooling2D: {
        "pool_size": [2, 1, (3, 2), 2**31],
        "strides": [None, 1, 2, 2**31],
        "padding": ["valid", "same"],
    },
    layers.AveragePooling2D: {
        "pool_size": [2, 1, (3, 2), 2**31],
        "strides": [None, 1, 2],
        "padding": ["valid", "same"],
    },
    layers.GlobalAveragePooling2D: {"keepdims": [True, False]},
    layers.ZeroPadding2D: {"padding": [1, 0, (2, 1), ((0, 1), (2, 0)), 2**31]},
    layers.BatchNormalization: {
        "momentum": [0.99, 0, 1],
        "epsilon": [1e-3, 0, 1e30],
        "center": [True, False],
        "scale": [True, False],
    },
    layers.Activation: {"activation": _ACTIVATIONS},
    layers.ReLU: {"max_value": [None, 6]},
    layers.LeakyReLU: {"negative_slope": [0.3, 0, 1e300]},
    layers.Softmax: {"axis": [-1, 0]},
    layers.Dropout: {"rate": [0.5, 0, 0.999], "seed": [None, 3]},
    layers.Flatten: {},
}
_OPTIONS = {
    "name": [None, "a", "a/b", "\0", ""],
    "input_shape": [None, (6, 6, 2), (5,), (2**31, 2**31, 2**31)],
    "data_format": [None, "channels_last", "channels_first"],
}


def _layer(s: Source) -> Any:
    kind = s.pick(list(_ARGUMENTS))
    arguments = {}
    for name, values in _ARGUMENTS[kind].items():
        if name in ("strides", "padding", "dilation_rate", "groups") and s.flag():
            continue
        # The first values are the harmless ones.
        arguments[name] = s.pick(values if s.flag(8) else values[:3])
    if s.flag(8):
        name = s.pick([*_OPTIONS, *arguments])
        arguments[name] = s.pick(_OPTIONS[name]) if name in _OPTIONS and s.flag() else s.odd()
    if s.flag(16):
        return s.odd()
    return kind(**arguments)


def _is_small(model: Sequential) -> bool:
    """Whether it can be run: what is between its layers takes the memory that one asks for."""
    if not model.built:
        return False
    shapes = [layer.output_shape for layer in model.layers]
    sizes = [math.prod(shape[1:]) for shape in (model.input_shape, *shapes) if shape]
    return max(sizes, default=0) <= _MOST and model.count_params() <= _MOST


def run_layers(data: bytes) -> None:
    """`Sequential`: made, run, trained, and made anew from its configuration."""
    s = Source(data)
    choose_path(s)
    set_random_seed(1)
    shape = s.pick([(6, 6, 2), (5,), (9, 4, 1), (3, 3, 16), (1, 1, 1), (4, 3)])
    with contextlib.suppress(*REFUSED), contextlib.redirect_stdout(io.StringIO()):
        model = Sequential([layers.Input(shape)] if s.flag() else [])
        for _ in range(1 + s.below(4)):
            with contextlib.suppress(*REFUSED):
                model.add(_layer(s))
        x = s.array(s.pick([2, 1, 5, 0]), *shape, dtype=s.pick([np.float32, np.uint8, np.int64]))
        if s.flag(8):
            x = s.damaged(x, [x])
        if not model.built and isinstance(x, np.ndarray) and x.size < _MOST:
            model.build(x.shape)
        if not _is_small(model):
            return
        action = s.below(5)
        if action == 0:
            model.predict(x, batch_size=s.pick([32, 1, 2]), verbose=0)
        elif action == 1:
            model(x, training=s.flag())
        elif action == 2:
            copy = Sequential.from_config(model.get_config())
            copy.set_weights(model.get_weights() if s.flag() else s.odd())
            copy.summary()
        else:
            optimizer = s.pick(["sgd", "rmsprop", "adam", "momentum"])
            losses = ["mean_squared_error", "categorical_crossentropy", "binary_crossentropy"]
            losses += ["sparse_categorical_crossentropy", "mean_absolute_error"]
            model.compile(
                optimizer, s.pick(losses), s.pick([None, ["accuracy"], ["x"], "accuracy"])
            )
            output = model.output_shape or (None, 1)
            y = s.array(s.pick([len(x), 1]), *output[1:])
            if s.flag(4):
                y = s.damaged(y, [y])
            if action == 3:
                model.train_on_batch(x, y)
            model.evaluate(x, y, batch_size=s.pick([32, 1]), verbose=0)


_AUGMENTATION = {
    "samplewise_center": [True],
    "samplewise_std_normalization": [True],
    "featurewise_center": [True],
    "featurewise_std_normalization": [True],
    "rotation_range": [10, 1e30],
    "width_shift_range": [0.1, 2, [1, -2], 10**9, 10**30],
    "height_shift_range": [0.1, 2, (0.5,), 1e300],
    "brightness_range": [(0.5, 1.5), (0, 1e30)],
    "shear_range": [5, 90, 1e300],
    "zoom_range": [0.2, (0.5, 2), (0, 0), 1],
    "channel_shift_range": [10.0, 1e39],
    "fill_mode": ["nearest", "constant", "reflect", "wrap"],
    "cval": [1.0, float("nan"), 1e300],
    "horizontal_flip": [True],
    "vertical_flip": [True],
    "rescale": [1 / 255, 0, 1e39],
    "validation_split": [0.5, 0.999],
}


def augment(data: bytes) -> None:
    """`ImageDataGenerator`: any arguments, on any arrays."""
    s = Source(data)
    set_random_seed(1)
    options = {}
    for _ in range(s.below(5)):
        name = s.pick(list(_AUGMENTATION))
        options[name] = s.odd() if s.flag(4) else s.pick(_AUGMENTATION[name])
    x = s.array(s.pick([3, 1, 5]), 1 + s.below(8), 1 + s.below(8), s.pick([3, 1, 4]))
    given = s.damaged(x, [x]) if s.flag(6) else x
    with warnings.catch_warnings(), contextlib.suppress(*REFUSED):
        warnings.simplefilter("ignore")  # what says that mean and std are not known, and overflows
        generator = ImageDataGenerator(**options)
        if s.flag():
            generator.fit(given, augment=s.flag(), seed=s.pick([1, s.odd()]))
        if s.flag():
            image = given[0] if isinstance(given, np.ndarray) and given.size else given
            generator.random_transform(image, s.pick([1, s.odd()]))
            parameters = generator.get_random_transform(x.shape[1:], 1)
            for _ in range(s.below(3)):
                parameters[s.pick([*parameters, "x"])] = s.odd()
            generator.apply_transform(x[0], parameters)
        labels = s.pick([None, np.arange(len(x)), s.odd()])
        size = s.pick([2, 32, s.odd()])
        batches = generator.flow(given, labels, size, s.flag(), seed=s.pick([1, None, s.odd()]))
        next(batches)
        batches.set_state({"seed": 1, "epoch": s.pick([0, 3, 2**63])})
        next(batches)
