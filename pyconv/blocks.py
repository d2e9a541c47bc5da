"""What a network executes: blocks, each with its forward and backward pass side by side.

A block works on batches of up to the capacity of its :class:`~pyconv.plan.Plan`, which gives it its
buffers:

    output_buffer    flat, for the outputs
    dx_buffer        flat, for the gradient with respect to the inputs; None if nobody needs it
    gradients        for each parameter, the array that receives its gradient

Gradients are overwritten, never accumulated. In training a block remembers its inputs and outputs
from `forward` until `backward`. Blocks that are `elementwise` may write over their inputs, blocks
that are a `view` copy nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyconv import kernels
from pyconv.layers import Conv2D, Dense, Dropout, MaxPooling2D, Parameter
from pyconv.losses import CategoricalCrossentropy, Loss

_LINE = 64  # bytes in a cache line, and in a vector register of AVX-512


def aligned_zeros(size: int, dtype: type = np.float32) -> np.ndarray:
    """A flat array that starts at a cache line. Untouched, its memory costs nothing."""
    itemsize = np.dtype(dtype).itemsize
    raw: np.ndarray = np.zeros(size + _LINE // itemsize, dtype)
    start = -raw.ctypes.data % _LINE // itemsize
    return raw[start : start + size]


class Block:
    """Base class: one step of the network.

    Args:
        input_shape, output_shape: shapes of one sample, without the batch axis.
        parameters: the parameters that the block applies.
    """

    elementwise = False
    view = False

    def __init__(
        self,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        parameters: list[Parameter] | None = None,
    ) -> None:
        self.input_shape = input_shape
        self.output_shape = output_shape
        self.parameters = parameters or []
        self.input_size = math.prod(input_shape)
        self.output_size = math.prod(output_shape)
        self.output_buffer: np.ndarray | None = None
        self.dx_buffer: np.ndarray | None = None
        self.gradients: list[np.ndarray] = []

    def allocate(self, capacity: int) -> None:
        """Allocates what the block alone uses, for batches of up to `capacity`."""

    def forward(self, x: np.ndarray, training: bool, step: int) -> np.ndarray:
        """Returns the outputs, in `output_buffer`, for the inputs `x` (N, *input_shape)."""
        raise NotImplementedError

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        """Writes `gradients`; returns the gradient of `x`, or None if nobody needs it."""
        raise NotImplementedError

    def _output(self, n: int) -> np.ndarray:
        assert self.output_buffer is not None
        return self.output_buffer[: n * self.output_size].reshape(n, *self.output_shape)

    def _dx(self, n: int) -> np.ndarray | None:
        if self.dx_buffer is None:
            return None
        return self.dx_buffer[: n * self.input_size].reshape(n, *self.input_shape)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.input_shape} -> {self.output_shape}>"


class ConvBlock(Block):
    """Convolution + bias (+ ReLU)."""

    def __init__(
        self,
        layer: Conv2D,
        relu: bool,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
    ) -> None:
        super().__init__(input_shape, output_shape, layer.parameters)
        self.activation = "relu" if relu else None
        self.geometry = (layer.strides, layer.padding, layer.dilation_rate, layer.groups)

    def forward(self, x: np.ndarray, training: bool, step: int) -> np.ndarray:
        w, *b = (parameter.value for parameter in self.parameters)
        y = self._output(len(x))
        kernels.conv2d(x, w, b[0] if b else None, *self.geometry, self.activation, out=y)
        self._x, self._y = x, y
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        w = self.parameters[0].value
        dw, *db = self.gradients
        dx = self._dx(len(dy))
        options: dict[str, Any] = {"y": self._y, "dw": dw, "db": db[0] if db else None}
        if dx is None:
            kernels.conv2d_backward_weights(
                dy, self._x, w.shape, *self.geometry, self.activation, **options
            )
        else:
            kernels.conv2d_backward(
                dy, self._x, w, *self.geometry, self.activation, dx=dx, **options
            )
        return dx


class ConvPoolBlock(Block):
    """Convolution + bias + ReLU + 2x2 max pooling (+ dropout), where the device has one kernel for
    them."""

    def __init__(
        self,
        layer: Conv2D,
        dropout: Dropout | None,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
    ) -> None:
        super().__init__(input_shape, output_shape, layer.parameters)
        self.geometry = (layer.strides, layer.padding, layer.dilation_rate, layer.groups)
        self.rate, self.seed = (dropout.rate, dropout.drawn_seed) if dropout else (0.0, 0)

    def allocate(self, capacity: int) -> None:
        self._winner_buffer = aligned_zeros(capacity * self.output_size, np.uint8)

    def forward(self, x: np.ndarray, training: bool, step: int) -> np.ndarray:
        w, *b = (parameter.value for parameter in self.parameters)
        y = self._output(len(x))
        self._x, self._winner = x, self._winner_buffer[: y.size].reshape(y.shape)
        self._rate = self.rate if training else 0.0
        kernels.conv2d_pool(
            x,
            w,
            b[0] if b else None,
            *self.geometry,
            self._rate,
            self.seed,
            step,
            out=y,
            winner=self._winner,
        )
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        w = self.parameters[0].value
        dw, *db = self.gradients
        dx = self._dx(len(dy))
        kernels.conv2d_pool_backward(
            dy,
            self._winner,
            self._x,
            w,
            *self.geometry,
            self._rate,
            need_dx=dx is not None,
            dx=dx,
            dw=dw,
            db=db[0] if db else None,
        )
        return dx


class DenseBlock(Block):
    """Matrix product + bias (+ ReLU) on the last axis."""

    def __init__(
        self,
        layer: Dense,
        relu: bool,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
    ) -> None:
        super().__init__(input_shape, output_shape, layer.parameters)
        self.activation = "relu" if relu else None

    def forward(self, x: np.ndarray, training: bool, step: int) -> np.ndarray:
        w, *b = (parameter.value for parameter in self.parameters)
        y = self._output(len(x))
        self._x, self._y = _rows(x), _rows(y)
        kernels.dense(self._x, w, b[0] if b else None, self.activation, out=self._y)
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        w = self.parameters[0].value
        dw, *db = self.gradients
        dx = self._dx(len(dy))
        options: dict[str, Any] = {"y": self._y, "dw": dw, "db": db[0] if db else None}
        if dx is None:
            kernels.dense_backward_weights(_rows(dy), self._x, self.activation, **options)
        else:
            kernels.dense_backward(_rows(dy), self._x, w, self.activation, dx=_rows(dx), **options)
        return dx


class MaxPoolBlock(Block):
    """Max pooling; remembers where the maxima were."""

    def __init__(
        self, layer: MaxPooling2D, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
    ) -> None:
        super().__init__(input_shape, output_shape)
        self.geometry = (layer.pool_size, layer.strides, layer.padding)

    def allocate(self, capacity: int) -> None:
        dtype = kernels.argmax_dtype(self.geometry[0])
        self._argmax_buffer = aligned_zeros(capacity * self.output_size, dtype)

    def forward(self, x: np.ndarray, training: bool, step: int) -> np.ndarray:
        y = self._output(len(x))
        self._argmax = self._argmax_buffer[: y.size].reshape(y.shape)
        kernels.max_pool2d(x, *self.geometry, out=y, argmax=self._argmax)
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        dx = self._dx(len(dy))
        assert dx is not None
        kernels.max_pool2d_backward(dy, self._argmax, dx.shape, *self.geometry, out=dx)
        return dx


class DropoutBlock(Block):
    """Dropout. The backward pass computes the mask again, from the seed and the step."""

    elementwise = True

    def __init__(self, layer: Dropout, shape: tuple[int, ...]) -> None:
        super().__init__(shape, shape)
        self.rate, self.seed = layer.rate, layer.drawn_seed

    def forward(self, x: np.ndarray, training: bool, step: int) -> np.ndarray:
        if not training or self.rate == 0:
            self._step = None
            return x
        self._step = step
        y = self._output(len(x))
        kernels.dropout(x, self.rate, self.seed, step, out=y)
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        if self._step is not None:
            kernels.dropout_backward(dy, self.rate, self.seed, self._step, out=dy)
        return dy


class ReluBlock(Block):
    """ReLU that could not be fused into the block before it."""

    elementwise = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, shape)

    def forward(self, x: np.ndarray, training: bool, step: int) -> np.ndarray:
        self._y = self._output(len(x))
        kernels.relu(x, out=self._y)
        return self._y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        kernels.relu_backward(dy, self._y, out=dy)
        return dy


class SoftmaxBlock(Block):
    """Softmax over the last axis. At the end of a network a loss may take its inputs instead."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, shape)

    def forward(self, x: np.ndarray, training: bool, step: int) -> np.ndarray:
        self._y = self._output(len(x))
        kernels.softmax(_rows(x), out=_rows(self._y))
        return self._y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        dx = self._dx(len(dy))
        assert dx is not None
        kernels.softmax_backward(_rows(dy), _rows(self._y), out=_rows(dx))
        return dx


