"""`pyconv validate`: that it passes here, and above all that it can fail."""

from __future__ import annotations

import dataclasses
import json
import shlex

import numpy as np
import pytest

import pyconv
from pyconv import kernels
from pyconv.validation import checks, paths, peers, problems, reference, running
from pyconv.validation.cases import CONV_CASES, ConvCase
from pyconv.validation.checks import OPERATIONS
from pyconv.validation.problems import Problem

pytest.importorskip("click")
from click import testing

from pyconv import _cpu
from pyconv.cli import main

needs_sound_kernels = pytest.mark.skipif(
    hasattr(_cpu, "breaks_a_tap"), reason="this build's kernels are wrong on purpose"
)
DIRECT = ["--device", "cpu", "--math-mode", "direct", "--against", "float64"]


def validate(*arguments: str, status: int = 0) -> str:
    result = testing.CliRunner().invoke(main, ["validate", *arguments])
    assert result.exit_code == status, result.output
    return result.output


def commands(output: str) -> list[list[str]]:
    """The commands that failures print, without the program's name."""
    lines = [line.strip() for line in output.splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith("pyconv validate ")]


# ------------------------------------------------------------------------------------ it must fail


def wrong_tap(monkeypatch) -> None:
    """conv2d leaves out one tap where the kernel is wider than 1 and there are 3 channels or
    more."""
    conv2d = kernels.conv2d

    def broken(x, w, *arguments, **named):
        if w.shape[1] > 1 and x.shape[3] > 2:
            w = w.copy()
            w[0, 1, 0, 0] = 0
        return conv2d(x, w, *arguments, **named)

    monkeypatch.setattr(kernels, "conv2d", broken)


@needs_sound_kernels
def test_a_wrong_tap_is_found_and_made_simple(monkeypatch, tmp_path):
    wrong_tap(monkeypatch)
    isa = pyconv.available_isas()[0]
    file = tmp_path / "results.json"
    options = [*DIRECT, "--isa", isa, "--op", "conv2d", "--cases", "12", "--random", "0"]
    output = validate(*options, "--json", str(file), status=1)
    assert "FAILED: conv2d, forward, on" in output and "1 rows failed" in output

    (command,) = commands(output)
    case = command[command.index("--case") + 1]
    problem = problems.parse("conv2d", ConvCase, case)
    # Nothing simpler fails: one image, one filter, a kernel of one row and two columns.
    assert problem.case.x[0] == 1 and problem.case.x[3] == 3
    assert (problem.case.kernel, problem.case.filters) == ((1, 2), 1)
    assert problem.case.geometry == ConvCase("", (1, 1, 1, 1), (1, 1), 1).geometry
    assert problem.values == "integers" and problem.seed == 0

    assert "FAILED" in validate(*command, status=1)
    monkeypatch.undo()
    assert "FAILED" not in validate(*command)

    written = json.loads(file.read_text())
    (failure,) = written["failures"]
    assert not written["passed"] and shlex.split(failure["command"])[2:] == command
    wrong = [result for result in written["results"] if not result["passed"]]
    assert [(result["operation"], result["pass"]) for result in wrong] == [("conv2d", "forward")]


@pytest.mark.skipif(
    not hasattr(_cpu, "breaks_a_tap"), reason="needs a build with PYCONV_BREAK_A_TAP=ON"
)
def test_a_build_with_a_wrong_tap_is_found():
    """On every instruction set, forward and in the data gradient; the weight gradient is right."""
    output = validate(*DIRECT, "--op", "conv2d", "--cases", "30", "--random", "0", status=1)
    found = commands(output)
    assert len(found) == 2 * len(pyconv.available_isas())
    for command in found:
        case = problems.parse("conv2d", ConvCase, command[command.index("--case") + 1]).case
        assert case.x[0] == 1 and case.kernel[0] == 1 and case.kernel[1] in (2, 3)
        assert "FAILED" in validate(*command, status=1)


def test_a_kernel_that_raises_has_failed(monkeypatch):
    def refuse(x):
        raise RuntimeError("out of order")

    monkeypatch.setattr(kernels, "relu", refuse)
    output = validate(*DIRECT, "--op", "relu", "--cases", "2", "--random", "0", status=1)
    assert "RuntimeError: out of order" in output


@pytest.mark.parametrize(
    "got, expected, bound, units",
    [
        (1.5, 1.0, 1.0, 0.5),
        (3.0, 1.0, 1.0, 2.0),
        (1.0, 1.0, 0.0, 0.0),
        (2.0, 1.0, 0.0, np.inf),
        (np.nan, 1.0, 1.0, np.inf),
        (1.0, np.nan, np.nan, np.inf),
        (np.nan, np.nan, np.nan, 0.0),
        (np.inf, np.inf, np.inf, 0.0),
        (-np.inf, np.inf, np.inf, np.inf),
        (1.0, np.inf, np.inf, np.inf),
    ],
)
def test_errors_in_units_of_the_bound(got, expected, bound, units):
    arrays = np.array([got], np.float32), np.array([expected], np.float64)
    assert checks.excess(*arrays, np.array([bound])) == [units]


# ------------------------------------------------------------------------------------- it must pass


@needs_sound_kernels
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_path_passes(operation, tmp_path):
    """And every path has its row of every result."""
    file = tmp_path / "results.json"
    options = ["--against", "float64", "--cases", "6", "--random", "3", "--seed", "7"]
    output = validate("--op", operation, *options, "--json", str(file))
    assert "all within their bounds" in output
    written = json.loads(file.read_text())
    assert written["passed"] and not written["failures"] and written["options"]["seed"] == 7
    plain = [
        path
        for path in paths.available()
        if path.arithmetic == "direct"
        and (path.device == "cpu" or not OPERATIONS[operation].on_host)
    ]
    for name in {result["pass"] for result in written["results"]}:
        of = [result["path"] for result in written["results"] if result["pass"] == name]
        assert all(dataclasses.asdict(path) in of for path in plain)
    assert all(0 <= result["error"] <= 1 for result in written["results"])
    assert sum(result["cases"] for result in written["results"]) > 0


