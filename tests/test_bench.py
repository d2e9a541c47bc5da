"""pyconv.bench: rounds, ratios, kernels, reports, the command, and contestants' processes."""

from __future__ import annotations

import copy
import json
import math
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import pyconv
from pyconv.bench import (
    ceilings,
    contestants,
    kernels,
    memory,
    networks,
    operations,
    processes,
    report,
    rounds,
    tables,
    training,
    worker,
)
from pyconv.bench.command import bench
from pyconv.bench.contestants import CONTESTANTS, KERNELS, Setting
from pyconv.bench.operations import NETWORKS, Call, Layer
from pyconv.bench.processes import ContestantError, Process

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


def run(*arguments: str) -> int:
    """The command's exit status."""
    with pytest.raises(SystemExit) as exit:
        bench(arguments)
    assert isinstance(exit.value.code, int)
    return exit.value.code


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
        ("juggling", "'juggling' is not one of 'kernels', 'training', 'inference'"),
        ("--batch 0", "above 0"),
        ("--batch 1,x", "Received: '1,x'"),
        ("--rounds 0", "x>=1"),
        ("--seconds 0", "x>0"),
        ("--threads two", "not a valid integer"),
        ("--contestants pyconv,caffe", "expected some of pyconv, torch"),
        ("--contestants torch kernels", "must have pyconv"),
        ("--peers caffe", "expected some of torch, keras-tensorflow"),
        ("--peers none,torch", "stand alone"),
        ("--network alexnet", "expected some of tutorial, lenet"),
        ("training --network resnet50", "training: of --network tutorial, lenet, vgg16-32"),
        ("--layers c1,c99", "expected some of adam, c1, c2"),
        ("--isa mmx", "'mmx' is not one of"),
        ("--device cuda-emulated", "'cuda-emulated' is not one of 'cpu', 'cuda'"),
        ("--tf32", "only with --device cuda"),
        ("kernels --bfloat16", "with training, inference and --sweep only"),
        ("--peers-python /no/such/python", "not a Python interpreter"),
        ("--compare /no/such/report.json", "does not exist"),
        ("--plot /no/such/folder/a.png", "there is no folder /no/such/folder"),
    ],
)
def test_bad_arguments_are_explained(arguments, message, capsys):
    assert run(*arguments.split()) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "script, given, expected",
    [
        ("training", "", "training inference"),
        ("training", "--tasks training --batch 64", "training --batch 64"),
        ("training", "--rounds 3 --tasks=inference,training", "--rounds 3 inference training"),
        ("training", "--sweep --threads 2", "--sweep --threads 2"),
        ("kernels", "--network lenet --least 0.1", "kernels --network lenet --seconds 0.1"),
        (
            "kernels",
            "--memory=2 --torch-python x --no-torch",
            "kernels --max-memory=2 --peers-python x --peers=none",
        ),
    ],
)
def test_the_scripts_call_the_command(script, given, expected):
    module = runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="script")
    assert module["arguments"](given.split()) == expected.split()


def test_lists_are_completed_behind_their_last_comma():
    (option,) = (parameter for parameter in bench.params if parameter.name == "networks")
    completed = option.type.shell_complete(None, option, "lenet,vgg16-2")
    assert [item.value for item in completed] == ["lenet,vgg16-224"]


# The same work


def test_weights_are_those_of_the_tutorials_network():
    model = networks.TUTORIAL.layers(pyconv)
    shapes = [array.shape for array in networks.TUTORIAL.weights()]
    assert shapes == [array.shape for array in model.get_weights()]
    assert (
        sum(map(np.size, networks.TUTORIAL.weights()))
        == model.count_params()
        == networks.TUTORIAL.parameters
    )
    assert pyconv.applications.tutorial_network().count_params() == networks.TUTORIAL.parameters


