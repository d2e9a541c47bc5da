"""What a network executes: blocks, each with its forward and backward pass side by side.

A block works on batches of up to the capacity of its :class:`~pyconv.plan.Plan`, which gives it its
buffers:

    output_buffer    flat, for the outputs
    dx_buffer        flat, for the gradient with respect to the inputs; None if nobody needs it
    gradients        for each trainable parameter, the array that receives its gradient

Gradients are overwritten, never accumulated. In training a block remembers its inputs and outputs
from `forward` until `backward`. Blocks that are `elementwise` may write over their inputs, blocks
that are a `view` copy nothing.

All arrays are the device's for which the plan was made (:class:`~pyconv.backend.Backend`), and a
pass only calls kernels on them: what it does can be captured and replayed. The losses at the end
say where they differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from pyconv import backend, kernels
from pyconv.backend import Backend
from pyconv.kernels import Counter, Padding
from pyconv.layers import (
    AveragePooling2D,
    BatchNormalization,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    GlobalAveragePooling2D,
    MaxPooling2D,
    Parameter,
    ZeroPadding2D,
)
from pyconv.losses import Loss, SoftmaxCrossentropy


class Block:
    """Base class: one step of the network.

    Args:
        input_shape, output_shape: shapes of one sample, without the batch axis.
        parameters: the parameters that the block applies.
    """

    elementwise = False
    view = False
    bfloat16 = False  # whether the parameters are applied as they are in bfloat16
    first_sample = 0  # number of the inputs' first sample in a batch that processes share

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
        self._rounded: list[np.ndarray] = []

    def round_parameters(self, device: Backend) -> None:
        """Makes what `arrays` returns of the parameters as they are now."""
        if self.bfloat16:
            self._rounded = self._rounded or [
                device.zeros(p.size).reshape(p.shape) for p in self.parameters
            ]
            for parameter, rounded in zip(self.parameters, self._rounded):
                kernels.round_bfloat16(parameter.array, out=rounded)

    @property
    def arrays(self) -> list[np.ndarray]:
        """The arrays of the parameters, as the block applies them."""
        return self._rounded or [parameter.array for parameter in self.parameters]

    def allocate(self, device: Backend, capacity: int) -> None:
        """Allocates what the block alone uses, for batches of up to `capacity`."""

    def forward(self, x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
        """Returns the outputs, in `output_buffer`, for the inputs `x` (N, *input_shape).

        Args:
            x: the inputs.
            training: whether dropout acts, and batch normalization takes the batch's statistics.
            step: selects dropout's masks: a number, or an array of one on the device.
        """
        raise NotImplementedError

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        """Writes `gradients`; returns the gradient of `x`, or None if nobody needs it."""
        raise NotImplementedError

    @property
    def _first(self) -> int:
        """Number of the outputs' first element, likewise."""
        return self.first_sample * self.output_size

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
    """Convolution, depthwise or not, + bias (+ ReLU).

    Args:
        layer: the layer.
        relu: whether ReLU follows.
        input_shape, output_shape: as for every block.
        padding: instead of the layer's own.
    """

    def __init__(
        self,
        layer: Conv2D | DepthwiseConv2D,
        relu: bool,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        padding: Padding | None = None,
    ) -> None:
        super().__init__(input_shape, output_shape, layer.parameters)
        self.activation = "relu" if relu else None
        channels = input_shape[-1]
        groups = layer.groups if isinstance(layer, Conv2D) else channels
        self.geometry = (layer.strides, padding or layer.padding, layer.dilation_rate, groups)
        # A depthwise kernel (kh, kw, channels, multiplier) lies in memory like this.
        self._w_shape = (*layer.kernel_size, channels // groups, output_shape[-1])

    def allocate(self, device: Backend, capacity: int) -> None:
        self._unused_db = device.zeros(self.output_shape[-1])

    def forward(self, x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
        w, *b = self.arrays
        y = self._output(len(x))
        bias = b[0] if b else None
        kernels.conv2d(
            x,
            w.reshape(self._w_shape),
            bias,
            *self.geometry,
            self.activation,
            out=y,
            bfloat16=self.bfloat16,
        )
        self._x, self._y = x, y
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        w = self.arrays[0].reshape(self._w_shape)
        dw, *db = self.gradients
        dx = self._dx(len(dy))
        options: dict[str, Any] = {
            "y": self._y,
            "dw": dw.reshape(self._w_shape),
            "db": db[0] if db else self._unused_db,
        }
        if dx is None:
            kernels.conv2d_backward_weights(
                dy, self._x, self._w_shape, *self.geometry, self.activation, **options
            )
        else:
            options |= {"dx": dx, "bfloat16": self.bfloat16}
            kernels.conv2d_backward(dy, self._x, w, *self.geometry, self.activation, **options)
        return dx


class ConvPoolBlock(Block):
    """Convolution + bias + ReLU + 2x2 max pooling (+ dropout).

    Args:
        layer: the convolution.
        dropout: the dropout, if any.
        input_shape, output_shape: as for every block.
        padding: instead of the layer's own.
    """

    def __init__(
        self,
        layer: Conv2D,
        dropout: Dropout | None,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        padding: Padding | None = None,
    ) -> None:
        super().__init__(input_shape, output_shape, layer.parameters)
        self.geometry = (
            layer.strides,
            padding or layer.padding,
            layer.dilation_rate,
            layer.groups,
        )
        self.rate, self.seed = (dropout.rate, dropout.drawn_seed) if dropout else (0.0, 0)

    def allocate(self, device: Backend, capacity: int) -> None:
        self._winner_buffer = device.zeros(capacity * self.output_size, np.uint8)
        self._unused_db = device.zeros(self.output_shape[-1])

    def forward(self, x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
        w, *b = self.arrays
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
            self._first,
            out=y,
            winner=self._winner,
            bfloat16=self.bfloat16,
        )
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        w = self.arrays[0]
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
            db=db[0] if db else self._unused_db,
        )
        return dx

    def backward_through(self, dy: np.ndarray, first: ConvBlock) -> None:
        """Writes `gradients`, and those of the block before it, the first one with parameters."""
        assert self.dx_buffer is None
        self.backward(dy)
        dw, *db = first.gradients
        kernels.conv2d_pool_backward_through(
            dy,
            self._winner,
            self.arrays[0],
            first._y,
            first._x,
            first._w_shape,
            *self.geometry,
            self._rate,
            *first.geometry,
            first.activation,
            dw=dw.reshape(first._w_shape),
            db=db[0] if db else first._unused_db,
        )


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

    def allocate(self, device: Backend, capacity: int) -> None:
        self._unused_db = device.zeros(self.output_shape[-1])

    def forward(self, x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
        w, *b = self.arrays
        y = self._output(len(x))
        self._x, self._y = _rows(x), _rows(y)
        bias = b[0] if b else None
        kernels.dense(self._x, w, bias, self.activation, out=self._y, bfloat16=self.bfloat16)
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        w = self.arrays[0]
        dw, *db = self.gradients
        dx = self._dx(len(dy))
        options: dict[str, Any] = {"y": self._y, "dw": dw, "db": db[0] if db else self._unused_db}
        if dx is None:
            kernels.dense_backward_weights(_rows(dy), self._x, self.activation, **options)
        else:
            options |= {"dx": _rows(dx), "bfloat16": self.bfloat16}
            kernels.dense_backward(_rows(dy), self._x, w, self.activation, **options)
        return dx


class MaxPoolBlock(Block):
    """Max pooling; remembers where the maxima were."""

    def __init__(
        self, layer: MaxPooling2D, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
    ) -> None:
        super().__init__(input_shape, output_shape)
        self.geometry = (layer.pool_size, layer.strides, layer.padding)

    def allocate(self, device: Backend, capacity: int) -> None:
        dtype = kernels.argmax_dtype(self.geometry[0])
        self._argmax_buffer = device.zeros(capacity * self.output_size, dtype)

    def forward(self, x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
        y = self._output(len(x))
        self._argmax = self._argmax_buffer[: y.size].reshape(y.shape)
        kernels.max_pool2d(x, *self.geometry, out=y, argmax=self._argmax)
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        dx = self._dx(len(dy))
        assert dx is not None
        kernels.max_pool2d_backward(dy, self._argmax, dx.shape, *self.geometry, out=dx)
        return dx


class AvgPoolBlock(Block):
    """Average pooling, of windows or of whole images."""

    def __init__(
        self,
        layer: AveragePooling2D | GlobalAveragePooling2D,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
    ) -> None:
        super().__init__(input_shape, output_shape)
        rows, columns, channels = input_shape
        self._images = output_shape
        self.geometry: tuple[Any, ...]
        if isinstance(layer, GlobalAveragePooling2D):
            self._images = (1, 1, channels)
            self.geometry = ((rows, columns), 1, "valid")
        else:
            self.geometry = (layer.pool_size, layer.strides, layer.padding)

    def forward(self, x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
        y = self._output(len(x))
        kernels.avg_pool2d(x, *self.geometry, out=y.reshape(len(x), *self._images))
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        dx = self._dx(len(dy))
        assert dx is not None
        images = dy.reshape(len(dy), *self._images)
        kernels.avg_pool2d_backward(images, dx.shape, *self.geometry, out=dx)
        return dx


class PadBlock(Block):
    """Zero padding that is not that of a convolution behind it."""

    def __init__(
        self, layer: ZeroPadding2D, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
    ) -> None:
        super().__init__(input_shape, output_shape)
        self.padding = layer.padding

    def forward(self, x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
        return kernels.pad2d(x, self.padding, out=self._output(len(x)))

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        return kernels.pad2d_backward(dy, self.padding, out=self._dx(len(dy)))


class DropoutBlock(Block):
    """Dropout. The backward pass computes the mask again, from the seed and the step."""

    elementwise = True

    def __init__(self, layer: Dropout, shape: tuple[int, ...]) -> None:
        super().__init__(shape, shape)
        self.rate, self.seed = layer.rate, layer.drawn_seed

    def forward(self, x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
        if not training or self.rate == 0:
            self._step = None
            return x
        self._step = step
        y = self._output(len(x))
        kernels.dropout(x, self.rate, self.seed, step, self._first, out=y)
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        if self._step is not None:
            kernels.dropout_backward(dy, self.rate, self.seed, self._step, self._first, out=dy)
        return dy


class ReluBlock(Block):
    """ReLU that could not be fused into the block before it."""

    elementwise = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, shape)

    def forward(self, x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
        self._y = self._output(len(x))
        kernels.relu(x, out=self._y)
        return self._y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        kernels.relu_backward(dy, self._y, out=dy)
        return dy


class ActivationBlock(Block):
    """One of `kernels.POINTWISE`."""

    elementwise = True

    def __init__(self, name: str, negative_slope: float, shape: tuple[int, ...]) -> None:
        super().__init__(shape, shape)
        self.function = (name, negative_slope)

    def forward(self, x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
        self._y = self._output(len(x))
        kernels.activate(x, *self.function, out=self._y)
        return self._y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        kernels.activate_backward(dy, self._y, *self.function, out=dy)
        return dy


class RoundBlock(Block):
    """Rounds to bfloat16: what comes in for layers of the policy mixed_bfloat16, or what they make.

    The gradient is rounded on its way back.

    Args:
        shape: of a sample.
        behind: the block whose outputs are rounded where they lie; None to leave them as they are.
    """

    elementwise = True

    def __init__(self, shape: tuple[int, ...], behind: Block | None = None) -> None:
        super().__init__(shape, shape)
        self.behind = behind

    def forward(self, x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
        if not training and isinstance(self.behind, DropoutBlock):
            return x  # what came into it, which has been rounded
        y = self._output(len(x))
        kernels.round_bfloat16(x, out=y)
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        kernels.round_bfloat16(dy, out=dy)
        return dy


class BatchNormBlock(Block):
    """Batch normalization. Frozen, it works in training as in inference."""

    elementwise = True

    def __init__(self, layer: BatchNormalization, shape: tuple[int, ...]) -> None:
        super().__init__(shape, shape, layer.parameters)
        self.scale, self.center, self.frozen = layer.scale, layer.center, not layer.trainable
        self.momentum, self.epsilon = layer.momentum, layer.epsilon

    def allocate(self, device: Backend, capacity: int) -> None:
        channels = self.output_shape[-1]
        self._mean, self._inverse, self._unused_dgamma, self._unused_dbeta = (
            device.zeros(channels) for _ in range(4)
        )

    def _given(self, values: Iterable[np.ndarray]) -> tuple[np.ndarray | None, np.ndarray | None]:
        """What belongs to gamma and to beta, of what there is for them in this order."""
        of = iter(values)
        return next(of) if self.scale else None, next(of) if self.center else None

    def forward(self, x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
        y = self._output(len(x))
        *given, mean, variance = (parameter.array for parameter in self.parameters)
        gamma, beta = self._given(given)
        if training and not self.frozen:
            kernels.batch_norm_training(
                *(x, gamma, beta, mean, variance, self.momentum, self.epsilon),
                out=y,
                mean=self._mean,
                inverse=self._inverse,
            )
            self._x = x
            Parameter.written()
        else:
            kernels.batch_norm(x, gamma, beta, mean, variance, self.epsilon, out=y)
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        *given, _, variance = (parameter.array for parameter in self.parameters)
        gamma, _ = self._given(given)
        if self.frozen:  # linear; nobody has written to `_mean`, so it is 0
            kernels.batch_norm(dy, gamma, None, self._mean, variance, self.epsilon, out=dy)
            return dy
        dgamma, dbeta = self._given(self.gradients)
        kernels.batch_norm_backward(
            *(dy, self._x, gamma, self._mean, self._inverse),
            dx=dy,
            dgamma=self._unused_dgamma if dgamma is None else dgamma,
            dbeta=self._unused_dbeta if dbeta is None else dbeta,
        )
        return dy


class SoftmaxBlock(Block):
    """Softmax over the last axis. At the end of a network a loss may take its inputs instead."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, shape)

    def forward(self, x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
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

    def forward(self, x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
        return x.reshape(len(x), *self.output_shape)

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        return dy.reshape(len(dy), *self.input_shape)


def run_blocks(
    blocks: Iterable[Block], x: np.ndarray, training: bool = False, step: Counter = 0
) -> np.ndarray:
    """Returns the outputs of the last of the blocks, each on those of the one before it."""
    for block in blocks:
        x = block.forward(x, training, step)
    return x


class LossBlock:
    """The end of a network in training: a loss by its own formulas, on the network's outputs.

    The formulas are in NumPy, so they work on copies of what lies on a device.

    Args:
        loss: the loss.
        device: where the network runs.
    """

    on_device = False
    batch: int | None = None  # samples of a batch that processes share

    def __init__(self, loss: Loss, device: Backend) -> None:
        self.loss = loss
        self._device = device

    def feed(self, labels: np.ndarray, keep: bool) -> np.ndarray:
        """Returns what `forward` takes for these labels."""
        return labels

    def forward(self, y: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the losses of the samples (N,) and the predictions (N, K)."""
        self._y, self._labels = backend.to_host(y), labels
        return self.loss.losses(labels, self._y), self._y

    def backward(self) -> np.ndarray:
        """Returns the gradient of the mean loss with respect to the network's outputs."""
        # A loss of the user's own may compute in float64.
        gradient = np.ascontiguousarray(self.loss.gradient(self._labels, self._y), np.float32)
        if self.batch is not None:
            gradient = gradient * np.float32(len(gradient) / self.batch)
        return self._device.to_device(gradient)


class SoftmaxCrossEntropyBlock:
    """Softmax and cross-entropy in one, on logits: stable, and its gradient is simply p - t.

    Args:
        loss: the cross-entropy; it makes distributions of labels.
        classes: number of classes K.
        capacity: largest batch.
        device: where the network runs.
    """

    on_device = True
    batch: int | None = None  # samples of a batch that processes share

    def __init__(
        self, loss: SoftmaxCrossentropy, classes: int, capacity: int, device: Backend
    ) -> None:
        self.loss = loss
        self._device = device
        self._classes = classes
        self._labels = device.zeros(capacity * classes)
        self._losses = device.zeros(capacity)
        self._probabilities = device.zeros(capacity * classes)
        self._dlogits = device.zeros(capacity * classes)

    def feed(self, labels: np.ndarray, keep: bool) -> np.ndarray:
        """Returns these labels as distributions (N, K) on the device, as `forward` takes them.

        Args:
            labels: NumPy's, (N, K), or (N,) where they are class numbers.
            keep: whether it must lie where it lay for other labels of this number.
        """
        labels = self.loss.distributions(labels, self._classes, np.dtype(np.float32))
        if self._device.on_host and not keep:
            return labels
        fed: np.ndarray = self._labels[: labels.size].reshape(labels.shape)
        backend.copy(labels, fed)
        return fed

    def forward(self, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the losses of the samples (N,) and the predictions (N, K).

        The predictions are logits if the loss asks for logits, else probabilities.
        """
        losses = self._losses[: len(logits)]
        probabilities = self._probabilities[: logits.size].reshape(logits.shape)
        self._gradient = self._dlogits[: logits.size].reshape(logits.shape)
        kernels.softmax_cross_entropy(
            logits,
            labels,
            loss=losses,
            probabilities=probabilities,
            dlogits=self._gradient,
            batch=self.batch,
        )
        return losses, logits if self.loss.from_logits else probabilities

    def backward(self) -> np.ndarray:
        """Returns the gradient of the mean loss with respect to the logits."""
        return self._gradient


def _rows(x: np.ndarray) -> np.ndarray:
    """(..., K) as (N, K)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
