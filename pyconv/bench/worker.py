"""The process that a contestant runs in: `python worker.py CONTESTANT SETTING`, in JSON.

The interpreter may be another one, without pyconv, so this file is run by its path. It reads
requests, one JSON object a line, and answers each with one line:

    {"do": "prepare", "network": "tutorial", "task": "training", "batch": 256}
        -> {"mode": ..., "candidates": {mode: images/s}, "parameters": ..., "outputs": [[...], ...],
            "versions": {...}}
    {"do": "prepare_kernel", "layer": {...}, "name": "forward", "batch": 256, "seconds": 0.1}
        -> {"mode": ..., "candidates": {mode: images/s}, "digest": ..., "versions": {...}}
        or {"left_out": why it has no such kernel}
    {"do": "run", "seconds": 1.0}
        -> {"images": ..., "seconds": ..., "others": the share of the processors that other
            processes took, or null if that is unknown}; of a kernel "images" is one batch and
            "seconds" the median time of a call
    {"do": "ceilings"}                                      -> see ceilings.py
    {"do": "memory", "images": 50000, "test_images": 10000} -> see memory.py
    {"do": "stop"}                                          -> nothing: the process ends

and {"error": "..."} to what cannot be done.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

TRIALS, TRIAL = 3, 0.3  # how often a mode may show that it is the fastest, and for how many seconds
CHECKED = 16  # images whose outputs are compared
TICKS = 20  # of the kernel's clock that a turn must hold to see what others took, to 1 / TICKS
CHUNK = 32  # training steps before the weights are initial again


def siblings(*names: str) -> list[types.ModuleType]:
    """Modules beside this file, as a package of their own: pyconv itself may not be installed."""
    package = types.ModuleType("pyconv_bench")
    package.__path__ = [str(Path(__file__).resolve().parent)]
    sys.modules.setdefault(package.__name__, package)
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def limit_threads(threads: int) -> None:
    """Leaves the process no more processors than threads: not every library has a setting."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[:threads])


def seconds_of(run: Callable[[int], Any], count: int) -> float:
    start = time.perf_counter()
    run(count)
    return time.perf_counter() - start


def measure(mode: Any, seconds: float) -> tuple[int, float]:
    """Runs a mode for at least so many seconds; returns how often, and the seconds it took.

    The weights are initial at the start and after every CHUNK steps, so that however many steps a
    contestant has made, all measure the same network, and none that has learnt its few images.
    """
    mode.reset()
    once = seconds_of(mode.run, 1)  # not counted: the caches are somebody else's
    count, total = 0, 0.0
    while total < seconds:
        steps = min(CHUNK, max(1, math.ceil((seconds - total) / once)))
        mode.reset()
        total += seconds_of(mode.run, steps)
        count += steps
        once = total / count
    return count, total


def turn_of(mode: Any, batch: int) -> Callable[[float], tuple[int, float]]:
    def turn(seconds: float) -> tuple[int, float]:
        count, taken = measure(mode, seconds)
        return count * batch, taken

    return turn


def turn_of_kernel(call: Any, batch: int) -> Callable[[float], tuple[int, float]]:
    return lambda seconds: (batch, call.seconds(seconds))


def ticks_a_second() -> int:
    return os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float | None:
    """What all processes have had of the processors, and the hypervisor has withheld, so far."""
    try:
        fields = [
            int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        ]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    return float(user + nice + system + irq + softirq + steal) / ticks_a_second()


def own_seconds() -> float:
    times = os.times()
    return times.user + times.system


class Worker:
    """Answers requests for one contestant."""

    def __init__(self, name: str, setting: dict[str, Any]) -> None:
        self.contestants, self.memory, self.ceilings, self.operations, self.networks = siblings(
            "contestants", "memory", "ceilings", "operations", "networks"
        )
        self.name, self.setting = name, self.contestants.Setting(**setting)
        self.contestant = self.contestants.CONTESTANTS[name]
        # Works for at least so many seconds; returns how many images, and the seconds they took.
        self.turn: Callable[[float], tuple[int, float]] | None = None

    def prepare(self, network: str, task: str, batch: int) -> dict[str, Any]:
        self.turn, best = None, {}
        candidates: dict[str, float] = {}
        which = self.networks.NETWORKS[network]
        for mode in self.contestant.modes(which, task, batch, self.setting):
            mode.reset()  # modes may share a network
            outputs = mode.outputs()[:CHECKED].tolist()
            for _ in range(2):  # compiled at the first call, settled at the second
                mode.run(1)
            # The best of several: on a busy machine a single one may pick the wrong mode.
            measured = [measure(mode, TRIAL) for _ in range(TRIALS)]
            candidates[mode.name] = max(count * batch / seconds for count, seconds in measured)
            if candidates[mode.name] == max(candidates.values()):
                self.turn = turn_of(mode, batch)
                best = {"mode": mode.name, "parameters": mode.parameters, "outputs": outputs}
        return {**best, "candidates": candidates, "versions": self.contestant.versions()}

    def prepare_kernel(
        self, layer: dict[str, Any], name: str, batch: int, seconds: float
    ) -> dict[str, Any]:
        self.turn, best = None, {}
        candidates: dict[str, float] = {}
        what = self.operations.Layer(**layer)
        try:
            for call in self.contestant.kernels(what, name, batch, self.setting):
                digest = self.operations.digest(call)
                call.seconds(0)
                candidates[call.name] = batch / call.seconds(seconds)
                if candidates[call.name] == max(candidates.values()):
                    self.turn = turn_of_kernel(call, batch)
                    best = {"mode": call.name, "digest": digest}
        except self.operations.NotOffered as error:
            return {"left_out": str(error)}
        return {**best, "candidates": candidates, "versions": self.contestant.versions()}

    def run(self, seconds: float) -> dict[str, Any]:
        if self.turn is None:
            raise ValueError("nothing is prepared")
        busy, own, start = busy_seconds(), own_seconds(), time.perf_counter()
        images, taken = self.turn(seconds)
        elapsed, own = time.perf_counter() - start, own_seconds() - own
        others, available = None, elapsed * (os.cpu_count() or 1)
        after = busy_seconds()
        if busy is not None and after is not None and available >= TICKS / ticks_a_second():
            others = min(1.0, max(0.0, after - busy - own) / available)  # ticks are coarse
        return {"images": images, "seconds": taken, "others": others}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        what = request.pop("do")
        if what == "prepare":
            return self.prepare(**request)
        if what == "prepare_kernel":
            return self.prepare_kernel(**request)
        if what == "run":
            return self.run(**request)
        answer: dict[str, Any]
        if what == "ceilings":
            answer = self.ceilings.measure(self.setting.threads, self.setting.device, **request)
            return answer
        if what == "memory":
            answer = self.memory.tutorial(self.name, **request)
            return answer
        raise ValueError(f"unknown request {what!r}")


def main() -> None:
    os.setpgid(0, 0)  # so that it can be paused with whatever it starts
    # What libraries print goes to stderr; the answers have the real stdout for themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    name, setting = sys.argv[1], json.loads(sys.argv[2])
    limit_threads(setting["threads"])
    del sys.path[0]  # this folder, whose names are nobody else's business
    worker = Worker(name, setting)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "stop":
            break
        try:
            answer = worker.answer(request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".split("\n", 1)[0]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
