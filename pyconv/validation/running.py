"""Runs the checks: on every path, against every reference; shrinks what fails; reports."""

from __future__ import annotations

import math
import platform
import shlex
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import pyconv
from pyconv import backend
from pyconv.validation.checks import OPERATIONS, Array, Check, excess
from pyconv.validation.paths import Path
from pyconv.validation.peers import Peer
from pyconv.validation.problems import Draw, Problem, simpler

SCHEMA = 1  # of Report.as_json
FLOAT64 = "float64"
SHRINKING_SECONDS = 10.0  # at most, for each row of the table


@dataclass
class Row:
    """A line of the table: one result of an operation, on one path, against one reference."""

    operation: str
    result: str
    path: Path
    against: str
    cases: int = 0
    error: float = 0.0  # the largest, in units of the bound
    seconds: float = 0.0  # in the kernels

    @property
    def passed(self) -> bool:
        return self.error <= 1


@dataclass
class Failure:
    """The first failing case of a row, and the simplest one that was found to fail like it."""

    row: Row
    problem: Problem | None  # None of ONNX's data, which the explanation names
    error: float
    explanation: str
    shrunk: Problem | None = None

    @property
    def command(self) -> str:
        """Runs the simplest failing case again."""
        command = (
            f"pyconv validate {self.row.path.options} --op {self.row.operation} "
            f"--against {self.row.against}"
        )
        case = self.shrunk or self.problem
        return f"{command} --case {shlex.quote(case.text)}" if case else command


@dataclass
class Report:
    """What came of a run.

    Attributes:
        failures: one for each row that failed.
        skipped: what was not run, and how often.
        seconds: of the whole run.
    """

    failures: list[Failure] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    _rows: dict[tuple[str, str, Path, str], Row] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.failures

    def row(self, operation: str, result: str, path: Path, against: str) -> Row:
        """The row of this name, a new one if there is none."""
        name = (operation, result, path, against)
        if name not in self._rows:
            self._rows[name] = Row(*name)
        return self._rows[name]

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def skip(self, why: str) -> None:
        self.skipped[why] = self.skipped.get(why, 0) + 1

    def as_json(self, options: dict[str, Any]) -> dict[str, Any]:
        """What docs/validation.md describes."""
        return {
            "schema": SCHEMA,
            "pyconv": pyconv.__version__,
            "numpy": np.__version__,
            "machine": f"{platform.system()} {platform.machine()}",
            "threads": backend.get_num_threads(),
            "options": options,
            "passed": self.passed,
            "seconds": round(self.seconds, 3),
            "results": [
                {
                    "operation": row.operation,
                    "pass": row.result,
                    "path": asdict(row.path),
                    "against": row.against,
                    "cases": row.cases,
                    "error": _finite(row.error),
                    "seconds": round(row.seconds, 6),
                    "passed": row.passed,
                }
                for row in self.rows
            ],
            "failures": [
                {
                    "operation": failure.row.operation,
                    "pass": failure.row.result,
                    "path": asdict(failure.row.path),
                    "against": failure.row.against,
                    "error": _finite(failure.error),
                    "explanation": failure.explanation,
                    "case": failure.problem.text if failure.problem else None,
                    "shrunk": failure.shrunk.text if failure.shrunk else None,
                    "command": failure.command,
                }
                for failure in self.failures
            ],
            "skipped": self.skipped,
        }


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


# ----------------------------------------------------------------------------------------- problems


