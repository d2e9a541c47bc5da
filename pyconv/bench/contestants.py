"""Who takes part: how each framework trains the network and infers with it, in its best form.

This module also runs in interpreters without pyconv: only the standard library, NumPy and, within
the functions, the framework itself.

A contestant offers *modes*, the ways in which it might be fastest; whoever measures takes the
fastest. All modes do float32 arithmetic, or with `Setting.tf32` round factors to TF32 where the
framework can, or with `Setting.bfloat16` work on numbers of bfloat16, by the framework's own way of
mixed precision. Inference ends with the probabilities in host memory, call by call. Training is a
step on a batch that lies ready, on the device, in the layout that the framework likes best: forward
pass with dropout, mean cross entropy of the softmax, gradients, RMSprop.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import networks, operations
from .networks import Floats, Network

KERNELS, TRAINING, INFERENCE = "kernels", "training", "inference"
TASKS = (TRAINING, INFERENCE)  # of whole networks
CPU, CUDA = "cpu", "cuda"
DEVICES = (CPU, CUDA)


@dataclass(frozen=True)
class Setting:
    """What all contestants compute on, and how.

    Attributes:
        threads: how many each may use.
        isa: the instruction set that they are limited to; None for no limit.
        device: CPU or CUDA.
        tf32: whether the device's tensor cores may take factors rounded to TF32.
        bfloat16: whether networks work on numbers of bfloat16, with float32 weights in training.
    """

    threads: int
    isa: str | None = None
    device: str = CPU
    tf32: bool = False
    bfloat16: bool = False


@dataclass(frozen=True)
class Mode:
    """A way to do the work.

    Attributes:
        name: what tells it from the contestant's other modes.
        run: makes so many training steps, or infers so many times; returns when all is computed.
        outputs: the probabilities (N, classes) of the batch under the initial weights.
        parameters: how many the network has.
        reset: gives the network its initial weights back; in inference they stay, so nothing.
    """

    name: str
    run: Callable[[int], Any]
    outputs: Callable[[], Floats]
    parameters: int
    reset: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Contestant:
    """A framework, or one of its faces.

    Attributes:
        title: for people.
        modules: what must be importable, and whose versions are reported.
        modes: (network, task, batch, setting) -> the modes, made one by one when asked for.
        tasks: what it can do with the whole network.
        kernels: (layer, pass, batch, setting) -> the ways to compute a pass alone; None if it has
            none.
        devices: on what it can.
        environment: variables that must be set before the process starts.
        avx2: variables that keep it to AVX2; None if nothing does.
        bfloat16: whether it can work in bfloat16.
    """

    title: str
    modules: tuple[str, ...]
    modes: Callable[[Network, str, int, Setting], Iterator[Mode]]
    tasks: tuple[str, ...] = TASKS
    kernels: Callable[[operations.Layer, str, int, Setting], Iterator[operations.Call]] | None = (
        None
    )
    devices: tuple[str, ...] = (CPU,)
    environment: dict[str, str] = field(default_factory=dict)
    avx2: dict[str, str] | None = None
    bfloat16: bool = True

    def does(self, task: str) -> bool:
        """Whether it takes part in a task, KERNELS or one of TASKS."""
        return self.kernels is not None if task == KERNELS else task in self.tasks

    def versions(self) -> dict[str, str]:
        """The versions of its modules, which must be importable."""
        return {name: importlib.import_module(name).__version__ for name in self.modules}


def repeat(function: Callable[[], Any]) -> Callable[[int], Any]:
    """Calls it so many times; returns what the last call did."""

    def run(count: int) -> Any:
        result = None
        for _ in range(count):
            result = function()
        return result

    return run


# pyconv


def _pyconv(network: Network, task: str, batch: int, setting: Setting) -> Iterator[Mode]:
    import pyconv

    pyconv.set_num_threads(setting.threads)
    if setting.tf32:
        pyconv.set_math_mode("tf32")
    if setting.bfloat16:
        pyconv.mixed_precision.set_global_policy("mixed_bfloat16")
    to_device = pyconv.backend.current().to_device
    x, y = map(to_device, network.data(batch))
    model = network.layers(pyconv)
    model.compile(
        pyconv.optimizers.RMSprop(1e-3, rho=0.9, epsilon=1e-7), "categorical_crossentropy"
    )
    initial = network.weights()
    model.set_weights(initial)

    def mode(name: str, run: Callable[[int], Any]) -> Mode:
        def reset() -> None:
            model.set_weights(initial)

        return Mode(name, run, infer, model.count_params(), reset)

    def infer() -> Any:
        return pyconv.backend.to_host(model.predict_on_batch(x))

    if task == INFERENCE:
        yield Mode("predict_on_batch", repeat(infer), infer, model.count_params())
        return
    yield mode("train_on_batch", repeat(lambda: model.train_on_batch(x, y)))
    if setting.device == CUDA:
        # Its steps do not wait for each other's losses.
        batches = itertools.repeat((x, y))
        yield mode("fit", lambda count: model.fit(batches, steps_per_epoch=count, verbose=0))


# PyTorch


class _Torch:
    """The network in PyTorch, its batch and its optimizer."""

    def __init__(self, network: Network, batch: int, setting: Setting, channels_last: bool) -> None:
        import torch
        from torch import nn

        torch.set_num_threads(setting.threads)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = setting.tf32
        torch.backends.cuda.matmul.allow_tf32 = setting.tf32
        self.device, self.bfloat16 = setting.device, setting.bfloat16
        modules: list[Any] = []
        for step, shape, kernel in network.walk():
            if step.kind == "conv":
                padding = step.kernel // 2 if step.same else 0
                modules.append(nn.Conv2d(shape[-1], step.size, step.kernel, padding=padding))
                modules.append(nn.ReLU(inplace=True))
            elif step.kind == "pool":
                modules.append(nn.MaxPool2d(2))
            elif step.kind == "dropout":
                modules.append(nn.Dropout(step.rate))
            elif step.kind == "flatten":
                modules.append(nn.Flatten())
            else:
                modules += [nn.Linear(*kernel), nn.ReLU(inplace=True)]
        del modules[-1]  # the softmax is the loss's
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = nn.Sequential(*modules).to(self.device, memory_format=self.format)
        self.parameters = list(self.model.parameters())
        self.initial = [torch.from_numpy(array) for array in network.weights_channels_first()]
        self.reset()
        x, y = network.data(batch)
        x = torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous(memory_format=self.format)
        self.x, self.y = x.to(self.device), torch.from_numpy(y.argmax(1)).to(self.device)

    def reset(self) -> None:
        import torch

        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.initial):
                parameter.copy_(value)

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, operations take the dtypes that they shall."""
        import torch

        return torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16)

    def training(self, name: str, compiled: bool) -> Mode:
        import torch

        optimizer = torch.optim.RMSprop(
            self.parameters, lr=1e-3, alpha=0.9, eps=1e-7, capturable=self.device == CUDA
        )

        def loss_of(x: Any, y: Any) -> Any:
            with self.precision():
                return torch.nn.functional.cross_entropy(self.model(x), y)

        loss_function = torch.compile(loss_of, dynamic=False) if compiled else loss_of
        update = torch.compile(optimizer.step) if compiled else optimizer.step

        def train() -> Any:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_function(self.x, self.y)
            loss.backward()
            update()
            return loss

        step = self._replayed(train) if self.device == CUDA else train

        def run(count: int) -> Any:
            self.model.train()
            return repeat(step)(count).item()

        return Mode(name, run, lambda: self.infer(self.model), self.count(), self.reset)

    def _replayed(self, train: Callable[[], Any]) -> Callable[[], Any]:
        """A training step captured as a CUDA graph, which saves all its launches."""
        import torch

        self.model.train()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            repeat(train)(5)  # compiled, benchmarked, and all memory allocated
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = train()
        self.reset()

        def replay() -> Any:
            graph.replay()
            return loss

        return replay

    def inference(self, name: str, model: Callable[[Any], Any]) -> Mode:
        self.model.eval()
        return Mode(
            name, repeat(lambda: self.infer(model)), lambda: self.infer(model), self.count()
        )

    def infer(self, model: Callable[[Any], Any]) -> Any:
        import torch

        self.model.eval()
        with torch.no_grad(), self.precision():
            return torch.softmax(model(self.x).float(), 1).cpu().numpy()

    def halve(self) -> None:
        """Makes weights and images bfloat16 themselves, instead of at every use."""
        import torch

        self.model, self.x = self.model.bfloat16(), self.x.bfloat16()
        self.parameters, self.bfloat16 = list(self.model.parameters()), False
        self.initial = [value.to(torch.bfloat16) for value in self.initial]

    def count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)


