"""Times the convolution and dense kernels on networks' layers, pass by pass.

    python benchmarks/kernels.py [--network tutorial,vgg16-32] [--batch 1,256] [--threads N]

A row is one layer and pass: the median time, GFLOP/s, the share of the machine's multiply-add peak
(measured in the same rounds, in registers; of a GPU by its data sheet), and PyTorch's time and the
ratio to it where torch is installed, or in the environment whose interpreter --torch-python names.
PyTorch runs in a process of its own, with as many threads, in turns with pyconv, in its best memory
format. It is stopped (SIGSTOP) while it is not its turn, as its idle threads spin.

With --device cuda both replay graphs of GRAPH calls, so that no launch is waited for, and events on
the device take the time; PyTorch's are cuDNN's, of which it has tried all algorithms.

Operations are counted as 2 * outputs * kernel taps * input channels, with taps in the padding
counted too. The direct kernels skip those, and Winograd's algorithm does with a fraction of the
multiplications, so layers can exceed 100 %.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

PASSES = ("forward", "data", "weights")
GRAPH = 20  # calls of a kernel in a CUDA graph


@dataclass(frozen=True)
class Layer:
    """A convolution over square images, or with size == kernel == 1 a dense layer.

    `pad` is the number of rows and columns of padding on every side.
    """

    name: str
    size: int
    channels: int
    filters: int
    kernel: int
    stride: int = 1
    pad: int = 0
    groups: int = 1

    @property
    def output_size(self) -> int:
        return (self.size + 2 * self.pad - self.kernel) // self.stride + 1

    @property
    def is_dense(self) -> bool:
        return self.size == self.kernel == 1

    def flops(self, batch: int) -> float:
        taps = self.kernel**2 * self.channels // self.groups
        return 2.0 * batch * self.output_size**2 * self.filters * taps

    def bytes(self, batch: int) -> int:
        """Of inputs, outputs and their gradients."""
        inputs = self.size**2 * self.channels
        return 8 * batch * (inputs + self.output_size**2 * self.filters)


TUTORIAL = (
    Layer("c1", 32, 3, 32, 3, pad=1),
    Layer("c2", 32, 32, 32, 3),
    Layer("c3", 15, 32, 64, 3, pad=1),
    Layer("c4", 15, 64, 64, 3),
    Layer("c5", 6, 64, 64, 3, pad=1),
    Layer("c6", 6, 64, 64, 3),
    Layer("d1", 1, 256, 512, 1),
    Layer("d2", 1, 512, 10, 1),
)

LENET = (
    Layer("c1", 28, 1, 6, 5, pad=2),
    Layer("c2", 14, 6, 16, 5),
    Layer("d1", 1, 400, 120, 1),
    Layer("d2", 1, 120, 84, 1),
    Layer("d3", 1, 84, 10, 1),
)


def vgg16(size: int) -> tuple[Layer, ...]:
    """The different convolutions of VGG-16 (Simonyan, Zisserman, 2015)."""
    layers = []
    for stage, (before, filters) in enumerate([(3, 64), (64, 128), (128, 256), (256, 512)], 1):
        at = size >> (stage - 1)
        layers.append(Layer(f"c{stage}_1", at, before, filters, 3, pad=1))
        layers.append(Layer(f"c{stage}_2", at, filters, filters, 3, pad=1))
    return (*layers, Layer("c5", size >> 4, 512, 512, 3, pad=1))


def resnet50(size: int) -> tuple[Layer, ...]:
    """The different convolutions of ResNet-50 (He et al., 2016), its strides in the 3x3 ones."""
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
    return tuple(layers)


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

NETWORKS = {
    "tutorial": TUTORIAL,
    "lenet": LENET,
    "vgg16-32": vgg16(32),
    "vgg16-224": vgg16(224),
    "resnet50-32": resnet50(32),
    "resnet50-224": resnet50(224),
    "mobilenet": mobilenet(224),
    "others": OTHERS,
}


def arrays(layer: Layer, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, w, b and dy of a layer, NHWC and HWIO."""
    rng = np.random.default_rng(0)
    shapes = (
        (batch, layer.size, layer.size, layer.channels),
        (layer.kernel, layer.kernel, layer.channels // layer.groups, layer.filters),
        (layer.filters,),
        (batch, layer.output_size, layer.output_size, layer.filters),
    )
    x, w, b, dy = (rng.random(shape, np.float32) - np.float32(0.5) for shape in shapes)
    return x, w, b, dy


def seconds_of(function: Callable[[], Any], least: float) -> float:
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
) -> float:
    """The median time of a call in a graph of GRAPH, replayed for at least so many seconds."""
    start, end = new_event(), new_event()
    times: list[float] = []
    while len(times) < 3 or GRAPH * sum(times) < least:
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(milliseconds(start, end) / 1e3 / GRAPH)
    return statistics.median(times)


