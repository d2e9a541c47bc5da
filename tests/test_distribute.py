"""Training in several processes: the same mathematics, and an end for all when one fails."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import has_emulated_cuda

import pyconv
from pyconv import distribute
from pyconv.bench.scaling import mpiexec
from pyconv.layers import Dense, Dropout, Flatten, Input
from pyconv.models import Sequential

# The programs below begin with this. The last batch of an epoch has two samples: with four
# processes two have none. No layer's dropout has a multiple of four elements a sample.
PREAMBLE = """
import os, sys, time
import numpy as np
import pyconv
from pyconv import distribute
from pyconv.callbacks import *
from pyconv.layers import *
from pyconv.models import Sequential
from pyconv.optimizers import SGD, Adam
from pyconv.preprocessing.image import ImageDataGenerator
from pyconv.utils import set_random_seed

out = os.environ["OUT"]
rank = distribute.rank()
rng = np.random.default_rng(0)
x = rng.random((50, 10, 10, 3), np.float32)
y = np.eye(5, dtype=np.float32)[rng.integers(0, 5, 50)]
x_val = rng.random((23, 10, 10, 3), np.float32)
y_val = np.eye(5, dtype=np.float32)[rng.integers(0, 5, 23)]

def network(norm=False, units=11):
    return Sequential([
        Input((10, 10, 3)), Conv2D(8, 3, padding="same", activation="relu"),
        Conv2D(9, 3, activation="relu"), MaxPooling2D(), Dropout(0.25),
        *([BatchNormalization()] if norm else []),
        Flatten(), Dense(units, activation="relu"), Dropout(0.5), Dense(5, activation="softmax")])

def save(model, name="weights", **more):
    np.savez(f"{out}/{name}{rank}.npz", *model.get_weights(), **more)
