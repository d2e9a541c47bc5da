"""From layers to what is executed: the blocks of a network, their order and their buffers.

A plan is made when a model is first run, and again when the device changes. All decisions about
which layers become one block are made here.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, Union

import numpy as np

from pyconv import backend, kernels, random
from pyconv.backend import Backend
from pyconv.blocks import (
    ActivationBlock,
    AvgPoolBlock,
    BatchNormBlock,
    Block,
    ConvBlock,
    ConvPoolBlock,
    DenseBlock,
    DropoutBlock,
    FlattenBlock,
    LossBlock,
    MaxPoolBlock,
    PadBlock,
    ReluBlock,
    RoundBlock,
    SoftmaxBlock,
    SoftmaxCrossEntropyBlock,
    run_blocks,
)
from pyconv.graphs import StepGraph
from pyconv.kernels import Counter
from pyconv.labels import needs_classes
from pyconv.layers import (
    Activation,
    AveragePooling2D,
    BatchNormalization,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAveragePooling2D,
    Layer,
    LeakyReLU,
    MaxPooling2D,
    Parameter,
    ZeroPadding2D,
)
from pyconv.layers.base import ACTIVATIONS
from pyconv.losses import BinaryCrossentropy, Loss, SoftmaxCrossentropy
from pyconv.recording import RecordedForward

if TYPE_CHECKING:
    from pyconv.distribute import Share

_ALIGNMENT = 16  # floats in a cache line


@dataclass(frozen=True)
class Rows:
    """A batch of a data set that lives on the device: the samples with these indices.

    Attributes:
        source: all samples, (samples, ...), float32 or uint8.
        indices: (N,), int64, on the device.
    """

    source: Any
    indices: Any

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: slice) -> Rows:
        return Rows(self.source, self.indices[rows])


Batch = Union[np.ndarray, Rows]


class Operation(NamedTuple):
    """One step of the network before fusion: what it does, and the layer that says how."""

    kind: str
    layer: Layer


class _Through(NamedTuple):
    first: ConvBlock
    second: ConvPoolBlock
    end: int  # index of the first block behind them


class _Fold:
    """A convolution or dense layer with the batch normalization behind it in its weights.

    With scale = gamma / sqrt(variance + epsilon), the kernel is multiplied by it, filter by filter,
    and the bias is (bias - mean) * scale + beta.

    Args:
        layer: a built layer without an activation.
        norm: the built layer behind it.

    Attributes:
        layer: what takes the place of both; its weights count after `refresh`.
    """

    def __init__(self, layer: Layer, norm: BatchNormalization) -> None:
        self._source, self._norm = layer, norm
        self.layer = copy.copy(layer)
        zeros = backend.current().zeros
        self.layer.parameters = [
            Parameter(name, zeros(math.prod(shape)).reshape(shape))
            for name, shape in (
                ("kernel", layer.parameters[0].shape),
                ("bias", norm.parameters[-1].shape),
            )
        ]

    def refresh(self) -> None:
        """Makes the weights of those of both layers."""
        of = {p.name: p.value.astype(np.float64) for p in self._source.parameters}
        of |= {p.name: p.value.astype(np.float64) for p in self._norm.parameters}
        scale = of.get("gamma", 1.0) / np.sqrt(of["moving_variance"] + self._norm.epsilon)
        bias = (of.get("bias", 0.0) - of["moving_mean"]) * scale + of.get("beta", 0.0)
        # Filters vary fastest, those of a depthwise kernel over its last two axes.
        kernel = (of["kernel"].reshape(-1, scale.size) * scale).reshape(of["kernel"].shape)
        # In place, and not as a write: who asks for it knows of the one that made it necessary.
        for parameter, value in zip(self.layer.parameters, (kernel, bias)):
            backend.copy(np.ascontiguousarray(value, np.float32), parameter.array)


class Plan:
    """The blocks of a sequence of layers and their buffers, for batches of up to `capacity`.

    A plan belongs to the device that is in use when it is made.

    Args:
        layers: built layers.
        input_shape: shape of one sample, without the batch axis.
        capacity: largest batch; smaller ones use the leading part of the buffers.
        training: with True every block keeps its outputs, so that :meth:`backward` is possible.
            With False all of them share two buffers.
        gradients: for training, the arrays that receive the gradients of trainable parameters.
        loss: the loss that :meth:`forward_loss` computes.
        repeated: whether the plan is for inference again and again, so that the forward pass is
            worth recording, and batch normalization worth folding into the weights before it.
            Results differ by rounding.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        input_shape: tuple[int, ...],
        capacity: int,
        training: bool = False,
        gradients: Mapping[Parameter, np.ndarray] | None = None,
        loss: Loss | None = None,
        repeated: bool = False,
    ) -> None:
        self.device = backend.current()
        self.input_shape = input_shape
        self.capacity = capacity
        steps = operations(layers)
        self._folds: list[_Fold] = []
        self._refreshed_at: object = None  # the last write that folded and rounded weights know of
        if repeated:
            steps, self._folds = fold(steps)
        self.blocks = make_blocks(steps, input_shape)
        self.output_shape = self.blocks[-1].output_shape if self.blocks else input_shape
        self._loss_blocks = self.blocks
        self._inputs: np.ndarray | None = None
        self._head: LossBlock | SoftmaxCrossEntropyBlock | None = None
        if loss is not None:
            self._make_head(loss)
        for block in self.blocks:
            block.allocate(self.device, capacity)
        if training:
            self._allocate_training(gradients or {})
        else:
            self._allocate_inference()
        self._records = repeated and self.device.name == "cpu"
        self._sequences: dict[int, RecordedForward] = {}
        # A training step is captured as a whole, by the model.
        self._captures = not training and self.device.captures
        self._graph = StepGraph()

    @property
    def on_device(self) -> bool:
        """Whether a training step is nothing but kernels, which can be captured and replayed."""
        return self._head is not None and self._head.on_device

    def feed(self, x: Batch, keep: bool = False) -> np.ndarray:
        """Returns a batch as :meth:`forward` takes it, on the device.

        Args:
            x: float32 and C-contiguous (N, *input_shape), or rows of a data set on the device.
            keep: whether it must lie where it lay for other batches of this size, as also where
                the forward pass is captured.
        """
        keep = keep or self._captures
        if not isinstance(x, Rows) and self.device.is_array(x) and not keep:
            return x
        if self._inputs is None:
            self._inputs = self.device.zeros(self.capacity * math.prod(self.input_shape))
        size = len(x) * math.prod(self.input_shape)
        fed: np.ndarray = self._inputs[:size].reshape(len(x), *self.input_shape)
        if isinstance(x, Rows):
            kernels.gather(x.source, x.indices, out=fed)
        else:
            backend.copy(x, fed)
        return fed

    def feed_labels(self, labels: np.ndarray, keep: bool = False) -> np.ndarray:
        """Returns NumPy's labels, checked by the loss, as :meth:`forward_loss` takes them."""
        assert self._head is not None
        return self._head.feed(labels, keep)

    def forward(self, x: np.ndarray, training: bool = False, step: Counter = 0) -> np.ndarray:
        """Returns the outputs (N, *output_shape); they last until the next batch.

        Args:
            x: (N, *input_shape), as :meth:`feed` returns it.
            training: whether dropout acts, and batch normalization takes the batch's statistics.
            step: the number of the training step, which selects dropout's masks.
        """
        return self._run(self.blocks, x, training, step)

    def recorded_outputs(self, x: Any) -> np.ndarray | None:
        """What :meth:`forward` returns for `x`, whatever that is, but a new array.

        None if the forward pass is not recorded, or if anything has to be done before it.
        """
        recorded = self._sequences.get(len(self.blocks))
        if recorded is None or self.device is not backend.current():
            return None
        return recorded.outputs(x)

    def _run(self, blocks: list[Block], x: np.ndarray, training: bool, step: Counter) -> np.ndarray:
        self._refresh(training)
        if self._records and blocks:
            # The loss may leave out the last block.
            sequence = self._sequences.get(len(blocks))
            if sequence is None:
                sequence = RecordedForward(blocks, self.device, self.capacity)
                self._sequences[len(blocks)] = sequence
            return sequence.forward(x)
        if self._captures and not training:
            arrays = [x, *(p.array for block in blocks for p in block.parameters)]
            addresses = map(self.device.address, arrays)
            key = (len(blocks), len(x), self.device.kernels.math_mode(), *addresses)
            launch = functools.partial(run_blocks, blocks, x, training, step)
            return self._graph.run(launch, self.device, key, arrays)
        return run_blocks(blocks, x, training, step)

    def _refresh(self, training: bool) -> None:
        """Makes anew what is made of the weights, if these have changed.

        A step of training always does, as it may be captured, and replayed with other weights.
        """
        if training or self._refreshed_at is not Parameter.last_write:
            self._refreshed_at = Parameter.last_write
            for folded in self._folds:
                folded.refresh()
            for block in self.blocks:
                block.round_parameters(self.device)

    def forward_loss(
        self, x: np.ndarray, labels: np.ndarray, training: bool = False, step: Counter = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the losses (N,) and the predictions (N, K); they last until the next batch.

        Args:
            x, labels: as :meth:`feed` and :meth:`feed_labels` return them.
            training, step: as for :meth:`forward`.
        """
        assert self._head is not None
        return self._head.forward(self._run(self._loss_blocks, x, training, step), labels)

    def take_part(self, share: Share) -> None:
        """Makes the next batches parts of larger ones, over which the loss's mean is taken."""
        assert self._head is not None
        self._head.batch = share.whole
        for block in self.blocks:
            block.first_sample = share.first

    def backward(self, ready: Callable[[Parameter], None] | None = None) -> None:
        """Overwrites the gradients with those of the mean loss of the last :meth:`forward_loss`.

        Args:
            ready: called with a parameter when its gradient, and those of all behind it, are made.
        """
        assert self._head is not None
        dy: np.ndarray | None = self._head.backward()
        through = self._through
        first = self._first_trained if through is None else through.end
        for block in reversed(self._loss_blocks[first:]):
            assert dy is not None
            dy = block.backward(dy)
            if ready is not None and block.gradients:
                ready(next(p for p in block.parameters if p.trainable))
        if through is not None:
            assert dy is not None
            through.second.backward_through(dy, through.first)

    @property
    def _first_trained(self) -> int:
        """Index of the first block that is trained: nothing before it needs a gradient."""
        trained = (
            index
            for index, block in enumerate(self.blocks)
            if any(parameter.trainable for parameter in block.parameters)
        )
        return next(trained, len(self.blocks))

    @property
    def _through(self) -> _Through | None:
        """The first two blocks that are trained, where one kernel takes the gradient through both.

        The gradient between them is the largest of most networks, and then never written out.
        """
        start = self._first_trained
        # Between them may be one that rounds: that gradient is not rounded.
        numbered = [
            (index, block)
            for index, block in enumerate(self._loss_blocks[start : start + 3], start)
            if not isinstance(block, RoundBlock)
        ]
        if self.device.name != "cpu" or len(numbered) < 2:
            return None
        (_, first), (index, second) = numbered[:2]
        if not isinstance(first, ConvBlock) or not isinstance(second, ConvPoolBlock):
            return None
        return _Through(first, second, index + 1)

    def _make_head(self, loss: Loss) -> None:
        computing = (block for block in reversed(self.blocks) if not isinstance(block, RoundBlock))
        last = next(computing, None)
        if not isinstance(loss, SoftmaxCrossentropy):
            linear = isinstance(last, (ConvBlock, DenseBlock)) and last.activation is None
            if linear and isinstance(loss, BinaryCrossentropy) and not loss.from_logits:
                warnings.warn(
                    "binary_crossentropy expects probabilities, but the model ends in a layer "
                    "without an activation. Give it activation='sigmoid', or use "
                    "BinaryCrossentropy(from_logits=True).",
                    stacklevel=2,
                )
            self._head = LossBlock(loss, self.device)
            return
        if len(self.output_shape) != 1:
            raise ValueError(needs_classes(loss.name, self.output_shape))
        if self.output_shape == (1,):
            warnings.warn(
                f"{loss.name} of a single class is always 0, and the model has 1 output. Give it "
                "one for every class, or use the loss 'binary_crossentropy'.",
                stacklevel=2,
            )
        ends_in_softmax = isinstance(last, SoftmaxBlock)
        if loss.from_logits and ends_in_softmax:
            warnings.warn(
                "The loss has from_logits=True, but the model ends in a softmax. Use one or the "
                "other.",
                stacklevel=2,
            )
        elif ends_in_softmax:
            self._loss_blocks = self.blocks[:-1]
        elif not loss.from_logits:
            self._head = LossBlock(loss, self.device)
            return
        self._head = SoftmaxCrossEntropyBlock(
            loss, self.output_shape[0], self.capacity, self.device
        )

    def _allocate_training(self, gradients: Mapping[Parameter, np.ndarray]) -> None:
        for block in self.blocks:
            if isinstance(block, RoundBlock) and block.behind is not None:
                block.output_buffer = block.behind.output_buffer
            elif not block.view:
                block.output_buffer = self.device.zeros(self.capacity * block.output_size)
            block.gradients = [gradients[p] for p in block.parameters if p.trainable]
        # On their way back, the gradients go to and fro between two buffers, or are changed in
        # place.
        through = self._through
        needing_from = self._first_trained + 1 if through is None else through.end
        needing = [
            block
            for block in self._loss_blocks[needing_from:]
            if not (block.view or block.elementwise)
        ]
        buffers = self._two_buffers(max((block.input_size for block in needing), default=0))
        for index, block in enumerate(needing):
            block.dx_buffer = buffers[index % 2]

    def _allocate_inference(self) -> None:
        writing = [block for block in self.blocks if not block.view]
        buffers = self._two_buffers(max((block.output_size for block in writing), default=0))
        turn = 0
        for index, block in enumerate(writing):
            # An elementwise block writes over its inputs, unless these are the caller's.
            if index == 0 or not block.elementwise:
                turn = 1 - turn
            block.output_buffer = buffers[turn]

    def _two_buffers(self, sample_size: int) -> tuple[np.ndarray, np.ndarray]:
        size = self.capacity * sample_size
        return self.device.zeros(size), self.device.zeros(size)


def operations(layers: Sequence[Layer]) -> list[Operation]:
    """The steps of the layers, an activation counting as a step of its own."""
    kinds = {
        Activation: "",
        AveragePooling2D: "average",
        BatchNormalization: "batch_norm",
        Conv2D: "conv",
        Dense: "dense",
        DepthwiseConv2D: "conv",
        Dropout: "dropout",
        Flatten: "flatten",
        GlobalAveragePooling2D: "average",
        MaxPooling2D: "pool",
        ZeroPadding2D: "padding",
    }
    steps: list[Operation] = []
    for layer in layers:
        kind = next((kind for known, kind in kinds.items() if isinstance(layer, known)), None)
        if kind is None:
            raise TypeError(
                f"{layer.name}: layers of the class {type(layer).__name__} cannot be executed. "
                f"Expected one of {', '.join(known.__name__ for known in kinds)}"
            )
        if kind:
            steps.append(Operation(kind, layer))
        activation = getattr(layer, "activation", "linear")
        if activation != "linear":
            steps.append(Operation(activation, layer))
    return steps


def fold(steps: Sequence[Operation]) -> tuple[list[Operation], list[_Fold]]:
    """The steps with batch normalization folded into the weights before it, where there are any."""
    folded: list[Operation] = []
    folds: list[_Fold] = []
    for step in steps:
        if (
            isinstance(step.layer, BatchNormalization)
            and folded
            and folded[-1].kind in ("conv", "dense")
            and _alike(folded[-1], step)
            and folded[-1].layer not in (fold.layer for fold in folds)
        ):
            folds.append(_Fold(folded[-1].layer, step.layer))
            folded[-1] = Operation(folded[-1].kind, folds[-1].layer)
        else:
            folded.append(step)
    return folded, folds


def make_blocks(steps: Sequence[Operation], input_shape: tuple[int, ...]) -> list[Block]:
    """The blocks of the steps; steps of one policy that can be executed as one become one block."""
    blocks: list[Block] = []
    shape = input_shape
    rounded = False  # whether `shape` is that of numbers of bfloat16
    index = 0
    while index < len(steps):
        kind, layer = steps[index]
        bfloat16 = _computes_in_bfloat16(layer)
        if bfloat16 and not rounded:
            blocks.append(RoundBlock(shape))
            rounded = True
        alike = _of_one_policy(steps[index:])
        inputs, padding = shape, None
        if isinstance(layer, ZeroPadding2D) and _is_unpadded(alike[1:2]):
            # The convolution's own: nothing is copied.
            padding, shape = layer.padding, _output_shape(layer, shape)
            index += 1
            del alike[0]
            kind, layer = steps[index]
        following = [*(other.layer for other in alike[2:4]), None, None]
        relu = [other.kind for other in alike[1:2]] == ["relu"]
        output_shape = shape if kind in ACTIVATIONS else _output_shape(layer, shape)
        length = 1
        block: Block
        if kind == "conv":
            assert isinstance(layer, (Conv2D, DepthwiseConv2D))
            pool = following[0] if relu else None
            # The kernels of depthwise convolution have no pooling behind them.
            fusable = isinstance(layer, Conv2D) and not 1 < layer.groups == shape[-1]
            if fusable and min(output_shape[:2]) >= 2 and _is_2x2(pool):
                assert isinstance(layer, Conv2D)
                dropout = following[1] if isinstance(following[1], Dropout) else None
                pooled_shape = _output_shape(pool, output_shape)
                block = ConvPoolBlock(layer, dropout, inputs, pooled_shape, padding)
                length += 2 + (dropout is not None)
            else:
                block = ConvBlock(layer, relu, inputs, output_shape, padding)
                length += relu
        elif kind == "dense":
            assert isinstance(layer, Dense)
            block = DenseBlock(layer, relu, shape, output_shape)
            length += relu
        elif kind == "pool":
            assert isinstance(layer, MaxPooling2D)
            block = MaxPoolBlock(layer, shape, output_shape)
        elif kind == "batch_norm":
            assert isinstance(layer, BatchNormalization)
            block = BatchNormBlock(layer, shape)
        elif kind == "average":
            assert isinstance(layer, (AveragePooling2D, GlobalAveragePooling2D))
            block = AvgPoolBlock(layer, shape, output_shape)
        elif kind == "padding":
            assert isinstance(layer, ZeroPadding2D)
            block = PadBlock(layer, shape, output_shape)
        elif kind == "dropout":
            assert isinstance(layer, Dropout)
            block = DropoutBlock(layer, shape)
        elif kind == "flatten":
            block = FlattenBlock(shape, output_shape)
        elif kind == "relu":
            block = ReluBlock(shape)
        elif kind in kernels.POINTWISE:
            slope = layer.negative_slope if isinstance(layer, LeakyReLU) else 0.2
            block = ActivationBlock(kind, slope, shape)
        else:
            block = SoftmaxBlock(shape)
        blocks.append(block)
        shape = block.output_shape
        index += length
        block.bfloat16 = bfloat16 and isinstance(block, (ConvBlock, ConvPoolBlock, DenseBlock))
        if isinstance(block, (FlattenBlock, MaxPoolBlock, PadBlock, ReluBlock)):
            continue  # nothing to round that has not been
        # Softmax stays in float32.
        rounded = bfloat16 and not isinstance(block, SoftmaxBlock)
        if rounded:
            blocks.append(RoundBlock(shape, block))
    return blocks


def _of_one_policy(steps: Sequence[Operation]) -> list[Operation]:
    """The steps up to the first one whose layer has another policy than the layers before."""
    return list(itertools.takewhile(lambda step: _alike(step, steps[0]), steps))


def _computes_in_bfloat16(layer: Layer) -> bool:
    return layer.compute_dtype == "bfloat16"


def _alike(one: Operation, other: Operation) -> bool:
    return _computes_in_bfloat16(one.layer) == _computes_in_bfloat16(other.layer)


def _is_unpadded(steps: Sequence[Operation]) -> bool:
    """Whether the first of the steps, if any, is a convolution without padding of its own."""
    return any(
        isinstance(step.layer, (Conv2D, DepthwiseConv2D))
        and step.kind == "conv"
        and step.layer.padding == "valid"
        for step in steps
    )


def _is_2x2(layer: Layer | None) -> TypeGuard[MaxPooling2D]:
    return (
        isinstance(layer, MaxPooling2D)
        and layer.pool_size == layer.strides == (2, 2)
        and layer.padding == "valid"
    )


class FlatParameters:
    """All parameters of a model in one array, and the gradients in another of the same layout.

    Every tensor starts at a cache line, those that are trained before the others. So an optimizer's
    step is one call, whatever the number of layers.

    Attributes:
        device: the device that was in use when they were made, whose arrays they are.
        trained: the parameters that are trained, in their order.
        weights, gradients: flat float32 arrays of what is trained; the gaps between tensors stay
            zero.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.device = backend.current()
        self.trained = [parameter for parameter in parameters if parameter.trainable]
        self._parameters = self.trained + [p for p in parameters if not p.trainable]
        self._offsets = []
        size = trained_size = 0
        for index, parameter in enumerate(self._parameters):
            self._offsets.append(size)
            size += -(-parameter.size // _ALIGNMENT) * _ALIGNMENT
            if index + 1 == len(self.trained):
                trained_size = size
        self._offset_of = dict(zip(self._parameters, self._offsets))
        everything = self.device.zeros(size)
        self.weights = everything[:trained_size]
        self.gradients = self.device.zeros(trained_size)
        self._weight_views = self._views(everything, self._parameters)
        self.gradient_views = self.views(self.gradients)
        self.claim()

    def offset(self, parameter: Parameter) -> int:
        """Where a parameter begins in `weights`, and its gradient in `gradients`."""
        return self._offset_of[parameter]

    def views(self, flat: np.ndarray) -> list[np.ndarray]:
        """The trained tensors in a flat array of this layout, e.g. in an optimizer's slot."""
        return self._views(flat, self.trained)

    def _views(self, flat: np.ndarray, parameters: Sequence[Parameter]) -> list[np.ndarray]:
        return [
            flat[offset : offset + parameter.size].reshape(parameter.shape)
            for offset, parameter in zip(self._offsets, parameters)
        ]

    def claim(self) -> None:
        """Makes the parameters views of one array again, should another model have taken them."""
        for parameter, view in zip(self._parameters, self._weight_views):
            if parameter.array is not view:
                backend.copy(parameter.array, view)
                parameter.array = view


def place(parameters: Iterable[Parameter], device: Backend) -> None:
    """Moves parameters to the device where they are not there already."""
    for parameter in parameters:
        if not device.is_array(parameter.array):
            parameter.array = device.to_device(backend.to_host(parameter.array))


def run(layers: Sequence[Layer], x: np.ndarray, training: bool, step: int | None) -> np.ndarray:
    """Applies layers to an array, building them if need be; returns a new array.

    Args:
        layers: the layers.
        x: array of numbers, the batch on its first axis.
        training: whether dropout acts, and batch normalization takes the batch's statistics.
        step: selects dropout's masks; None draws a new one.

    Returns:
        A new array, NumPy's if `x` is.
    """
    batch = check_numbers(x)
    if batch.ndim < 2:
        raise ValueError(
            f"{layers[0].name}: expected an array with the batch on its first axis. "
            f"Received: shape {batch.shape}. Add the axis: x[np.newaxis]"
        )
    shape: Sequence[int | None] = (None, *batch.shape[1:])
    for layer in layers:
        layer.build(shape)
        shape = layer.compute_output_shape(shape)
    if step is None:
        step = random.next_seed() if training else 0
    with backend.current().running():
        plan = Plan(layers, batch.shape[1:], len(batch))
        place((p for layer in layers for p in layer.parameters), plan.device)
        y = plan.forward(plan.feed(as_batch(batch)), training, step)
        return new_like(batch, y)


def new_like(x: Any, y: Any) -> Any:
    """A copy of the device's array `y`, NumPy's if `x` is, else the device's."""
    if isinstance(x, np.ndarray):
        host = backend.to_host(y)
        return host.copy() if host is y else host
    result = backend.current().empty(y.shape)
    backend.copy(y, result)
    return result


def as_batch(x: Any) -> Batch:
    """All samples of an array as one batch."""
    if isinstance(x, np.ndarray):
        return as_float32(x)
    if x.dtype == np.float32:
        batch: np.ndarray = x
        return batch
    return Rows(x, backend.current().to_device(np.arange(len(x))))


def as_float32(x: np.ndarray) -> np.ndarray:
    """NumPy's numbers as a float32, C-contiguous array; no copy if they are one.

    Raises:
        TypeError: if `x` does not hold real numbers.
    """
    if isinstance(x, np.ndarray) and x.dtype == np.float32:
        flags = x.flags
        if flags.c_contiguous and flags.aligned:
            return x  # what `require` would find out more slowly
    return np.require(check_numbers(x), np.float32, ["C", "A"])


def check_numbers(x: Any) -> Any:
    """Returns `x` if it is an array of real numbers: NumPy's, or the device's, or shared with them.

    The device's must be as the kernels take them, as nothing is converted there.

    Raises:
        TypeError: if `x` is no such array, or lies on a device that is not in use.
        ValueError: if it lies on the device and is not C-contiguous.
    """
    x = backend.shared(x)
    if not isinstance(x, np.ndarray):
        device = backend.current()
        if not device.is_array(x):
            kind = "a NumPy array" if device.on_host else "a NumPy or CuPy array"
            text = f"Expected {kind} of numbers. Received: {type(x).__name__}"
            advice = device.advice(x)
            raise TypeError(f"{text}. {advice}" if advice else text)
        x = device.adopt(x)
        if x.dtype not in (np.float32, np.uint8):
            raise TypeError(
                "Expected an array of float32 or uint8 where it lies on the device. "
                f"Received: dtype {x.dtype}. Convert it with .astype('float32')"
            )
        if not x.flags.c_contiguous:
            raise ValueError(
                "Expected a C-contiguous array where it lies on the device. "
                f"Received: strides {x.strides} for shape {x.shape}. "
                "Copy it with cupy.ascontiguousarray"
            )
    if x.dtype.kind not in "buif":
        raise TypeError(f"Expected an array of real numbers. Received: dtype {x.dtype}")
    return x


def _output_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(
        size for size in layer.compute_output_shape((None, *shape))[1:] if size is not None
    )