def pyconv_timer(layer: Layer, name: str, batch: int) -> Callable[[float], float]:
    """Measures a pass for at least so many seconds; returns what a call takes."""
    from pyconv import backend

    function = pyconv_pass(layer, name, batch)
    function()
    device = backend.current()
    if device.on_host:
        return lambda least: seconds_of(function, least)
    with device.running():
        graph = device.kernels.Graph()
        graph.begin_capture()
        for _ in range(GRAPH):
            function()
        graph.end_capture()

    def measure(least: float) -> float:
        with device.running():
            graph.launch()
            cuda = device.xp.cuda
            return seconds_of_replay(graph.launch, cuda.Event, cuda.get_elapsed_time, least)

    return measure


def pyconv_pass(layer: Layer, name: str, batch: int) -> Callable[[], Any]:
    from pyconv import backend, kernels

    # Arrays begin at cache lines, as PyTorch's do, and those of pyconv's models.
    given = arrays(layer, batch)
    x, w, b, dy, dx, dw, db, y = (backend.current().empty(a.shape) for a in 2 * given)
    for to, array in zip((x, w, b, dy), given):
        backend.copy(array, to)
    if layer.is_dense:
        x, w, dy, y, dx, dw = (
            a.reshape(-1, a.shape[-1]) if a.ndim == 4 else a for a in (x, w, dy, y, dx, dw)
        )
        return {
            "forward": lambda: kernels.dense(x, w, b, out=y),
            "data": lambda: kernels.dense_backward_data(dy, w, out=dx),
            "weights": lambda: kernels.dense_backward_weights(dy, x, dw=dw, db=db),
        }[name]
    shape, geometry = x.shape, (layer.stride, layer.pad, 1, layer.groups)
    return {
        "forward": lambda: kernels.conv2d(x, w, b, *geometry, out=y),
        "data": lambda: kernels.conv2d_backward_data(dy, w, shape, *geometry, out=dx),
        "weights": lambda: kernels.conv2d_backward_weights(dy, x, w.shape, *geometry, dw=dw, db=db),
    }[name]


def torch_passes(layer: Layer, name: str, batch: int, device: str) -> list[Callable[[], Any]]:
    """The same in PyTorch, once in each memory format."""
    import torch

    def tensor(array: np.ndarray) -> Any:
        return torch.from_numpy(array).to(device)

    x, w, b, dy = arrays(layer, batch)
    stride, pad = [layer.stride] * 2, [layer.pad] * 2
    mask = {"data": [True, False, False], "weights": [False, True, True]}.get(name)
    if layer.is_dense:
        tx, tw, tb, tdy = map(tensor, (x[:, 0, 0], w[0, 0].T.copy(), b, dy[:, 0, 0]))
        return [
            {
                "forward": lambda: torch.nn.functional.linear(tx, tw, tb),
                "data": lambda: tdy @ tw,
                "weights": lambda: (tdy.T @ tx, tdy.sum(0)),
            }[name]
        ]

    def in_format(memory_format: Any) -> Callable[[], Any]:
        def convert(array: np.ndarray, axes: tuple[int, ...]) -> Any:
            return tensor(array.transpose(axes)).contiguous(memory_format=memory_format)

        tx, tdy, tw = convert(x, (0, 3, 1, 2)), convert(dy, (0, 3, 1, 2)), convert(w, (3, 2, 0, 1))
        tb = tensor(b)
        if mask is None:
            return lambda: torch.nn.functional.conv2d(tx, tw, tb, stride, pad, 1, layer.groups)
        return lambda: torch.ops.aten.convolution_backward(
            tdy, tx, tw, [layer.filters], stride, pad, [1, 1], False, [0, 0], layer.groups, mask
        )

    return [in_format(torch.channels_last), in_format(torch.contiguous_format)]


