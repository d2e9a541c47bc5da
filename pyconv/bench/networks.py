"""The networks that are timed as a whole, their weights and data, for every contestant the same.

This module also runs in interpreters without pyconv: only the standard library and NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Step(NamedTuple):
    """A layer. Convolutions and dense layers have a ReLU behind them, the last one a softmax.

    Attributes:
        kind: "conv", "pool" (the maximum of 2x2 windows), "dropout", "flatten" or "dense".
        size: filters or units.
        kernel, same: of a convolution, its height and width, and whether it is padded.
        rate: of dropout.
    """

    kind: str
    size: int = 0
    kernel: int = 0
    same: bool = False
    rate: float = 0.0


def conv(filters: int, kernel: int = 3, same: bool = True) -> Step:
    return Step("conv", filters, kernel, same)


def dense(units: int) -> Step:
    return Step("dense", units)


def dropout(rate: float) -> Step:
    return Step("dropout", rate=rate)


POOL, FLATTEN = Step("pool"), Step("flatten")


@dataclass(frozen=True)
class Network:
    """A network without branches.

    Attributes:
        image: shape of an image, (H, W, C).
        steps: its layers, the last one dense.
    """

    image: tuple[int, int, int]
    steps: tuple[Step, ...]

    @property
    def classes(self) -> int:
        return self.steps[-1].size

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(int(np.prod(shape)) + shape[-1] for _, shape in self._kernels())

    def walk(self) -> Iterator[tuple[Step, tuple[int, ...], tuple[int, ...]]]:
        """Yields every step, the shape of its input, and that of its kernel, () if it has none."""
        shape: tuple[int, ...] = self.image
        for step in self.steps:
            kernel: tuple[int, ...] = ()
            output = shape
            if step.kind == "conv":
                kernel = (step.kernel, step.kernel, shape[-1], step.size)
                smaller = 0 if step.same else step.kernel - 1
                output = (shape[0] - smaller, shape[1] - smaller, step.size)
            elif step.kind == "pool":
                output = (shape[0] // 2, shape[1] // 2, shape[2])
            elif step.kind == "dense":
                kernel, output = (int(np.prod(shape)), step.size), (step.size,)
            yield step, shape, kernel
            shape = output

    def _kernels(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Of the steps that have weights, the shapes of the input and of the kernel."""
        return ((images, kernel) for _, images, kernel in self.walk() if kernel)

    def weights(self) -> list[Floats]:
        """Kernel and bias, layer by layer, as pyconv and Keras have them: HWIO, (inputs, units).

        Glorot uniform kernels; biases that are not zero, so that a missing one shows.
        """
        rng = np.random.default_rng(1)
        arrays: list[Floats] = []
        for _, shape in self._kernels():
            limit = (6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1]))) ** 0.5
            arrays.append(rng.uniform(-limit, limit, shape).astype(np.float32))
            arrays.append(rng.uniform(-0.05, 0.05, shape[-1]).astype(np.float32))
        return arrays

    def weights_channels_first(self) -> list[Floats]:
        """The same weights as OIHW and (units, inputs), for images that are NCHW."""
        arrays = self.weights()
        for index, (images, shape) in enumerate(self._kernels()):
            kernel = arrays[2 * index]
            if len(shape) == 4:
                kernel = kernel.transpose(3, 2, 0, 1)
            else:
                if len(images) == 3:  # they are flattened from (C, H, W) there, not from (H, W, C)
                    kernel = kernel.reshape(*images, -1).transpose(2, 0, 1, 3).reshape(shape)
                kernel = kernel.T
            arrays[2 * index] = np.ascontiguousarray(kernel)
        return arrays

    def data(self, batch: int) -> tuple[Floats, Floats]:
        """Random images (N, H, W, C), centred as pixels are in most recipes; one-hot labels."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch, *self.image), np.float32)
        return x, np.eye(self.classes, dtype=np.float32)[rng.integers(0, self.classes, batch)]

    def layers(self, keras: Any) -> Any:
        """The network, not compiled, of the layers of `keras`: Keras's own, or pyconv."""
        model = keras.Sequential([keras.Input(self.image)])
        made = keras.layers
        for index, step in enumerate(self.steps):
            activation = "softmax" if index + 1 == len(self.steps) else "relu"
            if step.kind == "conv":
                padding = "same" if step.same else "valid"
                model.add(
                    made.Conv2D(step.size, step.kernel, padding=padding, activation=activation)
                )
            elif step.kind == "pool":
                model.add(made.MaxPooling2D(pool_size=(2, 2)))
            elif step.kind == "dropout":
                model.add(made.Dropout(step.rate))
            elif step.kind == "flatten":
                model.add(made.Flatten())
            else:
                model.add(made.Dense(step.size, activation=activation))
        return model


def _vgg16(size: int, units: int, classes: int) -> Network:
    """VGG-16, configuration D of K. Simonyan, A. Zisserman, 2015."""
    steps: list[Step] = []
    for filters, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        steps += [conv(filters)] * count + [POOL]
    steps += [FLATTEN, dense(units), dropout(0.5), dense(units), dropout(0.5), dense(classes)]
    return Network((size, size, 3), tuple(steps))


TUTORIAL = Network(
    (32, 32, 3),
    (
        *(conv(32), conv(32, same=False), POOL, dropout(0.25)),
        *(conv(64), conv(64, same=False), POOL, dropout(0.25)),
        *(conv(64), conv(64, same=False), POOL, dropout(0.25)),
        *(FLATTEN, dense(512), dropout(0.5), dense(10)),
    ),
)
# LeNet-5 of Y. LeCun et al., 1998, with ReLU and maxima as they are usual now.
LENET = Network(
    (28, 28, 1),
    (
        *(conv(6, 5), POOL, conv(16, 5, same=False), POOL),
        *(FLATTEN, dense(120), dense(84), dense(10)),
    ),
)
VGG16 = _vgg16(224, 4096, 1000)
NETWORKS = {
    "tutorial": TUTORIAL,
    "lenet": LENET,
    "vgg16-32": _vgg16(32, 512, 10),
    "vgg16": VGG16,
    "vgg16-224": VGG16,
}


def tensorflow_threads(tf: Any, threads: int) -> None:
    """Limits TensorFlow's threads, which it takes only before it computes anything."""
    if tf.config.threading.get_intra_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
