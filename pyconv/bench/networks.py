"""The tutorial's network, its weights and its data, for every contestant the same.

This module also runs in interpreters without pyconv: only the standard library and NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

IMAGE = (32, 32, 3)
CLASSES = 10
# (input channels, filters, padding) of the 3x3 convolutions; 2x2 max pooling and dropout of
# POOL_DROPOUT follow every second one.
CONVOLUTIONS = (
    (3, 32, "same"),
    (32, 32, "valid"),
    (32, 64, "same"),
    (64, 64, "valid"),
    (64, 64, "same"),
    (64, 64, "valid"),
)
POOL_DROPOUT = 0.25
POOLED = (2, 2, 64)  # what is flattened
UNITS = 512
DENSE_DROPOUT = 0.5
PARAMETERS = 276_138


def weights() -> list[Floats]:
    """Kernel and bias, layer by layer, as pyconv and Keras have them: HWIO and (inputs, units).

    Glorot uniform kernels; biases that are not zero, so that a missing one shows.
    """
    rng = np.random.default_rng(1)
    shapes = [(3, 3, channels, filters) for channels, filters, _ in CONVOLUTIONS]
    arrays: list[Floats] = []
    for shape in [*shapes, (int(np.prod(POOLED)), UNITS), (UNITS, CLASSES)]:
        limit = (6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1]))) ** 0.5
        arrays.append(rng.uniform(-limit, limit, shape).astype(np.float32))
        arrays.append(rng.uniform(-0.05, 0.05, shape[-1]).astype(np.float32))
    return arrays


def weights_channels_first() -> list[Floats]:
    """The same weights as OIHW and (units, inputs), for images that are NCHW."""
    arrays = []
    for array in weights():
        if array.shape == (int(np.prod(POOLED)), UNITS):
            # Its inputs are flattened from (C, H, W) there, not from (H, W, C).
            array = array.reshape(*POOLED, UNITS).transpose(2, 0, 1, 3).reshape(-1, UNITS)
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
        arrays.append(np.ascontiguousarray(array.transpose(axes)))
    return arrays


def data(batch: int) -> tuple[Floats, Floats]:
    """Random images (N, 32, 32, 3), centred as pixels are in most recipes, and one-hot labels."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *IMAGE), np.float32)
    return x, np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, batch)]


def layers(keras: Any) -> Any:
    """The network, not compiled, built from the layers of `keras`: Keras's own, or pyconv."""
    model = keras.Sequential([keras.Input(IMAGE)])
    for index, (_, filters, padding) in enumerate(CONVOLUTIONS):
        model.add(keras.layers.Conv2D(filters, (3, 3), padding=padding, activation="relu"))
        if index % 2:
            model.add(keras.layers.MaxPooling2D(pool_size=(2, 2)))
            model.add(keras.layers.Dropout(POOL_DROPOUT))
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(UNITS, activation="relu"))
    model.add(keras.layers.Dropout(DENSE_DROPOUT))
    model.add(keras.layers.Dense(CLASSES, activation="softmax"))
    return model


def tensorflow_threads(tf: Any, threads: int) -> None:
    """Limits TensorFlow's threads, which it takes only before it computes anything."""
    if tf.config.threading.get_intra_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
