"""The command: images/s of training and inference, memory, and pyconv's scaling."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import pyconv
from pyconv.bench import memory, networks
from pyconv.bench.contestants import CONTESTANTS, CPU, CUDA, DEVICES, TASKS, TRAINING, Setting
from pyconv.bench.processes import ContestantError, Process, interpreters
from pyconv.bench.rounds import fastest, interleave, ratio, spread
from pyconv.bench.worker import busy_seconds

TOLERANCE = 1e-4  # of probabilities, under the same weights
TF32_TOLERANCE = 1e-2  # the same, factors rounded to 10 bits
NOISY = 0.05  # share of the processors that other processes may take without a warning
SWEEP = tuple(2**exponent for exponent in range(11))
IMAGES, TEST_IMAGES = 50_000, 10_000  # as many as CIFAR-10 has

OURS = "pyconv"


def compare(
    task: str,
    batch: int,
    processes: dict[str, Process],
    rounds: int,
    seconds: float,
    missing: dict[str, str],
    patience: float = 0.0,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Prepares a task in every process, checks that they compute the same, and takes turns.

    Args:
        task: TRAINING or INFERENCE.
        batch: images in a step.
        processes: by contestant; pyconv's first, if it is there.
        rounds, seconds: how many turns each has, and how long one lasts at least.
        missing: gets the contestants that cannot take part, and why.
        patience: for so many seconds, turns wait until other processes take no more than NOISY of
            the processors, and are repeated if that changes meanwhile.
        tolerance: by how much probabilities may differ.

    Returns:
        What `print_comparison` prints, as plain values.
    """
    prepared: dict[str, dict[str, Any]] = {}
    reference: Any = None
    for name, process in processes.items():
        if task not in CONTESTANTS[name].tasks:
            continue
        progress(f"{task}, batch {batch}: preparing {CONTESTANTS[name].title}")
        try:
            answer = process.ask("prepare", task=task, batch=batch)
            outputs = np.asarray(answer.pop("outputs"))
            reference = outputs if reference is None else reference
            check_same_work(answer["parameters"], outputs, reference, tolerance)
        except ContestantError as error:
            missing[name] = str(error)
            continue
        prepared[name] = answer

    turns = take_turns({name: processes[name] for name in prepared}, rounds, seconds, patience)
    rates = rates_of(turns)
    rival = fastest(rates, OURS) if OURS in rates else None
    for name, answer in prepared.items():
        others = [turn["others"] for turn in turns[name] if turn["others"] is not None]
        answer["rates"] = rates[name]
        answer["median"] = statistics.median(rates[name])
        answer["spread"] = spread(rates[name])
        answer["others"] = statistics.median(others) if others else None
        if OURS in rates and name != OURS:
            answer["ratio"] = asdict(ratio(rates[OURS], rates[name]))
    return {"task": task, "batch": batch, "fastest_peer": rival, "contestants": prepared}


def take_turns(
    processes: dict[str, Process], rounds: int, seconds: float, patience: float
) -> dict[str, list[dict[str, Any]]]:
    """Lets contestants run in turn, as `compare` says; returns the answers of each."""
    deadline = time.monotonic() + patience
    turns = interleave(
        {name: partial(take_turn, processes[name], seconds, deadline) for name in processes}, rounds
    )
    progress("")
    return turns