def _torch_eager(
    channels_last: bool,
) -> Callable[[Network, str, int, Setting], Iterator[Mode]]:
    def modes(network: Network, task: str, batch: int, setting: Setting) -> Iterator[Mode]:
        made = _Torch(network, batch, setting, channels_last)
        name = "channels_last" if channels_last else "contiguous"
        if task == TRAINING:
            yield made.training(name, compiled=False)
            return
        yield made.inference(name, made.model)
        if setting.bfloat16:
            made.halve()
            yield made.inference(name + ", bfloat16 weights", made.model)

    return modes


def _torch_compile(network: Network, task: str, batch: int, setting: Setting) -> Iterator[Mode]:
    import torch

    # What was compiled for other tasks would count as recompilations, of which few are allowed.
    torch._dynamo.reset()
    for channels_last in (True, False):
        name = "channels_last" if channels_last else "contiguous"
        if task == TRAINING:
            made = _Torch(network, batch, setting, channels_last)
            yield made.training(name, compiled=True)
            continue
        if setting.device == CUDA:
            made = _Torch(network, batch, setting, channels_last)
            compiled = torch.compile(made.model, dynamic=False, mode="reduce-overhead")
            yield made.inference(name + ", reduce-overhead", compiled)
            continue
        for freezing in (True, False):
            made = _Torch(network, batch, setting, channels_last)
            if setting.bfloat16:
                made.halve()
            compiled = torch.compile(made.model, dynamic=False, options={"freezing": freezing})
            yield made.inference(name + ", freezing" * freezing, compiled)


