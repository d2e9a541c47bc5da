"""Contestants in turns: one runs, the others are paused, and other processes are watched."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from pyconv.bench.contestants import CONTESTANTS, OURS
from pyconv.bench.processes import Process
from pyconv.bench.rounds import interleave, ratio, spread
from pyconv.bench.worker import busy_seconds

NOISY = 0.05  # share of the processors that other processes may take without a warning


def take_turns(
    processes: Mapping[str, Process],
    rounds: int,
    seconds: float,
    patience: float,
    beside: Mapping[str, Callable[[], dict[str, Any]]] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Lets contestants run in turn what they have prepared; returns the answers of each.

    Args:
        processes: the contestants.
        rounds, seconds: how many turns each has, and how long one lasts at least.
        patience: for so many seconds, turns wait until other processes take no more than NOISY of
            the processors, and are repeated if that changes meanwhile.
        beside: what else has a turn in every round.
    """
    deadline = time.monotonic() + patience
    runs: dict[str, Callable[[], dict[str, Any]]] = dict(beside or {})
    for name, process in processes.items():
        runs[name] = partial(take_turn, process, seconds, deadline)
    turns = interleave(runs, rounds)
    progress("")
    return turns


def rates_of(turns: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """The images/s of every turn."""
    return {name: [turn["images"] / turn["seconds"] for turn in turns[name]] for name in turns}


def summaries(turns: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What a contestant's turns say: "rates" (images/s), their "median" and "spread", "others" and,
    of whoever is compared with pyconv, "ratio"."""
    rates = rates_of(turns)
    result: dict[str, dict[str, Any]] = {}
    for name, own in rates.items():
        others = [turn["others"] for turn in turns[name] if turn["others"] is not None]
        result[name] = {
            "rates": own,
            "median": statistics.median(own),
            "spread": spread(own),
            "others": statistics.median(others) if others else None,
        }
        if OURS in rates and name != OURS:
            result[name]["ratio"] = asdict(ratio(rates[OURS], own))
    return result


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


def progress(text: str) -> None:
    """Shows what is going on, in a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
