"""Models as ONNX, which other programs run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pyconv.extras import extra
from pyconv.kernels import window_extent, window_pads
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
    ReLU,
    Softmax,
    ZeroPadding2D,
)
from pyconv.saving import atomic_write

if TYPE_CHECKING:
    from pyconv.models import Sequential

# Operators as of opset 17 and files as of IR 8 (ONNX 1.12, 2022), which all runtimes in use know.
_OPSET, _IR = 17, 8
# What a protobuf file can hold, with room for everything but the weights.
_MAX_BYTES = (2 << 30) - (1 << 20)


def export_onnx(model: Sequential, path: str | os.PathLike[str]) -> None:
    """Writes a model for inference as an ONNX file; it is replaced as a whole or not at all.

    Its input "input" and its output "output" have the model's own shapes, (N, H, W, C) for images,
    with any N. Dropout is left out.

    Args:
        model: a built model.
        path: file to write.

    Raises:
        ImportError: onnx is not installed.
        ValueError: the model is not built, has a layer that cannot be exported, or is larger than 2
            GiB.
        OSError: the file cannot be written.
    """
    atomic_write(path, to_onnx(model).SerializeToString(deterministic=True))


def to_onnx(model: Sequential) -> Any:
    """Returns a model as an `onnx.ModelProto`; errors are those of :func:`export_onnx`."""
    with extra("onnx", "exporting to ONNX needs onnx"):
        from onnx import TensorProto, checker, helper
    import pyconv

    model.build()
    if 4 * model.count_params() > _MAX_BYTES:
        raise ValueError(
            f"{model.name}: an ONNX file holds at most 2 GiB. Received: "
            f"{model.count_params():,} float32 weights"
        )
    graph = _Graph(helper)
    shape = cast("tuple[int | None, ...]", model.input_shape)
    inputs = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *shape[1:]])
    for layer in model.layers:
        if type(layer) not in _EXPORTERS:
            raise ValueError(
                f"{layer.name}: a {type(layer).__name__} cannot be exported to ONNX. Known: "
                f"{', '.join(sorted(known.__name__ for known in _EXPORTERS))}"
            )
        _EXPORTERS[type(layer)](graph, layer, cast("tuple[int, ...]", shape))
        shape = layer.compute_output_shape(shape)
    graph.channels_last()
    graph.add("Identity", output="output")
    outputs = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", *shape[1:]])
    made = helper.make_model(
        helper.make_graph(graph.nodes, model.name, [inputs], [outputs], graph.weights),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR,
        producer_name="pyconv",
        producer_version=pyconv.__version__,
    )
    checker.check_model(made, full_check=True)
    return made


class _Graph:
    """Nodes that follow one another. ONNX's images are (N, C, H, W) and stay so while they can."""

    def __init__(self, helper: Any) -> None:
        self._helper = helper
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._last = "input"
        self.is_channels_first = False

    def add(
        self, operator: str, *arrays: Any, output: str | None = None, **attributes: Any
    ) -> None:
        """Appends a node; its inputs are the last output and (name, array) pairs."""
        from onnx import numpy_helper

        inputs = [self._last]
        for name, array in arrays:
            self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
            inputs.append(name)
        self._last = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(self._helper.make_node(operator, inputs, [self._last], **attributes))

    def channels_first(self) -> None:
        if not self.is_channels_first:
            self.add("Transpose", perm=[0, 3, 1, 2])
            self.is_channels_first = True

    def channels_last(self) -> None:
        if self.is_channels_first:
            self.add("Transpose", perm=[0, 2, 3, 1])
            self.is_channels_first = False

    def activation(self, name: str, negative_slope: float = 0.2) -> None:
        if name == "softmax":
            self.add("Softmax", axis=1 if self.is_channels_first else -1)
        elif name == "leaky_relu":
            self.add("LeakyRelu", alpha=negative_slope)
        elif name != "linear":
            self.add(name.capitalize())  # Relu, Sigmoid, Tanh, Softplus


def _named(layer: Layer) -> dict[str, tuple[str, np.ndarray]]:
    return {p.name: (f"{layer.name}/{p.name}", p.value) for p in layer.parameters}


def _pads(
    shape: tuple[int, ...],
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: str,
) -> list[int]:
    """Rows above, columns on the left, rows below, columns on the right."""
    top, bottom, left, right = window_pads(padding, (shape[1], shape[2]), window, strides)
    return [top, left, bottom, right]


def _conv2d(graph: _Graph, layer: Conv2D | DepthwiseConv2D, shape: tuple[int, ...]) -> None:
    graph.channels_first()
    arrays = _named(layer)
    name, kernel = arrays.pop("kernel")
    groups = layer.groups if isinstance(layer, Conv2D) else shape[3]
    kernel = kernel.reshape(*layer.kernel_size, shape[3] // groups, -1)
    window = window_extent(layer.kernel_size, layer.dilation_rate)
    graph.add(
        "Conv",
        (name, kernel.transpose(3, 2, 0, 1)),
        *arrays.values(),
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.strides),
        dilations=list(layer.dilation_rate),
        group=groups,
        pads=_pads(shape, window, layer.strides, layer.padding),
    )
    graph.activation(layer.activation)


