"""The command-line program, on small data."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyconv
from pyconv.datasets import cifar10, shapes

pytest.importorskip("safetensors")
from click import testing

from pyconv import cli
from pyconv.cli import main
from pyconv.plotting import plot_history

QUICK = [
    "--data",
    "shapes",
    "--limit",
    "60",
    "--epochs",
    "2",
    "--batch-size",
    "20",
    "--threads",
    "1",
]


@pytest.fixture(scope="module")
def few_shapes():
    return shapes.load_data(n_train=1000, n_test=200)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, num_threads, few_shapes):
    """A folder of its own, no data, no network, few drawn images; threads are set back."""
    monkeypatch.setitem(cli.LOADERS, "shapes", lambda: few_shapes)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYCONV_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setattr(cifar10._files, "RETRIES", 0)
    monkeypatch.delenv("PYCONV_DEBUG", raising=False)


def run(*arguments: str, status: int = 0):
    result = testing.CliRunner().invoke(main, list(arguments))
    assert result.exit_code == status, result.output
    if status:
        assert "Traceback" not in result.output
    return result


def rows(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


class TestTrain:
    def test_writes_everything(self, tmp_path):
        pytest.importorskip("matplotlib")
        result = run("train", *QUICK, "--output", "a/b")
        assert "Training on 60 images of shapes (synthetic)" in result.output
        last = result.output.strip().splitlines()[-1]
        assert (
            last.startswith("Test loss ")
            and ", accuracy 0." in last
            and "on 12 images of shapes (synthetic)" in last
        )
        folder = tmp_path / "a" / "b"
        names = ["curves.png", "history.csv", "model.safetensors"]
        assert sorted(p.name for p in folder.iterdir()) == names
        header, *epochs = rows(folder / "history.csv")
        assert header[0] == "epoch"
        assert set(header) >= {"loss", "accuracy", "val_loss", "val_accuracy"}
        assert [row[0] for row in epochs] == ["1", "2"]
        assert np.isfinite(np.array(epochs, float)).all()
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert pyconv.get_num_threads() == 1

        result = run("summary", "a/b/model.safetensors")
        assert "276,138" in result.output

    def test_same_seed_same_model(self, tmp_path):
        for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
            run("train", *QUICK, "--seed", seed, "--output", name)
        a, b, c = (Path(n, "model.safetensors").read_bytes() for n in "abc")
        assert a == b != c

    def test_default_folder(self, tmp_path):
        run("train", *QUICK, "--epochs", "1")
        assert (tmp_path / "pyconv-run" / "model.safetensors").is_file()

    def test_without_matplotlib(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        result = run("train", *QUICK, "--output", "out")
        assert "pip install 'pyconv[plot]'" in result.output
        names = ["history.csv", "model.safetensors"]
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names

    def test_auto_falls_back_and_says_so(self):
        result = run("train", *QUICK, "--data", "auto", "--epochs", "1")
        assert "CIFAR-10 cannot be had" in result.output and "cifar-10-binary" in result.output
        assert "Falling back to shapes" in result.output
        assert result.output.strip().endswith("images of shapes (synthetic).")

    def test_auto_takes_cifar10(self, monkeypatch):
        monkeypatch.setitem(cli.LOADERS, "cifar10", cli.LOADERS["shapes"])
        result = run("train", *QUICK, "--data", "auto", "--epochs", "1")
        assert result.output.strip().endswith("images of CIFAR-10.")

    def test_auto_stops_at_damaged_files(self, tmp_path):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / cifar10.ARCHIVE).write_bytes(b"")
        result = run("train", *QUICK, "--data", "auto", status=1)
        assert "is damaged" in result.stderr and "Delete it" in result.stderr

    def test_mnist(self, monkeypatch):
        rng = np.random.default_rng(0)
        made = rng.integers(0, 256, (40, 28, 28), np.uint8), rng.integers(0, 10, 40, np.uint8)
        monkeypatch.setitem(cli.LOADERS, "mnist", lambda: (made, made))
        result = run("train", *QUICK, "--data", "mnist", "--epochs", "1")
        assert "on 12 images of MNIST" in result.output

    def test_data_missing(self):
        result = run("train", *QUICK, "--data", "cifar10", status=1)
        assert result.stderr.splitlines()[-1].startswith("Error: ")
        assert "put it at" in result.stderr

    @pytest.mark.parametrize("name", ["file", "file/below"])
    def test_output_cannot_be_written(self, tmp_path, name, monkeypatch):
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setitem(cli.LOADERS, "shapes", lambda: pytest.fail("loaded the data first"))
        result = run("train", *QUICK, "--output", name, status=2 if name == "file" else 1)
        assert "file" in result.stderr and "\n" not in result.stderr.strip().split("Error: ")[1]

    def test_result_is_a_folder(self, tmp_path):
        (tmp_path / "out" / "history.csv").mkdir(parents=True)
        result = run("train", *QUICK, "--output", "out", status=1)
        assert "history.csv is there and is not a file" in result.stderr

    def test_interrupted(self, tmp_path, monkeypatch):
        pytest.importorskip("matplotlib")
        from pyconv.callbacks import History

        count = 0

        def interrupt(*_) -> None:
            nonlocal count
            count += 1
            if count == 4:  # the first batch of the second epoch
                raise KeyboardInterrupt

        monkeypatch.setattr(History, "on_train_batch_end", interrupt)
        result = run("train", *QUICK, "--output", "out", status=130)
        assert "interrupted" in result.output
        assert [row[0] for row in rows(tmp_path / "out" / "history.csv")] == ["epoch", "1"]
        assert (tmp_path / "out" / "curves.png").is_file()
        run("evaluate", "out/model.safetensors", "--data", "shapes")

    def test_interrupted_in_the_first_epoch(self, tmp_path, monkeypatch):
        from pyconv.callbacks import History

        def interrupt(*_) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(History, "on_train_batch_end", interrupt)
        run("train", *QUICK, "--output", "out", status=130)
        assert rows(tmp_path / "out" / "history.csv") == [["epoch"]]
        run("summary", "out/model.safetensors")

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--epochs", "0"],
            ["--batch-size", "0"],
            ["--threads", "0"],
            ["--limit", "0"],
            ["--seed", "-1"],
            ["--data", "imagenet"],
            ["--unknown"],
        ],
    )
    def test_bad_arguments(self, arguments):
        assert "Error: " in run("train", *arguments, status=2).stderr


class TestEvaluate:
    def test_agrees_with_training(self):
        trained = run("train", *QUICK, "--limit", "1000", "--epochs", "1")
        assert "on 200 images" in trained.output
        result = run("evaluate", "pyconv-run/model.safetensors", "--data", "shapes")
        assert result.output.startswith("Test loss ")
        assert "on 200 images of shapes (synthetic)" in result.output

    def test_no_model(self):
        result = run("evaluate", "nothing", "--data", "shapes", status=1)
        assert result.stderr.startswith("Error: ") and "nothing" in result.stderr

    def test_damaged_model(self, tmp_path):
        (tmp_path / "m").write_bytes(b"PK")
        result = run("evaluate", "m", "--data", "shapes", status=1)
        assert "not a safetensors file" in result.stderr
        assert result.stderr.count("\n") == 1

    def test_wrong_input_shape(self):
        from pyconv.applications import tutorial_network

        pyconv.saving.save_model(tutorial_network((28, 28, 1)), "m")
        result = run("evaluate", "m", "--data", "shapes", status=1)
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1

    def test_data_is_required(self):
        assert "--data" in run("evaluate", "m", status=2).stderr

    def test_debug_shows_the_traceback(self, monkeypatch):
        monkeypatch.setenv("PYCONV_DEBUG", "1")
        result = testing.CliRunner().invoke(main, ["evaluate", "nothing", "--data", "shapes"])
        assert isinstance(result.exception, FileNotFoundError)


class TestPlotting:
    HISTORY = {  # noqa: RUF012
        "loss": [2.0, 1.5, 1.2],
        "val_loss": [1.9, 1.6, 1.5],
        "acc": [0.2, 0.4, 0.6],
        "val_acc": [0.3, 0.4, 0.5],
    }

    def test_curves(self, tmp_path):
        pyplot = pytest.importorskip("matplotlib.pyplot")
        figure = plot_history(self.HISTORY, tmp_path / "curves.png")
        assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
        drawn = [line.get_ydata() for axes in figure.axes for line in axes.lines]
        assert [list(values) for values in drawn] == list(self.HISTORY.values())
        assert pyplot.get_fignums() == []

    def test_what_is_missing_is_not_drawn(self):
        pytest.importorskip("matplotlib")
        assert [len(axes.lines) for axes in plot_history({"loss": [1.0]}).axes] == [1, 0]
        with pytest.raises(ValueError, match="must have 'loss'. Received: nothing"):
            plot_history({})

    def test_history_of_fit(self):
        pytest.importorskip("matplotlib")
        history = pyconv.callbacks.History()
        for epoch in range(2):
            history.on_epoch_end(epoch, {"loss": 1.0, "accuracy": 0.5, "val_accuracy": 0.4})
        assert [len(axes.lines) for axes in plot_history(history.history).axes] == [1, 2]

    def test_without_matplotlib(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match=r"pip install 'pyconv\[plot\]'"):
            plot_history(self.HISTORY)


def test_summary_of_the_tutorials_network():
    output = run("summary").output
    assert "276,138" in output and "max_pooling2d" in output.lower()


def test_info(tmp_path):
    output = run("info").output
    assert pyconv.__version__ in output and np.__version__ in output
    assert pyconv.isa() in output and str(tmp_path / "data") in output
    assert output.count("not there; downloaded when needed") == 2
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / cifar10.ARCHIVE).write_bytes(b"")
    assert str(tmp_path / "data" / cifar10.ARCHIVE) in run("info").output


def test_version_and_help():
    assert pyconv.__version__ in run("--version").output
    output = run("--help").output
    assert all(command in output for command in ("train", "evaluate", "summary", "info"))


def heed_ctrl_c() -> None:
    """A test run in the background may have SIGINT ignored, which its children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def process(tmp_path):
    """Starts `python -m pyconv`; what still runs at the end of the test is ended."""
    started = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        path = [
            str(Path(pyconv.__file__).parents[1]),
            *os.environ.get("PYTHONPATH", "").split(os.pathsep),
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "pyconv", *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_ctrl_c if os.name == "posix" else None,
        )
        started.append(process)
        return process

    yield start
    for child in started:
        child.kill()
        child.communicate()


def test_module_runs(process):
    child = process("--version")
    out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "") and pyconv.__version__ in out


def test_unsupported_instruction_set(process):
    child = process("info", PYCONV_FORCE_ISA="sse9")
    out, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "sse9" in err and "Traceback" not in err and not out


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c(tmp_path, process):
    arguments = ["train", *QUICK, "--epochs", "2000", "--output", "out"]
    child = process(*arguments, PYTHONUNBUFFERED="1")
    for line in child.stdout:
        if line.startswith("Epoch 2/"):
            child.send_signal(signal.SIGINT)
            break
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "Traceback" not in err and "interrupted" in out
    assert len(rows(tmp_path / "out" / "history.csv")) >= 2
    run("evaluate", "out/model.safetensors", "--data", "shapes")