def rates_of(turns: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """The images/s of every turn."""
    return {name: [turn["images"] / turn["seconds"] for turn in turns[name]] for name in turns}


def take_turn(process: Process, seconds: float, deadline: float) -> dict[str, Any]:
    """Lets a contestant run; until the deadline, only while other processes leave it alone."""
    progress(f"{CONTESTANTS[process.name].title} runs")
    while True:
        wait_until_quiet(deadline)
        answer = process.ask("run", seconds=seconds)
        if (answer["others"] or 0.0) <= NOISY or time.monotonic() >= deadline:
            return answer


def wait_until_quiet(deadline: float) -> None:
    """Returns when other processes leave the machine alone, or at the deadline."""
    interval = 0.5
    while time.monotonic() < deadline:
        before = busy_seconds()
        time.sleep(interval)
        after = busy_seconds()
        if before is None or after is None:
            return
        if after - before <= NOISY * interval * (os.cpu_count() or 1):
            return


def check_same_work(
    parameters: int, outputs: Any, reference: Any, tolerance: float = TOLERANCE
) -> None:
    """Raises ContestantError unless it is the same network that computes the same."""
    if parameters != networks.PARAMETERS:
        raise ContestantError(f"has {parameters:,} parameters, expected {networks.PARAMETERS:,}")
    difference = float(np.abs(outputs - reference).max())
    if not difference <= tolerance:
        raise ContestantError(f"its probabilities differ by {difference:.1e} from the others'")


def print_comparison(case: dict[str, Any]) -> None:
    """Prints a table of one task and batch size."""
    print(f"\n{case['task']}, batch {case['batch']}")
    print(
        f"{'contestant':22}{'mode':25}{'images/s':>10}{'ms':>9}{'spread':>8}{'others':>8}"
        f"{'pyconv is':>11}"
    )
    for name, row in case["contestants"].items():
        others = "-" if row["others"] is None else f"{row['others']:.0%}"
        times = f"{row['ratio']['by_round']:.2f} x" if "ratio" in row else ""
        print(
            f"{CONTESTANTS[name].title:22}{row['mode']:25}{row['median']:10,.1f}"
            f"{1e3 * case['batch'] / row['median']:9.3f}{row['spread']:8.0%}{others:>8}{times:>11}"
        )
    if case["fastest_peer"]:
        peer = case["contestants"][case["fastest_peer"]]["ratio"]
        print(
            f"pyconv is {peer['by_round']:.2f} times as fast as the fastest peer, "
            f"{CONTESTANTS[case['fastest_peer']].title} (median of the rounds, which range from "
            f"{peer['low']:.2f} to {peer['high']:.2f}; ratio of the medians "
            f"{peer['of_medians']:.2f})"
        )
    shares = [row["others"] or 0.0 for row in case["contestants"].values()]
    if max(shares, default=0.0) > NOISY:
        print(
            f"Warning: other processes took up to {max(shares):.0%} of the processors during a "
            "contestant's turns. Repeat this on a quiet machine."
        )


def sweep(
    rounds: int, seconds: float, setting: Setting, patience: float = 0.0
) -> list[dict[str, Any]]:
    """Prints pyconv's images/s against the batch size, on one thread and on all of them."""
    rows = []
    threads = setting.threads
    counts = [1, threads] if threads > 1 else [1]
    with contextlib.ExitStack() as stack:
        processes = {
            str(count): stack.enter_context(
                Process(OURS, sys.executable, replace(setting, threads=count))
            )
            for count in counts
        }
        for task in TASKS:
            print(f"\n{task}, pyconv\n{'batch':>6}{'1 thread':>12}", end="")
            print(f"{threads:>4} threads{'speed-up':>10}" if threads > 1 else "")
            for batch in SWEEP:
                for process in processes.values():
                    process.ask("prepare", task=task, batch=batch)
                rates = rates_of(take_turns(processes, rounds, seconds, patience))
                row: dict[str, Any] = {"task": task, "batch": batch, "rates": rates}
                line = f"{batch:6}{statistics.median(rates['1']):12,.1f}"
                if threads > 1:
                    all_threads = rates[str(threads)]
                    row["speedup"] = asdict(ratio(all_threads, rates["1"]))
                    line += f"{statistics.median(all_threads):12,.1f}"
                    line += f"{row['speedup']['by_round']:10.2f}"
                print(line, flush=True)
                rows.append(row)
    return rows


def measure_memory(
    pythons: dict[str, str | None], setting: Setting, images: int, test_images: int
) -> dict[str, dict[str, int]]:
    """Prints the peak memory of the tutorial's script in a fresh process of each contestant."""
    results: dict[str, dict[str, int]] = {}
    megabytes = (images + test_images) * int(np.prod(networks.IMAGE)) * 4 / 2**20
    print(
        f"\npeak resident memory (MiB) of the tutorial's script, one epoch on {images:,} and "
        f"{test_images:,} images\n(as float32 {megabytes:,.0f} MiB)"
    )
    print(f"{'contestant':22}{'imported':>10}{'data made':>11}{'end':>9}")
    for name in memory.CONTESTANTS:
        python = pythons.get(name)
        if python is None:
            continue
        progress(f"memory: {CONTESTANTS[name].title}")
        with Process(name, python, setting) as process:
            row = process.ask("memory", images=images, test_images=test_images)
        progress("")
        results[name] = row
        imported, prepared, end = (row[key] / 2**20 for key in ("imported", "prepared", "peak"))
        print(f"{CONTESTANTS[name].title:22}{imported:10,.0f}{prepared:11,.0f}{end:9,.0f}")
    if len(results) == 2:
        ours, theirs = (results[name]["peak"] for name in memory.CONTESTANTS)
        print(f"pyconv needs {ours / theirs:.2f} of it")
    return results


def machine() -> str:
    """The processor, in words."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu() -> str:
    """The CUDA device, in words."""
    module = pyconv.backend.cuda_module()
    if module is None or pyconv.backend.cuda_unavailable_reason():
        return "no CUDA device"
    return str(module.devices()[0]["name"])


def progress(text: str) -> None:
    """Shows what is going on, in a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _list_of(kind: Callable[[str], Any], known: Sequence[Any] | None = None) -> Any:
    """An argparse type: values with commas between them."""

    def parse(text: str) -> list[Any]:
        try:
            values = [kind(part) for part in text.split(",")]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}. Received: {text!r}") from error
        unknown = [value for value in values if known is not None and value not in known]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(known or ())}. Received: {text!r}"
            )
        return list(dict.fromkeys(values))

    return parse