@needs_sound_kernels
@pytest.mark.parametrize("name", peers.installed())
def test_peers_agree(name):
    options = ["--device", "cpu", "--against", name, "--cases", "8", "--random", "4"]
    assert name in validate(*options)


@needs_sound_kernels
def test_the_conformance_data_of_onnx():
    pytest.importorskip("onnx")
    output = validate("--device", "cpu", "--op", "dense", "--against", "onnx-data", "--cases", "0",
                      "--random", "0")  # fmt: skip
    assert "Gemm" in output and "ONNX's Gemm with what no kernel has" in output


def test_settings_are_as_before():
    before = pyconv.get_device(), pyconv.isa(), pyconv.get_math_mode(), pyconv.get_num_threads()
    for path in paths.available():
        with path.active():
            assert pyconv.get_device() == path.device
            assert pyconv.get_math_mode() == path.math_mode
    after = pyconv.get_device(), pyconv.isa(), pyconv.get_math_mode(), pyconv.get_num_threads()
    assert before == after


# ---------------------------------------------------------------------------------- cases and text


@pytest.mark.parametrize("operation", OPERATIONS)
def test_problems_are_read_as_they_are_written(operation):
    entry = OPERATIONS[operation]
    todo = [*running.table(operation, 1), *running.random(operation, 30, 5)]
    for problem in todo:
        read = problems.parse(operation, type(entry.cases[0]), problem.text)
        named = dataclasses.replace(read, case=dataclasses.replace(read.case, name=""))
        expected = dataclasses.replace(problem.case, name="")
        assert named == dataclasses.replace(problem, case=expected), problem.text


def test_the_same_seed_gives_the_same_cases():
    first, second = (list(running.random("conv2d", 20, 3)) for _ in range(2))
    assert first == second
    assert first != list(running.random("conv2d", 20, 4))
    draws = [problems.Draw(Problem("conv2d", None, "extreme", 3))("x", (5, 7)) for _ in range(2)]
    np.testing.assert_array_equal(*draws)


def test_random_convolutions_are_of_every_kind():
    cases = [problem.case for problem in running.random("conv2d", 300, 0)]
    for case in cases:
        reference.conv_geometry(case.x, case.w, *case.geometry.values())
    assert {case.padding for case in cases} >= {"valid", "same"}
    for is_there in (
        lambda case: case.groups == case.x[3] > 1,
        lambda case: case.groups not in (1, case.x[3]),
        lambda case: reference.pair(case.strides)[0] != reference.pair(case.strides)[1],
        lambda case: max(reference.pair(case.dilation_rate)) > 1,
        lambda case: isinstance(case.padding, tuple) and isinstance(case.padding[0], tuple),
        lambda case: case.x[3] % 2 and case.filters % 2,
        checks.is_plain,
    ):
        assert any(map(is_there, cases))


def test_shrinking_takes_what_still_fails_and_nothing_else():
    start = Problem("conv2d", CONV_CASES[0], "reals", 9)

    def fails(problem):
        return problem.case.x[1] >= 5 and problem.case.filters >= 3

    found = running.simplest(start, fails, lambda: False)
    assert (found.case.x, found.case.filters, found.case.kernel) == ((1, 5, 1, 1), 3, (1, 1))
    assert running.simplest(start, lambda problem: False, lambda: False) == start
    assert running.simplest(start, fails, lambda: True) == start


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--op", "conv3d"], "--op: expected one of conv2d, "),
        (["--case", "x=1,4,4,3"], "--case needs one --op"),
        (["--json", "nowhere/results.json"], "--json: there is no folder"),
        (["--op", "conv2d", "--case", "x=1,4,4,3"], "also needs kernel, filters"),
        (["--op", "conv2d", "--case", "size=4"], "words like x=1,4,4,3"),
        (["--op", "dense", "--case", "batch=2 batch=2"], "given twice"),
        (["--op", "dense", "--case", "batch=two inputs=1 units=1"], "has no case"),
        (["--op", "relu", "--case", "x=4,y"], "expected numbers"),
        (["--op", "relu", "--case", "x=4 values=complex"], "values: expected one of integers"),
        (["--op", "relu", "--case", "x=4 seed=-1"], "seed: expected an integer"),
        (["--op", "conv2d", "--case", "x=1,2,2,3 kernel=3,3 filters=1"], "does not fit"),
        (["--isa", "mmx"], "--isa: this machine has"),
        (["--device", "cpu", "--math-mode", "tf32"], "no path of this machine is left"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments, message):
    usage = ("expected one of conv2d", "needs one", "no folder")
    status = 2 if any(text in message for text in usage) else 1
    assert message in validate(*arguments, status=status)


def test_help_names_every_option():
    output = validate("--help")
    for option in ("--device", "--isa", "--op", "--against", "--random", "--case", "--json"):
        assert option in output


def test_operations_are_completed(monkeypatch):
    monkeypatch.setenv("COMP_WORDS", "pyconv validate --op conv2d_")
    monkeypatch.setenv("COMP_CWORD", "3")
    options = {"prog_name": "pyconv", "env": {"_PYCONV_COMPLETE": "bash_complete"}}
    result = testing.CliRunner().invoke(main, [], **options)
    expected = ["plain,conv2d_pool", "plain,conv2d_pool_backward_through"]
    assert result.output.split() == expected
