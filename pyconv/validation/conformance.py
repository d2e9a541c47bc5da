"""ONNX's own conformance data, which the `onnx` package brings: nodes with inputs and outputs.

Those of operators that `pyconv.kernels` has are translated, from NCHW too. What no kernel has
(three dimensions, dilated pooling, ...) is left out and counted.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pyconv.validation import reference
from pyconv.validation.checks import (
    UNDERFLOW,
    Array,
    Check,
    activation_bound,
    normalized_bound,
    softmax_cross_entropy_bounds,
    softmax_error,
)
from pyconv.validation.paths import Path
from pyconv.validation.reference import sum_bound
from pyconv.validation.running import Failure, Report, outcomes

AGAINST = "onnx-data"

_Translation = Callable[[dict[str, Any], Sequence[Array], Sequence[Array]], Check]


class NotOurs(Exception):
    """What a node needs that no kernel has."""


def _check(
    function: str, arguments: tuple[Any, ...], expected: Array, bound: Any, **options: Any
) -> Check:
    """A call whose first result must be what the data says, within twice the bound: the data is
    float32, and rounded too."""
    wanted = (np.asarray(expected).astype(np.float64),)
    return Check(function, arguments, ("forward",), (lambda _: 2 * bound,), options, wanted)


def _require(node: dict[str, Any], **allowed: tuple[Any, ...]) -> None:
    """Raises NotOurs for attributes that are none of these values."""
    for name, values in allowed.items():
        if name in node and node[name] not in values:
            raise NotOurs(f"{name}={node[name]!r}")


def _image(x: Array) -> Array:
    if x.ndim != 4 or x.dtype != np.float32:
        raise NotOurs(f"{x.ndim} axes of {x.dtype}")
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def _window(node: dict[str, Any]) -> dict[str, Any]:
    _require(node, auto_pad=(b"NOTSET", b"SAME_UPPER", b"VALID"), ceil_mode=(0,))
    top, left, bottom, right = node.get("pads", (0, 0, 0, 0))
    same = node.get("auto_pad") == b"SAME_UPPER"
    return {
        "strides": tuple(node.get("strides", (1, 1))),
        "padding": "same" if same else ((top, bottom), (left, right)),
    }


def _conv(node: dict[str, Any], inputs: Sequence[Array], outputs: Sequence[Array]) -> Check:
    x, w = _image(inputs[0]), np.ascontiguousarray(inputs[1].transpose(2, 3, 1, 0))
    b = inputs[2] if len(inputs) > 2 else None
    geometry = _window(node) | {
        "dilation_rate": tuple(node.get("dilations", (1, 1))),
        "groups": node.get("group", 1),
    }
    magnitude = reference.conv2d(np.abs(x), np.abs(w), None if b is None else np.abs(b), **geometry)
    bound = sum_bound(int(np.prod(w.shape[:3])) + 1, magnitude)
    return _check("conv2d", (x, w, b), _image(outputs[0]), bound, **geometry)


def _conv_transpose(
    node: dict[str, Any], inputs: Sequence[Array], outputs: Sequence[Array]
) -> Check:
    """The gradient of a convolution with respect to its input, of the output's shape."""
    dy, w = _image(inputs[0]), np.ascontiguousarray(inputs[1].transpose(2, 3, 1, 0))
    dx = _image(outputs[0])
    _require(node, auto_pad=(b"NOTSET",))
    if "output_shape" in node:
        raise NotOurs("output_shape")
    geometry = _window(node) | {
        "dilation_rate": tuple(node.get("dilations", (1, 1))),
        "groups": node.get("group", 1),
    }
    arguments = (np.abs(dy), np.abs(w), dx.shape)
    magnitude = reference.conv2d_backward_data(*arguments, **geometry)
    bound = sum_bound(int(np.prod(w.shape)), magnitude)
    return _check("conv2d_backward_data", (dy, w, dx.shape), dx, bound, **geometry)


def _max_pool(node: dict[str, Any], inputs: Sequence[Array], outputs: Sequence[Array]) -> Check:
    x = _image(inputs[0])
    _require(node, dilations=([1, 1],))
    options = _window(node) | {"pool_size": tuple(node["kernel_shape"])}
    return _check("max_pool2d", (x,), _image(outputs[0]), 0.0, **options)


def _average_pool(node: dict[str, Any], inputs: Sequence[Array], outputs: Sequence[Array]) -> Check:
    x = _image(inputs[0])
    _require(node, dilations=([1, 1],))
    options = _window(node)
    if node.get("count_include_pad") and options["padding"] != ((0, 0), (0, 0)):
        raise NotOurs("padding that counts")
    options["pool_size"] = pool = tuple(node.get("kernel_shape", x.shape[1:3]))
    magnitude = reference.avg_pool2d(np.abs(x), **options)
    return _check(
        "avg_pool2d", (x,), _image(outputs[0]), sum_bound(sum(pool), magnitude), **options
    )


def _batch_norm(node: dict[str, Any], inputs: Sequence[Array], outputs: Sequence[Array]) -> Check:
    _require(node, training_mode=(0,))
    x, gamma, beta, mean, variance = inputs
    x, y = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, outputs[0]))
    arguments = (x, gamma, beta, mean, variance, float(node.get("epsilon", 1e-5)))
    scale = gamma / np.sqrt(variance.astype(np.float64) + arguments[-1])
    return _check("batch_norm", arguments, y, normalized_bound(x, y, mean, scale))