# Keras


def _keras_tensorflow(network: Network, task: str, batch: int, setting: Setting) -> Iterator[Mode]:
    import keras
    import tensorflow as tf

    networks.tensorflow_threads(tf, setting.threads)
    _keras_precision(keras, setting)
    x, y = (tf.constant(array) for array in network.data(batch))
    initial = network.weights()

    def mode(jit_compile: bool) -> Mode:
        model = network.layers(keras)
        model.set_weights(initial)
        predict = tf.function(lambda x: model(x, training=False), jit_compile=jit_compile)
        predict = predict.get_concrete_function(x)

        def infer() -> Any:
            return predict(x).numpy().astype(np.float32)

        name, parameters = f"jit_compile={jit_compile}", model.count_params()
        if task == INFERENCE:
            return Mode(name, repeat(infer), infer, parameters)
        model.compile(_keras_rmsprop(keras), "categorical_crossentropy", jit_compile=jit_compile)
        # What fit() runs in its loop: this is fit() without what it does once an epoch.
        model.make_train_function()
        step = model.train_function
        batches = iter(tf.data.Dataset.from_tensors((x, y)).repeat())

        def run(count: int) -> float:
            return float(repeat(lambda: step(batches))(count)["loss"])

        return Mode(name, run, infer, parameters, lambda: model.set_weights(initial))

    yield mode(jit_compile=False)  # what "auto" chooses on a CPU
    yield mode(jit_compile=True)


