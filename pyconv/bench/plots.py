"""The picture of a report: its kernels under the roofline, and how pyconv compares with peers."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyconv.bench.contestants import CONTESTANTS, KERNELS
from pyconv.plotting import _figure, _written

MARKERS = {"conv": "o", "dense": "s"}


def draw(report: Mapping[str, Any], path: str | os.PathLike[str]) -> Any:
    """Writes a PNG file.

    At the left are the kernels that do arithmetic, GFLOP/s against operations a byte, below the
    machine's ceilings; at the right, how many times as fast as each peer pyconv is: of kernels the
    geometric mean of each pass, of networks the median of the rounds.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the report has neither.
        OSError: the file cannot be written.
    """
    points = [case for case in report["cases"] if case["task"] == KERNELS and case["flops"]]
    bars = ratios(report)
    if not points and not bars:
        raise ValueError("a picture needs kernels that do arithmetic, or peers to compare with")
    columns = bool(points) + bool(bars)
    height = max(4.5, 1.2 + 0.22 * sum(map(len, bars.values())))
    figure = _figure(6.5 * columns, height)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    if points:
        _roofline(axes.pop(0), points, report)
    if bars:
        _bars(axes.pop(0), bars)
    return _written(figure, path)


def ratios(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By what was done, and by peer: how many times as fast as it pyconv is."""
    found: dict[str, dict[str, list[float]]] = {}
    for case in report["cases"]:
        label = f"{case['network']} {case['task']}, batch {case['batch']}"
        if case["task"] == KERNELS:
            label = f"{case['kind']} {case['pass']}"
        for peer, row in case["contestants"].items():
            if "ratio" in row:
                of_peer = found.setdefault(label, {}).setdefault(peer, [])
                of_peer.append(row["ratio"]["by_round"])
    return {
        label: {peer: statistics.geometric_mean(values) for peer, values in peers.items()}
        for label, peers in found.items()
    }


def _roofline(axes: Any, points: list[dict[str, Any]], report: Mapping[str, Any]) -> None:
    intensities = [case["intensity"] for case in points]
    x = np.geomspace(min(intensities) / 2, max(intensities) * 2, 100)
    # The median over all rows, each of which has ceilings of its own rounds.
    bandwidth = statistics.median(case["ceilings"]["bytes"] for case in points) / 1e9
    titles = {"flops": "float32", "tensor_flops": "tensor cores, TF32"}
    for name, style in (("flops", "-"), ("tensor_flops", "--")):
        values = [case["ceilings"][name] for case in points]
        if None not in values:
            peak = statistics.median(values) / 1e9
            label = f"{titles[name]}: {peak:,.0f} GFLOP/s, {bandwidth:,.0f} GB/s"
            at = np.sort([*x, np.clip(peak / bandwidth, x[0], x[-1])])  # with the ridge
            axes.plot(at, np.minimum(peak, at * bandwidth), style, color="#455a64", label=label)
    for index, name in enumerate(dict.fromkeys(case["pass"] for case in points)):
        for kind, marker in MARKERS.items():
            own = [case for case in points if (case["pass"], case["kind"]) == (name, kind)]
            axes.plot(
                [case["intensity"] for case in own],
                [case["gflops"] for case in own],
                marker,
                color=f"C{index}",
                alpha=0.7,
                label=f"{kind} {name}" if own else None,
            )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
    axes.set_title(f"{report['machine']['gpu'] or report['machine']['processor']}", fontsize=9)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)


def _bars(axes: Any, bars: Mapping[str, Mapping[str, float]]) -> None:
    peers = list(dict.fromkeys(peer for row in bars.values() for peer in row))
    heights = []
    place = 0.0
    for row in bars.values():
        heights.append(place + (len(row) - 1) / 2)
        for peer in (peer for peer in peers if peer in row):
            # From 1 on, so that a slower pyconv shows as a bar to the left.
            drawn = axes.barh(place, row[peer] - 1, left=1, color=f"C{peers.index(peer)}")
            axes.bar_label(drawn, [f"{row[peer]:.2f}"], padding=2, fontsize=7)
            place += 1
        place += 0.7
    for index, peer in enumerate(peers):
        axes.barh(0, 0, left=1, color=f"C{index}", label=CONTESTANTS[peer].title)
    axes.axvline(1, color="#455a64", linewidth=1)
    axes.set_yticks(heights, bars, fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="times as fast as the peer")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}" if _decades(bars) < 1.5 else "")
    axes.tick_params(axis="x", which="both", labelsize=7)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _decades(bars: Mapping[str, Mapping[str, float]]) -> float:
    values = [1.0, *(value for row in bars.values() for value in row.values())]
    return math.log10(max(values) / min(values))