class FlattenBlock(Block):
    """A change of shape only."""

    view = True

    def forward(self, x: np.ndarray, training: bool, step: int) -> np.ndarray:
        return x.reshape(len(x), *self.output_shape)

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        return dy.reshape(len(dy), *self.input_shape)


class LossBlock:
    """The end of a network in training: a loss by its own formulas, on the network's outputs.

    Args:
        loss: the loss.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def forward(self, y: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the losses of the samples (N,) and the predictions (N, K)."""
        self._y, self._labels = y, labels
        return self.loss.losses(labels, y), y

    def backward(self) -> np.ndarray:
        """Returns the gradient of the mean loss with respect to the network's outputs."""
        # A loss of the user's own may compute in float64.
        return np.ascontiguousarray(self.loss.gradient(self._labels, self._y), np.float32)


class SoftmaxCrossEntropyBlock:
    """Softmax and cross-entropy in one, on logits: stable, and its gradient is simply p - t.

    Args:
        loss: the cross-entropy; its label smoothing applies.
        classes: number of classes K.
        capacity: largest batch.
    """

    def __init__(self, loss: CategoricalCrossentropy, classes: int, capacity: int) -> None:
        self.loss = loss
        self._losses = aligned_zeros(capacity)
        self._probabilities = aligned_zeros(capacity * classes)
        self._dlogits = aligned_zeros(capacity * classes)

    def forward(self, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the losses of the samples (N,) and the predictions (N, K).

        The predictions are logits if the loss asks for logits, else probabilities.
        """
        losses = self._losses[: len(logits)]
        probabilities = self._probabilities[: logits.size].reshape(logits.shape)
        self._gradient = self._dlogits[: logits.size].reshape(logits.shape)
        kernels.softmax_cross_entropy(
            logits,
            self.loss.smooth(labels),
            loss=losses,
            probabilities=probabilities,
            dlogits=self._gradient,
        )
        return losses, logits if self.loss.from_logits else probabilities

    def backward(self) -> np.ndarray:
        """Returns the gradient of the mean loss with respect to the logits."""
        return self._gradient


def _rows(x: np.ndarray) -> np.ndarray:
    """(..., K) as (N, K)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
