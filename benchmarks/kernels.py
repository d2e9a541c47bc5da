"""Times the convolution and dense kernels on the tutorial's layers, pass by pass.

    python benchmarks/kernels.py [--batch 256] [--threads N] [--layers c2,c3] [--json FILE]

A row is one layer and pass: the median time, GFLOP/s, the share of the machine's multiply-add peak
(measured in the same rounds, in registers), and PyTorch's time and the ratio to it where torch is
installed, or in the environment whose interpreter --torch-python names. PyTorch runs in a process
of its own, with as many threads, in turns with pyconv, in its best memory format.

Operations are counted as 2 * outputs * kernel taps * input channels, with taps in the padding
counted too. The direct kernels skip those, and Winograd's algorithm does with a fraction of the
multiplications, so layers can exceed 100 %.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
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


@dataclass(frozen=True)
class Layer:
    """A convolution of stride 1, or with size == kernel == 1 a dense layer."""

    name: str
    size: int
    channels: int
    filters: int
    kernel: int
    padding: str

    @property
    def output_size(self) -> int:
        return self.size if self.padding == "same" else self.size - self.kernel + 1

    def flops(self, batch: int) -> float:
        return 2.0 * batch * self.output_size**2 * self.filters * self.kernel**2 * self.channels


LAYERS = (
    Layer("c1", 32, 3, 32, 3, "same"),
    Layer("c2", 32, 32, 32, 3, "valid"),
    Layer("c3", 15, 32, 64, 3, "same"),
    Layer("c4", 15, 64, 64, 3, "valid"),
    Layer("c5", 6, 64, 64, 3, "same"),
    Layer("c6", 6, 64, 64, 3, "valid"),
    Layer("d1", 1, 256, 512, 1, "valid"),
    Layer("d2", 1, 512, 10, 1, "valid"),
)


def arrays(layer: Layer, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, w, b and dy of a layer, NHWC and HWIO."""
    rng = np.random.default_rng(0)
    shapes = (
        (batch, layer.size, layer.size, layer.channels),
        (layer.kernel, layer.kernel, layer.channels, layer.filters),
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


def pyconv_pass(layer: Layer, name: str, batch: int) -> Callable[[], Any]:
    from pyconv import kernels

    x, w, b, dy = arrays(layer, batch)
    y, dx, dw, db = (np.empty_like(a) for a in (dy, x, w, b))
    if layer.size == layer.kernel == 1:
        x, w, dy, y, dx, dw = (
            a.reshape(-1, a.shape[-1]) if a.ndim == 4 else a for a in (x, w, dy, y, dx, dw)
        )
        return {
            "forward": lambda: kernels.dense(x, w, b, out=y),
            "data": lambda: kernels.dense_backward_data(dy, w, out=dx),
            "weights": lambda: kernels.dense_backward_weights(dy, x, dw=dw, db=db),
        }[name]
    shape = x.shape
    return {
        "forward": lambda: kernels.conv2d(x, w, b, padding=layer.padding, out=y),
        "data": lambda: kernels.conv2d_backward_data(dy, w, shape, padding=layer.padding, out=dx),
        "weights": lambda: kernels.conv2d_backward_weights(
            dy, x, w.shape, padding=layer.padding, dw=dw, db=db
        ),
    }[name]


def torch_passes(layer: Layer, name: str, batch: int) -> list[Callable[[], Any]]:
    """The same in PyTorch, once in each memory format."""
    import torch

    x, w, b, dy = arrays(layer, batch)
    pad = layer.kernel // 2 if layer.padding == "same" else 0
    mask = {"data": [True, False, False], "weights": [False, True, True]}.get(name)
    if layer.size == layer.kernel == 1:
        tx, tw, tb, tdy = map(torch.from_numpy, (x[:, 0, 0], w[0, 0].T.copy(), b, dy[:, 0, 0]))
        return [
            {
                "forward": lambda: torch.nn.functional.linear(tx, tw, tb),
                "data": lambda: tdy @ tw,
                "weights": lambda: (tdy.T @ tx, tdy.sum(0)),
            }[name]
        ]

    def in_format(memory_format: Any) -> Callable[[], Any]:
        def convert(array: np.ndarray, axes: tuple[int, ...]) -> Any:
            return torch.from_numpy(array.transpose(axes)).contiguous(memory_format=memory_format)

        tx, tdy, tw = convert(x, (0, 3, 1, 2)), convert(dy, (0, 3, 1, 2)), convert(w, (3, 2, 0, 1))
        tb = torch.from_numpy(b)
        if mask is None:
            return lambda: torch.nn.functional.conv2d(tx, tw, tb, padding=pad)
        return lambda: torch.ops.aten.convolution_backward(
            tdy, tx, tw, [layer.filters], [1, 1], [pad, pad], [1, 1], False, [0, 0], 1, mask
        )

    return [in_format(torch.channels_last), in_format(torch.contiguous_format)]


def serve_torch() -> None:
    """The other process: reads a layer and pass a line, answers with the seconds a call takes."""
    import torch

    torch.set_grad_enabled(False)
    print(json.dumps({"version": torch.__version__}), flush=True)
    kept: tuple[Any, list[Callable[[], Any]]] = (None, [])
    for line in sys.stdin:
        task = json.loads(line)
        torch.set_num_threads(task["threads"])
        key = (task["layer"]["name"], task["pass"], task["batch"])
        if kept[0] != key:
            functions = torch_passes(Layer(**task["layer"]), task["pass"], task["batch"])
            for function in functions:
                function()
            best = min(functions, key=lambda f: seconds_of(f, task["least"]))
            kept = (key, [best])
        print(json.dumps(seconds_of(kept[1][0], task["least"])), flush=True)


class Torch:
    """PyTorch in a process of its own."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, str(Path(__file__).resolve()), "--serve-torch"],
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
        print(json.dumps(task), file=self.process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(
    layer: Layer, name: str, batch: int, rounds: int, least: float, torch: Torch | None
) -> dict[str, Any]:
    """One row of the table, from `rounds` rounds of peak, pyconv and PyTorch in turns."""
    from pyconv import backend

    function = pyconv_pass(layer, name, batch)
    function()
    threads = backend.get_num_threads()
    peaks, ours, theirs = [], [], []
    for _ in range(rounds):
        peaks.append(backend.cpu().measure_peak(0.02))
        ours.append(seconds_of(function, least))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, help="default: all that pyconv would use")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--least", type=float, default=0.1, help="seconds a measurement, at least")
    parser.add_argument("--layers", default=",".join(layer.name for layer in LAYERS))
    parser.add_argument("--isa", help="avx512, avx2 or portable; default: the best there is")
    parser.add_argument("--torch-python", help="interpreter that has torch; default: this one")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    parser.add_argument("--serve-torch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_torch:
        serve_torch()
        return

    import pyconv

    known = {layer.name: layer for layer in LAYERS}
    names = options.layers.split(",")
    if not set(names) <= set(known):
        parser.error(f"--layers: expected some of {', '.join(known)}. Received: {options.layers}")
    if options.threads:
        pyconv.set_num_threads(options.threads)
    if options.isa:
        pyconv.set_isa(options.isa)
    torch = None
    if not options.no_torch and (options.torch_python or importlib.util.find_spec("torch")):
        torch = Torch(options.torch_python or sys.executable)

    print(
        f"pyconv {pyconv.__version__} ({pyconv.isa()}), batch {options.batch}, "
        f"{pyconv.get_num_threads()} threads, {platform.processor() or platform.machine()}, "
        + (f"PyTorch {torch.version}" if torch else "PyTorch not installed")
    )
    print(
        f"{'layer':6}{'pass':9}{'ms':>9}{'spread':>8}{'GFLOP/s':>9}{'of peak':>9}"
        f"{'torch ms':>10}{'speed-up':>10}"
    )
    rows = []
    for name in names:
        for pass_name in PASSES:
            if (name, pass_name) == ("c1", "data"):
                continue  # nobody needs the gradient of the images
            row = measure(
                known[name], pass_name, options.batch, options.rounds, options.least, torch
            )
            rows.append(row)
            peer = f"{row['torch_ms']:10.2f}{row['speedup']:10.2f}" if torch else f"{'-':>10}" * 2
            print(
                f"{name:6}{pass_name:9}{row['ms']:9.2f}{row['spread']:8.0%}{row['gflops']:9.1f}"
                f"{row['share']:9.1%}{peer}",
                flush=True,
            )
    if torch:
        torch.close()
        speedups = [row["speedup"] for row in rows]
        print(f"geometric mean of the speed-ups: {statistics.geometric_mean(speedups):.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