@pytest.mark.parametrize("name", ["tutorial", "lenet", "vgg16-32"])
def test_a_network_is_the_same_to_everybody(name):
    """pyconv's layers beside the ONNX model that inference engines are given."""
    network = networks.NETWORKS[name]
    model = network.layers(pyconv)
    assert [array.shape for array in network.weights()] == [w.shape for w in model.get_weights()]
    assert model.count_params() == network.parameters
    onnxruntime = pytest.importorskip("onnxruntime")
    model.set_weights(network.weights())
    x, y = network.data(3)
    assert y.shape == (3, network.classes)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        contestants.onnx_model(network, 3).SerializeToString(), options
    )
    expected = session.run(None, {"x": contestants._images_first(network, 3)})[0]
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(model.predict_on_batch(x), expected, atol=training.TOLERANCE)


def test_other_work_is_found_out():
    outputs = np.full((2, 10), 0.1)
    training.check_same_work(276_138, 276_138, outputs, outputs + 1e-5)
    with pytest.raises(ContestantError, match="has 7 parameters, expected 276,138"):
        training.check_same_work(7, 276_138, outputs, outputs)
    for wrong in (outputs + 2e-4, np.full_like(outputs, np.nan)):
        with pytest.raises(ContestantError, match="differ by"):
            training.check_same_work(276_138, 276_138, wrong, outputs)


@pytest.mark.parametrize("index", range(16))
def test_every_weight_shows_in_the_outputs(index):
    """The check of the outputs would miss a mistake in weights that hardly matter."""
    x, _ = networks.TUTORIAL.data(16)
    model = networks.TUTORIAL.layers(pyconv)
    model.set_weights(networks.TUTORIAL.weights())
    outputs = model.predict_on_batch(x)
    weights = networks.TUTORIAL.weights()
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
    prepared = process.ask("prepare", network="tutorial", task=task, batch=2)
    assert prepared["mode"] == {"training": "train_on_batch"}.get(task, "predict_on_batch")
    assert prepared["versions"] == {"pyconv": pyconv.__version__}
    assert prepared["candidates"][prepared["mode"]] > 0
    model = networks.TUTORIAL.layers(pyconv)
    model.set_weights(networks.TUTORIAL.weights())
    expected = model.predict_on_batch(networks.TUTORIAL.data(2)[0])
    training.check_same_work(
        prepared["parameters"], 276_138, np.asarray(prepared["outputs"]), expected
    )

    ran = process.ask("run", seconds=0.05)
    assert ran["seconds"] >= 0.05
    assert ran["images"] >= 2 and ran["images"] % 2 == 0
    assert ran["others"] is None or ran["others"] >= 0


def test_requests_that_fail_are_answered_and_survived(process):
    with pytest.raises(ContestantError, match="unknown request 'dance'"):
        process.ask("dance")
    with pytest.raises(ContestantError, match="TypeError"):
        process.ask("prepare", network="tutorial", task="training")
    assert (
        process.ask("prepare", network="tutorial", task="inference", batch=1)["parameters"]
        == networks.TUTORIAL.parameters
    )


def test_a_process_is_paused_between_requests_and_gone_after():
    with Process("pyconv", sys.executable, Setting(1)) as process:
        process.ask("prepare", network="tutorial", task="inference", batch=1)
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
            process.ask("prepare", network="tutorial", task="inference", batch=1)


def test_a_peer_that_cannot_be_imported_is_reported():
    if "onnxruntime" in processes.importable(sys.executable, ["onnxruntime"]):
        pytest.skip("onnxruntime is installed")
    assert processes.interpreters(["onnxruntime"], []) == {"onnxruntime": None}
    with (
        Process("onnxruntime", sys.executable, Setting(1)) as process,
        pytest.raises(ContestantError, match="ModuleNotFoundError"),
    ):
        process.ask("prepare", network="tutorial", task="inference", batch=1)