"""

TRAIN = """
set_random_seed(3)
model = network()
group = distribute.MPI(bucket_bytes=1000) if distribute.size() > 1 else None  # many buckets
model.compile(OPTIMIZER, "categorical_crossentropy", metrics=["accuracy"], distribute=group)
history = model.fit(x, y, 16, 2, verbose=0, validation_data=(x_val, y_val)).history
evaluated = model.evaluate(x_val, y_val, 16, verbose=0)
save(model, **history, evaluated=evaluated)
"""


@dataclass
class Result:
    status: int
    output: str
    seconds: float


def has_mpi() -> bool:
    if mpiexec() is None:
        return False
    probe = "from mpi4py import MPI"
    return subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode == 0


needs_mpi = pytest.mark.skipif(
    not has_mpi(), reason="no mpi4py and mpiexec: pip install pyconv[mpi]"
)


def launch(ranks: int, program: str, out: Path, timeout: float = 120, **environment: str) -> Result:
    """Runs a program in so many processes, one thread each; `ranks` 1 needs no MPI."""
    script = out / "program.py"
    script.write_text(PREAMBLE + textwrap.dedent(program))
    command = [sys.executable, "-W", "error", str(script)]
    if ranks > 1:
        launcher = mpiexec()
        assert launcher is not None
        command = [launcher, "-n", str(ranks), *command]
    given = {"OUT": str(out), "OMP_NUM_THREADS": "1", **environment}
    start = time.monotonic()
    # Of a session of its own, so that what a failed test leaves can be ended as a whole.
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parent,
        env=os.environ | given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        raise
    return Result(process.returncode, output, time.monotonic() - start)


def run(ranks: int, program: str, out: Path, **environment: str) -> list[dict[str, np.ndarray]]:
    """What each rank saved."""
    result = launch(ranks, program, out, **environment)
    assert result.status == 0, result.output
    return [dict(np.load(out / f"weights{rank}.npz")) for rank in range(ranks)]


def assert_same_everywhere(results: list[dict[str, np.ndarray]]) -> None:
    for other in results[1:]:
        for name, value in results[0].items():
            np.testing.assert_array_equal(value, other[name], name)


# -------------------------------------------------------------------------- without other processes


class TestShare:
    @pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
    @pytest.mark.parametrize("multiple", [1, 2, 4])
    def test_shares_are_the_whole_batch(self, size, multiple):
        group = object.__new__(distribute.MPI)
        group.size = size
        for whole in range(1, 40):
            first = 0
            for group.rank in range(size):
                share = group.share(whole, multiple)
                assert share.first == first and share.whole == whole
                assert share.first % multiple == 0 or share.samples == 0
                assert share.samples <= group.largest_share(whole, multiple)
                first += share.samples
            assert first == whole

    def test_shares_are_equal_where_they_can_be(self):
        group = object.__new__(distribute.MPI)
        group.size = 4
        counts = []
        for group.rank in range(4):
            counts.append(group.share(256).samples)
        assert counts == [64] * 4

    @pytest.mark.parametrize(
        ("sizes", "multiple"), [([], 1), ([8], 1), ([6], 2), ([5], 4), ([6, 8], 2), ([6, 5], 4)]
    )
    def test_dropout_begins_at_four_elements(self, sizes, multiple):
        assert distribute.alignment(sizes) == multiple


class TestData:
    def test_a_digest_tells_data_apart(self):
        x, y = np.zeros((9000, 4), np.float32), np.zeros((9000, 2), np.float32)
        found = distribute.digest(x, y)
        assert distribute.digest(x.copy(), y.copy()) == found
        other = y.copy()
        other[8999, 1] = 1
        assert distribute.digest(x, other) != found
        assert distribute.digest(x + 1, y) != found
        assert distribute.digest(x.astype(np.float64), y) != found


class TestLaunchers:
    @pytest.fixture(autouse=True)
    def no_launcher(self, monkeypatch):
        for names in distribute._LAUNCHERS:
            for name in names:
                monkeypatch.delenv(name, raising=False)

    def test_a_process_alone(self):
        assert (distribute.rank(), distribute.size()) == (0, 1)
        assert distribute.detect() is None

    @pytest.mark.parametrize("names", distribute._LAUNCHERS)
    def test_one_of_several(self, monkeypatch, names):
        monkeypatch.setenv(names[0], "2")
        monkeypatch.setenv(names[1], "4")
        assert (distribute.rank(), distribute.size()) == (2, 4)
        monkeypatch.setenv("PYCONV_DISTRIBUTE", "0")
        assert distribute.detect() is None

    def test_without_mpi4py_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "mpi4py", None)
        with pytest.raises(ImportError, match=r"pip install 'pyconv\[mpi\]'"):
            distribute.MPI()

    def test_wrong_arguments(self):
        for arguments in ({"bucket_bytes": 0}, {"timeout": 0}, {"timeout": float("nan")}):
            with pytest.raises(ValueError, match="Received"):
                distribute.MPI(**arguments)
        model = Sequential([Input((4,)), Dense(2)])
        with pytest.raises(ValueError, match="distribute must be"):
            model.compile("sgd", "mse", distribute="horovod")
        model.compile("sgd", "mse", distribute=None)


def test_parts_of_a_batch_add_up_to_its_gradient(isa):
    """What an exchange adds up, without one: each part's gradient for the mean over the batch."""
    x = np.random.default_rng(0).random((20, 4, 4, 2), np.float32)
    y = np.eye(3, dtype=np.float32)[np.arange(20) % 3]

    def gradients(parts):
        pyconv.utils.set_random_seed(1)
        model = Sequential(
            [Input((4, 4, 2)), Flatten(), Dense(8, activation="relu"), Dropout(0.5), Dense(3)]
        )
        model.compile("sgd", pyconv.losses.CategoricalCrossentropy(from_logits=True))
        model.build()
        plan = model._plan_for_training(20)
        total = 0
        for share in parts:
            plan.take_part(share)
            inputs, labels = plan.feed(x[share.rows]), plan.feed_labels(y[share.rows])
            plan.forward_loss(inputs, labels, training=True, step=5)
            plan.backward()
            total = total + model._parameters.gradients.astype(np.float64)
        return total

    whole = gradients([distribute.Share(0, 20, 20)])
    parts = gradients(
        [distribute.Share(0, 7, 20), distribute.Share(7, 0, 20), distribute.Share(7, 13, 20)]
    )
    assert np.abs(whole).max() > 0.01
    # Sums of at most 20 products of numbers up to 1, in two orders.
    np.testing.assert_allclose(parts, whole, rtol=0, atol=40 * 2.0**-24)


# -------------------------------------------------------------------------------- with processes


