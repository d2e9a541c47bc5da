"""Times the kernels on denormal numbers, relative to ordinary ones, on every instruction set.

    python benchmarks/denormals.py [--rounds N] [--seconds S]

Numbers below 1.2e-38 have fewer digits than others, and some processors take a detour for every one
that an operation takes or gives. Three kinds of them: all inputs are denormal; the second array
alone is, such as the weights; and all are about 1e-20, so that products and sums of products are.
A ratio is of the least times of one thread's CPU time, taken in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

import pyconv
from pyconv import kernels

# What the arrays of a call are multiplied by: the first one, the second one and all others.
KINDS = {
    "ordinary": (1.0, 1.0),
    "inputs": (1e-40, 1e-40),
    "weights": (1.0, 1e-40),
    "products": (1e-20, 1e-20),
}


def calls() -> dict[str, tuple[Callable[..., object], list[tuple[int, ...]], dict]]:
    """A function, the shapes of its arrays, and its other arguments, by name."""
    # Small, so that neither memory nor the system's pages for results count.
    x, w, y = (1, 16, 16, 32), (3, 3, 32, 32), (1, 16, 16, 32)
    first, depthwise = (3, 3, 3, 32), (3, 3, 1, 32)
    same = {"padding": "same"}
    pooled = {"padding": "same", "rate": 0.25, "seed": 1}
    flat, rows = (1 << 14,), (256, 64)
    named = {
        "conv2d": (kernels.conv2d, [x, w, (32,)], same),
        "conv2d, 3 channels": (kernels.conv2d, [(1, 16, 16, 3), first, (32,)], same),
        "conv2d, depthwise": (kernels.conv2d, [x, depthwise, (32,)], {**same, "groups": 32}),
        "conv2d backward data": (kernels.conv2d_backward_data, [y, w], {**same, "x_shape": x}),
        "conv2d backward weights": (
            kernels.conv2d_backward_weights,
            [y, x],
            {**same, "w_shape": w},
        ),
        "conv2d_pool": (kernels.conv2d_pool, [x, w, (32,)], pooled),
        "max_pool2d": (kernels.max_pool2d, [x], {}),
        "avg_pool2d": (kernels.avg_pool2d, [x], {}),
        "avg_pool2d backward": (kernels.avg_pool2d_backward, [(1, 8, 8, 32)], {"x_shape": x}),
        "dense": (kernels.dense, [(32, 128), (128, 128), (128,)], {}),
        "dense backward data": (kernels.dense_backward_data, [(32, 128), (128, 128)], {}),
        "dense backward weights": (kernels.dense_backward_weights, [(32, 128), (32, 128)], {}),
        "relu": (kernels.relu, [flat], {}),
        "relu backward": (kernels.relu_backward, [flat, flat], {}),
        "dropout": (kernels.dropout, [flat], {"rate": 0.5, "seed": 1}),
        "softmax": (kernels.softmax, [rows], {}),
        "softmax backward": (kernels.softmax_backward, [rows, rows], {}),
        "softmax_cross_entropy": (kernels.softmax_cross_entropy, [rows, rows], {}),
        "batch_norm": (kernels.batch_norm, [rows, (64,), (64,), (64,), (64,)], {}),
        "batch_norm_training": (kernels.batch_norm_training, [rows, *[(64,)] * 4], {}),
        "batch_norm backward": (kernels.batch_norm_backward, [rows, rows, *[(64,)] * 3], {}),
        "sgd_step": (kernels.sgd_step, [flat, flat, flat], {"learning_rate": 0.1, "momentum": 0.9}),
        "rmsprop_step": (kernels.rmsprop_step, [flat, flat, flat], {"learning_rate": 0.1}),
        "adam_step": (kernels.adam_step, [flat] * 4, {"step": 3, "learning_rate": 0.1}),
    }
    for name in kernels.POINTWISE:
        named[name] = (kernels.activate, [flat], {"name": name})
        named[f"{name} backward"] = (kernels.activate_backward, [flat, flat], {"name": name})
    return named


def least_times(
    function: Callable[..., object],
    shapes: list[tuple[int, ...]],
    keywords: dict,
    rounds: int,
    seconds: float,
) -> dict[str, float]:
    """Seconds of CPU time of a call, by kind of numbers."""
    rng = np.random.default_rng(1)
    arrays = [rng.random(shape, np.float32) + np.float32(0.5) for shape in shapes]
    given = {
        kind: [
            array * np.float32(factors[min(number, 1)] if len(arrays) > 1 else factors[1])
            for number, array in enumerate(arrays)
        ]
        for kind, factors in KINDS.items()
    }
    least = dict.fromkeys(KINDS, float("inf"))
    function(*arrays, **keywords)
    start = time.perf_counter()
    function(*(array.copy() for array in arrays), **keywords)
    times = min(500, max(1, int(seconds / (time.perf_counter() - start))))
    for number in range(rounds):
        order = list(given.items())
        for kind, those in order[number % len(order) :] + order[: number % len(order)]:
            # Steps of optimizers overwrite their arrays; averages of batch normalization, too.
            copies = [[array.copy() for array in those] for _ in range(times)]
            start = time.process_time()
            for copy in copies:
                function(*copy, **keywords)
            least[kind] = min(least[kind], (time.process_time() - start) / times)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.02, help="of a turn")
    options = parser.parse_args()
    pyconv.set_num_threads(1)
    kinds = [kind for kind in KINDS if kind != "ordinary"]
    print("| kernel | path | " + " | ".join(kinds) + " |\n|---|---|" + "--:|" * len(kinds))
    worst = 0.0
    for isa in pyconv.available_isas():
        pyconv.set_isa(isa)
        for name, (function, shapes, keywords) in calls().items():
            with np.errstate(all="ignore"):
                least = least_times(function, shapes, keywords, options.rounds, options.seconds)
            ratios = [least[kind] / least["ordinary"] for kind in kinds]
            worst = max(worst, *ratios)
            print(
                f"| {name} | {isa} | " + " | ".join(f"{r:.2f}" for r in ratios) + " |", flush=True
            )
    print(f"\nThe largest ratio is {worst:.2f}.")


if __name__ == "__main__":
    main()