def test_limits_to_an_instruction_set():
    assert contestants.environment("torch", Setting(2, "avx2"))["ATEN_CPU_CAPABILITY"] == "avx2"
    assert contestants.environment("pyconv", Setting(2, "avx2"))["PYCONV_FORCE_ISA"] == "avx2"
    assert contestants.environment("pyconv", Setting(2))["OMP_NUM_THREADS"] == "2"
    assert contestants.environment("pyconv", Setting(1, "portable"))["PYCONV_FORCE_ISA"]
    with pytest.raises(ContestantError, match="nothing limits PyTorch to portable"):
        Process("torch", sys.executable, Setting(1, "portable"))
    with pytest.raises(ContestantError, match="nothing limits OpenVINO to avx2"):
        Process("openvino", sys.executable, Setting(1, "avx2"))
    with pytest.raises(ContestantError, match="ONNX Runtime has no bfloat16 mode"):
        Process("onnxruntime", sys.executable, Setting(1, bfloat16=True))


def test_the_worker_needs_no_pyconv():
    """What runs in peers' environments must not import the package that it lies in."""
    code = (
        "import runpy, sys; sys.modules['pyconv'] = None\n"
        f"module = runpy.run_path({str(processes.WORKER)!r}, run_name='worker')\n"
        "print(*module['siblings']('contestants', 'memory', 'ceilings', 'operations'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_memory_of_the_tutorials_script():
    measured = memory.tutorial("pyconv", images=40, test_images=10)
    assert 0 < measured["imported"] <= measured["prepared"] <= measured["peak"]


# Kernels


def test_the_work_of_a_pass():
    conv = Layer("c", 8, 3, 16, 3, stride=2, pad=1)
    assert conv.output_size == 4 and conv.passes == ("forward", "weights")
    assert conv.flops(2) == 2 * (2 * 4 * 4 * 16) * (3 * 3 * 3)
    x, w, b, y = 2 * 8 * 8 * 3, 3 * 3 * 3 * 16, 16, 2 * 4 * 4 * 16
    assert conv.bytes("forward", 2) == conv.bytes("weights", 2) == 4 * (x + w + b + y)
    assert conv.bytes("data", 2) == 4 * (x + w + y)
    assert [a.shape for a in Layer("d", 1, 5, 7).arrays(2)] == [(2, 5), (5, 7), (7,), (2, 7)]
    pool = Layer("p", 4, 8, 0, 2, 2, kind="pool")
    assert pool.bytes("forward", 2) == 4 * (2 * 16 * 8 + 2 * 4 * 8) + 2 * 4 * 8
    assert Layer("a", 1, 100, kind="adam").bytes("step", 2) == 7 * 400
    assert pool.flops(2) == 0


def test_the_median_of_calls_and_of_replays(monkeypatch):
    clock = [0.0]
    steps = iter([3.0, 1.0, 9.0, 2.0, 5.0])

    def tick() -> None:
        clock[0] += next(steps)

    monkeypatch.setattr(operations.time, "perf_counter", lambda: clock[0])
    assert operations.seconds_of_call(tick, 16) == 3  # five calls, as four take 15 seconds

    class Event:
        def record(self) -> None:
            self.at = clock[0]

        def synchronize(self) -> None:
            pass

    steps = iter([3.0, 1.0, 9.0])  # at least three replays
    median = operations.seconds_of_replay(
        tick, Event, lambda start, end: 1e3 * (end.at - start.at), 0.0, calls=2
    )
    assert median == 1.5


def _work(calls) -> worker.Worker:
    """A worker for pyconv, whose kernels are `calls`, in this process."""
    result = worker.Worker.__new__(worker.Worker)
    result.contestants, result.operations = contestants, operations
    result.name, result.setting = "pyconv", Setting(1)
    result.contestant = contestants.Contestant("fake", (), contestants._pyconv, kernels=calls)
    return result


def test_the_fastest_way_is_chosen_and_timed():
    def calls(layer, name, batch, setting):
        for way, seconds in (("slow", 2.0), ("fast", 0.5), ("slower", 3.0)):
            yield Call(way, lambda least, seconds=seconds: seconds, lambda: [np.array([-1, 2.0])])

    work = _work(calls)
    layer = {"name": "d", "size": 1, "channels": 2, "filters": 3}
    prepared = work.prepare_kernel(layer, "forward", 4, 0.1)
    assert (prepared["mode"], prepared["digest"]) == ("fast", 3)
    assert prepared["candidates"] == {"slow": 2, "fast": 8, "slower": 4 / 3}
    ran = work.run(0.1)
    assert (ran["images"], ran["seconds"]) == (4, 0.5)
    assert ran["others"] is None  # no time passed in which others could have been seen

    def none(layer, name, batch, setting):
        raise operations.NotOffered("it is for inference")
        yield

    assert _work(none).prepare_kernel(layer, "data", 4, 0.1) == {"left_out": "it is for inference"}


def test_shares_of_the_roofline():
    # 8 operations a byte: 80 GFLOP/s, of which half a second makes 40; below the peak of 100.
    found = kernels.shares(flops=20e9, traffic=2.5e9, seconds=0.5, peak=100e9, bandwidth=10e9)
    assert found["gflops"] == pytest.approx(40)
    assert found["intensity"] == pytest.approx(8)
    assert found["of_peak"] == pytest.approx(0.4)
    assert found["roofline"] == pytest.approx(0.5)
    # Nothing to compute: memory alone counts.
    assert kernels.shares(0, 1e9, 0.5, 100e9, 10e9)["roofline"] == pytest.approx(0.2)
    assert kernels.shares(1e12, 1e9, 20, 100e9, 10e9)["roofline"] == pytest.approx(0.5)


def test_other_results_are_found_out():
    kernels.check_digest(1.0005, 1.0, 1e-3)
    kernels.check_digest(None, 1.0, 1e-3)
    for wrong in (1.002, math.nan):
        with pytest.raises(ContestantError, match="pyconv's to 1"):
            kernels.check_digest(wrong, 1.0, 1e-3)


@pytest.mark.parametrize(
    "layer", [*NETWORKS["tutorial"], *NETWORKS["others"][8:9]], ids=lambda layer: layer.name
)
def test_kernels_of_all_passes(layer):
    for name in layer.passes:
        (call,) = operations.pyconv_calls(layer, name, 1, Setting(pyconv.get_num_threads()))
        assert call.seconds(0) > 0
        results = operations.digest(call)
        assert (results is None) == (layer.kind in ("dropout", "rmsprop", "adam"))
        assert results is None or results > 0


def test_drawn_layers_are_the_same_for_a_seed_and_can_be_computed():
    layers = operations.drawn(seed=5, count=40)
    assert layers == operations.drawn(seed=5, count=40) != operations.drawn(seed=6, count=40)
    assert {layer.name.split()[0] for layer in layers} >= {"conv", "depthwise", "pool", "dense"}
    for layer in layers:
        assert layer.flops(1) <= 5e8 and layer.output_size >= 1, layer
        assert layer.channels % layer.groups == 0 == layer.filters % layer.groups, layer
        if layer.memory(1) < 1e6:
            for name in layer.passes:
                setting = Setting(pyconv.get_num_threads())
                (call,) = operations.pyconv_calls(layer, name, 1, setting)
                assert operations.digest(call) > 0, (layer, name)


def test_ceilings_are_measured(monkeypatch):
    monkeypatch.setattr(ceilings, "array_size", lambda: 2**20)
    found = ceilings.measure(1, "cpu", 0.001)
    assert found["flops"] > 1e8 and found["bytes"] > 1e8 and found["tensor_flops"] is None
    assert ceilings.SMALLEST <= ceilings.LARGEST and ceilings.cache_size() >= 0


def test_data_sheets():
    """NVIDIA's: A100 156 and 19.5, H100 SXM 495 and 67 TFLOP/s."""
    a100 = ceilings.by_data_sheet("80", 108 * 1.41e9)
    assert a100["flops"] == pytest.approx(19.5e12, rel=0.01)
    assert a100["tensor_flops"] == pytest.approx(156e12, rel=0.01)
    assert ceilings.by_data_sheet("90", 132 * 1.83e9)["tensor_flops"] == pytest.approx(
        495e12, rel=0.01
    )
    assert ceilings.by_data_sheet("75", 1e12)["tensor_flops"] is None


def test_tables():
    table = tables.Table(("name", -6), ("ms", 5))
    assert table.header() == "name     ms"
    assert table.line(["c1", "1.5"]) == "c1      1.5"
    assert table.markdown([["c1", "1.5"]]) == "| name | ms |\n| --- | --: |\n| c1 | 1.5 |\n"


# Reports


def made(rates: dict[str, list[float]], others: float = 0.0, **settings) -> report.Report:
    """A report in which pyconv's layers have these rates."""
    result = report.new(
        {"device": "cpu", "isa": "avx2", "threads": 2, "seconds": {KERNELS: 0.1}, "rounds": 5}
        | settings
    )
    for layer, values in rates.items():
        turns = {
            "pyconv": [{"images": rate, "seconds": 1.0, "others": others} for rate in values],
            "torch": [{"images": 1.0, "seconds": 1.0, "others": 0.0} for _ in values],
        }
        rows = kernels.summaries(turns)
        result["cases"].append(
            {
                "task": KERNELS,
                "network": "tutorial",
                "layer": layer,
                "kind": "conv",
                "pass": "forward",
                "batch": 8,
                "flops": 4e9,
                "ceilings": {"flops": 1e11, "bytes": 1e10, "tensor_flops": None},
                **kernels.shares(4e9, 1e8, 0.1, 1e11, 1e10),
                "contestants": rows,
            }
        )
    return result


def test_what_is_a_change():
    slow, fast = [90.0, 91, 92, 93, 94], [100.0, 101, 102, 103, 104]
    assert report.change(fast, slow) == "slower"
    assert report.change(slow, fast) == "faster"
    assert report.change(fast, fast) is None
    # One round within the other run's: that is noise, however far the medians are from each other.
    assert report.change(fast, [50.0, 50, 50, 50, 100]) is None
    # Clearly apart, but by less than counts.
    assert report.change(fast, [97.0, 97.1, 97.2, 97.3, 97.4]) is None
    with pytest.raises(ValueError, match="at least 5 rounds.*Received: 5 and 4"):
        report.change(fast, slow[:4])


def test_changes_of_two_reports(capsys):
    slow, fast = [90.0, 91, 92, 93, 94], [100.0, 101, 102, 103, 104]
    old = made({"c1": fast, "c2": slow, "c3": fast, "gone": fast})
    new = made({"c1": slow, "c2": fast, "c3": fast, "new": fast})
    assert report.print_changes(old, new) is True
    printed = capsys.readouterr().out
    assert "slower    0.90 x  kernels tutorial c1 forward batch 8" in printed
    assert "1 slower, 1 faster, 1 within noise" in printed
    assert "1 only in the old report, 1 only in the new one" in printed
    assert report.print_changes(old, old) is False
    assert report.print_changes(new, made({"c1": fast})) is False
    with pytest.raises(ValueError, match="no case in common"):
        report.changes(old, made({"c9": fast}))
    # What other processes have disturbed is not judged, and nothing judged is no success.
    busy = made({"c1": slow}, others=0.5)
    assert (
        report.changes(old, {**new, "cases": busy["cases"] + new["cases"][1:]})[
            report.key(busy["cases"][0])
        ]["change"]
        == "noisy"
    )
    with pytest.raises(ValueError, match="nothing can be compared"):
        report.changes(old, busy)


def test_other_machines_and_settings_are_told_apart():
    old = made({"c1": [1.0] * 5})
    assert report.differences(old, made({}, rounds=9, patience=3.0)) == []
    # Tasks that only one of them has are nobody's business.
    assert report.differences(old, made({}, seconds={"training": 1.0, KERNELS: 0.1})) == []
    assert report.differences(old, made({}, threads=1)) == ["threads was 2 and is 1"]
    assert report.differences(old, made({}, seconds={KERNELS: 1.0})) == [
        "seconds of kernels was 0.1 and is 1.0"
    ]
    other = copy.deepcopy(old)
    other["machine"]["processor"] = "abacus"
    assert "'abacus'" in report.differences(old, other)[0]


def test_speedups_of_all_networks_are_counted():
    rows = made({"c1": [8.0] * 5, "c2": [2.0] * 5})["cases"]
    rows.append({**rows[1], "network": "lenet"})
    assert kernels.speedups(rows, ["torch", "openvino"]) == [
        "speed-ups over PyTorch: geometric mean 3.17, least 2.00 (c2 forward), 3 cases"
    ]


def test_noise_is_reported():
    quiet = made({"c1": [100.0, 101, 102, 103, 104]})
    assert report.warning(report.noise(quiet), 1) == ""
    for noisy in (
        made({"c1": [100.0, 101, 102, 103, 130]}),
        made({"c1": [100.0, 101, 102, 103, 104]}, others=0.06),
    ):
        found = report.noise(noisy)
        assert found["noisy"] == ["kernels tutorial c1 forward batch 8"]
        assert "noisy in 1 of 1 cases" in report.warning(found, 1)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 0}'])
