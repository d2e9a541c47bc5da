"""The other end of worker.py: starts a contestant's process, asks it, and pauses it in between."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyconv.bench.contestants import CONTESTANTS, Setting, environment

WORKER = Path(__file__).with_name("worker.py")


class ContestantError(RuntimeError):
    """A contestant cannot take part; the message says why."""


class Process:
    """A contestant in a process of its own.

    It is stopped (SIGSTOP) except while it answers: the threads of many libraries spin for a while
    when they have nothing to do, at the cost of whoever's turn it is.

    Args:
        name: a key of `CONTESTANTS`.
        python: the interpreter.
        setting: what it computes on.

    Raises:
        ContestantError: if it cannot do with that setting.
    """

    def __init__(self, name: str, python: str, setting: Setting) -> None:
        try:
            variables = environment(name, setting)
        except ValueError as error:
            raise ContestantError(str(error)) from error
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, as close() closes it
        self._process = subprocess.Popen(
            [python, str(WORKER), name, json.dumps(asdict(setting))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=variables,
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request of worker.py's protocol and returns the answer.

        Raises:
            ContestantError: if it cannot be done, or the process has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._signal(signal.SIGCONT)
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ContestantError(f"its process ended: {self._last_words()}")
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContestantError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"do": "stop"}), file=self._process.stdin, flush=True)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signal(self, number: int) -> None:
        """To the process and to those that it has started: it leads a group of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.wait()}"


def importable(python: str, modules: Iterable[str]) -> set[str]:
    """Which of the modules an interpreter finds.

    Raises:
        ValueError: if there is no such interpreter.
    """
    code = (
        "import importlib.util, sys; del sys.path[0]\n"
        "print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name)))"
    )
    try:
        found = subprocess.run(
            [python, "-c", code, *modules], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{python} is not a Python interpreter: {error}") from error
    return set(found.stdout.split())


def interpreters(names: Sequence[str], peers: Sequence[str]) -> dict[str, str | None]:
    """For each contestant the first interpreter, of `peers` and this one, that has its modules.

    pyconv's is always this one.
    """
    wanted = sorted({module for name in names for module in CONTESTANTS[name].modules})
    found = {python: importable(python, wanted) for python in [*peers, sys.executable]}
    result: dict[str, str | None] = {}
    for name in names:
        modules = set(CONTESTANTS[name].modules)
        result[name] = next((python for python in found if modules <= found[python]), None)
    if "pyconv" in result:
        result["pyconv"] = sys.executable
    return result