@needs_mpi
@pytest.mark.parametrize("optimizer", ["SGD(0.1, momentum=0.9)", "Adam(1e-3)"])
def test_several_processes_do_what_one_does(tmp_path, optimizer):
    program = TRAIN.replace("OPTIMIZER", optimizer)
    (alone,) = run(1, program, tmp_path)
    for ranks in (2, 4):
        results = run(ranks, program, tmp_path)
        assert_same_everywhere(results)
        # Twice eight steps, in which roundings of 6e-8 grow; a dropout mask or an order that
        # depends on the ranks would change the first digits.
        for name, value in alone.items():
            np.testing.assert_allclose(results[0][name], value, rtol=2e-5, atol=2e-6, err_msg=name)
        again = run(ranks, program, tmp_path)
        assert_same_everywhere([results[0], again[0]])


@needs_mpi
def test_generated_batches_are_shared(tmp_path):
    program = """
    set_random_seed(3)
    model = network()
    model.compile(SGD(0.1), "categorical_crossentropy", metrics=["accuracy"])
    flow = ImageDataGenerator(horizontal_flip=True, width_shift_range=0.2).flow(x, y, 16)
    history = model.fit(flow, epochs=2, verbose=0, validation_data=(x_val, y_val)).history
    save(model, **history)
    """
    (alone,) = run(1, program, tmp_path)
    results = run(2, program, tmp_path)
    assert_same_everywhere(results)
    for name, value in alone.items():
        np.testing.assert_allclose(results[0][name], value, rtol=2e-5, atol=2e-6, err_msg=name)


@needs_mpi
@pytest.mark.parametrize("first", ["fit(x, y, 16, 1, verbose=0)", "train_on_batch(x[:9], y[:9])"])
def test_without_a_seed_all_have_the_first_one_s(tmp_path, first):
    program = f"""
    model = network()
    model.compile("rmsprop", "categorical_crossentropy")
    model.{first}
    model.train_on_batch(x[:20], y[:20])
    save(model)
    """
    assert_same_everywhere(run(3, program, tmp_path))


@needs_mpi
def test_batch_normalization_averages_its_statistics(tmp_path):
    program = """
    set_random_seed(3)
    model = network(norm=True)
    model.compile(SGD(0.0), "categorical_crossentropy")
    model.fit(x, y, 50, 1, verbose=0, shuffle=False)
    save(model)
    """
    (alone,) = run(1, program, tmp_path)
    results = run(2, program, tmp_path)
    assert_same_everywhere(results)
    mean = "arr_6"  # gamma, beta, moving mean
    # The mean of means is the mean, of the variance within the halves it is not more than a part.
    np.testing.assert_allclose(results[0][mean], alone[mean], rtol=1e-5, atol=1e-7)


@needs_mpi
def test_only_the_first_process_prints_and_writes(tmp_path):
    program = """
    set_random_seed(3)
    model = network()
    model.summary()
    model.compile("rmsprop", "categorical_crossentropy")
    class Counting(ModelCheckpoint):
        def _save(self, *arguments):
            open(f"{out}/writer{rank}", "w").close()
            super()._save(*arguments)
    model.fit(x, y, 16, 2, verbose=2, callbacks=[
        Counting(out + "/best.safetensors", monitor="loss"), CSVLogger(out + "/log.csv"),
        LambdaCallback(on_epoch_end=lambda epoch, logs: print("epoch ended", epoch))])
    model.evaluate(x_val, y_val, verbose=2)
    model.save(f"{out}/model{rank}.safetensors")
    save(model)
    """
    result = launch(2, program, tmp_path)
    assert result.status == 0, result.output
    assert result.output.count("Total params") == 1
    assert result.output.count("Epoch 1/2") == 1
    assert result.output.count("epoch ended 1") == 1
    assert result.output.count("Evaluation") == 1
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    assert (tmp_path / "writer0").exists() and not (tmp_path / "writer1").exists()
    assert (tmp_path / "model0.safetensors").exists()
    assert not (tmp_path / "model1.safetensors").exists()


