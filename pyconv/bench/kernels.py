"""Single kernels, pass by pass, beside other frameworks and below the machine's ceilings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pyconv.bench.contestants import CONTESTANTS, KERNELS, OURS
from pyconv.bench.operations import Layer
from pyconv.bench.processes import ContestantError, Process
from pyconv.bench.tables import Table
from pyconv.bench.turns import progress, summaries, take_turns

TOLERANCE = 1e-3  # of the sums of the results' absolute values
TF32_TOLERANCE = 1e-2  # the same, factors rounded to 10 bits
CEILINGS = "ceilings"  # has a turn in every round


def measure_ceilings(process: Process, rounds: int) -> dict[str, float | None]:
    """The medians of what the machine can do, by pyconv's process."""
    progress("measuring the machine's ceilings")
    answers = [process.ask("ceilings") for _ in range(rounds)]
    progress("")
    return _medians(answers)


def _medians(answers: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    return {
        name: None if value is None else statistics.median(answer[name] for answer in answers)
        for name, value in answers[0].items()
    }


def describe_ceilings(ceilings: Mapping[str, Any]) -> str:
    """The machine's ceilings in a line."""
    tensor = ceilings["tensor_flops"]
    return (
        f"ceilings: multiply-adds {ceilings['flops'] / 1e9:,.1f} GFLOP/s, "
        + (f"on tensor cores {tensor / 1e9:,.1f} GFLOP/s, " if tensor else "")
        + f"memory {ceilings['bytes'] / 1e9:,.1f} GB/s"
    )


def measure(
    network: str,
    layer: Layer,
    name: str,
    batch: int,
    processes: Mapping[str, Process],
    rounds: int,
    seconds: float,
    missing: dict[str, str],
    patience: float = 0.0,
    tf32: bool = False,
) -> dict[str, Any]:
    """One row: prepares a pass in every process, checks the results, and takes turns.

    Args:
        network, layer, name, batch: what; `name` is the pass's.
        processes: by contestant; pyconv's first.
        rounds, seconds, patience: as for `take_turns`.
        missing: gets the contestants that failed, and why.
        tf32: whether tensor cores are the ceiling, with factors rounded to TF32.

    Raises:
        ContestantError: if pyconv fails.
    """
    prepared: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    reference: float | None = None
    task = {"layer": asdict(layer), "name": name, "batch": batch, "seconds": seconds}
    for contestant, process in processes.items():
        progress(f"{network} {layer.name} {name}: preparing {CONTESTANTS[contestant].title}")
        try:
            answer = process.ask("prepare_kernel", **task)
            if "left_out" in answer:
                left_out[contestant] = answer["left_out"]
                continue
            reference = answer["digest"] if contestant == OURS else reference
            check_digest(answer["digest"], reference, TF32_TOLERANCE if tf32 else TOLERANCE)
        except ContestantError as error:
            if contestant == OURS:
                raise
            missing[contestant] = left_out[contestant] = f"{layer.name} {name}: {error}"
            continue
        prepared[contestant] = answer
    turns = take_turns(
        {contestant: processes[contestant] for contestant in prepared},
        rounds,
        seconds,
        patience,
        {CEILINGS: lambda: processes[OURS].ask("ceilings")},
    )
    ceilings = _medians(turns.pop(CEILINGS))
    for contestant, summary in summaries(turns).items():
        prepared[contestant].update(summary)
    return {
        "task": KERNELS,
        "network": network,
        "layer": layer.name,
        "kind": "dense" if layer.is_dense else layer.kind,
        "pass": name,
        "batch": batch,
        "flops": layer.flops(batch),
        "bytes": layer.bytes(name, batch),
        "ceilings": ceilings,
        **shares(
            layer.flops(batch),
            layer.bytes(name, batch),
            batch / prepared[OURS]["median"],
            (ceilings["tensor_flops"] if tf32 else None) or ceilings["flops"] or math.nan,
            ceilings["bytes"] or math.nan,
        ),
        "contestants": prepared,
        "left_out": left_out,
    }


def check_digest(digest: float | None, reference: float | None, tolerance: float) -> None:
    """Raises ContestantError unless the sums agree; None is of what cannot be compared."""
    if digest is None or reference is None:
        return
    if not abs(digest - reference) <= tolerance * abs(reference):
        raise ContestantError(
            f"the absolute values of its results add up to {digest:.6g}, pyconv's to "
            f"{reference:.6g}"
        )


def shares(
    flops: float, traffic: float, seconds: float, peak: float, bandwidth: float
) -> dict[str, float]:
    """A pass under the roofline (S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful
    visual performance model for multicore architectures", CACM 52 (2009)).

    Args:
        flops, traffic, seconds: operations, bytes and time of a call.
        peak, bandwidth: the ceilings, in operations and bytes a second.

    Returns:
        "seconds", "gflops", "intensity" in operations a byte; "of_peak", the share of the peak, and
        "roofline", of what peak or bandwidth allow at that intensity, whichever is lower.
    """
    return {
        "seconds": seconds,
        "gflops": flops / seconds / 1e9,
        "intensity": flops / traffic,
        "of_peak": flops / seconds / peak,
        "roofline": max(flops / peak, traffic / bandwidth) / seconds,
    }


def table(peers: Sequence[str]) -> Table:
    """Has a column for each peer, with how many times as fast as it pyconv is."""
    return Table(
        ("layer", -12),
        ("pass", -9),
        ("ms", 9),
        ("spread", 8),
        ("GFLOP/s", 9),
        ("of peak", 9),
        ("MB", 9),
        ("FLOP/byte", 11),
        ("of roofline", 13),
        *((peer, max(9, len(peer) + 2)) for peer in peers),
    )


def cells(row: Mapping[str, Any], peers: Sequence[str]) -> list[str]:
    """A row of `table`."""
    counted = row["flops"] > 0
    ratios = [row["contestants"].get(peer, {}).get("ratio") for peer in peers]
    return [
        row["layer"],
        row["pass"],
        f"{1e3 * row['seconds']:.3f}",
        f"{row['contestants'][OURS]['spread']:.0%}",
        f"{row['gflops']:.1f}" if counted else "-",
        f"{row['of_peak']:.1%}" if counted else "-",
        f"{row['bytes'] / 1e6:.3f}",
        f"{row['intensity']:.1f}" if counted else "-",
        f"{row['roofline']:.1%}",
        *(f"{ratio['by_round']:.2f}" if ratio else "-" for ratio in ratios),
    ]


def speedups(rows: Sequence[Mapping[str, Any]], peers: Sequence[str]) -> list[str]:
    """A line a peer about how many times as fast as it pyconv is."""
    lines = []
    for peer in peers:
        compared = [
            (row["contestants"][peer]["ratio"]["by_round"], f"{row['layer']} {row['pass']}")
            for row in rows
            if peer in row["contestants"]
        ]
        if compared:
            mean = statistics.geometric_mean(ratio for ratio, _ in compared)
            least, case = min(compared)
            lines.append(
                f"speed-ups over {CONTESTANTS[peer].title}: geometric mean {mean:.2f}, least "
                f"{least:.2f} ({case}), {len(compared)} cases"
            )
    return lines
