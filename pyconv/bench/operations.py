"""Single kernels on networks' layers: what each pass computes, and how each framework does it.

This module also runs in interpreters without pyconv: only the standard library, NumPy and, within
the functions, the framework itself.

Operations are counted as 2 * outputs * kernel taps * input channels, with taps in the padding
counted too. The direct kernels skip those, and Winograd's algorithm does with a fraction of the
multiplications. Of what does next to no arithmetic (pooling, activations, optimizers) none is
counted: memory bounds it. Bytes are those of every array that a pass reads or writes, once.
"""

from __future__ import annotations

import functools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import networks
from .networks import Floats

if TYPE_CHECKING:
    from .contestants import Setting

GRAPH = 20  # calls of a kernel in a CUDA graph
RATE = 0.25  # of dropout
PASSES = {
    "conv": ("forward", "data", "weights"),
    "pool": ("forward", "backward"),
    "relu": ("forward", "backward"),
    "softmax": ("forward", "backward"),
    "dropout": ("forward",),
    "rmsprop": ("step",),
    "adam": ("step",),
}
# How many arrays of its size a pass reads and writes.
ARRAYS = {
    ("relu", "forward"): 2,
    ("relu", "backward"): 3,
    ("softmax", "forward"): 2,
    ("softmax", "backward"): 3,
    ("dropout", "forward"): 2,
    ("rmsprop", "step"): 5,
    ("adam", "step"): 7,
}


class NotOffered(Exception):
    """A framework has no such kernel of its own, or none that is compared; says why."""


