"""pyconv.bench: rounds, ratios, arguments, and the processes that contestants run in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import pyconv
from pyconv.bench import contestants, memory, networks, processes, rounds, training
from pyconv.bench.contestants import Setting
from pyconv.bench.processes import ContestantError, Process

# Rounds and ratios


def test_contestants_take_turns_and_each_round_begins_with_another():
    calls: list[str] = []

    def run(name: str):
        return lambda: (calls.append(name), f"{name}{len(calls)}")[1]

    results = rounds.interleave({name: run(name) for name in "abc"}, rounds=4)
    assert "".join(calls) == "abcbcacababc"
    assert results["b"] == ["b2", "b4", "b9", "b11"]
    assert rounds.interleave({}, rounds=2) == {}


def test_ratio_is_taken_round_by_round():
    # A disturbance that halves the speed of a whole round leaves its ratio alone.
    compared = rounds.ratio([100, 50, 120], [50, 25, 40])
    assert compared == rounds.Ratio(by_round=2, low=2, high=3, of_medians=100 / 40)
    for theirs in ([], [1, 2]):
        with pytest.raises(ValueError, match=f"Received: 3 and {len(theirs)}"):
            rounds.ratio([1, 2, 3], theirs)
    with pytest.raises(ValueError, match="0 and 0"):
        rounds.ratio([], [])


def test_spread_and_the_fastest_peer():
    assert rounds.spread([9, 10, 12]) == pytest.approx(0.3)
    rates = {"pyconv": [9.0], "a": [1, 100, 2], "b": [3.0]}
    assert rounds.fastest(rates, "pyconv") == "b"
    assert rounds.fastest({"pyconv": [1.0]}, "pyconv") is None


# Arguments


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--batch 0", "above 0"),
        ("--batch 1,x", "Received: '1,x'"),
        ("--rounds 0", "positive int"),
        ("--seconds nan", "positive float"),
        ("--threads two", "positive int"),
        ("--contestants pyconv,caffe", "expected some of pyconv, torch"),
        ("--tasks dreaming", "expected some of training, inference"),
        ("--isa mmx", "invalid choice"),
        ("--peers-python /no/such/python", "not a Python interpreter"),
    ],
)
def test_bad_arguments_are_explained(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        training.main(arguments.split())
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


# The same work


def test_weights_are_those_of_the_tutorials_network():
    model = networks.layers(pyconv)
    shapes = [array.shape for array in networks.weights()]
    assert shapes == [array.shape for array in model.get_weights()]
    assert sum(map(np.size, networks.weights())) == model.count_params() == networks.PARAMETERS
    assert pyconv.applications.tutorial_network().count_params() == networks.PARAMETERS


def test_other_work_is_found_out():
    outputs = np.full((2, 10), 0.1)
    training.check_same_work(networks.PARAMETERS, outputs, outputs + 1e-5)
    with pytest.raises(ContestantError, match="has 7 parameters, expected 276,138"):
        training.check_same_work(7, outputs, outputs)
    for wrong in (outputs + 2e-4, np.full_like(outputs, np.nan)):
        with pytest.raises(ContestantError, match="differ by"):
            training.check_same_work(networks.PARAMETERS, wrong, outputs)


@pytest.mark.parametrize("index", range(16))
def test_every_weight_shows_in_the_outputs(index):
    """The check of the outputs would miss a mistake in weights that hardly matter."""
    x, _ = networks.data(16)
    model = networks.layers(pyconv)
    model.set_weights(networks.weights())
    outputs = model.predict_on_batch(x)
    weights = networks.weights()
    # Kernels with their outputs in reverse, biases forgotten.
    weights[index] = weights[index][..., ::-1].copy() if index % 2 == 0 else 0 * weights[index]
    model.set_weights(weights)
    assert np.abs(model.predict_on_batch(x) - outputs).max() > 2 * training.TOLERANCE


# Processes


@pytest.fixture
def process():
    with Process("pyconv", sys.executable, Setting(1)) as started:
        yield started


@pytest.mark.parametrize("task", contestants.TASKS)
def test_a_contestant_prepares_and_runs(process, task):
    prepared = process.ask("prepare", task=task, batch=2)
    assert prepared["mode"] == {"training": "train_on_batch"}.get(task, "predict_on_batch")
    assert prepared["versions"] == {"pyconv": pyconv.__version__}
    assert prepared["candidates"][prepared["mode"]] > 0
    model = networks.layers(pyconv)
    model.set_weights(networks.weights())
    expected = model.predict_on_batch(networks.data(2)[0])
    training.check_same_work(prepared["parameters"], np.asarray(prepared["outputs"]), expected)

    ran = process.ask("run", seconds=0.05)
    assert ran["seconds"] >= 0.05
    assert ran["images"] >= 2 and ran["images"] % 2 == 0
    assert ran["others"] is None or ran["others"] >= 0


def test_requests_that_fail_are_answered_and_survived(process):
    with pytest.raises(ContestantError, match="unknown request 'dance'"):
        process.ask("dance")
    with pytest.raises(ContestantError, match="TypeError"):
        process.ask("prepare", task="training")
    assert process.ask("prepare", task="inference", batch=1)["parameters"] == networks.PARAMETERS


def test_a_process_is_paused_between_requests_and_gone_after():
    with Process("pyconv", sys.executable, Setting(1)) as process:
        process.ask("prepare", task="inference", batch=1)
        status = Path(f"/proc/{process._process.pid}/stat")
        if status.exists():
            deadline = time.monotonic() + 10  # signals take a moment
            while status.read_text().rpartition(")")[2].split()[0] != "T":
                assert time.monotonic() < deadline
    assert process._process.poll() == 0


def test_a_process_that_ends_says_why():
    with Process("pyconv", sys.executable, Setting(1)) as process:
        process._process.kill()
        with pytest.raises(ContestantError, match="its process ended"):
            process.ask("prepare", task="inference", batch=1)


def test_a_peer_that_cannot_be_imported_is_reported():
    if "onnxruntime" in processes.importable(sys.executable, ["onnxruntime"]):
        pytest.skip("onnxruntime is installed")
    assert processes.interpreters(["onnxruntime"], []) == {"onnxruntime": None}
    with (
        Process("onnxruntime", sys.executable, Setting(1)) as process,
        pytest.raises(ContestantError, match="ModuleNotFoundError"),
    ):
        process.ask("prepare", task="inference", batch=1)


def test_limits_to_an_instruction_set():
    assert contestants.environment("torch", Setting(2, "avx2"))["ATEN_CPU_CAPABILITY"] == "avx2"
    assert contestants.environment("pyconv", Setting(2, "avx2"))["PYCONV_FORCE_ISA"] == "avx2"
    assert contestants.environment("pyconv", Setting(2))["OMP_NUM_THREADS"] == "2"
    with pytest.raises(ContestantError, match="nothing limits OpenVINO to avx2"):
        Process("openvino", sys.executable, Setting(1, "avx2"))


def test_the_worker_needs_no_pyconv():
    """What runs in peers' environments must not import the package that it lies in."""
    code = (
        "import runpy, sys; sys.modules['pyconv'] = None\n"
        f"module = runpy.run_path({str(processes.WORKER)!r}, run_name='worker')\n"
        "print(*module['siblings']('contestants', 'memory'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_memory_of_the_tutorials_script():
    measured = memory.tutorial("pyconv", images=40, test_images=10)
    assert 0 < measured["imported"] <= measured["prepared"] <= measured["peak"]


# The command


def test_the_command_reports_what_ran_and_what_is_missing(tmp_path, capsys):
    file = tmp_path / "report.json"
    small = ["--tasks=inference", "--batch=2", "--rounds=2", "--seconds=0.02", "--threads=1"]
    names = "pyconv" if _found("onnxruntime", "onnx") else "onnxruntime,pyconv"
    assert training.main([*small, f"--contestants={names}", f"--json={file}"]) == 0
    printed = capsys.readouterr().out
    report = json.loads(file.read_text())
    assert report["threads"] == 1
    (case,) = report["cases"]
    assert (case["task"], case["batch"], case["fastest_peer"]) == ("inference", 2, None)
    assert len(case["contestants"]["pyconv"]["rates"]) == 2
    if "onnxruntime" in names:
        assert "missing: ONNX Runtime (onnxruntime): no interpreter has onnxruntime" in printed
        assert set(report["missing"]) == {"onnxruntime"}


@pytest.mark.parametrize("name", [name for name in contestants.CONTESTANTS if name != "pyconv"])
def test_peers_that_are_installed_compute_the_same(name, tmp_path, capsys):
    """PYCONV_BENCH_PEERS: interpreters that have them, with colons between."""
    peers = [python for python in os.environ.get("PYCONV_BENCH_PEERS", "").split(":") if python]
    if not processes.interpreters([name], peers)[name]:
        pytest.skip(f"{contestants.CONTESTANTS[name].title} is not installed")
    pythons = [f"--peers-python={python}" for python in peers]
    file = tmp_path / "report.json"
    small = ["--batch=2", "--rounds=1", "--seconds=0.01"]
    both = [f"--contestants={name},pyconv", f"--json={file}"]
    assert training.main([*small, *pythons, *both]) == 0, capsys.readouterr().out
    cases = json.loads(file.read_text())["cases"]
    for case in cases:
        if case["task"] in contestants.CONTESTANTS[name].tasks:
            assert case["fastest_peer"] == name


def _found(*modules: str) -> bool:
    return set(modules) <= processes.importable(sys.executable, modules)
