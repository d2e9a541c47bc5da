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
from pyconv.layers import Conv2D, Dense, Flatten
from pyconv.plotting import plot_history
from pyconv.saving import load_model

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
        names = ["checkpoint.safetensors", "curves.png", "history.csv", "model.safetensors"]
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
        names = ["checkpoint.safetensors", "history.csv", "model.safetensors"]
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

    def test_augment(self, tmp_path):
        for name, options in (("a", []), ("b", ["--augment"]), ("c", ["--augment"])):
            run("train", *QUICK, *options, "--output", name)
        a, b, c = (Path(n, "model.safetensors").read_bytes() for n in "abc")
        assert a != b == c

    def test_augmentation_is_the_tutorials(self):
        for data in ("cifar10", "mnist", "shapes"):
            made = cli._augmented(data)
            assert made.width_shift_range == made.height_shift_range == 0.1
            assert made.horizontal_flip == (data != "mnist") and not made.vertical_flip

    def test_resume(self):
        """Options that are not given are those of the run; more epochs go on."""
        options = ["--seed", "3", "--augment"]
        run("train", *QUICK, *options, "--epochs", "3", "--output", "whole")
        run("train", *QUICK, *options, "--epochs", "1", "--output", "a")
        for arguments in (
            ["--epochs", "2"],
            ["--epochs", "3", "--data", "auto", "--seed", "3", "--augment", "--limit", "60"],
        ):
            epochs = int(arguments[1])
            output = run("train", "--output", "a", "--resume", *arguments).output
            assert f"Going on with the run in a after {epochs - 1} of {epochs} epochs." in output
            assert f"Epoch {epochs}/{epochs}" in output
            assert f"Epoch {epochs - 1}/" not in output
        for name in ("model.safetensors", "history.csv"):
            assert Path("a", name).read_bytes() == Path("whole", name).read_bytes()

    def test_resume_of_a_finished_run(self):
        last = run("train", *QUICK, "--output", "a").output.splitlines()[-1]
        before = {path.name: path.read_bytes() for path in Path("a").iterdir()}
        Path("a", "model.safetensors").unlink()  # killed before it was written, perhaps
        output = run("train", "--output", "a", "--resume").output
        assert "The run in a is finished: it has all 2 epochs. Give it more --epochs." in output
        assert "Epoch" not in output and output.splitlines()[-1] == last
        assert {path.name: path.read_bytes() for path in Path("a").iterdir()} == before

    def test_resume_without_a_checkpoint(self):
        output = run("train", *QUICK, "--output", "a", "--resume").output
        assert "There is no checkpoint in a, so training starts afresh." in output
        assert "Epoch 2/2" in output

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--seed", "1"], "with --seed 0, so --resume cannot go on with --seed 1"),
            (["--batch-size", "30"], "with --batch-size 20, so --resume cannot go on with --batch"),
            (["--data", "mnist"], "with --data shapes, so --resume cannot go on with --data mnist"),
            (["--augment"], "with no --augment, so --resume cannot go on with --augment"),
            (["--limit", "70"], "with --limit 60, so --resume cannot go on with --limit 70"),
            (["--epochs", "1"], "with --epochs 2, so --resume cannot go on with --epochs 1"),
        ],
    )
    def test_resume_with_other_options(self, arguments, message):
        run("train", *QUICK, "--output", "a")
        before = {path.name: path.read_bytes() for path in Path("a").iterdir()}
        assert message in run("train", "--output", "a", "--resume", *arguments, status=2).stderr
        assert {path.name: path.read_bytes() for path in Path("a").iterdir()} == before

    def test_resume_of_something_damaged(self):
        run("train", *QUICK, "--output", "a")
        path = Path("a", "checkpoint.safetensors")
        content = path.read_bytes()
        for damaged, message in (
            (content[:-1], "is damaged"),
            (Path("a", "model.safetensors").read_bytes(), "no checkpoint of pyconv's"),
        ):
            path.write_bytes(damaged)
            error = run("train", "--output", "a", "--resume", status=1).stderr
            assert message in error and str(path) in error and error.count("\n") == 1

    def test_resume_of_another_program(self):
        model = small_network()
        model.compile("sgd", "mse")
        backup = pyconv.callbacks.BackupAndRestore("a", delete_checkpoint=False)
        model.fit(np.zeros((4, 8, 8, 3)), np.zeros((4, 3)), verbose=0, callbacks=backup)
        error = run("train", "--output", "a", "--resume", status=1).stderr
        assert "was not written by pyconv train" in error

    def test_resume_with_other_images(self, monkeypatch, few_shapes):
        run("train", *QUICK, "--output", "a")
        fewer = tuple((x[:50], y[:50]) for x, y in few_shapes)
        monkeypatch.setitem(cli.LOADERS, "shapes", lambda: fewer)
        error = run("train", "--output", "a", "--resume", "--epochs", "3", status=1).stderr
        assert "begun with samples=60. Received: samples=50" in error

    def test_training_anew_says_what_it_drops(self):
        for seed in ("1", "2"):
            output = run("train", *QUICK, "--seed", seed, "--output", "a").output
            assert ("Training anew: what --resume would have gone on with" in output) == (
                seed == "2"
            )
        run("train", *QUICK, "--seed", "2", "--output", "b")
        a, b = (Path(name, "model.safetensors").read_bytes() for name in "ab")
        assert a == b

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

    def test_a_model_that_takes_class_numbers(self):
        run("train", *QUICK, "--limit", "1000", "--epochs", "1")
        evaluate = ("evaluate", "pyconv-run/model.safetensors", "--data", "shapes")
        expected = run(*evaluate).output
        model = load_model("pyconv-run/model.safetensors")
        model.compile("sgd", "sparse_categorical_crossentropy", ["accuracy"])
        model.save("pyconv-run/model.safetensors")
        assert run(*evaluate).output == expected

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