def _activation(name: str) -> _Translation:
    def translate(node: dict[str, Any], inputs: Sequence[Array], outputs: Sequence[Array]) -> Check:
        slope = float(node.get("alpha", 0.01))
        bound = activation_bound(name, False, outputs[0].astype(np.float64))
        return _check("activate", (inputs[0], name, slope), outputs[0], bound)

    return translate


def _gemm(node: dict[str, Any], inputs: Sequence[Array], outputs: Sequence[Array]) -> Check:
    _require(node, alpha=(1.0,), beta=(1.0,))
    x, w = (
        np.ascontiguousarray(a.T if node.get(name) else a)
        for a, name in zip(inputs, ("transA", "transB"))
    )
    b = None
    if len(inputs) > 2:
        if inputs[2].ndim == 2 and len(inputs[2]) > 1:
            raise NotOurs("a bias that is a matrix")
        b = np.ascontiguousarray(np.broadcast_to(inputs[2].reshape(-1), w.shape[1:]))
    magnitude = reference.dense(np.abs(x), np.abs(w), None if b is None else np.abs(b))
    return _check("dense", (x, w, b), outputs[0], sum_bound(len(w) + 1, magnitude))


def _relu(node: dict[str, Any], inputs: Sequence[Array], outputs: Sequence[Array]) -> Check:
    return _check("relu", (inputs[0],), outputs[0], 0.0)


def _softmax(node: dict[str, Any], inputs: Sequence[Array], outputs: Sequence[Array]) -> Check:
    z, y = (
        np.ascontiguousarray(np.moveaxis(a, node.get("axis", -1), -1)).reshape(-1, k)
        for a, k in ((a, a.shape[node.get("axis", -1)]) for a in (inputs[0], outputs[0]))
    )
    bound = softmax_error(z)[1] * reference.softmax(z) + UNDERFLOW
    return _check("softmax", (z,), y, bound)


def _cross_entropy(
    node: dict[str, Any], inputs: Sequence[Array], outputs: Sequence[Array]
) -> Check:
    _require(node, reduction=(b"none",))
    if len(inputs) > 2 or inputs[0].ndim != 2 or "ignore_index" in node:
        raise NotOurs("weights, further axes or classes to ignore")
    z, labels = inputs[0], np.eye(inputs[0].shape[1], dtype=np.float32)[inputs[1]]
    bound = softmax_cross_entropy_bounds(z, labels)[0]
    return _check("softmax_cross_entropy", (z, labels), outputs[0], bound)


# The operator, the module of `onnx.backend.test.case.node` that has its data, our operation.
OPERATORS: dict[str, tuple[str, str, _Translation]] = {
    "Conv": ("conv", "conv2d", _conv),
    "ConvTranspose": ("convtranspose", "conv2d", _conv_transpose),
    "MaxPool": ("maxpool", "max_pool2d", _max_pool),
    "AveragePool": ("averagepool", "avg_pool2d", _average_pool),
    "GlobalAveragePool": ("globalaveragepool", "avg_pool2d", _average_pool),
    "BatchNormalization": ("batch_normalization", "batch_norm", _batch_norm),
    "Sigmoid": ("sigmoid", "activation", _activation("sigmoid")),
    "Tanh": ("tanh", "activation", _activation("tanh")),
    "LeakyRelu": ("leakyrelu", "activation", _activation("leaky_relu")),
    "Softplus": ("softplus", "activation", _activation("softplus")),
    "Gemm": ("gemm", "dense", _gemm),
    "Relu": ("relu", "relu", _relu),
    "Softmax": ("softmax", "softmax", _softmax),
    "SoftmaxCrossEntropyLoss": (
        "softmax_cross_entropy_loss",
        "softmax_cross_entropy",
        _cross_entropy,
    ),
}


def _nodes(operator: str) -> Iterator[tuple[str, dict[str, Any], Any, Any]]:
    """The data of an operator: name, attributes, inputs, outputs."""
    import onnx
    from onnx.backend.test.case import node as cases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the data overflows on purpose
        importlib.import_module(f"onnx.backend.test.case.node.{OPERATORS[operator][0]}")
    for case in cases._NodeTestCases:
        node = case.model.graph.node[0]
        # Each is there again as the functions that it can be made of.
        if len(case.model.graph.node) > 1 or node.op_type != operator:
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        yield case.name, attributes, *case.data_sets[0]


def run(report: Report, paths: Sequence[Path], operations: Sequence[str]) -> None:
    """Adds rows to a report: on the paths whose convolutions are direct.

    Raises:
        ImportError: if onnx is not installed.
    """
    for operator, (_, operation, translate) in OPERATORS.items():
        if operation not in operations:
            continue
        try:
            nodes = list(_nodes(operator))
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith("onnx.backend.test.case.node."):
                raise
            report.skip(f"ONNX's {operator}, whose data this version of onnx keeps elsewhere")
            continue
        for name, node, inputs, outputs in nodes:
            try:
                check = translate(node, inputs, outputs)
            except NotOurs:
                report.skip(f"ONNX's {operator} with what no kernel has")
                continue
            for path in paths:
                if path.arithmetic != "direct":
                    continue
                row = report.row(operation, operator, path, AGAINST)
                with path.active():
                    for outcome in outcomes(check, path):
                        row.cases += 1
                        row.seconds += outcome.seconds
                        if outcome.error > 1 >= row.error:
                            text = f"{name}: {outcome.explanation}"
                            report.failures.append(Failure(row, None, outcome.error, text))
                        row.error = max(row.error, outcome.error)