def test_files_that_are_no_reports_are_refused(text, tmp_path, capsys):
    file = tmp_path / "old.json"
    file.write_text(text)
    assert run("kernels", "--peers=none", f"--compare={file}") == 2
    assert "no report" in (error := capsys.readouterr().err) or "of format 1" in error


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    from pyconv.bench import plots

    both = made({"c1": [2.0] * 5, "c2": [8.0] * 5})
    assert plots.ratios(both) == {"conv forward": {"torch": pytest.approx(4)}}
    alone = copy.deepcopy(both)
    for case in alone["cases"]:
        del case["contestants"]["torch"]
    tensor = copy.deepcopy(alone)
    for case in tensor["cases"]:
        case["ceilings"]["tensor_flops"] = 1e12
    network = copy.deepcopy(both)
    for case in network["cases"]:
        case["task"] = "training"
    for name, drawn, axes in (
        ("both", both, 2),
        ("alone", alone, 1),
        ("tensor", tensor, 1),
        ("network", network, 1),
    ):
        file = tmp_path / f"{name}.png"
        figure = plots.draw(drawn, file)
        assert len(figure.axes) == axes
        assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="a picture needs"):
        plots.draw(made({}), tmp_path / "none.png")


# The command


def test_the_command_reports_what_ran_and_what_is_missing(tmp_path, capsys):
    file = tmp_path / "report.json"
    small = ["inference", "--batch=2", "--rounds=2", "--seconds=0.02", "--threads=1"]
    names = "pyconv" if _found("onnxruntime", "onnx") else "onnxruntime,pyconv"
    assert run(*small, f"--contestants={names}", f"--json={file}") == 0
    printed = capsys.readouterr().out
    result = json.loads(file.read_text())
    assert result["settings"]["threads"] == 1
    (case,) = result["cases"]
    assert (case["task"], case["batch"], case["fastest_peer"]) == ("inference", 2, None)
    assert len(case["contestants"]["pyconv"]["rates"]) == 2
    if "onnxruntime" in names:
        assert "missing: ONNX Runtime (onnxruntime): no interpreter has onnxruntime" in printed
        assert set(result["missing"]) == {"onnxruntime"}