def small_network(shape=(8, 8, 3), classes=3):
    layers = [pyconv.Input(shape), Flatten(), Dense(classes, activation="softmax")]
    return pyconv.Sequential(layers)


class TestPredict:
    @pytest.fixture(autouse=True)
    def image(self):
        pytest.importorskip("PIL")
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save("a.png")
        return pixels

    def test_probabilities(self, image):
        from PIL import Image

        Image.fromarray(image).resize((20, 30)).save("b.png")
        model = small_network()
        model.save("m")
        Path("names").write_text("cat\ndog\nbird\n")
        first, second = run(
            "predict", "m", "a.png", "b.png", "--labels", "names", "--top", "2"
        ).output.splitlines()
        expected = model.predict(image[np.newaxis] / np.float32(255), verbose=0)[0]
        best = np.argsort(-expected)[:2]
        listed = [f"{['cat', 'dog', 'bird'][i]} {expected[i]:.4f}" for i in best]
        assert first == f"a.png: {', '.join(listed)}"
        assert second.startswith("b.png: ") and second.count(",") == 1

    def test_grey_images_and_names_of_a_data_set(self, image):
        small_network((28, 28, 1), 10).save("m")
        line = run("predict", "m", "a.png", "--data", "mnist", "--top", "10").output
        words = line.removeprefix("a.png: ").split(", ")
        assert sorted(word.split()[0] for word in words) == sorted("0123456789")
        assert sum(float(word.split()[1]) for word in words) == pytest.approx(1, abs=1e-3)

    def test_without_names(self):
        small_network().save("m")
        assert "class 1 0." in run("predict", "m", "a.png").output

    def test_bad_input(self, monkeypatch):
        small_network().save("m")
        assert "has 3 classes, and there are 10 names" in (
            run("predict", "m", "a.png", "--data", "mnist", status=1).stderr
        )
        assert (
            "not both"
            in run("predict", "m", "a.png", "--data", "mnist", "--labels", "x", status=2).stderr
        )
        assert "nothing.png" in run("predict", "m", "nothing.png", status=1).stderr
        Path("b.png").write_bytes(Path("a.png").read_bytes()[:90])
        Path("c.png").write_bytes(b"text")
        for name in ("b.png", "c.png"):
            error = run("predict", "m", name, status=1).stderr
            assert f"{name} cannot be read as an image" in error
        from PIL import Image

        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
        assert "64 pixels" in run("predict", "m", "a.png", status=1).stderr
        pyconv.Sequential([pyconv.Input((4,)), Dense(2)]).save("m")
        assert "does not classify images" in run("predict", "m", "a.png", status=1).stderr

    def test_without_pillow(self, monkeypatch):
        small_network().save("m")
        monkeypatch.setitem(sys.modules, "PIL", None)
        error = run("predict", "m", "a.png", status=1).stderr
        assert "pip install 'pyconv[image]'" in error


class TestExport:
    def test_onnx(self):
        onnx = pytest.importorskip("onnx")
        small_network().save("m")
        assert run("export", "m", "out.onnx").output == "Wrote out.onnx\n"
        onnx.checker.check_model(onnx.load("out.onnx"))

    def test_weights(self):
        pytest.importorskip("h5py")
        model = small_network()
        model.save("m")
        run("export", "m", "out.weights.h5")
        other = small_network()
        other.load_weights("out.weights.h5")
        np.testing.assert_array_equal(other.get_weights()[0], model.get_weights()[0])

    def test_other_endings(self):
        assert ".onnx or .weights.h5" in run("export", "m", "out.pb", status=2).stderr


