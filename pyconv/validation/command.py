"""`pyconv validate`: chooses what to run, shows how far it is, prints the table."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import click

from pyconv.saving import atomic_write
from pyconv.validation import conformance, paths, peers, problems, running
from pyconv.validation.checks import OPERATIONS
from pyconv.validation.problems import Problem
from pyconv.validation.running import FLOAT64, Report, Row

ONNX_DATA = "onnx-data"


def validate(
    *,
    device: str,
    isas: Sequence[str],
    architectures: Sequence[str],
    math_modes: Sequence[str],
    operations: Sequence[str],
    against: Sequence[str],
    cases: int | None,
    count: int,
    seed: int,
    given: str | None,
    output: FilePath | None,
) -> bool:
    """Runs and reports; the arguments are the options. Returns whether all is within its bounds.

    Raises:
        click.UsageError, ValueError, RuntimeError, ImportError: for options that do not go
            together, and what this machine has not got.
    """
    for name in operations:
        if name not in OPERATIONS:
            raise click.UsageError(
                f"--op: expected one of {', '.join(OPERATIONS)}. Received: {name!r}."
            )
    if output is not None and not output.absolute().parent.is_dir():
        raise click.UsageError(f"--json: there is no folder {output.absolute().parent}.")
    chosen = list(dict.fromkeys(operations)) or list(OPERATIONS)
    todo: list[Problem] = []
    if given is not None:
        if len(chosen) != 1:
            raise click.UsageError("--case needs one --op, the operation that the case is of.")
        kind = type(OPERATIONS[chosen[0]].cases[0])
        todo.append(problems.parse(chosen[0], kind, given))
        running.checks_of(todo[0])
    else:
        for name in chosen:
            todo += running.table(name, seed, cases)
            todo += running.random(name, count, seed)

    where = paths.available(device, isas, architectures, math_modes)
    references = _references(against, given is not None)
    loaded = [peers.load(name) for name in references if name in peers.NAMES]
    names = dict.fromkeys(path.name for path in where)
    click.echo(f"Paths: {', '.join(names)}. Against: {', '.join(references)}.")

    if ONNX_DATA in references and not importlib.util.find_spec("onnx"):
        raise ImportError("--against onnx-data: onnx is not installed. pip install 'pyconv[onnx]'")
    report = running.run(_progress(todo), where, references, loaded, shrinking=given is None)
    if ONNX_DATA in references:
        conformance.run(report, where, chosen)
    _print_table(report)
    if output is not None:
        options = {
            "device": device,
            "isa": list(isas),
            "arch": list(architectures),
            "math_mode": list(math_modes),
            "op": chosen,
            "against": references,
            "cases": cases,
            "random": count,
            "seed": seed,
            "case": given,
        }
        text = json.dumps(report.as_json(options), indent=1) + "\n"
        atomic_write(output, text.encode())
        click.echo(f"Wrote {output}")
    return report.passed


def _references(against: Sequence[str], one_case: bool) -> list[str]:
    """Names without "installed", each once."""
    found = [name for name in against if name != "installed"]
    if "installed" in against:
        found += [FLOAT64, *peers.installed()]
        if importlib.util.find_spec("onnx") and not one_case:
            found.append(ONNX_DATA)
    return list(dict.fromkeys(found))


def _progress(todo: list[Problem]) -> Any:
    from tqdm import tqdm

    return tqdm(todo, desc="validate", unit="case", leave=False, disable=None, file=sys.stderr)


def _print_table(report: Report) -> None:
    titles = ("operation", "pass", "path", "against", "cases", "error", "seconds", "")
    lines = [titles, *map(_cells, report.rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(titles))]
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:4], widths[:4])]
        right = [cell.rjust(width) for cell, width in zip(line[4:7], widths[4:7])]
        click.echo("  ".join([*left, *right, line[7]]).rstrip())
    for failure in report.failures:
        row = failure.row
        click.echo(
            f"\nFAILED: {row.operation}, {row.result}, on {row.path.name} against {row.against}: "
            f"{_units(failure.error)} times the bound, {failure.explanation}"
        )
        if failure.problem is not None:
            click.echo(f"  first with: {failure.problem.text}")
        click.echo(f"  {failure.command}")
    for why, times in report.skipped.items():
        click.echo(f"Not run: {why} ({times})")
    cases = sum(row.cases for row in report.rows)
    click.echo(
        f"\n{cases:,} comparisons in {report.seconds:.1f} s: "
        + (
            f"{len(report.failures)} rows failed."
            if report.failures
            else "all within their bounds."
        )
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.operation,
        row.result,
        row.path.name,
        row.against,
        f"{row.cases:,}",
        _units(row.error),
        f"{row.seconds:.2f}",
        "ok" if row.passed else "FAILED",
    )


def _units(error: float) -> str:
    return f"{error:.3f}" if error < 1000 else f"{error:.1e}"
