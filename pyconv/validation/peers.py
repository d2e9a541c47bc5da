"""Other libraries as references, where they are installed: PyTorch, Keras, ONNX Runtime.

Each computes in float32, with roundings of its own, so results may differ by twice the bound. A
peer's functions have the names and arguments of `pyconv.kernels`; one that a peer does not have, or
a geometry that it refuses, is not compared.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.checks import Array, Check, as_tuple

NAMES = ("torch", "keras", "onnx")


class Peer:
    """A library's functions: attributes named as in `pyconv.kernels`, which take NumPy's arrays and
    return them, None for results that they do not have."""

    name: str

    def run(self, check: Check) -> tuple[Any, ...] | None:
        """Its results of a call; None if it has no such function or case."""
        function: Callable[..., Any] | None = getattr(self, check.function, None)
        if function is None:
            return None
        call = inspect.signature(getattr(kernels, check.function)).bind(
            *check.arguments, **check.options
        )
        call.apply_defaults()
        results = function(**{k: v for k, v in call.arguments.items() if k not in _NOT_THEIRS})
        return None if results is None else as_tuple(results)


# Arrays for results, and what is said about the numbers.
_NOT_THEIRS = (
    *("out", "argmax", "dx", "dw", "db", "loss", "probabilities", "dlogits"),
    "bfloat16",
)


def _sides(x: Array, window: Any, strides: Any, padding: Any, dilation: Any = 1) -> tuple[Any, Any]:
    """((top, bottom), (left, right)) and the strides, as pairs."""
    pool = reference.pair(window)
    steps = pool if strides is None else reference.pair(strides)
    sides = reference.paddings(padding, x.shape[1:3], pool, steps, reference.pair(dilation))
    return sides, steps


class Torch(Peer):
    name = "torch"

    def __init__(self) -> None:
        import torch

        self._torch, self._f = torch, torch.nn.functional

    def _linear(self, x: Any, w: Any, b: Any, shapes: tuple[Array, Array], **geometry: Any) -> Any:
        sides, strides = _sides(
            shapes[0],
            shapes[1].shape[:2],
            geometry["strides"],
            geometry["padding"],
            geometry["dilation_rate"],
        )
        return self._f.conv2d(
            self._f.pad(x.permute(0, 3, 1, 2), (*sides[1], *sides[0])),
            w.permute(3, 2, 0, 1),
            b,
            stride=strides,
            dilation=reference.pair(geometry["dilation_rate"]),
            groups=geometry["groups"],
        ).permute(0, 2, 3, 1)

    def conv2d(self, x: Array, w: Array, b: Any, activation: Any, **geometry: Any) -> Array:
        of_x, of_w, of_b = (None if a is None else self._torch.tensor(a) for a in (x, w, b))
        y = self._linear(of_x, of_w, of_b, (x, w), **geometry)
        return self._numpy(self._f.relu(y) if activation else y)

    def conv2d_backward(
        self, dy: Array, x: Array, w: Array, activation: Any, y: Any, **geometry: Any
    ) -> tuple[Array, ...]:
        b = np.zeros(w.shape[3], np.float32)
        tensors = [self._torch.tensor(a, requires_grad=True) for a in (x, w, b)]
        of_x, of_w, of_b = tensors
        linear = self._linear(of_x, of_w, of_b, (x, w), **geometry)
        linear.backward(self._masked(dy, activation, y))
        return tuple(self._numpy(tensor.grad) for tensor in tensors)

    def max_pool2d(
        self, x: Array, pool_size: Any, strides: Any, padding: Any
    ) -> tuple[Array, None]:
        sides, steps = _sides(x, pool_size, strides, padding)
        padded = self._f.pad(
            self._torch.tensor(x).permute(0, 3, 1, 2), (*sides[1], *sides[0]), value=-np.inf
        )
        y = self._f.max_pool2d(padded, reference.pair(pool_size), steps)
        return self._numpy(y.permute(0, 2, 3, 1)), None

    def dense(self, x: Array, w: Array, b: Any, activation: Any) -> Array:
        y = self._torch.tensor(x) @ self._torch.tensor(w)
        y = y if b is None else y + self._torch.tensor(b)
        return self._numpy(self._f.relu(y) if activation else y)

    def dense_backward(
        self, dy: Array, x: Array, w: Array, activation: Any, y: Any
    ) -> tuple[Array, ...]:
        b = np.zeros(w.shape[1], np.float32)
        tensors = [self._torch.tensor(a, requires_grad=True) for a in (x, w, b)]
        of_x, of_w, of_b = tensors
        (of_x @ of_w + of_b).backward(self._masked(dy, activation, y))
        return tuple(self._numpy(tensor.grad) for tensor in tensors)

    def relu(self, x: Array) -> Array:
        return self._numpy(self._f.relu(self._torch.tensor(x)))

    def round_bfloat16(self, x: Array) -> Array:
        return self._numpy(self._torch.tensor(x).bfloat16().float())

    def softmax(self, x: Array) -> Array:
        return self._numpy(self._f.softmax(self._torch.tensor(x), dim=-1))

    def softmax_cross_entropy(self, logits: Array, labels: Array) -> tuple[Array, Array, Array]:
        z, t = self._torch.tensor(logits, requires_grad=True), self._torch.tensor(labels)
        loss = self._f.cross_entropy(z, t, reduction="none")
        loss.mean().backward()
        return self._numpy(loss), self.softmax(logits), self._numpy(z.grad)

    def _masked(self, dy: Array, activation: Any, y: Any) -> Any:
        return self._torch.tensor(np.where(y > 0, dy, np.float32(0)) if activation else dy)

    def _numpy(self, tensor: Any) -> Array:
        array: Array = tensor.detach().numpy()
        return array


class Keras(Peer):
    """Keras's operations on the backend that it is set to. "valid" and "same" are its own."""

    name = "keras"

    def __init__(self) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import keras

        self._keras, self._ops = keras, keras.ops

    def conv2d(
        self,
        x: Array,
        w: Array,
        b: Any,
        strides: Any,
        padding: Any,
        dilation_rate: Any,
        groups: int,
        activation: Any,
    ) -> Array | None:
        steps, dilation = reference.pair(strides), reference.pair(dilation_rate)
        if (max(steps) > 1 and max(dilation) > 1) or steps[0] != steps[1]:
            return None  # refused by Keras, or by TensorFlow
        if groups > 1 and (w.shape[3] % groups or max(dilation) > 1):
            return None
        if not isinstance(padding, str):
            sides, _ = _sides(x, w.shape[:2], steps, padding, dilation)
            x, padding = np.pad(x, ((0, 0), *sides, (0, 0))), "valid"
        y = self._ops.conv(
            x,
            w,
            strides=steps,
            padding=padding,
            data_format="channels_last",
            dilation_rate=dilation,
        )
        y = y if b is None else y + b
        return self._numpy(self._ops.relu(y) if activation else y)

    def max_pool2d(self, x: Array, pool_size: Any, strides: Any, padding: Any) -> Any:
        if not isinstance(padding, str):
            return None
        steps = None if strides is None else reference.pair(strides)
        pool = reference.pair(pool_size)
        y = self._ops.max_pool(x, pool, steps, padding, data_format="channels_last")
        return self._numpy(y), None

    def dense(self, x: Array, w: Array, b: Any, activation: Any) -> Array:
        y = self._ops.matmul(x, w)
        y = y if b is None else y + b
        return self._numpy(self._ops.relu(y) if activation else y)

    def relu(self, x: Array) -> Array:
        return self._numpy(self._ops.relu(x))

    def round_bfloat16(self, x: Array) -> Array:
        return self._numpy(self._ops.cast(self._ops.cast(x, "bfloat16"), "float32"))

    def softmax(self, x: Array) -> Array | None:
        if x.shape[-1] == 1:
            return None  # Keras warns of it
        return self._numpy(self._ops.softmax(x, axis=-1))

    def softmax_cross_entropy(self, logits: Array, labels: Array) -> tuple[Any, ...]:
        loss = self._ops.categorical_crossentropy(labels, logits, from_logits=True)
        return self._numpy(loss), self.softmax(logits), None

    def _numpy(self, tensor: Any) -> Array:
        return np.asarray(self._ops.convert_to_numpy(tensor))