class TestPictures:
    @pytest.fixture(autouse=True)
    def matplotlib(self):
        pytest.importorskip("matplotlib")

    @pytest.fixture
    def model(self):
        layers = [pyconv.Input((8, 9, 3)), Conv2D(5, 3, activation="relu"), Conv2D(4, 1), Flatten()]
        return pyconv.Sequential(layers)

    def images(self, figure):
        return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]

    def test_filters(self, model, tmp_path):
        figure = pyconv.utils.plot_filters(model.layers[0], tmp_path / "f.png")
        kernel = model.layers[0].parameters[0].value
        drawn = self.images(figure)
        assert len(drawn) == 5
        low, high = kernel[..., 4].min(), kernel[..., 4].max()
        np.testing.assert_allclose(drawn[4], (kernel[..., 4] - low) / (high - low), rtol=1e-6)
        assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
        figure = pyconv.utils.plot_filters(model.layers[1], channel=2, max_filters=3)
        assert [image.shape for image in self.images(figure)] == [(1, 1)] * 3
        with pytest.raises(ValueError, match="5 input channels. Received: channel=5"):
            pyconv.utils.plot_filters(model.layers[1], channel=5)
        with pytest.raises(ValueError, match="kernel of a built Conv2D"):
            pyconv.utils.plot_filters(model.layers[2])

    @pytest.mark.parametrize("layer", [0, "conv2d"])
    def test_activations(self, model, layer):
        x = np.random.default_rng(0).random((8, 9, 3), np.float32)
        expected = model.layers[0](x[np.newaxis])[0]
        for given in (x, x[np.newaxis]):
            drawn = self.images(pyconv.utils.plot_activations(model, given, layer))
            assert [image.shape for image in drawn] == [(6, 7)] * 5
        first = expected[..., 0]
        first = (first - first.min()) / (first.max() - first.min() or 1)
        np.testing.assert_allclose(drawn[0], first, atol=1e-5)

    def test_activations_that_cannot_be_drawn(self, model):
        x = np.zeros((2, 8, 9, 3), np.float32)
        with pytest.raises(ValueError, match="one image. Received: 2 images"):
            pyconv.utils.plot_activations(model, x, 0)
        with pytest.raises(ValueError, match="flatten has no maps"):
            pyconv.utils.plot_activations(model, x[0], "flatten")
        with pytest.raises(ValueError, match="no such layer"):
            pyconv.utils.plot_activations(model, x[0], "other")

    def test_confusion_matrix(self, tmp_path):
        true, predicted = [0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 2, 0]
        expected = [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
        eye = np.eye(3, dtype=np.float32)
        for labels, guesses in ((true, predicted), (eye[true], eye[predicted])):
            figure = pyconv.utils.plot_confusion_matrix(labels, guesses, ["a", "b", "c"])
            np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), expected)
        assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["a", "b", "c"]
        figure = pyconv.utils.plot_confusion_matrix(
            np.reshape(true, (-1, 1)), predicted, path=tmp_path / "c.png", normalize=True
        )
        np.testing.assert_allclose(figure.axes[0].images[0].get_array().sum(axis=1), 1)
        assert (tmp_path / "c.png").is_file()

    @pytest.mark.parametrize(
        ("true", "predicted", "names", "message"),
        [
            ([0, 1], [0], None, "same number of samples"),
            ([], [], None, "at least one"),
            ([0, 1], [0, 1], ["a"], "There are 2 classes. Received: 1 class_names"),
            ([0, 0.5], [0, 1], None, "y_true must be class numbers"),
            ([0, 1], ["a", "b"], None, "y_pred must be class numbers"),
            ([0, 1], [0, -1], None, "y_pred must be class numbers"),
        ],
    )
    def test_bad_labels(self, true, predicted, names, message):
        with pytest.raises(ValueError, match=message):
            pyconv.utils.plot_confusion_matrix(true, predicted, names)


class TestPlotting:
    HISTORY = {  # noqa: RUF012
        "loss": [2.0, 1.5, 1.2],
        "val_loss": [1.9, 1.6, 1.5],
        "acc": [0.2, 0.4, 0.6],
        "val_acc": [0.3, 0.4, 0.5],
    }

    def test_curves(self, tmp_path):
        pyplot = pytest.importorskip("matplotlib.pyplot")
        figure = pyconv.utils.plot_history(self.HISTORY, tmp_path / "curves.png")
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
        for given in (history, history.history):
            assert [len(axes.lines) for axes in plot_history(given).axes] == [1, 2]

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
    assert all(
        command in output
        for command in ("train", "evaluate", "predict", "export", "summary", "info")
    )


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