def _keras_jax(network: Network, task: str, batch: int, setting: Setting) -> Iterator[Mode]:
    import jax
    import keras

    if setting.device == CUDA:
        jax.config.update(
            "jax_default_matmul_precision", "tensorfloat32" if setting.tf32 else "highest"
        )
    _keras_precision(keras, setting)
    x, y = (jax.device_put(array) for array in network.data(batch))
    model = network.layers(keras)
    model.set_weights(network.weights())
    optimizer = _keras_rmsprop(keras)
    optimizer.build(model.trainable_variables)

    def values(variables: Any) -> list[Any]:
        return [np.asarray(variable.value) for variable in variables]

    initial = [
        values(model.trainable_variables),
        values(model.non_trainable_variables),
        values(optimizer.variables),
    ]
    trainable, others, _ = initial
    predict = jax.jit(lambda *state: model.stateless_call(*state, training=False)[0])
    state = jax.device_put(trainable), jax.device_put(others)

    def infer() -> Any:
        return np.asarray(predict(*state, x), np.float32)

    if task == INFERENCE:
        yield Mode("jit", repeat(infer), infer, model.count_params())
        return

    def loss_of(trainable: Any, others: Any) -> Any:
        predictions, others = model.stateless_call(trainable, others, x, training=True)
        return keras.losses.categorical_crossentropy(y, predictions).mean(), others

    def step(trainable: Any, others: Any, slots: Any) -> Any:
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, others), gradients = gradient(trainable, others)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return (trainable, others, slots), loss

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    training: list[Any] = []

    def reset() -> None:
        training[:] = jax.device_put(jax.tree.map(np.copy, initial))

    def run(count: int) -> float:
        loss = None
        for _ in range(count):
            training[:], loss = compiled(*training)
        return float(jax.block_until_ready((loss, training))[0])

    reset()
    yield Mode("jit", run, infer, model.count_params(), reset)


def _keras_precision(keras: Any, setting: Setting) -> None:
    if setting.bfloat16:
        keras.mixed_precision.set_global_policy("mixed_bfloat16")


def _keras_rmsprop(keras: Any) -> Any:
    return keras.optimizers.RMSprop(learning_rate=1e-3, rho=0.9, epsilon=1e-7)


# Inference engines


def onnx_model(network: Network, batch: int) -> Any:
    """The network for inference as an ONNX model whose input "x" is NCHW."""
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes: list[Any] = []
    initializers: list[Any] = []
    arrays = iter(network.weights_channels_first())
    last = "x"

    def add(operator: str, parameters: int = 0, **attributes: Any) -> None:
        nonlocal last
        inputs = [last]
        for _ in range(parameters):
            inputs.append(f"weight{len(initializers)}")
            initializers.append(numpy_helper.from_array(next(arrays), inputs[-1]))
        last = f"{operator.lower()}{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [last], **attributes))

    for index, step in enumerate(network.steps):
        behind = "Softmax" if index + 1 == len(network.steps) else "Relu"
        if step.kind == "conv":
            pad = step.kernel // 2 if step.same else 0
            add("Conv", 2, kernel_shape=[step.kernel] * 2, pads=[pad] * 4)
            add(behind)
        elif step.kind == "pool":
            add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
        elif step.kind == "flatten":
            add("Flatten")
        elif step.kind == "dense":
            add("Gemm", 2, transB=1)
            add(behind)
    height, width, channels = network.image
    image = [batch, channels, height, width]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [batch, network.classes])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model


def _onnx_parameters(model: Any) -> int:
    return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)


def _images_first(network: Network, batch: int) -> Floats:
    return np.ascontiguousarray(network.data(batch)[0].transpose(0, 3, 1, 2))


def _onnxruntime(network: Network, task: str, batch: int, setting: Setting) -> Iterator[Mode]:
    import onnxruntime

    model = onnx_model(network, batch)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": _images_first(network, batch)}

    def infer() -> Any:
        return session.run(None, feed)[0]

    yield Mode("all optimizations", repeat(infer), infer, _onnx_parameters(model))