def _max_pooling2d(graph: _Graph, layer: MaxPooling2D, shape: tuple[int, ...]) -> None:
    graph.channels_first()
    graph.add(
        "MaxPool",
        kernel_shape=list(layer.pool_size),
        strides=list(layer.strides),
        pads=_pads(shape, layer.pool_size, layer.strides, layer.padding),
    )


def _average_pooling2d(graph: _Graph, layer: AveragePooling2D, shape: tuple[int, ...]) -> None:
    graph.channels_first()
    graph.add(
        "AveragePool",
        kernel_shape=list(layer.pool_size),
        strides=list(layer.strides),
        pads=_pads(shape, layer.pool_size, layer.strides, layer.padding),
        count_include_pad=0,
    )


def _global_average_pooling2d(
    graph: _Graph, layer: GlobalAveragePooling2D, shape: tuple[int, ...]
) -> None:
    graph.channels_first()
    graph.add("GlobalAveragePool")
    if not layer.keepdims:
        graph.add("Flatten", axis=1)
        graph.is_channels_first = False


def _zero_padding2d(graph: _Graph, layer: ZeroPadding2D, shape: tuple[int, ...]) -> None:
    graph.channels_first()
    (top, bottom), (left, right) = layer.padding
    pads = np.array([0, 0, top, left, 0, 0, bottom, right])
    graph.add("Pad", (f"{layer.name}/pads", pads))


def _dense(graph: _Graph, layer: Dense, shape: tuple[int, ...]) -> None:
    graph.channels_last()
    arrays = _named(layer)
    if len(shape) == 2:
        graph.add("Gemm", *arrays.values())
    else:
        graph.add("MatMul", arrays["kernel"])
        if "bias" in arrays:
            graph.add("Add", arrays["bias"])
    graph.activation(layer.activation)


def _activation(graph: _Graph, layer: Activation, shape: tuple[int, ...]) -> None:
    graph.activation(layer.activation)


def _leaky_relu(graph: _Graph, layer: LeakyReLU, shape: tuple[int, ...]) -> None:
    graph.activation(layer.activation, layer.negative_slope)


def _batch_normalization(graph: _Graph, layer: BatchNormalization, shape: tuple[int, ...]) -> None:
    arrays = _named(layer)
    if len(shape) == 4:
        graph.channels_first()
    elif len(shape) > 2:  # the operator takes the second axis for the channels
        variance = arrays["moving_variance"][1].astype(np.float64)
        scale = _value(arrays, "gamma", 1.0) / np.sqrt(variance + layer.epsilon)
        shift = _value(arrays, "beta", 0.0) - scale * _value(arrays, "moving_mean", 0.0)
        graph.add("Mul", (f"{layer.name}/scale", scale.astype(np.float32)))
        graph.add("Add", (f"{layer.name}/shift", shift.astype(np.float32)))
        return
    channels = layer.parameters[-1].shape
    arrays.setdefault("gamma", (f"{layer.name}/gamma", np.ones(channels, np.float32)))
    arrays.setdefault("beta", (f"{layer.name}/beta", np.zeros(channels, np.float32)))
    graph.add(
        "BatchNormalization",
        *(arrays[name] for name in ("gamma", "beta", "moving_mean", "moving_variance")),
        epsilon=layer.epsilon,
    )


def _value(arrays: dict[str, tuple[str, np.ndarray]], name: str, default: float) -> Any:
    return arrays[name][1].astype(np.float64) if name in arrays else default


def _dropout(graph: _Graph, layer: Dropout, shape: tuple[int, ...]) -> None:
    """Nothing: it acts in training alone."""


def _flatten(graph: _Graph, layer: Flatten, shape: tuple[int, ...]) -> None:
    graph.channels_last()
    graph.add("Flatten", axis=1)


_EXPORTERS: dict[type[Layer], Callable[[_Graph, Any, tuple[int, ...]], None]] = {
    Activation: _activation,
    AveragePooling2D: _average_pooling2d,
    BatchNormalization: _batch_normalization,
    Conv2D: _conv2d,
    Dense: _dense,
    DepthwiseConv2D: _conv2d,
    Dropout: _dropout,
    Flatten: _flatten,
    GlobalAveragePooling2D: _global_average_pooling2d,
    LeakyReLU: _leaky_relu,
    MaxPooling2D: _max_pooling2d,
    ReLU: _activation,
    Softmax: _activation,
    ZeroPadding2D: _zero_padding2d,
}