def torch_timer(function: Callable[[], Any], device: str) -> Callable[[float], float]:
    """As `pyconv_timer`."""
    import torch

    if device == "cpu":
        function()
        return lambda least: seconds_of(function, least)
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


def serve_torch(device: str, tf32: bool) -> None:
    """The other process: reads a layer and pass a line, answers with the seconds a call takes."""
    import torch

    torch.set_grad_enabled(False)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    print(json.dumps({"version": torch.__version__}), flush=True)
    kept: tuple[Any, Callable[[float], float]] | None = None
    for line in sys.stdin:
        task = json.loads(line)
        torch.set_num_threads(task["threads"])
        key = (task["layer"], task["pass"], task["batch"])
        if kept is None or kept[0] != key:
            functions = torch_passes(Layer(**task["layer"]), task["pass"], task["batch"], device)
            timers = [torch_timer(function, device) for function in functions]
            kept = (key, min(timers, key=lambda timer: timer(task["least"])))
        print(json.dumps(kept[1](task["least"])), flush=True)


class Torch:
    """PyTorch in a process of its own."""

    def __init__(self, python: str, device: str, tf32: bool) -> None:
        options = ["--serve-torch", f"--device={device}", *["--tf32"] * tf32]
        self.process = subprocess.Popen(
            [python, str(Path(__file__).resolve()), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self._answer()["version"]

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the process with PyTorch ended; is torch installed there?")
        return json.loads(line)

    def seconds(self, layer: Layer, name: str, batch: int, threads: int, least: float) -> float:
        assert self.process.stdin is not None
        task = {
            "layer": asdict(layer),
            "pass": name,
            "batch": batch,
            "threads": threads,
            "least": least,
        }
        self.process.send_signal(signal.SIGCONT)
        print(json.dumps(task), file=self.process.stdin, flush=True)
        answer = float(self._answer())
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()


def measure(
    layer: Layer, name: str, batch: int, rounds: int, least: float, torch: Torch | None
) -> dict[str, Any]:
    """One row of the table, from `rounds` rounds of peak, pyconv and PyTorch in turns."""
    from pyconv import backend

    timer = pyconv_timer(layer, name, batch)
    threads = backend.get_num_threads()
    peaks, ours, theirs = [], [], []
    for _ in range(rounds):
        peaks.append(peak())
        ours.append(timer(least))
        if torch is not None:
            theirs.append(torch.seconds(layer, name, batch, threads, least))
    median = statistics.median(ours)
    flops = layer.flops(batch)
    row = {
        "layer": layer.name,
        "pass": name,
        "ms": median * 1e3,
        "spread": (max(ours) - min(ours)) / median,
        "gflops": flops / median / 1e9,
        "peak_gflops": statistics.median(peaks) / 1e9,
        "share": flops / median / statistics.median(peaks),
    }
    if theirs:
        row["torch_ms"] = statistics.median(theirs) * 1e3
        row["speedup"] = statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
    return row


def peak() -> float:
    """Multiplications and additions a second that the device can do in float32."""
    from pyconv import backend

    device = backend.current()
    if device.on_host:
        return float(backend.cpu().measure_peak(0.02))
    attributes = device.xp.cuda.Device().attributes
    # Two in each lane and cycle. Lanes of a multiprocessor by compute capability: CUDA C++
    # Programming Guide, "Arithmetic Instructions".
    lanes = 64 if device.xp.cuda.Device().compute_capability in ("75", "80") else 128
    return 2.0 * lanes * attributes["MultiProcessorCount"] * attributes["ClockRate"] * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--network",
        default="tutorial",
        help=f"some of {', '.join(NETWORKS)}, with commas between; default: tutorial",
    )
    parser.add_argument("--batch", default="256", help="one or several, with commas between")
    parser.add_argument("--threads", type=int, help="default: all that pyconv would use")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--least", type=float, default=0.1, help="seconds a measurement, at least")
    parser.add_argument("--layers", help="names of the layers, default: all of the network")
    parser.add_argument(
        "--memory", type=float, default=4.0, help="GB; layers whose arrays take more are left out"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tf32", action="store_true", help="with cuda: on tensor cores")
    parser.add_argument("--isa", help="avx512, avx2 or portable; default: the best there is")
    parser.add_argument("--torch-python", help="interpreter that has torch; default: this one")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    parser.add_argument("--serve-torch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_torch:
        serve_torch(options.device, options.tf32)
        return

    import pyconv

    networks = options.network.split(",")
    if not set(networks) <= set(NETWORKS):
        parser.error(
            f"--network: expected some of {', '.join(NETWORKS)}. Received: {options.network}"
        )
    known = {layer.name for network in networks for layer in NETWORKS[network]}
    wanted = set(options.layers.split(",")) if options.layers else known
    if not wanted <= known:
        parser.error(f"--layers: expected some of {sorted(known)}. Received: {options.layers}")
    if options.threads:
        pyconv.set_num_threads(options.threads)
    if options.isa:
        pyconv.set_isa(options.isa)
    pyconv.set_device(options.device)
    if options.tf32:
        pyconv.set_math_mode("tf32")
    torch = None
    if not options.no_torch and (options.torch_python or importlib.util.find_spec("torch")):
        torch = Torch(options.torch_python or sys.executable, options.device, options.tf32)

    print(
        f"pyconv {pyconv.__version__} ({pyconv.isa()}), {pyconv.get_num_threads()} threads, "
        f"{platform.processor() or platform.machine()}, "
        + (f"PyTorch {torch.version}" if torch else "PyTorch not installed")
    )
    rows = []
    for network, batch in itertools.product(networks, map(int, options.batch.split(","))):
        layers = [layer for layer in NETWORKS[network] if layer.name in wanted]
        print(
            f"\n{network}, batch {batch}\n"
            f"{'layer':12}{'pass':9}{'ms':>9}{'spread':>8}{'GFLOP/s':>9}{'of peak':>9}"
            f"{'torch ms':>10}{'speed-up':>10}"
        )
        of_this = []
        for layer, pass_name in itertools.product(layers, PASSES):
            if pass_name == "data" and layer.channels <= 3:
                continue  # nobody needs the gradient of images
            if layer.bytes(batch) > options.memory * 1e9:
                print(f"{layer.name:12}{pass_name:9} left out: needs more than --memory")
                continue
            row = measure(layer, pass_name, batch, options.rounds, options.least, torch)
            of_this.append({"network": network, "batch": batch, **row})
            peer = f"{row['torch_ms']:10.3f}{row['speedup']:10.2f}" if torch else f"{'-':>10}" * 2
            print(
                f"{layer.name:12}{pass_name:9}{row['ms']:9.3f}{row['spread']:8.0%}"
                f"{row['gflops']:9.1f}{row['share']:9.1%}{peer}",
                flush=True,
            )
        if torch and of_this:
            print_speedups(of_this)
        rows += of_this
    if torch:
        torch.close()
        if len({(row["network"], row["batch"]) for row in rows}) > 1:
            print("\nall together")
            print_speedups(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def print_speedups(rows: list[dict[str, Any]]) -> None:
    least = min(rows, key=lambda row: float(row["speedup"]))
    mean = statistics.geometric_mean(row["speedup"] for row in rows)
    print(
        f"speed-ups: geometric mean {mean:.2f}, least {least['speedup']:.2f} "
        f"({least['layer']} {least['pass']})"
    )


if __name__ == "__main__":
    main()
