"""The program `pyconv` with any arguments."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

import click
import numpy as np
from click.testing import CliRunner
from file_contents import _BASES, _FOLDER, _changed_safetensors
from source import Source

from pyconv import cli, plotting

# A line that begins like this is of an exception that nobody has thought of.
_UNEXPECTED = re.compile(r"^Error: \w+(Error|Exception): ", re.MULTILINE)


def _few() -> Any:
    """A data set of a few images, small enough for the network to be trained on it."""
    x = np.arange(12 * 32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(12, 32, 32, 3)
    y = (np.arange(12) % 10).astype(np.uint8)[:, None]
    return (x, y), (x[:5], y[:5])


_VALUES = ["1", "2", "0", "-1", "", "x", "1e9", "nan", "9" * 30, "--help", "-h", "\udcff", "é", " "]
_VALUES += ["cpu", "cuda", "auto", "cuda-emulated", "avx2", "conv2d", "direct", "float64", "80"]
_VALUES += ["shapes", "cifar10", "mnist", "x=1,4,4,3 kernel=3,3", "x=1,4,4", "="]


def _arguments(s: Source, command: click.Command) -> list[str]:
    """Arguments and options, mostly those that there are, with any values."""
    paths = [str(_FOLDER / name) for name in ("cli.safetensors", "missing", "out.onnx", "run")]
    paths += [str(_FOLDER), str(_FOLDER / "o.weights.h5"), "/dev/null", "/dev/full/x", "\udcff"]
    given: list[str] = []
    for parameter in command.params:
        value = s.pick(paths) if isinstance(parameter.type, click.Path) else s.pick(_VALUES)
        if isinstance(parameter.type, click.Choice) and s.flag():
            value = s.pick([str(choice) for choice in parameter.type.choices])
        if isinstance(parameter, click.Argument):
            given += [value] if not s.flag(8) else []
        elif s.flag(3):
            name = s.pick(parameter.opts)
            given += [name] if getattr(parameter, "is_flag", False) else [name, value]
    if s.flag(8):
        given.insert(s.below(len(given) + 1), s.pick([*_VALUES, "--unknown", "-"]))
    return given


def run_commands(data: bytes) -> None:
    """`pyconv`: every command; those that measure or compare kernels are only parsed, and mostly
    the one that trains."""
    s = Source(data)
    (_FOLDER / "cli.safetensors").write_bytes(
        _BASES.get("model") if s.flag() else _changed_safetensors(s, _BASES.get("model"), "pyconv")
    )
    name = s.pick([*cli.main.commands, "summary", "predict", "export", "evaluate", "unknown"])
    command = cli.main.commands.get(name)
    arguments = _arguments(s, command) if command else [s.pick(_VALUES)]
    if name in ("bench", "validate") or (name == "train" and not s.flag(16)):
        try:
            assert command is not None
            with contextlib.redirect_stdout(io.StringIO()):
                command.make_context(name, arguments)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            pass
        return
    if name == "train":
        # Options that come twice count as they come last.
        arguments += ["--epochs", "1", "--threads", "1", "--output", str(_FOLDER / "run")]
    # Lest the number of threads be what the arguments say.
    elif "--threads" in arguments:
        arguments += ["--threads", "1"]
    before = dict(cli.LOADERS), plotting.plot_history
    cli.LOADERS.update({name: _few for name in cli.LOADERS})
    plotting.plot_history = lambda *_: None
    try:
        result = CliRunner().invoke(cli.main, [name, *arguments])
    finally:
        cli.LOADERS.update(before[0])
        plotting.plot_history = before[1]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if found := _UNEXPECTED.search(result.output):
        raise AssertionError(f"pyconv {name} {arguments}: {result.output[found.start() :]}")