@dataclass(frozen=True)
class Layer:
    """An operation over square images: by default a convolution, or with size == kernel == 1 a
    dense layer.

    Attributes:
        name: for people.
        size, channels: of the images. Optimizers have `channels` parameters and no images.
        filters: of a convolution, or units.
        kernel, stride, pad: of windows; so many rows and columns of padding are on every side.
        groups: parts that channels and filters of a convolution are divided into.
        kind: a key of `PASSES`.
    """

    name: str
    size: int
    channels: int
    filters: int = 0
    kernel: int = 1
    stride: int = 1
    pad: int = 0
    groups: int = 1
    kind: str = "conv"

    @property
    def output_size(self) -> int:
        return (self.size + 2 * self.pad - self.kernel) // self.stride + 1

    @property
    def is_dense(self) -> bool:
        return self.kind == "conv" and self.size == self.kernel == 1

    @property
    def passes(self) -> tuple[str, ...]:
        """Without the gradient of images, which nobody needs."""
        passes = PASSES[self.kind]
        return ("forward", "weights") if self.kind == "conv" and self.channels <= 3 else passes

    def shapes(self, batch: int) -> list[tuple[int, ...]]:
        """Of x, w, b and dy; of x and dy where there are no weights."""
        if self.kind in ("rmsprop", "adam"):
            return [(self.channels,), (self.channels,)]
        if self.is_dense:
            c, f = self.channels, self.filters
            return [(batch, c), (c, f), (f,), (batch, f)]
        x = (batch, self.size, self.size, self.channels)
        if self.kind == "softmax":
            return [x[::3], x[::3]]
        if self.kind != "conv":
            return [x, (batch, self.output_size, self.output_size, self.channels)]
        w = (self.kernel, self.kernel, self.channels // self.groups, self.filters)
        return [x, w, w[3:], (batch, self.output_size, self.output_size, self.filters)]

    def arrays(self, batch: int) -> list[Floats]:
        """Random arrays of these shapes, around zero."""
        rng = np.random.default_rng(0)
        return [rng.random(shape, np.float32) - np.float32(0.5) for shape in self.shapes(batch)]

    def flops(self, batch: int) -> float:
        if self.kind != "conv":
            return 0.0
        terms = self.kernel**2 * self.channels // self.groups
        return 2.0 * batch * self.output_size**2 * self.filters * terms

    def bytes(self, name: str, batch: int) -> int:
        """Of all arrays of a pass, each once."""
        x, *weights, y = (math.prod(shape) for shape in self.shapes(batch))
        if weights:
            return 4 * (x + y + weights[0] + (0 if name == "data" else weights[1]))
        if self.kind == "pool":
            return 4 * (x + y) + y  # where the maxima were takes a byte
        return 4 * ARRAYS[self.kind, name] * x

    def memory(self, batch: int) -> int:
        """Bytes of inputs, outputs and their gradients."""
        x, *_, y = (math.prod(shape) for shape in self.shapes(batch))
        return 8 * (x + y)


def _pool(name: str, size: int, channels: int, kernel: int = 2, pad: int = 0) -> Layer:
    return Layer(name, size, channels, 0, kernel, 2, pad, kind="pool")


TUTORIAL = (
    Layer("c1", 32, 3, 32, 3, pad=1),
    Layer("c2", 32, 32, 32, 3),
    Layer("c3", 15, 32, 64, 3, pad=1),
    Layer("c4", 15, 64, 64, 3),
    Layer("c5", 6, 64, 64, 3, pad=1),
    Layer("c6", 6, 64, 64, 3),
    Layer("d1", 1, 256, 512, 1),
    Layer("d2", 1, 512, 10, 1),
    _pool("p1", 30, 32),
    _pool("p2", 13, 64),
    _pool("p3", 4, 64),
    Layer("relu", 30, 32, kind="relu"),
    Layer("dropout", 15, 32, kind="dropout"),
    Layer("softmax", 1, 10, kind="softmax"),
    Layer("rmsprop", 1, networks.TUTORIAL.parameters, kind="rmsprop"),
    Layer("adam", 1, networks.TUTORIAL.parameters, kind="adam"),
)

LENET = (
    Layer("c1", 28, 1, 6, 5, pad=2),
    Layer("c2", 14, 6, 16, 5),
    Layer("d1", 1, 400, 120, 1),
    Layer("d2", 1, 120, 84, 1),
    Layer("d3", 1, 84, 10, 1),
    _pool("p1", 28, 6),
    _pool("p2", 10, 16),
)


def vgg16(size: int) -> tuple[Layer, ...]:
    """The different convolutions of VGG-16 (Simonyan, Zisserman, 2015), and its pooling."""
    layers = []
    pools = []
    for stage, (before, filters) in enumerate([(3, 64), (64, 128), (128, 256), (256, 512)], 1):
        at = size >> (stage - 1)
        layers.append(Layer(f"c{stage}_1", at, before, filters, 3, pad=1))
        layers.append(Layer(f"c{stage}_2", at, filters, filters, 3, pad=1))
        pools.append(_pool(f"p{stage}", at, filters))
    return (*layers, Layer("c5", size >> 4, 512, 512, 3, pad=1), *pools)


def resnet50(size: int) -> tuple[Layer, ...]:
    """The different convolutions of ResNet-50 (He et al., 2016), its strides in the 3x3 ones, and
    its pooling."""
    layers = [Layer("c1", size, 3, 64, 7, stride=2, pad=3)]
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), 2):
        stride = 1 if stage == 2 else 2
        at = size // 4 if stage == 2 else size >> (stage - 1)
        out = at // stride
        layers += [
            Layer(f"c{stage}_in", at, before, width, 1),
            Layer(f"c{stage}_skip", at, before, 4 * width, 1, stride),
            Layer(f"c{stage}_3x3/{stride}", at, width, width, 3, stride, 1),
            Layer(f"c{stage}_1x1", out, 4 * width, width, 1),
            Layer(f"c{stage}_out", out, width, 4 * width, 1),
        ]
        if stride > 1:
            layers.append(Layer(f"c{stage}_3x3", out, width, width, 3, pad=1))
        before = 4 * width
    return (*layers, _pool("p1", size // 2, 64, 3, 1))


def mobilenet(size: int) -> tuple[Layer, ...]:
    """The different depthwise convolutions of MobileNet (Howard et al., 2017)."""
    layers = []
    for stage, (channels, strides) in enumerate(
        [(32, (1,)), (64, (2,)), (128, (1, 2)), (256, (1, 2)), (512, (1, 2)), (1024, (1,))]
    ):
        at = size >> max(stage, 1)
        layers += [
            Layer(f"{at}x{channels}/{stride}", at, channels, channels, 3, stride, 1, channels)
            for stride in strides
        ]
    return tuple(layers)


# Kernel sizes, strides and channels that the networks above do not have.
OTHERS = (
    Layer("1x1 3-16", 64, 3, 16, 1),
    Layer("3x3 16", 56, 16, 16, 3, pad=1),
    Layer("3x3 24/2", 57, 24, 40, 3, 2, 1),
    Layer("3x3 96", 24, 96, 96, 3, pad=1),
    Layer("5x5 3-32", 32, 3, 32, 5, pad=2),
    Layer("5x5 32", 28, 32, 64, 5, pad=2),
    Layer("5x5 48/2", 30, 48, 96, 5, 2, 2),
    Layer("7x7 32", 24, 32, 32, 7, pad=3),
    Layer("7x7 64/2", 28, 64, 64, 7, 2, 3),
    Layer("11x11 3/4", 224, 3, 64, 11, 4, 2),
    Layer("3x3 1-8", 64, 1, 8, 3),
    Layer("3x3 20-50", 20, 20, 50, 3, pad=1),
    Layer("dense 4096", 1, 4096, 1024, 1),
    Layer("dense 784", 1, 784, 128, 1),
)


def drawn(seed: int, count: int) -> tuple[Layer, ...]:
    """Layers that nobody chose: the same ones for a seed, none with more than half a GFLOP an
    image."""
    rng = random.Random(seed)

    def size(least: int, most: int) -> int:
        return round(math.exp(rng.uniform(math.log(least), math.log(most))))

    def channels() -> int:  # multiples of 8 more often than not
        number = size(1, 512)
        return number - number % 8 if number >= 8 and rng.random() < 0.6 else number

    kernels = [1, 1, 1, 2, 3, 3, 3, 3, 4, 5, 5, 7, 9, 11]
    layers: list[Layer] = []
    while len(layers) < count:
        kind = rng.choices(["conv", "depthwise", "grouped", "pool", "dense"], [55, 9, 4, 16, 16])[0]
        if kind == "dense":
            inputs, units = size(1, 4096), size(1, 4096)
            layers.append(Layer(f"dense {inputs}-{units}", 1, inputs, units))
            continue
        kernel = rng.choice([2, 2, 3, 3, 4, 5, 7] if kind == "pool" else kernels)
        stride = rng.randint(1, kernel) if kind == "pool" else rng.choice([1, 1, 1, 1, 2, 2, 3, 4])
        pad = rng.choice([0, kernel // 2])
        at, inputs, filters, groups = size(kernel, 224), channels(), channels(), 1
        if kind == "pool":
            filters = 0
        elif kind == "depthwise":
            filters = groups = inputs
        elif kind == "grouped":
            inputs, filters, groups = -(-inputs // 4) * 4, -(-filters // 4) * 4, 4
        name = f"{kernel}x{kernel}/{stride} {at} {inputs}" + (f"-{filters}" if filters else "")
        layer = Layer(
            f"{kind} {name}",
            at,
            inputs,
            filters,
            kernel,
            stride,
            pad,
            groups,
            "pool" if kind == "pool" else "conv",
        )
        if layer.flops(1) <= 5e8:
            layers.append(layer)
    return tuple(layers)


NETWORKS = {
    "tutorial": TUTORIAL,
    "lenet": LENET,
    "vgg16": vgg16(224),
    "vgg16-32": vgg16(32),
    "vgg16-224": vgg16(224),
    "resnet50": resnet50(224),
    "resnet50-32": resnet50(32),
    "resnet50-224": resnet50(224),
    "mobilenet": mobilenet(224),
    "others": OTHERS,
    "drawn": drawn(seed=0, count=100),
}


# How a call is timed


@dataclass(frozen=True)
class Call:
    """A pass of a layer in a framework, in one of the ways in which it might be fastest.

    Attributes:
        name: what tells it from the framework's other ways.
        seconds: measures for at least so many seconds, after a first call; returns the median time
            of a call.
        outputs: computes it and returns the results in host memory, in any layout; None if they
            are nobody else's, as random numbers are.
    """

    name: str
    seconds: Callable[[float], float]
    outputs: Callable[[], list[Any]] | None


def digest(call: Call) -> float | None:
    """The sum of the results' absolute values, which does not depend on layouts."""
    if call.outputs is None:
        return None
    return math.fsum(float(np.abs(np.asarray(array, np.float64)).sum()) for array in call.outputs())


def seconds_of_call(function: Callable[[], Any], least: float) -> float:
    """The median time of as many calls as `least` seconds hold, three at least."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def seconds_of_replay(
    replay: Callable[[], Any],
    new_event: Callable[[], Any],
    milliseconds: Callable[[Any, Any], float],
    least: float,
    calls: int = GRAPH,
) -> float:
    """The median time of one of the calls in a graph, replayed for at least so many seconds."""
    start, end = new_event(), new_event()
    times: list[float] = []
    while len(times) < 3 or calls * sum(times) < least:
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(milliseconds(start, end) / 1e3 / calls)
    return statistics.median(times)


def _on_host(function: Callable[[], Any]) -> Callable[[float], float]:
    return lambda least: seconds_of_call(function, least)


# pyconv


def pyconv_calls(layer: Layer, name: str, batch: int, setting: Setting) -> Iterator[Call]:
    """The kernel, into arrays that are there, as models call it."""
    import pyconv
    from pyconv import backend

    pyconv.set_num_threads(setting.threads)
    if setting.tf32:
        pyconv.set_math_mode("tf32")
    device = backend.current()
    with device.running():
        function, results = _pyconv_pass(layer, name, batch)

    def outputs() -> list[Any]:
        with device.running():
            function()
        return [backend.to_host(array) for array in results]

    timer = _on_host(function)
    if not device.on_host:
        function()
        with device.running():
            graph = device.kernels.Graph()
            graph.begin_capture()
            for _ in range(GRAPH):
                function()
            graph.end_capture()

        def timer(least: float) -> float:
            with device.running():
                graph.launch()
                cuda = device.xp.cuda
                return seconds_of_replay(graph.launch, cuda.Event, cuda.get_elapsed_time, least)

    yield Call("kernel", timer, outputs if results else None)


def _pyconv_pass(layer: Layer, name: str, batch: int) -> tuple[Callable[[], Any], list[Any]]:
    """What computes it, and where its results are then."""
    from pyconv import backend, kernels

    # Arrays begin at cache lines, as PyTorch's do, and those of pyconv's models.
    given = layer.arrays(batch)
    inputs = [backend.current().empty(array.shape) for array in given]
    for to, array in zip(inputs, given):
        backend.copy(array, to)
    spare = [backend.current().empty(array.shape) for array in given]
    x, dy = inputs[0], inputs[-1]
    dx, y = spare[0], spare[-1]
    if layer.kind == "conv":
        geometry: dict[str, Any] = {
            "strides": layer.stride,
            "padding": layer.pad,
            "groups": layer.groups,
        }
        w, b, dw, db = *inputs[1:3], *spare[1:3]
        results = {"forward": [y], "data": [dx], "weights": [dw, db]}[name]
        calls: dict[str, Callable[[], Any]] = {
            "forward": lambda: kernels.conv2d(x, w, b, **geometry, out=y),
            "data": lambda: kernels.conv2d_backward_data(dy, w, x.shape, **geometry, out=dx),
            "weights": lambda: kernels.conv2d_backward_weights(
                dy, x, w.shape, **geometry, dw=dw, db=db
            ),
        }
        if layer.is_dense:
            calls = {
                "forward": lambda: kernels.dense(x, w, b, out=y),
                "data": lambda: kernels.dense_backward_data(dy, w, out=dx),
                "weights": lambda: kernels.dense_backward_weights(dy, x, dw=dw, db=db),
            }
        return calls[name], results
    if layer.kind == "pool":
        window = (layer.kernel, layer.stride, layer.pad)
        argmax = kernels.max_pool2d(x, *window, out=y)[1]
        if name == "forward":
            return lambda: kernels.max_pool2d(x, *window, out=y, argmax=argmax), [y]
        return lambda: kernels.max_pool2d_backward(dy, argmax, x.shape, *window, out=dx), [dx]
    if layer.kind in ("relu", "softmax"):
        forward = getattr(kernels, layer.kind)
        forward(x, out=y)
        if name == "forward":
            return lambda: forward(x, out=y), [y]
        backward = getattr(kernels, f"{layer.kind}_backward")
        return lambda: backward(dy, y, out=dx), [dx]
    if layer.kind == "dropout":
        return lambda: kernels.dropout(x, RATE, 1, out=y), []
    slots = [backend.current().zeros(x.size) for _ in range(2)]
    if layer.kind == "rmsprop":
        return lambda: kernels.rmsprop_step(x, dy, slots[0], 1e-3), []
    return lambda: kernels.adam_step(x, dy, slots[0], slots[1], 1, 1e-3), []


# PyTorch


def torch_calls(layer: Layer, name: str, batch: int, setting: Setting) -> Iterator[Call]:
    """PyTorch's kernels, eagerly, images in each memory format; on CUDA as a graph, of which
    cuDNN has tried all algorithms."""
    import torch

    torch.set_grad_enabled(False)
    torch.set_num_threads(setting.threads)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = setting.tf32
    torch.backends.cuda.matmul.allow_tf32 = setting.tf32
    images = len(layer.shapes(batch)[0]) == 4
    for format in ("channels_last", "contiguous_format") if images else ("contiguous_format",):
        function = _torch_pass(layer, name, batch, setting.device, getattr(torch, format))

        def outputs(function: Callable[[], Any] = function) -> list[Any]:
            result = function()
            results = result if isinstance(result, (tuple, list)) else [result]
            return [array.cpu().numpy() for array in results if array is not None]

        known = layer.kind not in ("dropout", "rmsprop", "adam")
        timer = _on_host(function) if setting.device == "cpu" else _torch_graph(function)
        yield Call(format.removesuffix("_format"), timer, outputs if known else None)


def _torch_pass(
    layer: Layer, name: str, batch: int, device: str, memory_format: Any
) -> Callable[[], Any]:
    import torch

    aten, functional = torch.ops.aten, torch.nn.functional

    def tensor(array: Floats) -> Any:
        moved = torch.from_numpy(array).to(device)
        if array.ndim != 4:
            return moved
        axes = (3, 2, 0, 1) if array is kernel else (0, 3, 1, 2)
        return moved.permute(axes).contiguous(memory_format=memory_format)

    given = layer.arrays(batch)
    kernel = given[1] if layer.kind == "conv" else None
    x, *weights, dy = map(tensor, given)
    window = [[layer.kernel] * 2, [layer.stride] * 2, [layer.pad] * 2]
    if layer.is_dense:
        w, b = weights[0].T.contiguous(), weights[1]
        return {
            "forward": lambda: functional.linear(x, w, b),
            "data": lambda: dy @ w,
            "weights": lambda: (dy.T @ x, dy.sum(0)),
        }[name]
    if layer.kind == "conv":
        w, b = weights
        if name == "forward":
            return lambda: functional.conv2d(x, w, b, *window[1:], 1, layer.groups)
        mask = [False, True, True] if name == "weights" else [True, False, False]
        return lambda: aten.convolution_backward(
            dy, x, w, [layer.filters], *window[1:], [1, 1], False, [0, 0], layer.groups, mask
        )
    if layer.kind == "pool":
        _, where = functional.max_pool2d_with_indices(x, *window)
        if name == "forward":
            # As in training, where the backward pass needs to know where the maxima were.
            return lambda: functional.max_pool2d_with_indices(x, *window)[0]
        return lambda: aten.max_pool2d_with_indices_backward(dy, x, *window, [1, 1], False, where)
    if layer.kind == "relu":
        y = torch.relu(x)
        return {
            "forward": lambda: torch.relu(x),
            "backward": lambda: aten.threshold_backward(dy, y, 0),
        }[name]
    if layer.kind == "softmax":
        y = torch.softmax(x, 1)
        return {
            "forward": lambda: torch.softmax(x, 1),
            "backward": lambda: aten._softmax_backward_data(dy, y, 1, torch.float32),
        }[name]
    if layer.kind == "dropout":
        return lambda: functional.dropout(x, RATE, training=True)
    x.grad = dy
    cuda = device != "cpu"
    if layer.kind == "adam":
        return torch.optim.Adam([x], fused=True, capturable=cuda).step
    return torch.optim.RMSprop([x], alpha=0.9, eps=1e-7, foreach=True, capturable=cuda).step


def _torch_graph(function: Callable[[], Any]) -> Callable[[float], float]:
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH):
            function()

    def measure(least: float) -> float:
        graph.replay()
        event = functools.partial(torch.cuda.Event, enable_timing=True)
        return seconds_of_replay(graph.replay, event, torch.cuda.Event.elapsed_time, least)

    return measure


# JAX and TensorFlow, which differentiate forward passes


def _functional(
    layer: Layer, name: str, batch: int, forward: Mapping[str, Callable[..., Any]], pull: Any
) -> tuple[Callable[..., Any], list[Floats]]:
    """A pass as a function of arrays, to be compiled: as constants they would be folded.

    Args:
        layer, name, batch: the pass.
        forward: by kind, a function of x, or of x, w and b.
        pull: (function, its arguments, dy) -> the gradients of its arguments.
    """
    kind = "dense" if layer.is_dense else layer.kind
    if kind not in forward:
        raise NotOffered(f"its kernels have no contestant for {layer.kind}")
    function, given = forward[kind], layer.arrays(batch)
    if name == "forward":
        return function, given[:-1]
    if name == "weights":
        return (lambda x, w, b, dy: pull(lambda w, b: function(x, w, b), (w, b), dy)), given
    return (lambda *a: pull(lambda x: function(x, *a[1:-1]), a[:1], a[-1])), given


def jax_calls(layer: Layer, name: str, batch: int, setting: Setting) -> Iterator[Call]:
    """What XLA makes of the pass alone; only on the CPU."""
    import jax
    from jax import lax

    _only_on_host(setting)
    strides, pads = (layer.stride,) * 2, [(layer.pad,) * 2] * 2
    forward = {
        "conv": lambda x, w, b: (
            lax.conv_general_dilated(
                x,
                w,
                strides,
                pads,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=layer.groups,
            )
            + b
        ),
        "dense": lambda x, w, b: x @ w + b,
        "pool": lambda x: lax.reduce_window(
            x,
            -np.inf,
            lax.max,
            (1, *(layer.kernel,) * 2, 1),
            (1, *strides, 1),
            [(0, 0), *pads, (0, 0)],
        ),
        "relu": jax.nn.relu,
        "softmax": jax.nn.softmax,
    }

    def pull(function: Any, arguments: Any, dy: Any) -> Any:
        return jax.vjp(function, *arguments)[1](dy)

    function, given = _functional(layer, name, batch, forward, pull)
    compiled, arrays = jax.jit(function), [jax.device_put(array) for array in given]

    def run() -> Any:
        return jax.block_until_ready(compiled(*arrays))

    yield Call("jit", _on_host(run), lambda: jax.tree.leaves(run()))


def tensorflow_calls(layer: Layer, name: str, batch: int, setting: Setting) -> Iterator[Call]:
    """A function of TensorFlow's, as a graph and compiled by XLA; only on the CPU."""
    import tensorflow as tf

    _only_on_host(setting)
    networks.tensorflow_threads(tf, setting.threads)
    pads = [[0, 0], [layer.pad] * 2, [layer.pad] * 2, [0, 0]]
    forward = {
        "conv": lambda x, w, b: tf.nn.bias_add(tf.nn.conv2d(x, w, layer.stride, pads), b),
        "dense": lambda x, w, b: tf.nn.bias_add(tf.matmul(x, w), b),
        "pool": lambda x: tf.nn.max_pool2d(
            x, layer.kernel, layer.stride, pads if layer.pad else "VALID"
        ),
        "relu": tf.nn.relu,
        "softmax": tf.nn.softmax,
    }

    def pull(function: Any, arguments: Any, dy: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            y = function(*arguments)
        return tape.gradient(y, arguments, output_gradients=dy)

    function, given = _functional(layer, name, batch, forward, pull)
    arrays = [tf.constant(array) for array in given]
    # XLA has no pooling with paddings of one's own.
    for jit_compile in (False,) if layer.kind == "pool" and layer.pad else (False, True):
        compiled = tf.function(function, jit_compile=jit_compile).get_concrete_function(*arrays)

        def run(compiled: Any = compiled) -> Any:
            return tf.nest.flatten(compiled(*arrays))

        def outputs(run: Callable[[], Any] = run) -> list[Any]:
            return [tensor.numpy() for tensor in run()]

        yield Call(f"jit_compile={jit_compile}", _on_host(run), outputs)


def _only_on_host(setting: Setting) -> None:
    if setting.device != "cpu":
        raise NotOffered("its kernels are timed on the CPU only")


# ONNX Runtime


def onnxruntime_calls(layer: Layer, name: str, batch: int, setting: Setting) -> Iterator[Call]:
    """A session of one node, whose images are NCHW."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    operators: dict[str, tuple[str, dict[str, Any]]] = {
        "conv": (
            "Conv",
            {"strides": [layer.stride] * 2, "pads": [layer.pad] * 4, "group": layer.groups},
        ),
        "dense": ("Gemm", {}),
        "pool": (
            "MaxPool",
            {
                "kernel_shape": [layer.kernel] * 2,
                "strides": [layer.stride] * 2,
                "pads": [layer.pad] * 4,
            },
        ),
        "relu": ("Relu", {}),
        "softmax": ("Softmax", {}),
    }
    kind = "dense" if layer.is_dense else layer.kind
    if name != "forward" or kind not in operators:
        raise NotOffered("it is for inference, and has no such operation")
    x, *weights, _ = layer.arrays(batch)
    if layer.kind == "conv" and not layer.is_dense:
        weights[0] = np.ascontiguousarray(weights[0].transpose(3, 2, 0, 1))
    if x.ndim == 4:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    operator, attributes = operators[kind]
    names = ["w", "b"][: len(weights)]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *names], ["y"], **attributes)],
        layer.name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, key) for key, array in zip(names, weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run() -> Any:
        return session.run(None, {"x": x})

    yield Call("one node", _on_host(run), run)