def test_bfloat16_is_measured_as_such(tmp_path, capsys):
    outputs = []
    for policy in ("", "--bfloat16"):
        file = tmp_path / f"report{policy}.json"
        small = ["--batch=4", "--rounds=1", "--seconds=0.01", "--peers=none", f"--json={file}"]
        assert run("training", *small, *filter(None, [policy])) == 0
        assert ("mixed_bfloat16" in capsys.readouterr().out) == bool(policy)
        assert json.loads(file.read_text())["settings"]["bfloat16"] == bool(policy)
        setting = Setting(1, bfloat16=bool(policy))
        with Process("pyconv", sys.executable, setting) as process:
            answer = process.ask("prepare", network="tutorial", task="inference", batch=4)
        outputs.append(np.array(answer["outputs"]))
    assert 1e-6 < np.abs(outputs[0] - outputs[1]).max() < training.BFLOAT16_TOLERANCE
    old, new = (report.load(tmp_path / f"report{policy}.json") for policy in ("--bfloat16", ""))
    assert report.differences(old, new) == ["bfloat16 was True and is False"]
    del new["settings"]["bfloat16"]  # as before it could be had
    assert report.differences(old, new) == ["bfloat16 was True and is False"]


def test_kernels_by_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "NOISY", 1e9)  # whoever else is busy while this runs
    small = ["kernels", "--peers=none", "--layers=softmax", "--batch=2", "--threads=1"]
    file, page = tmp_path / "old.json", tmp_path / "page.md"
    options = [*small, "--rounds=5", "--seconds=0.001"]
    assert run(*options, f"--json={file}", f"--markdown={page}") == 0
    assert "ceilings: multiply-adds" in capsys.readouterr().out
    result = report.load(file)
    assert [(case["layer"], case["pass"]) for case in result["cases"]] == [
        ("softmax", "forward"),
        ("softmax", "backward"),
    ]
    for case in result["cases"]:
        assert len(case["contestants"]["pyconv"]["rates"]) == 5
        assert case["roofline"] > 0 and case["ceilings"]["bytes"] > 0
    assert "## Kernels: tutorial, batch 2\n\n| layer | pass |" in page.read_text()

    # Against runs that were a million times as fast, or as slow.
    for factor, status, what in ((1e6, 1, "2 slower"), (1e-6, 0, "2 faster")):
        other = copy.deepcopy(result)
        for case in other["cases"]:
            row = case["contestants"]["pyconv"]
            row["rates"] = [factor * rate for rate in row["rates"]]
        file.write_text(json.dumps(other))
        assert run(*options, f"--compare={file}") == status
        assert what in capsys.readouterr().out

    assert run(*small, "--rounds=4", f"--compare={file}") == 2
    assert "at least 5 rounds" in capsys.readouterr().err
    assert run(*small, "--rounds=5", f"--compare={file}") == 2
    assert "seconds of kernels was 0.001 and is 0.1" in capsys.readouterr().err