def _positive(kind: type[int] | type[float]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if value > 0:
            return value
        raise ValueError(f"expected {kind.__name__} above 0")

    parse.__name__ = f"positive {kind.__name__}"  # argparse's messages say it
    return parse


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        description="Times training and inference of the tutorial's network beside other "
        "frameworks, each in a process of its own, in turns."
    )
    add = result.add_argument
    add("--tasks", type=_list_of(str, TASKS), help=f"default: {','.join(TASKS)}")
    add(
        "--batch",
        type=_list_of(_positive(int)),
        metavar="N,...",
        help="batch sizes; default: 256, for inference also 1",
    )
    add("--threads", type=_positive(int), metavar="N", help="default: all that pyconv would use")
    add("--rounds", type=_positive(int), default=7, metavar="N", help="default: 7")
    add(
        "--seconds",
        type=_positive(float),
        default=1.0,
        metavar="S",
        help="of a contestant's turn in a round, at least; default: 1",
    )
    add(
        "--patience",
        type=_positive(float),
        default=0.0,
        metavar="S",
        help="for so many seconds a table (--sweep: a row), wait for a quiet machine before each "
        "turn, and repeat turns that other processes disturb; default: 0",
    )
    add(
        "--contestants",
        type=_list_of(str, tuple(CONTESTANTS)),
        default=list(CONTESTANTS),
        metavar="A,...",
        help=f"default: {','.join(CONTESTANTS)}",
    )
    add(
        "--peers-python",
        action="append",
        default=[],
        metavar="PATH",
        help="an interpreter that has peers; may be repeated. The first one that has what a "
        "contestant needs runs it; the last resort is this one",
    )
    add("--device", choices=DEVICES, default=CPU, help="default: cpu")
    add("--tf32", action="store_true", help="with cuda, on tensor cores, factors rounded to TF32")
    add("--isa", choices=("avx2",), help="limit pyconv and its peers to that instruction set")
    add("--memory", action="store_true", help="peak memory of the tutorial's script")
    add("--sweep", action="store_true", help="pyconv against the batch size and the threads")
    add("--json", type=Path, metavar="FILE", help="write all rounds there as well")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 1 if a contestant that was found failed."""
    command = parser()
    options = command.parse_args(arguments)
    if options.device == CUDA and (reason := pyconv.backend.cuda_unavailable_reason()):
        command.error(f"--device cuda cannot be used: {reason}")
    if options.tf32 and options.device != CUDA:
        command.error("--tf32: only with --device cuda")
    tasks = options.tasks or ([] if options.memory or options.sweep else list(TASKS))
    threads = options.threads or pyconv.get_num_threads()
    names = [
        name
        for name in sorted(options.contestants, key=lambda name: name != OURS)
        if set(tasks) & set(CONTESTANTS[name].tasks)
        or (options.memory and name in memory.CONTESTANTS)
    ]
    try:
        pythons = interpreters(names, options.peers_python)
    except ValueError as error:
        command.error(f"--peers-python: {error}")
    missing = {
        name: f"no interpreter has {' and '.join(CONTESTANTS[name].modules)}"
        for name in names
        if pythons[name] is None
    }
    absent = set(missing)

    isa = options.isa or pyconv.isa()
    # Where that is the best there is anyway, nobody needs a limit, which some do not know.
    limit = None if options.isa == pyconv.available_isas()[0] else options.isa
    setting = Setting(threads, limit, options.device, options.tf32)
    device = f"{gpu()}, {'TF32' if options.tf32 else 'float32'}, " * (options.device == CUDA)
    print(f"pyconv {pyconv.__version__} ({isa}), {device}{machine()}, {threads} threads")
    report: dict[str, Any] = {
        "machine": {"processor": machine(), "processors": os.cpu_count(), "isa": isa},
        "python": platform.python_version(),
        "threads": threads,
        "limited_to": options.isa,
        "device": options.device,
        "tf32": options.tf32,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "cases": [],
    }
    if tasks:
        with contextlib.ExitStack() as stack:
            processes: dict[str, Process] = {}
            for name, python in pythons.items():
                if python is None or not set(tasks) & set(CONTESTANTS[name].tasks):
                    continue
                try:
                    process = Process(name, python, setting)
                except ContestantError as error:
                    missing[name] = str(error)
                    absent.add(name)
                    continue
                processes[name] = stack.enter_context(process)
            for task in tasks:
                for batch in options.batch or ([256] if task == TRAINING else [256, 1]):
                    case = compare(
                        task,
                        batch,
                        processes,
                        options.rounds,
                        options.seconds,
                        missing,
                        options.patience,
                        TF32_TOLERANCE if options.tf32 else TOLERANCE,
                    )
                    print_comparison(case)
                    sys.stdout.flush()
                    report["cases"].append(case)
        _print_versions(report["cases"])
    if options.sweep:
        report["sweep"] = sweep(options.rounds, options.seconds, setting, options.patience)
    if options.memory:
        report["memory"] = measure_memory(pythons, setting, IMAGES, TEST_IMAGES)
    report["missing"] = missing
    for name, reason in missing.items():
        print(f"missing: {CONTESTANTS[name].title} ({name}): {reason}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(set(missing) - absent))


def _print_versions(cases: list[dict[str, Any]]) -> None:
    versions: dict[str, str] = {}
    for case in cases:
        for row in case["contestants"].values():
            versions.update(row["versions"])
    print("\n" + ", ".join(f"{name} {number}" for name, number in sorted(versions.items())))