def table(operation: str, seed: int, most: int | None = None) -> list[Problem]:
    """The cases of an operation, half of them with small integers and half with reals; with another
    seed the other half. At most `most`, spread over the table."""
    entry = OPERATIONS[operation]
    cases = entry.cases
    if most is not None and most < len(cases):
        cases = tuple(cases[index * len(cases) // most] for index in range(most))
    kinds = [values for values in entry.values if values in ("integers", "reals")]
    return [
        Problem(operation, case, kinds[(index + seed) % len(kinds)], seed)
        for index, case in enumerate(cases)
    ]


def random(operation: str, count: int, seed: int) -> Iterator[Problem]:
    """So many random cases, the same for the same seed, with all kinds of numbers in turn."""
    entry = OPERATIONS[operation]
    rng = np.random.default_rng([seed, zlib.crc32(operation.encode())])
    for index in range(count):
        yield Problem(
            operation,
            entry.random(rng),
            entry.values[index % len(entry.values)],
            int(rng.integers(2**32)),
        )


# ------------------------------------------------------------------------------------------ running


def checks_of(problem: Problem) -> list[Check]:
    """Raises ValueError if the case is not legal."""
    try:
        return list(OPERATIONS[problem.operation].checks(problem.case, Draw(problem)))
    except (ValueError, TypeError, IndexError, ZeroDivisionError, MemoryError) as error:
        raise ValueError(f"{problem.operation} has no case {problem.text!r}: {error}") from None


@dataclass
class Outcome:
    """How one result of one call compares."""

    result: str
    error: float
    explanation: str
    seconds: float


def _compare(result: str, got: Array, expected: Array, bound: Any, seconds: float) -> Outcome:
    if got.shape != expected.shape:
        text = f"shape {got.shape}, expected {expected.shape}"
        return Outcome(result, math.inf, text, seconds)
    units = excess(got, expected, bound)
    if not units.size:
        return Outcome(result, 0.0, "", seconds)
    where = np.unravel_index(int(np.argmax(units)), units.shape)
    place = ", ".join(str(int(index)) for index in where)
    text = (
        f"{int((units > 1).sum())} of {units.size} elements wrong; at [{place}] "
        f"{got[where]:.9g}, expected {expected[where]:.9g}"
    )
    return Outcome(result, float(units[where]), text, seconds)


def outcomes(check: Check, path: Path, peer: Peer | None = None) -> Iterator[Outcome]:
    """Of one call on the path in use. Against a peer the bound is doubled: both may err by it."""
    expected: Sequence[Any] = check.expected
    factor = 1.0
    if peer is not None:
        theirs = peer.run(check)
        if theirs is None:
            return
        expected, factor = theirs, 2.0
    start = time.perf_counter()
    try:
        results = check.run()
    except Exception as error:  # whatever it is, it is what the kernel did with a legal case
        seconds = time.perf_counter() - start
        text = f"{type(error).__name__}: {error}"
        for name in filter(None, check.passes):
            yield Outcome(name, math.inf, text, seconds)
        return
    seconds = time.perf_counter() - start
    for label, got, wanted, bound in zip(check.passes, results, expected, check.bounds):
        if label is None or wanted is None:
            continue
        allowed = bound(path.arithmetic)
        if allowed is not None:
            yield _compare(label, got, wanted, factor * np.asarray(allowed), seconds)


def _applies(problem: Problem, path: Path) -> bool:
    """Whether the path can differ from the device's plain one, and the numbers have a bound."""
    if OPERATIONS[problem.operation].on_host and path.device != "cpu":
        return False
    if path.arithmetic == "direct":
        return True
    # A NaN spreads over the whole tile of Winograd's algorithm.
    return problem.values != "nan" and OPERATIONS[problem.operation].math_modes(problem.case)


def run(
    todo: Iterable[Problem],
    paths: Sequence[Path],
    against: Sequence[str] = (FLOAT64,),
    peers: Sequence[Peer] = (),
    shrinking: bool = True,
) -> Report:
    """Runs problems on paths.

    Args:
        todo: the problems; a progress bar may be wrapped around them.
        paths: where.
        against: "float64", or nothing to compare with peers only.
        peers: other libraries, which results of each device's first path are compared with.
        shrinking: whether to look for the simplest case that fails.

    Raises:
        ValueError: if a problem is not legal.
    """
    report, start = Report(), time.perf_counter()
    compared = {path.device: path for path in reversed(paths) if path.arithmetic == "direct"}
    for problem in todo:
        checks = checks_of(problem)
        for path in paths:
            if not _applies(problem, path):
                continue
            references: list[Peer | None] = [None] if FLOAT64 in against else []
            if compared.get(path.device) == path and problem.values != "nan":
                references += peers
            with path.active():
                for peer in references:
                    for check in checks:
                        for outcome in outcomes(check, path, peer):
                            _enter(report, problem, path, peer, outcome)
    for failure in report.failures if shrinking else ():
        peer = next((peer for peer in peers if peer.name == failure.row.against), None)
        failure.shrunk = shrink(failure, peer)
    report.seconds = time.perf_counter() - start
    return report


def _enter(
    report: Report, problem: Problem, path: Path, peer: Peer | None, outcome: Outcome
) -> None:
    name = peer.name if peer else FLOAT64
    row = report.row(problem.operation, outcome.result, path, name)
    failed_before = not row.passed
    row.cases += 1
    row.error = max(row.error, outcome.error)
    row.seconds += outcome.seconds
    if not row.passed and not failed_before:
        report.failures.append(Failure(row, problem, outcome.error, outcome.explanation))


# ---------------------------------------------------------------------------------------- shrinking


def shrink(failure: Failure, peer: Peer | None = None) -> Problem | None:
    """The simplest problem found whose same result still fails; None if none is simpler."""
    if failure.problem is None:
        return None
    row, stop = failure.row, time.perf_counter() + SHRINKING_SECONDS

    def fails(problem: Problem) -> bool:
        try:
            checks = checks_of(problem)
        except ValueError:
            return False
        with row.path.active():
            for check in checks:
                if row.result in check.passes:
                    for outcome in outcomes(check, row.path, peer):
                        if outcome.result == row.result and outcome.error > 1:
                            failure.error, failure.explanation = outcome.error, outcome.explanation
                            return True
        return False

    found = simplest(failure.problem, fails, lambda: time.perf_counter() > stop)
    return None if found is failure.problem else found


def simplest(
    problem: Problem, fails: Callable[[Problem], bool], expired: Callable[[], bool]
) -> Problem:
    """Takes each simplification after which it still fails, until there is none left."""
    simplified = True
    while simplified:
        simplified = False
        for candidate in simpler(problem):
            if expired():
                return problem
            if fails(candidate):
                problem, simplified = candidate, True
                break
    return problem
