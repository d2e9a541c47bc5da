"""What a run has found, as JSON, and what has changed since another run."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyconv
from pyconv.bench.contestants import CUDA, OURS
from pyconv.bench.turns import NOISY

FORMAT = 1
NOISY_SPREAD = 0.2  # (slowest - fastest round) / median that may be without a warning
LEAST_ROUNDS = 5  # by which runs are compared
LEAST_CHANGE = 0.05  # of the median, that counts as one
Report = dict[str, Any]


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


def new(settings: Mapping[str, Any]) -> Report:
    """A report without cases. docs/benchmarks.md describes all that is in it.

    Args:
        settings: what, besides the machine, times depend on.
    """
    return {
        "format": FORMAT,
        "date": datetime.date.today().isoformat(),
        "pyconv": pyconv.__version__,
        "python": platform.python_version(),
        "machine": {
            "processor": machine(),
            "processors": os.cpu_count(),
            "gpu": gpu() if settings["device"] == CUDA else None,
        },
        "settings": dict(settings),
        "cases": [],
    }


def title(report: Report) -> str:
    """What was measured on what, in a line."""
    settings = report["settings"]
    parts = [f"pyconv {report['pyconv']} ({settings['isa']})", report["machine"]["processor"]]
    if settings["device"] == CUDA:
        arithmetic = "TF32" if settings["tf32"] else "float32"
        parts[1:1] = [report["machine"]["gpu"], arithmetic]
    if settings.get("bfloat16"):  # which older reports do not have
        parts[1:1] = ["mixed_bfloat16"]
    return ", ".join([*parts, f"{settings['threads']} threads"])


def load(path: Path) -> Report:
    """Reads a report.

    Raises:
        ValueError: if it is none, or of another format.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no report of pyconv bench: {error}") from error
    found = report.get("format") if isinstance(report, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path}: expected a report of pyconv bench of format {FORMAT}. Received: format "
            f"{found!r}. Measure again with --json."
        )
    return dict(report)


def key(case: Mapping[str, Any]) -> str:
    """What tells a case from others, for people as well."""
    parts = [case[part] for part in ("network", "layer", "pass") if part in case]
    return f"{case['task']} {' '.join([*parts, 'batch', str(case['batch'])])}"


# Noise


def noise(report: Report) -> dict[str, Any]:
    """How quiet the machine was.

    Returns:
        "spread", the largest of pyconv's, and "others", the largest share of the processors that
        other processes took during anybody's turns; "noisy", the cases with more than NOISY_SPREAD
        or NOISY.
    """
    noisy, spreads, shares = [], [0.0], [0.0]
    for case in report["cases"]:
        rows = case["contestants"]
        spreads.append(rows[OURS]["spread"] if OURS in rows else 0.0)
        shares.append(max((row["others"] or 0.0 for row in rows.values()), default=0.0))
        if spreads[-1] > NOISY_SPREAD or shares[-1] > NOISY:
            noisy.append(key(case))
    return {"spread": max(spreads), "others": max(shares), "noisy": noisy}


def warning(found: Mapping[str, Any], cases: int) -> str:
    """What to say of that noise; empty if it was quiet."""
    if not found["noisy"]:
        return ""
    return (
        f"Warning: the machine was noisy in {len(found['noisy'])} of {cases} cases: spreads up to "
        f"{found['spread']:.0%} (limit {NOISY_SPREAD:.0%}), other processes took up to "
        f"{found['others']:.0%} of the processors (limit {NOISY:.0%}). Repeat this on a quiet "
        "machine, or with --patience."
    )


# Comparison with another run


def differences(old: Report, new: Report) -> list[str]:
    """Why times of two reports say nothing about the code between them; empty if they do."""
    before, after = ({**report["machine"], **report["settings"]} for report in (old, new))
    for values in (before, after):
        values.setdefault("bfloat16", False)  # reports from before it could be had
        for name in ("rounds", "patience"):  # on which times do not depend
            values.pop(name, None)
    # How long a turn lasts, of the tasks that both have.
    lengths, others = before.pop("seconds"), after.pop("seconds")
    for task in lengths.keys() & others.keys():
        before[f"seconds of {task}"], after[f"seconds of {task}"] = lengths[task], others[task]
    return [
        f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def change(old: Sequence[float], new: Sequence[float]) -> str | None:
    """Whether rates are "slower" or "faster" beyond noise; None if neither.

    They are if all rounds of one run are on the same side of all rounds of the other, and the
    medians differ by more than LEAST_CHANGE. Without a change, n and n rounds would be so by chance
    with probability 2 / C(2n, n): 1 in 126 for 5, 1 in 1,716 for 7.

    Raises:
        ValueError: if either has fewer than LEAST_ROUNDS.
    """
    if min(len(old), len(new)) < LEAST_ROUNDS:
        raise ValueError(
            f"expected at least {LEAST_ROUNDS} rounds of both runs, since fewer do not show what "
            f"is noise. Received: {len(old)} and {len(new)}"
        )
    ratio = statistics.median(new) / statistics.median(old)
    if max(new) < min(old) and ratio < 1 - LEAST_CHANGE:
        return "slower"
    if min(new) > max(old) and ratio > 1 + LEAST_CHANGE:
        return "faster"
    return None


def changes(old: Report, new: Report) -> dict[str, dict[str, Any]]:
    """pyconv's cases that both reports have.

    Returns:
        By `key`: "change" as `change` says, or "noisy" where other processes took more than NOISY
        of the processors in either run, and "ratio", of the new median rate to the old one.

    Raises:
        ValueError: if they have none in common that can be judged, or one has too few rounds.
    """
    before, after = (
        {
            key(case): case["contestants"][OURS]
            for case in report["cases"]
            if OURS in case["contestants"]
        }
        for report in (old, new)
    )
    found = {}
    for name in (name for name in after if name in before):
        rows = before[name], after[name]
        busy = any((row["others"] or 0.0) > NOISY for row in rows)
        found[name] = {
            "change": "noisy" if busy else change(*(row["rates"] for row in rows)),
            "ratio": rows[1]["median"] / rows[0]["median"],
        }
    if not found:
        raise ValueError("the two reports have no case in common")
    if all(row["change"] == "noisy" for row in found.values()):
        raise ValueError(
            f"other processes took more than {NOISY:.0%} of the processors in one run or the other "
            "during every case, so that nothing can be compared. Repeat it on a quiet machine, or "
            "with --patience"
        )
    return found


def print_changes(old: Report, new: Report) -> bool:
    """Prints what has changed beyond noise; returns whether something became slower."""
    found = changes(old, new)
    counts = Counter(row["change"] for row in found.values())
    print(f"\nCompared with pyconv {old['pyconv']}, {len(found)} cases:")
    for name, row in found.items():
        if row["change"]:
            print(f"  {row['change']:8}{row['ratio']:6.2f} x  {name}")
    print(
        f"{counts['slower']} slower, {counts['faster']} faster, {counts[None]} within noise or "
        f"{LEAST_CHANGE:.0%}, {counts['noisy']} not judged, as other processes were busy; "
        f"{len(old['cases']) - len(found)} only in the old report, "
        f"{len(new['cases']) - len(found)} only in the new one"
    )
    return counts["slower"] > 0