@needs_mpi
def test_values_of_batches_are_the_same_everywhere(tmp_path):
    """So callbacks decide alike: all stop at the first loss that is not a number."""
    program = """
    set_random_seed(3)
    x[3] = np.nan
    losses = []
    model = network()
    model.compile("sgd", "categorical_crossentropy")
    model.fit(x, y, 16, 2, verbose=0, shuffle=False, callbacks=[TerminateOnNaN(),
        LambdaCallback(on_batch_end=lambda batch, logs: losses.append(logs["loss"]))])
    save(model, losses=losses)
    """
    results = run(2, program, tmp_path)
    assert_same_everywhere(results)
    assert len(results[0]["losses"]) == 1 and np.isnan(results[0]["losses"]).all()


class TestFailures:
    pytestmark = needs_mpi

    FAILING = """
    set_random_seed(3)
    model = network(units=UNITS)
    model.compile("sgd", "categorical_crossentropy")
    def at(batch, logs):
        if rank == 1 and batch == 1:
            ACT
    model.fit(x, y, 16, 2, verbose=0, callbacks=[LambdaCallback(on_batch_begin=at)])
    print("reached the end")
    """

    def fail(self, tmp_path, act="pass", units="11", before="", **environment) -> Result:
        program = textwrap.dedent(before) + textwrap.dedent(self.FAILING).replace("ACT", act)
        result = launch(3, program.replace("UNITS", units), tmp_path, **environment)
        assert result.status != 0, result.output
        assert "reached the end" not in result.output
        return result

    def test_an_exception_reaches_all(self, tmp_path):
        result = self.fail(tmp_path, "raise OSError('the disk is full')")
        told = "Training ends because rank 1 failed: OSError: the disk is full"
        assert result.output.count(told) == 2
        assert result.seconds < 15

    def test_an_exception_outside_of_training_reaches_all(self, tmp_path):
        result = self.fail(
            tmp_path,
            before="""
        if rank == 1:
            distribute.detect()
            raise KeyError("no such thing")
        """,
        )
        assert result.output.count("rank 1 failed: KeyError: 'no such thing'") == 2

    def test_a_rank_that_hangs_is_named(self, tmp_path):
        result = self.fail(tmp_path, "time.sleep(1000)", PYCONV_MPI_TIMEOUT="2")
        assert result.output.count("Missing: rank 1.") == 2
        assert result.seconds < 20

    def test_a_rank_that_is_killed_ends_the_job(self, tmp_path):
        result = self.fail(tmp_path, "os.kill(os.getpid(), 9)", PYCONV_MPI_TIMEOUT="5")
        assert result.seconds < 30

    def test_another_model_is_refused(self, tmp_path):
        result = self.fail(tmp_path, units="11 + (rank == 2)")
        assert result.output.count('but "Dense(') + result.output.count("on rank 2") >= 3
        assert "All ranks must train the same model" in result.output

    def test_other_data_are_refused(self, tmp_path):
        result = self.fail(tmp_path, before="x[7] += rank == 1")
        assert result.output.count("the data is") >= 3
        assert "on rank 1" in result.output

    def test_other_validation_data_are_refused(self, tmp_path):
        program = self.FAILING.replace("verbose=0,", "verbose=0, validation_data=(x_val, y_val),")
        before = "x_val = x_val + (rank == 1)\n"
        result = launch(
            3,
            before + textwrap.dedent(program).replace("ACT", "pass").replace("UNITS", "11"),
            tmp_path,
        )
        assert result.status != 0 and "the validation data is" in result.output

    def test_other_arguments_are_refused(self, tmp_path):
        result = self.fail(tmp_path, before="y = y if rank else y[:49]; x = x if rank else x[:49]")
        assert "on rank 1, 2" in result.output