class Onnx(Peer):
    """One node at a time, in ONNX Runtime; forward only."""

    name = "onnx"

    def __init__(self) -> None:
        import onnx
        import onnxruntime

        self._onnx, self._runtime = onnx, onnxruntime

    def conv2d(
        self,
        x: Array,
        w: Array,
        b: Any,
        strides: Any,
        padding: Any,
        dilation_rate: Any,
        groups: int,
        activation: Any,
    ) -> Array:
        sides, steps = _sides(x, w.shape[:2], strides, padding, dilation_rate)
        inputs = [_nchw(x), np.ascontiguousarray(w.transpose(3, 2, 0, 1))]
        y = self._run(
            "Conv",
            inputs if b is None else [*inputs, b],
            strides=steps,
            pads=_pads(sides),
            dilations=reference.pair(dilation_rate),
            group=groups,
        )
        y = y.transpose(0, 2, 3, 1)
        return np.maximum(y, 0) if activation else y

    def max_pool2d(
        self, x: Array, pool_size: Any, strides: Any, padding: Any
    ) -> tuple[Array, None]:
        sides, steps = _sides(x, pool_size, strides, padding)
        pool = reference.pair(pool_size)
        y = self._run("MaxPool", [_nchw(x)], kernel_shape=pool, strides=steps, pads=_pads(sides))
        return y.transpose(0, 2, 3, 1), None

    def dense(self, x: Array, w: Array, b: Any, activation: Any) -> Array:
        y = self._run("Gemm", [x, w] if b is None else [x, w, b])
        return np.maximum(y, 0) if activation else y

    def relu(self, x: Array) -> Array:
        return self._run("Relu", [x])

    def softmax(self, x: Array) -> Array:
        return self._run("Softmax", [x], axis=-1)

    def _run(self, operator: str, inputs: list[Array], **attributes: Any) -> Array:
        helper, kind = self._onnx.helper, self._onnx.TensorProto.FLOAT
        names = [f"input{index}" for index in range(len(inputs))]
        graph = helper.make_graph(
            [helper.make_node(operator, names, ["output"], **attributes)],
            operator,
            [helper.make_tensor_value_info(n, kind, a.shape) for n, a in zip(names, inputs)],
            [helper.make_tensor_value_info("output", kind, None)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        session = self._runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        result: Array = session.run(None, dict(zip(names, inputs)))[0]
        return result


def _nchw(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def _pads(sides: Any) -> list[int]:
    (top, bottom), (left, right) = sides
    return [top, left, bottom, right]


_PEERS: dict[str, tuple[type[Peer], tuple[str, ...]]] = {
    "torch": (Torch, ("torch",)),
    "keras": (Keras, ("keras",)),
    "onnx": (Onnx, ("onnx", "onnxruntime")),
}


def installed() -> list[str]:
    """The names of the peers that can be had."""
    return [
        name
        for name, (_, modules) in _PEERS.items()
        if all(importlib.util.find_spec(module) for module in modules)
    ]


def load(name: str) -> Peer:
    """A peer by name.

    Raises:
        ImportError: if it is not installed.
    """
    peer, modules = _PEERS[name]
    try:
        return peer()
    except ImportError as error:
        raise ImportError(
            f"--against {name}: {error}. Install it with: pip install {' '.join(modules)}"
        ) from error