def test_what_needs_too_much_memory_is_left_out(capsys):
    options = ["--layers=d1", "--peers=none", "--batch=2", "--max-memory=0.000001"]
    assert run("kernels", *options, "--rounds=1", "--seconds=0.001") == 0
    assert capsys.readouterr().out.count("left out: needs more than --max-memory") == 3


@pytest.mark.parametrize("name", [name for name in CONTESTANTS if name != "pyconv"])
def test_peers_that_are_installed_compute_the_same(name, tmp_path, capsys):
    """PYCONV_BENCH_PEERS: interpreters that have them, with colons between."""
    peers = [python for python in os.environ.get("PYCONV_BENCH_PEERS", "").split(":") if python]
    contestant = CONTESTANTS[name]
    if not processes.interpreters([name], peers)[name]:
        pytest.skip(f"{contestant.title} is not installed")
    pythons = [f"--peers-python={python}" for python in peers]
    file = tmp_path / "report.json"
    small = ["--batch=2", "--rounds=1", "--seconds=0.01", *pythons]
    both = [f"--contestants={name},pyconv", f"--json={file}"]
    assert run("training", "inference", *small, *both) == 0, capsys.readouterr().out
    for case in json.loads(file.read_text())["cases"]:
        if contestant.does(case["task"]):
            assert case["fastest_peer"] == name
    if contestant.bfloat16:
        assert run("training", "inference", "--bfloat16", *small, *both) == 0
    if contestant.does(KERNELS):
        # All operations, with strides and paddings.
        layers = "--layers=c1,c6,d1,p1,relu,softmax,dropout,rmsprop,adam,c3_skip"
        networks = ["--network=tutorial,resnet50-32", layers]
        assert run("kernels", *networks, *small, *both) == 0, capsys.readouterr().out
        cases = json.loads(file.read_text())["cases"]
        compared = [case for case in cases if name in case["contestants"]]
        assert len(compared) > 5
        assert all(name in case["contestants"] or name in case["left_out"] for case in cases)


def _found(*modules: str) -> bool:
    return set(modules) <= processes.importable(sys.executable, modules)