class TestResuming:
    pytestmark = needs_mpi

    PROGRAM = """
    set_random_seed(3)
    model = network()
    model.compile(Adam(1e-3), "categorical_crossentropy", metrics=["accuracy"])
    def at(batch, logs):
        if int(os.environ.get("FAIL", 0)) and rank == 0 and model._step == 6:
            raise RuntimeError("as it happens")
    history = model.fit(x, y, 16, 3, verbose=0, validation_data=(x_val, y_val), callbacks=[
        LambdaCallback(on_batch_begin=at), EarlyStopping("loss", patience=9),
        CSVLogger(out + "/log.csv"), ModelCheckpoint(out + "/best.safetensors"),
        BackupAndRestore(os.environ["BACKUP"], save_freq=1, delete_checkpoint=False)]).history
    save(model, **history)
    """

    @pytest.mark.parametrize("others", [1, 2, 4])
    def test_another_number_of_processes_goes_on(self, tmp_path, others):
        folders = [tmp_path / "whole", tmp_path / "cut"]
        whole = run(2, self.PROGRAM, tmp_path, BACKUP=str(folders[0]))
        log = (tmp_path / "log.csv").read_text()
        result = launch(2, self.PROGRAM, tmp_path, BACKUP=str(folders[1]), FAIL="1")
        assert result.status != 0 and "as it happens" in result.output
        resumed = run(others, self.PROGRAM, tmp_path, BACKUP=str(folders[1]))
        assert_same_everywhere(resumed)
        for name, value in whole[0].items():
            if others == 2:
                np.testing.assert_array_equal(resumed[0][name], value, name)
            np.testing.assert_allclose(resumed[0][name], value, rtol=2e-5, atol=2e-5, err_msg=name)
        assert len((tmp_path / "log.csv").read_text().splitlines()) == len(log.splitlines()) == 4


@needs_mpi
def test_the_command_line_trains_together(tmp_path):
    command = [sys.executable, "-m", "pyconv", "train", "--data", "shapes", "--limit", "300"]
    command += ["--epochs", "1", "--batch-size", "50", "--output"]
    # Winograd's algorithm, and how it rounds, depends on the number of images.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYCONV_MATH_MODE": "direct"}
    outputs = []
    for ranks in (1, 2):
        launcher = [mpiexec(), "-n", str(ranks)] if ranks > 1 else []
        done = subprocess.run(
            [*launcher, *command, str(tmp_path / str(ranks))],
            env=environment,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout)
    assert "in 2 processes" in outputs[1]
    for line in ("Training on", "Epoch 1/1", "Wrote", "Test loss"):
        assert outputs[1].count(line) == 1, outputs[1]
    assert pyconv.models.load_model(tmp_path / "2" / "model.safetensors").built
    # The first steps of RMSprop are learning rates with the signs of the gradients, so weights
    # whose gradients are nothing but rounding differ; the losses hardly do.
    one, two = (
        np.loadtxt(tmp_path / n / "history.csv", delimiter=",", skiprows=1) for n in ("1", "2")
    )
    losses = [1, 3]
    np.testing.assert_allclose(two[losses], one[losses], rtol=1e-4)


@needs_mpi
def test_a_signal_to_one_process_stops_all_after_the_batch(tmp_path):
    program = TestResuming.PROGRAM.replace(
        "    history = ",
        """
    import signal
    def hit(batch, logs):
        if int(os.environ.get("HIT", 0)) and rank == 1 and model._step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
    history = """,
    ).replace("callbacks=[", "callbacks=[LambdaCallback(on_batch_begin=hit), ")
    assert "hit)" in program
    folders = [tmp_path / "whole", tmp_path / "cut"]
    whole = run(2, program, tmp_path, BACKUP=str(folders[0]))
    result = launch(2, program, tmp_path, BACKUP=str(folders[1]), HIT="1", PYCONV_MPI_TIMEOUT="10")
    assert result.status != 0 and "Missing" not in result.output, result.output
    assert pyconv.checkpoints.read(folders[1] / "checkpoint.safetensors").batch == 3
    resumed = run(2, program, tmp_path, BACKUP=str(folders[1]))
    for name, value in whole[0].items():
        np.testing.assert_array_equal(resumed[0][name], value, name)


@needs_mpi
@pytest.mark.skipif(not has_emulated_cuda(), reason="no emulated CUDA")
def test_gradients_on_a_device_go_through_the_host(tmp_path):
    program = """
    set_random_seed(3)
    model = network()
    model.compile(SGD(0.1), "categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(x[:20], y[:20], 6, 1, verbose=0).history
    save(model, **history)
    """
    (alone,) = run(1, program, tmp_path, PYCONV_DEVICE="cuda-emulated")
    results = run(2, program, tmp_path, PYCONV_DEVICE="cuda-emulated")
    assert_same_everywhere(results)
    for name, value in alone.items():
        np.testing.assert_allclose(results[0][name], value, rtol=2e-5, atol=2e-6, err_msg=name)
