"""Rounds in which contestants take turns, and what they say."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


def interleave(runs: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Calls every function once a round, in turn; returns what each has returned.

    Every round begins with another one, so that nobody always follows the same neighbour's caches
    and temperature.
    """
    names = list(runs)
    results: dict[str, list[T]] = {name: [] for name in names}
    for index in range(rounds):
        first = index % len(names) if names else 0
        for name in names[first:] + names[:first]:
            results[name].append(runs[name]())
    return results


def spread(values: Sequence[float]) -> float:
    """The largest less the smallest value, in units of the median."""
    return (max(values) - min(values)) / statistics.median(values)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one contestant is as another.

    Attributes:
        by_round: the median of the rounds' ratios, which what slows a whole round down cancels in.
        low, high: the smallest and the largest of the rounds' ratios.
        of_medians: the ratio of the medians.
    """

    by_round: float
    low: float
    high: float
    of_medians: float


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Compares rates of the same rounds.

    Raises:
        ValueError: if their numbers differ, or there are none.
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"expected as many rates of both. Received: {len(ours)} and {len(theirs)}")
    ratios = [a / b for a, b in zip(ours, theirs)]
    of_medians = statistics.median(ours) / statistics.median(theirs)
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), of_medians)


def fastest(rates: Mapping[str, Sequence[float]], ours: str) -> str | None:
    """The other contestant whose median rate is the highest; None if there is no other."""
    others = [name for name in rates if name != ours]
    return max(others, key=lambda name: statistics.median(rates[name]), default=None)