def _openvino(network: Network, task: str, batch: int, setting: Setting) -> Iterator[Mode]:
    import openvino

    x, threads = _images_first(network, batch), setting.threads
    for streams in (1, threads):
        if streams > 1 and batch % streams:
            continue
        model = onnx_model(network, batch // streams)
        compiled = openvino.Core().compile_model(
            openvino.Core().read_model(model.SerializeToString()),
            "CPU",
            {
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": streams,
                # It would choose bfloat16 by itself where the processor has it.
                "INFERENCE_PRECISION_HINT": "bf16" if setting.bfloat16 else "f32",
            },
        )
        requests = [compiled.create_infer_request() for _ in range(streams)]
        for request, part in zip(requests, np.split(x, streams)):
            request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(part)))

        def infer(requests: list[Any] = requests) -> Any:
            for request in requests:
                request.start_async()
            for request in requests:
                request.wait()
            return np.concatenate([request.get_output_tensor().data for request in requests])

        yield Mode(f"{streams} streams", repeat(infer), infer, _onnx_parameters(model))
        if threads == 1:
            return


_TORCH_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
_XLA_AVX2 = {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}

CONTESTANTS = {
    "pyconv": Contestant(
        "pyconv",
        ("pyconv",),
        _pyconv,
        kernels=operations.pyconv_calls,
        devices=DEVICES,
    ),
    "torch": Contestant(
        "PyTorch",
        ("torch",),
        _torch_eager(False),
        kernels=operations.torch_calls,
        devices=DEVICES,
        avx2=_TORCH_AVX2,
    ),
    "torch-channels-last": Contestant(
        "PyTorch channels_last", ("torch",), _torch_eager(True), devices=DEVICES, avx2=_TORCH_AVX2
    ),
    "torch-compile": Contestant(
        "PyTorch compiled",
        ("torch",),
        _torch_compile,
        devices=DEVICES,
        environment={"TORCHINDUCTOR_COMPILE_THREADS": "1"},  # no idle processes beside it
        avx2=_TORCH_AVX2,
    ),
    "keras-tensorflow": Contestant(
        "Keras on TensorFlow",
        ("keras", "tensorflow"),
        _keras_tensorflow,
        kernels=operations.tensorflow_calls,
        environment={"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"},
        avx2={"ONEDNN_MAX_CPU_ISA": "AVX2", **_XLA_AVX2},
    ),
    "keras-jax": Contestant(
        "Keras on JAX",
        ("keras", "jax"),
        _keras_jax,
        kernels=operations.jax_calls,
        devices=DEVICES,
        environment={"KERAS_BACKEND": "jax", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        avx2=_XLA_AVX2,
    ),
    "onnxruntime": Contestant(
        "ONNX Runtime",
        ("onnxruntime", "onnx"),
        _onnxruntime,
        tasks=(INFERENCE,),
        kernels=operations.onnxruntime_calls,
        bfloat16=False,  # its kernels for the CPU are float32's
    ),
    "openvino": Contestant("OpenVINO", ("openvino", "onnx"), _openvino, tasks=(INFERENCE,)),
}
OURS = "pyconv"
# What a peer's name stands for: several ways that must not share a process.
PEERS = {
    "torch": ("torch", "torch-channels-last", "torch-compile"),
    **{name: (name,) for name in CONTESTANTS if not name.startswith(("torch", OURS))},
}


def environment(name: str, setting: Setting) -> dict[str, str]:
    """The environment of a contestant's process.

    Raises:
        ValueError: if it cannot do with that setting.
    """
    contestant = CONTESTANTS[name]
    if setting.device not in contestant.devices:
        raise ValueError(f"{contestant.title} has no contestant for {setting.device}")
    if setting.bfloat16 and not contestant.bfloat16:
        raise ValueError(f"{contestant.title} has no bfloat16 mode")
    limits: dict[str, str] | None = {}
    if setting.isa is not None:
        limits = {"avx2": contestant.avx2}.get(setting.isa)
        if name == OURS:
            limits = {"PYCONV_FORCE_ISA": setting.isa}
    if limits is None:
        raise ValueError(f"nothing limits {contestant.title} to {setting.isa}")
    common = {
        "OMP_NUM_THREADS": str(setting.threads),
        "PYCONV_DEVICE": setting.device,
        "JAX_PLATFORMS": setting.device,
    }
    if setting.device == CPU:
        common["CUDA_VISIBLE_DEVICES"] = "-1"
    return {**os.environ, **common, **contestant.environment, **limits}
