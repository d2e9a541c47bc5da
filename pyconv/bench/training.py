"""Whole networks: images/s of training and inference, memory, and pyconv's scaling."""

from __future__ import annotations

import contextlib
import statistics
import sys
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pyconv.bench import memory, networks
from pyconv.bench.contestants import CONTESTANTS, OURS, TASKS, Setting
from pyconv.bench.processes import ContestantError, Process
from pyconv.bench.rounds import fastest, ratio
from pyconv.bench.tables import Table
from pyconv.bench.turns import progress, rates_of, summaries, take_turns

TOLERANCE = 1e-4  # of probabilities, under the same weights
TF32_TOLERANCE = 1e-2  # the same, factors rounded to 10 bits
BFLOAT16_TOLERANCE = 5e-2  # the same, and all results, to 7 bits
SWEEP = tuple(2**exponent for exponent in range(11))
IMAGES, TEST_IMAGES = 50_000, 10_000  # as many as CIFAR-10 has
TABLE = Table(
    ("contestant", -22),
    ("mode", -25),
    ("images/s", 10),
    ("ms", 9),
    ("spread", 8),
    ("others", 8),
    ("pyconv is", 11),
)


def compare(
    network: str,
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
        network: of `networks.NETWORKS`.
        task: TRAINING or INFERENCE.
        batch: images in a step.
        processes: by contestant; pyconv's first, if it is there.
        rounds, seconds, patience: as for `take_turns`.
        missing: gets the contestants that cannot take part, and why.
        tolerance: by how much probabilities may differ.

    Returns:
        What `print_comparison` prints, as plain values.
    """
    prepared: dict[str, dict[str, Any]] = {}
    reference: Any = None
    for name, process in processes.items():
        if task not in CONTESTANTS[name].tasks:
            continue
        progress(f"{network} {task}, batch {batch}: preparing {CONTESTANTS[name].title}")
        try:
            answer = process.ask("prepare", network=network, task=task, batch=batch)
            outputs = np.asarray(answer.pop("outputs"))
            reference = outputs if reference is None else reference
            expected = networks.NETWORKS[network].parameters
            check_same_work(answer["parameters"], expected, outputs, reference, tolerance)
        except ContestantError as error:
            missing[name] = str(error)
            continue
        prepared[name] = answer

    turns = take_turns({name: processes[name] for name in prepared}, rounds, seconds, patience)
    for name, summary in summaries(turns).items():
        prepared[name].update(summary)
    rival = fastest(rates_of(turns), OURS) if OURS in prepared else None
    return {
        "network": network,
        "task": task,
        "batch": batch,
        "fastest_peer": rival,
        "contestants": prepared,
    }


def check_same_work(
    parameters: int, expected: int, outputs: Any, reference: Any, tolerance: float = TOLERANCE
) -> None:
    """Raises ContestantError unless it is the same network that computes the same."""
    if parameters != expected:
        raise ContestantError(f"has {parameters:,} parameters, expected {expected:,}")
    difference = float(np.abs(outputs - reference).max())
    if not difference <= tolerance:
        raise ContestantError(f"its probabilities differ by {difference:.1e} from the others'")


def cells(case: dict[str, Any], name: str) -> list[str]:
    """A contestant's row of TABLE."""
    row = case["contestants"][name]
    return [
        CONTESTANTS[name].title,
        row["mode"],
        f"{row['median']:,.1f}",
        f"{1e3 * case['batch'] / row['median']:.3f}",
        f"{row['spread']:.0%}",
        "-" if row["others"] is None else f"{row['others']:.0%}",
        f"{row['ratio']['by_round']:.2f} x" if "ratio" in row else "",
    ]


def verdict(case: dict[str, Any]) -> str:
    """pyconv and its fastest peer, in words; empty if it has none."""
    if not case["fastest_peer"]:
        return ""
    peer = case["contestants"][case["fastest_peer"]]["ratio"]
    return (
        f"pyconv is {peer['by_round']:.2f} times as fast as the fastest peer, "
        f"{CONTESTANTS[case['fastest_peer']].title} (median of the rounds, which range from "
        f"{peer['low']:.2f} to {peer['high']:.2f}; ratio of the medians {peer['of_medians']:.2f})"
    )


def print_comparison(case: dict[str, Any]) -> None:
    """Prints a table of one task and batch size."""
    print(f"\n{case['network']}: {case['task']}, batch {case['batch']}")
    print(TABLE.header())
    for name in case["contestants"]:
        print(TABLE.line(cells(case, name)))
    print(verdict(case), end="\n" if case["fastest_peer"] else "")
    sys.stdout.flush()


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
                    process.ask("prepare", network="tutorial", task=task, batch=batch)
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
    megabytes = (images + test_images) * int(np.prod(networks.TUTORIAL.image)) * 4 / 2**20
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
