"""Training that was cut off goes on to the same bits, and no failure leaves a file that is damaged.

PYCONV_KILLS=100 kills the program at so many random moments, with and without augmentation.
"""

from __future__ import annotations

import errno
import json
import os
import random as python_random
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import pyconv
from pyconv import checkpoints, saving
from pyconv.callbacks import (
    BackupAndRestore,
    Callback,
    CSVLogger,
    EarlyStopping,
    LambdaCallback,
    LearningRateScheduler,
    ModelCheckpoint,
    ReduceLROnPlateau,
)
from pyconv.callbacks import backup as backup_module
from pyconv.layers import (
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Input,
    MaxPooling2D,
)
from pyconv.models import Sequential, load_model
from pyconv.optimizers import SGD, Adam, schedules
from pyconv.preprocessing.image import ImageDataGenerator
from pyconv.utils import set_random_seed

pytest.importorskip("safetensors")

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")
KILLS = int(os.environ.get("PYCONV_KILLS", "3"))

N, BATCH, EPOCHS = 22, 6, 3
STEPS = 4  # of an epoch


def data(n=N, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, 8, 8, 1)).astype(dtype)
    return x / dtype(256) if dtype == np.float32 else x, np.eye(3, dtype=np.float32)[
        rng.integers(0, 3, n)
    ]


def new_model(optimizer="rmsprop", seed=1, units=5):
    set_random_seed(seed)
    model = Sequential(
        [
            Input((8, 8, 1)),
            Conv2D(4, 3, activation="relu"),
            MaxPooling2D(2),
            Dropout(0.25),
            Flatten(),
            Dense(units, activation="relu"),
            Dropout(0.5),
            Dense(3, activation="softmax"),
        ]
    )
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])
    return model


class CrashError(Exception):
    """Stands for whatever ends a process."""


def crash_before(number):
    """A callback that raises before the batch of this number, counted across epochs."""
    left = number

    def count(*_):
        nonlocal left
        if left == 0:
            raise CrashError
        left -= 1

    return LambdaCallback(on_train_batch_begin=count)


def result(model, history):
    return model.get_weights(), history.history, history.epoch, model.optimizer.iterations


def assert_same(got, expected):
    for mine, theirs in zip(got[0], expected[0], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert got[1:] == expected[1:]


class Indexed:
    """Batches by number that differ from pass to pass, which is its state."""

    def __init__(self):
        self.passes = 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        x, y = data(4, seed=3 * self.passes + index)
        return x, y

    def on_epoch_end(self):
        self.passes += 1

    def get_state(self):
        return self.passes

    def set_state(self, state):
        self.passes = state


class Anew:
    """An iterable that starts anew, with state."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return (data(4, seed=10 * self.passes + i) for i in range(3))

    def get_state(self):
        return self.passes

    def set_state(self, state):
        self.passes = state


def endless():
    seed = 0
    while True:
        seed += 1
        yield data(3, seed=seed)


def flow():
    generator = ImageDataGenerator(width_shift_range=0.2, rotation_range=20, horizontal_flip=True)
    return generator.flow(*data(), batch_size=BATCH)


SOURCES = {
    "arrays": lambda: dict(zip(("x", "y"), data()), batch_size=BATCH, validation_data=data(8)),
    "split, integers": lambda: dict(
        zip(("x", "y"), data(dtype=np.uint8)), batch_size=5, validation_split=0.2
    ),
    "in order": lambda: dict(zip(("x", "y"), data()), batch_size=BATCH, shuffle=False),
    "flow": lambda: {"x": flow(), "validation_data": data(8)},
    "flow, some steps": lambda: {"x": flow(), "steps_per_epoch": 3},
    "flow, many steps": lambda: {"x": flow(), "steps_per_epoch": 6, "workers": 3},
    "indexed": lambda: {"x": Indexed(), "validation_data": Indexed(), "validation_steps": 2},
    "anew": lambda: {"x": Anew(), "validation_data": data(8)},
    "anew, some steps": lambda: {"x": Anew(), "steps_per_epoch": 4, "workers": 0},
    "list": lambda: {"x": [data(4), data(3)], "steps_per_epoch": 3},
    "generator": lambda: {"x": endless(), "steps_per_epoch": 4, "workers": 3},
}


@pytest.mark.parametrize("source", SOURCES)
def test_goes_on_from_every_batch(source, tmp_path):
    """A process that starts with other seeds goes on with those of the one that crashed."""
    model = new_model()
    whole = model.fit(**SOURCES[source](), epochs=EPOCHS, verbose=0)
    expected = result(model, whole)
    steps = model.optimizer.iterations
    assert steps >= 7
    for moment in range(steps):
        backup = BackupAndRestore(tmp_path / str(moment), save_freq=1)
        model = new_model()
        with pytest.raises(CrashError):
            model.fit(
                **SOURCES[source](),
                epochs=EPOCHS,
                verbose=0,
                callbacks=[crash_before(moment), backup],
            )
        assert backup.path.exists() == (moment > 0)
        model = new_model(seed=1 if moment == 0 else 2)
        history = model.fit(
            **SOURCES[source](),
            epochs=EPOCHS,
            verbose=0,
            callbacks=BackupAndRestore(backup.backup_dir, save_freq=1),
        )
        assert_same(result(model, history), expected)
        assert not backup.path.exists()


OPTIMIZERS = {
    "sgd": SGD,
    "momentum": lambda: SGD(0.05, momentum=0.9, nesterov=True),
    "adam": Adam,
    "schedule": lambda: Adam(schedules.ExponentialDecay(0.01, 3, 0.5)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("moment", [0, 1, STEPS - 1, STEPS, STEPS + 2, 2 * STEPS])
def test_goes_on_from_the_end_of_an_epoch(optimizer, moment, tmp_path, target):
    def fit(*callbacks):
        model = new_model(OPTIMIZERS[optimizer]())
        history = model.fit(*data(), BATCH, EPOCHS, verbose=0, callbacks=list(callbacks))
        return *result(model, history), model.optimizer.learning_rate

    expected = fit()
    with pytest.raises(CrashError):
        fit(BackupAndRestore(tmp_path), crash_before(moment))
    assert_same(fit(BackupAndRestore(tmp_path)), expected)


@pytest.mark.parametrize("moment", range(1, 3 * STEPS, 2))
def test_moving_averages_go_on(moment, tmp_path):
    def fit(*callbacks):
        set_random_seed(1)
        layers = [Input((8, 8, 1)), Conv2D(4, 3), BatchNormalization(), Flatten(), Dense(3)]
        model = Sequential(layers)
        model.compile(SGD(0.1, momentum=0.9), "mse")
        return result(model, model.fit(*data(), BATCH, EPOCHS, verbose=0, callbacks=callbacks))

    expected, backup = fit(), BackupAndRestore(tmp_path, save_freq=1)
    with pytest.raises(CrashError):
        fit(backup, crash_before(moment))
    assert_same(fit(backup), expected)


@pytest.mark.parametrize("moment", [STEPS, STEPS + 2, 3 * STEPS, 3 * STEPS + 1])
def test_other_callbacks_go_on_too(moment, tmp_path):
    """Patience, best values and weights, the rate, files: as in a run without a crash."""

    def fit(folder, *callbacks):
        model = new_model()
        folder.mkdir(exist_ok=True)
        best = folder / "best.safetensors"
        mine = [
            EarlyStopping("loss", patience=3, min_delta=1, restore_best_weights=True),
            ReduceLROnPlateau("loss", patience=2, min_delta=1, factor=0.5),
            LearningRateScheduler(lambda epoch, rate: rate * 0.9),
            ModelCheckpoint(best, "accuracy", save_best_only=True),
            CSVLogger(folder / "log.csv"),
        ]
        history = model.fit(*data(), BATCH, 9, verbose=0, callbacks=[*callbacks, *mine])
        files = (folder / "log.csv").read_bytes(), best.read_bytes()
        return *result(model, history), model.optimizer.learning_rate, files, mine[0].stopped_epoch

    expected = fit(tmp_path / "whole")
    assert 0 < expected[-1] < 8  # it was stopped early
    backup = BackupAndRestore(tmp_path / "backup", save_freq=1 if moment % STEPS else "epoch")
    with pytest.raises(CrashError):
        fit(tmp_path / "a", backup, crash_before(moment))
    assert_same(fit(tmp_path / "a", backup), expected)


def test_other_callbacks_are_refused(tmp_path):
    options = {"epochs": 1, "verbose": 0}
    backup = BackupAndRestore(tmp_path, delete_checkpoint=False)
    new_model().fit(*data(), **options, callbacks=[EarlyStopping("loss"), backup])
    message = "begun with other callbacks: EarlyStopping that have a state. Received: none"
    with pytest.raises(ValueError, match=message):
        new_model().fit(*data(), **options, callbacks=backup)


def test_a_crash_in_the_validation(tmp_path):
    """What had been saved is the last batch of the epoch; the validation is made once more."""

    def crash(batch, _):
        if batch == 1:
            raise CrashError

    options = {"epochs": 2, "verbose": 0}
    model = new_model()
    source = {"x": Indexed(), "validation_data": Indexed(), "validation_steps": 2}
    expected = result(model, model.fit(**source, **options))
    source = {"x": Indexed(), "validation_data": Indexed(), "validation_steps": 2}
    callbacks = [BackupAndRestore(tmp_path, 1), LambdaCallback(on_test_batch_begin=crash)]
    with pytest.raises(CrashError):
        new_model().fit(**source, **options, callbacks=callbacks)
    checkpoint = checkpoints.read(tmp_path / "checkpoint.safetensors")
    assert (checkpoint.epoch, checkpoint.batch) == (0, 3)
    model = new_model(seed=2)
    source = {"x": Indexed(), "validation_data": Indexed(), "validation_steps": 2}
    history = model.fit(**source, **options, callbacks=BackupAndRestore(tmp_path, 1))
    assert_same(result(model, history), expected)


def test_initial_epoch_goes_on_with_the_weights_alone():
    """Without a checkpoint: epochs are counted on, and nothing else is known of the past."""
    model = new_model()
    history = model.fit(*data(), BATCH, epochs=3, initial_epoch=2, verbose=0)
    assert history.epoch == [2] and model.optimizer.iterations == STEPS


class Written(Callback):
    """Notes when the checkpoint has changed."""

    def __init__(self, path):
        self.path, self.last, self.batches, self.epochs = path, None, [], []

    def changed(self):
        now = self.path.read_bytes() if self.path.exists() else None
        before, self.last = self.last, now
        return now != before

    def on_train_batch_begin(self, batch, logs=None):
        if self.changed():
            self.batches.append(self.model.optimizer.iterations)

    def on_train_end(self, logs=None):
        if self.changed():
            self.batches.append(self.model.optimizer.iterations)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [4, 8, 12]),
        ({"save_freq": 1}, list(range(1, 13))),
        ({"save_freq": 5}, [5, 10]),
        ({"save_freq": 5.0}, [5, 10]),
        ({"save_seconds": 0}, list(range(1, 13))),
        ({"save_seconds": 1000}, [4, 8, 12]),
        ({"double_checkpoint": True}, [4, 8, 12]),
    ],
)
def test_save_freq(options, expected, tmp_path):
    backup = BackupAndRestore(tmp_path / "a" / "b", delete_checkpoint=False, **options)
    written = Written(backup.path)
    new_model().fit(*data(), BATCH, EPOCHS, verbose=0, callbacks=[backup, written])
    assert written.batches == expected
    assert [path.name for path in backup.backup_dir.iterdir()] == ["checkpoint.safetensors"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [4, 12, 16]),
        ({"save_seconds": 0}, [1, 6, 11, 16]),
        ({"save_freq": 3}, [3, 6, 9, 12, 15]),
    ],
)
def test_max_share(options, expected, tmp_path, monkeypatch):
    """Seconds pass only where they are made to: 3 a batch and 0.15, 1 % of 15, a save."""
    now, write = 0.0, checkpoints.write

    def spend(seconds):
        nonlocal now
        now += seconds

    def slow(*arguments):
        write(*arguments)
        spend(0.15)

    monkeypatch.setattr(backup_module.time, "monotonic", lambda: now)
    monkeypatch.setattr(checkpoints, "write", slow)
    backup = BackupAndRestore(tmp_path, delete_checkpoint=False, max_share=0.01, **options)
    written = Written(backup.path)
    pass_time = LambdaCallback(on_train_batch_begin=lambda *_: spend(3))
    new_model().fit(*data(), BATCH, 4, verbose=0, callbacks=[backup, written, pass_time])
    assert written.batches == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_freq": 0}, "save_freq must be 'epoch' or a positive number"),
        ({"save_freq": "batch"}, "Received: save_freq='batch'"),
        ({"save_freq": True}, "Received: save_freq=True"),
        ({"save_seconds": -1}, "save_seconds must be at least 0"),
        ({"max_share": 0}, "max_share must be in 0 < max_share < 1. Received: max_share=0"),
        ({"max_share": 1}, "max_share must be in"),
        ({"backup_dir": ""}, "backup_dir must name a folder"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        BackupAndRestore(**{"backup_dir": "x", **options})


def test_it_saves_what_later_callbacks_did(tmp_path):
    """It comes last, wherever it stands: the history has what others put into the logs."""
    adds = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(found=np.float32(epoch)))
    backup = BackupAndRestore(tmp_path, delete_checkpoint=False)
    history = new_model().fit(*data(), BATCH, 2, verbose=0, callbacks=[backup, adds])
    saved = checkpoints.read(backup.path).description["history"]
    assert saved["values"]["found"] == [0.0, 1.0]
    assert saved["values"]["loss"] == history.history["loss"] and saved["epoch"] == [0, 1]


def test_a_loss_that_is_not_finite(tmp_path):
    x, y = data()
    x[0] = np.inf
    backup = BackupAndRestore(tmp_path, delete_checkpoint=False)
    new_model().fit(x, y, BATCH, 1, verbose=0, callbacks=backup)
    model = new_model()
    history = model.fit(x, y, BATCH, 2, verbose=0, callbacks=backup)
    assert len(history.history["loss"]) == 2 and np.isnan(history.history["loss"][0])
    assert backup.path.read_bytes().count(b"NaN") == 0


def test_a_history_that_is_not_plain_data(tmp_path):
    adds = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(found=object()))
    with pytest.raises(ValueError, match=r"not plain data: Object of type object"):
        new_model().fit(*data(), verbose=0, callbacks=[BackupAndRestore(tmp_path), adds])


class TestTheEnd:
    def test_more_epochs(self, tmp_path):
        expected = new_model()
        whole = expected.fit(*data(), BATCH, 4, verbose=0)
        for epochs in (1, 1, 3, 4):  # of which the second has nothing to do
            backup = BackupAndRestore(tmp_path, delete_checkpoint=False)
            model = new_model(seed=1 if epochs == 1 else 2)
            history = model.fit(*data(), BATCH, epochs, verbose=0, callbacks=backup)
            assert history.epoch == list(range(epochs))
        assert_same(result(model, history), result(expected, whole))

    def test_early_stopping_is_an_end(self, tmp_path):
        def stop(epoch, _):
            model.stop_training = epoch == 1

        model, backup = new_model(), BackupAndRestore(tmp_path)
        callbacks = [LambdaCallback(on_epoch_end=stop), backup]
        history = model.fit(*data(), BATCH, 9, verbose=0, callbacks=callbacks)
        assert history.epoch == [0, 1] and not backup.path.exists()

    def test_data_that_ran_out_are_not(self, tmp_path):
        backup = BackupAndRestore(tmp_path)
        with pytest.warns(UserWarning, match="ran out"):
            new_model().fit(iter([data(4)] * 3), epochs=9, verbose=0, callbacks=backup)
        assert backup.path.exists()

    def test_a_failure_to_save_is_not(self, tmp_path, monkeypatch):
        backup = BackupAndRestore(tmp_path)
        model, write = new_model(), checkpoints.write

        def full(*arguments):
            if model._run.epoch == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(*arguments)

        monkeypatch.setattr(checkpoints, "write", full)
        with pytest.raises(OSError, match="No space left on device. The one before is intact"):
            model.fit(*data(), BATCH, 2, verbose=0, callbacks=backup)
        assert checkpoints.read(backup.path).epoch == 1

    def test_leftovers_of_a_killed_process_are_removed(self, tmp_path):
        names = (".checkpoint.safetensors.0a1b2c3d.tmp", ".other.safetensors.0a1b2c3d.tmp")
        for name in names:
            (tmp_path / name).touch()
        new_model().fit(*data(), verbose=0, callbacks=BackupAndRestore(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == [names[1]]


class TestOtherSettings:
    @pytest.fixture
    def backup(self, tmp_path):
        backup = BackupAndRestore(
            tmp_path, delete_checkpoint=False, settings={"data": ("mine", 1), "share": 0.5}
        )
        new_model().fit(*data(), BATCH, 1, verbose=0, callbacks=backup)
        return backup

    def refused(self, backup, message, model=None, samples=N, **options):
        model = model or new_model()
        before = model.get_weights()
        options = {"batch_size": BATCH, "epochs": 2, "verbose": 0, **options}
        with pytest.raises(ValueError, match=message) as caught:
            model.fit(*data(samples), **options, callbacks=backup)
        assert str(backup.path) in str(caught.value)
        for mine, theirs in zip(model.get_weights(), before):
            np.testing.assert_array_equal(mine, theirs)

    def test_arguments_of_fit(self, backup):
        self.refused(backup, r"begun with batch_size=6. Received: batch_size=4", batch_size=4)
        self.refused(backup, r"begun with samples=22. Received: samples=21", samples=21)
        self.refused(backup, r"shuffle=True. Received: shuffle=False", shuffle=False)

    def test_network(self, backup):
        self.refused(
            backup, r"layers\[4\]=.Dense\(.*units=5.*Received.*units=6", new_model(units=6)
        )
        model = Sequential([Input((8, 8, 1)), Flatten(), Dense(3)])
        model.compile("rmsprop", "mse")
        self.refused(backup, r"layers\[0\]=.Conv2D.*Received: layers\[0\]=.Flatten", model)

    def test_optimizer(self, backup):
        self.refused(backup, "optimizer='RMSprop'. Received: optimizer='SGD'", new_model("sgd"))
        other = new_model(pyconv.optimizers.RMSprop(rho=0.8))
        self.refused(backup, r"optimizer.rho=0.9. Received: optimizer.rho=0.8", other)

    def test_loss(self, backup):
        model = new_model()
        model.compile("rmsprop", "mse", metrics=["accuracy"])
        self.refused(backup, "loss='CategoricalCrossentropy'. Received: loss='MeanSq", model)

    def test_of_the_users(self, backup):
        settings = {"data": ("mine", 1), "share": 0.25}
        other = BackupAndRestore(backup.backup_dir, settings=settings)
        self.refused(other, r"share=0.5. Received: share=0.25")
        self.refused(BackupAndRestore(backup.backup_dir), "Received: data=None")
        same = BackupAndRestore(backup.backup_dir, settings={**settings, "share": 0.5})
        new_model().fit(*data(), BATCH, 1, verbose=0, callbacks=same)

    def test_other_arithmetic_is_warned_of(self, backup, math_mode):
        math_mode("direct" if pyconv.get_math_mode() != "direct" else "fp32")
        with pytest.warns(UserWarning, match="not be the same bits"):
            new_model().fit(*data(), BATCH, 2, verbose=0, callbacks=backup)


class TestDamage:
    @pytest.fixture
    def backup(self, tmp_path):
        backup = BackupAndRestore(tmp_path, delete_checkpoint=False)
        new_model().fit(*data(), BATCH, 1, verbose=0, callbacks=backup)
        return backup

    def refused(self, backup, message, error=ValueError):
        model = new_model(seed=2)
        before, iterations, count = model.get_weights(), 0, pyconv.random.get_state()
        content = backup.path.read_bytes()
        with pytest.raises(error, match=message) as caught:
            model.fit(*data(), BATCH, 2, verbose=0, callbacks=backup)
        assert str(backup.path) in str(caught.value)
        for mine, theirs in zip(model.get_weights(), before):
            np.testing.assert_array_equal(mine, theirs)
        assert model.optimizer.iterations == iterations and not model.optimizer.slots
        assert pyconv.random.get_state() == (count[0], count[1] + 1)  # fit's own
        assert backup.path.read_bytes() == content

    def test_truncated_anywhere(self, backup):
        content = backup.path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        for size in (0, 1, 7, 8, 9, 8 + length // 2, 8 + length, 9 + length, len(content) - 1):
            backup.path.write_bytes(content[:size])
            self.refused(backup, "not a safetensors file, or is damaged")

    def test_other_bytes(self, backup):
        content = backup.path.read_bytes()
        for changed in (b"PK" + content, b"\xff" * 8 + content[8:], content + b"\0", b"text"):
            backup.path.write_bytes(changed)
            self.refused(backup, "not a safetensors file, or is damaged")

    def test_another_file_of_pyconv(self, backup):
        saving.save_model(new_model(), backup.path)
        self.refused(backup, "no checkpoint of pyconv's")

    def test_a_checkpoint_is_no_model(self, backup):
        with pytest.raises(ValueError, match="no model of pyconv's"):
            load_model(backup.path)

    def change(self, backup, change):
        content = backup.path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        description = json.loads(header["__metadata__"]["pyconv_checkpoint"])
        change(header, description)
        header["__metadata__"]["pyconv_checkpoint"] = json.dumps(description)
        text = json.dumps(header).encode()
        backup.path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    def rename(self, header, old, new):
        header[new] = header.pop(old)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.update(format=2), "has format 2"),
            (lambda d: d.pop("format"), "description is damaged"),
            (lambda d: d.pop("run"), "is damaged: KeyError: 'run'"),
            (lambda d: d.update(run=3), "is damaged: TypeError"),
            (lambda d: d["run"].update(epoch=-1), "expected a count. Received: -1"),
            (lambda d: d["run"].update(batch="2"), "expected a count. Received: '2'"),
            (lambda d: d["run"].update(means={}), "is damaged: KeyError: 'loss'"),
            (lambda d: d["run"].update(batches={"seed": -1}), "A seed must be"),
            (lambda d: d.update(step=None), "expected a count. Received: None"),
            (lambda d: d.update(step=2**63), "expected a count"),
            (lambda d: d["optimizer"].update(iterations=10**30), "expected a count"),
            (lambda d: d.update(random=[1, "x"]), "is damaged: TypeError"),
            (lambda d: d.update(random=[2**64, 1]), "A seed must be"),
            (lambda d: d.update(seeds={}), "is damaged: KeyError: 'dropout'"),
            (lambda d: d.pop("optimizer"), "is damaged: KeyError: 'optimizer'"),
            (lambda d: d["optimizer"].update(learning_rate="x"), "is damaged: ValueError"),
            (lambda d: d["history"].update(values=[]), "is damaged: AttributeError"),
            (lambda d: d["history"].update(epoch=[0.5]), "expected a count"),
            (lambda d: d.update(settings=7), "is damaged: TypeError"),
            (lambda d: d.update(epochs=None), "expected a count"),
        ],
    )
    def test_description(self, backup, change, message):
        self.change(backup, lambda _, description: change(description))
        self.refused(backup, message)

    def test_tensors(self, backup):
        content = backup.path.read_bytes()
        for old, new, message in (
            ("weights/conv2d/kernel", "weights/conv2d/kernal", "it lacks conv2d/kernel"),
            ("optimizer/velocity", "optimizer/m", "it has the optimizer's slots m"),
        ):
            self.change(backup, lambda header, _, old=old, new=new: self.rename(header, old, new))
            self.refused(backup, message)
            backup.path.write_bytes(content)

    def test_shapes(self, backup):
        self.change(backup, lambda header, _: header["weights/dense/bias"].update(shape=[1, 5]))
        self.refused(backup, r"dense/bias must have the shape \(5,\). Received: \(1, 5\)")

    def test_a_slot_of_another_size(self, backup):
        def change(header, _):
            start, end = header["optimizer/velocity"]["data_offsets"]
            header["optimizer/velocity"].update(shape=[2, (end - start) // 8])

        self.change(backup, change)
        self.refused(backup, "slots are not flat arrays of one size")

    def test_a_folder(self, backup):
        backup.path.unlink()
        backup.path.mkdir()
        with pytest.raises(ValueError, match="is a folder"):
            new_model().fit(*data(), verbose=0, callbacks=backup)


def test_in_another_thread(tmp_path):
    """Where signals cannot be caught, everything else works."""
    model = new_model()
    expected = result(model, model.fit(*data(), BATCH, EPOCHS, verbose=0))
    model = new_model()

    def fit():
        with pytest.raises(CrashError):
            model.fit(
                *data(), BATCH, EPOCHS, verbose=0, callbacks=[BackupAndRestore(tmp_path, 2), crash]
            )

    crash = crash_before(7)
    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    model = new_model(seed=2)
    history = model.fit(*data(), BATCH, EPOCHS, verbose=0, callbacks=BackupAndRestore(tmp_path))
    assert_same(result(model, history), expected)


@posix
class TestSignalsInPython:
    @pytest.fixture(autouse=True)
    def handlers(self):
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        now = {number: signal.getsignal(number) for number in before}
        for number, handler in before.items():
            signal.signal(number, handler)
        assert now == {**before, signal.SIGINT: signal.default_int_handler}, "not put back"

    @pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_test_batch_begin"])
    def test_ctrl_c_takes_effect_after_the_batch(self, hook, tmp_path):
        sent = []

        def send(batch, _):
            if batch == 1 and not sent:
                sent.append(model.optimizer.iterations)
                signal.raise_signal(signal.SIGINT)

        options = {"validation_data": data(8), "verbose": 0, "epochs": EPOCHS, "batch_size": BATCH}
        model = new_model()
        expected = result(model, model.fit(*data(), **options))
        model = new_model()
        backup = BackupAndRestore(tmp_path)
        callbacks = [backup, LambdaCallback(**{hook: send})]
        history = model.fit(*data(), **options, callbacks=callbacks)
        assert history.interrupted and history.epoch == []
        checkpoint = checkpoints.read(backup.path)
        done = 2 if hook == "on_train_batch_begin" else STEPS
        assert (checkpoint.epoch, checkpoint.batch) == (0, done)
        assert model.optimizer.iterations == done
        model = new_model(seed=2)
        history = model.fit(*data(), **options, callbacks=backup)
        assert not history.interrupted
        assert_same(result(model, history), expected)

    def test_a_second_one_takes_effect_at_once(self, tmp_path):
        reached = []

        def send(*_):
            signal.raise_signal(signal.SIGINT)
            reached.append(1)
            signal.raise_signal(signal.SIGINT)
            reached.append(2)

        backup = BackupAndRestore(tmp_path)
        callbacks = [backup, LambdaCallback(on_train_batch_begin=send)]
        history = new_model().fit(*data(), verbose=0, callbacks=callbacks)
        assert history.interrupted and reached == [1]

    def test_after_the_last_batch(self, tmp_path):
        send = LambdaCallback(on_train_end=lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            new_model().fit(*data(), verbose=0, callbacks=[BackupAndRestore(tmp_path), send])

    def test_ignored_signals_stay_ignored(self, tmp_path):
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            send = LambdaCallback(on_batch_end=lambda *_: signal.raise_signal(signal.SIGTERM))
            backup = BackupAndRestore(tmp_path)
            history = new_model().fit(*data(), verbose=0, callbacks=[backup, send])
            assert not history.interrupted and history.epoch == [0]
        finally:
            signal.signal(signal.SIGTERM, before)


# The program, in processes of its own

PROGRAM = """
import sys
from pyconv import cli
from pyconv.datasets import shapes
cli.LOADERS["shapes"] = cli.LOADERS["mnist"] = lambda: shapes.load_data(n_train=200, n_test=20)
cli.SAVE_SECONDS, cli.SAVE_SHARE = 0, None  # so at every moment something is being saved
cli.main()
"""
TRAIN = ["train", "--data", "shapes", "--batch-size", "20", "--epochs", "3", "--threads", "1"]


class Program:
    """`pyconv train` on few images, in a folder."""

    def __init__(self, folder: Path, *arguments: str, **options):
        path = [str(Path(pyconv.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments, "--output", str(folder)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            cwd=Path(__file__).parent,  # not where a source tree would hide what is installed
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **{"preexec_fn": heed_ctrl_c, **options},
        )

    def wait_for(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                return
        pytest.fail(f"ended before {text!r}: {self.process.communicate()}")

    def end(self, status: int = 0) -> tuple[str, str]:
        out, err = self.process.communicate(timeout=120)
        assert self.process.returncode == status, (out, err)
        assert "Traceback" not in err
        return out, err


def heed_ctrl_c() -> None:
    """A test run in the background may have SIGINT ignored, which its children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def outputs(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model.safetensors").read_bytes(), (folder / "history.csv").read_bytes()


@posix
@pytest.mark.parametrize("augment", [[], ["--augment"]], ids=["plain", "augmented"])
def test_killed_at_random_moments(augment, tmp_path):
    """SIGKILL, once to three times; what is left is readable, and the end is the same."""
    arguments = [*TRAIN, *augment]
    program = Program(tmp_path / "whole", *arguments)
    program.wait_for("Training on")
    start = time.monotonic()
    program.end()
    seconds = time.monotonic() - start
    expected = outputs(tmp_path / "whole")

    rng = python_random.Random(0)
    hits = trial = 0
    while trial < KILLS or not hits:
        trial += 1
        folder = tmp_path / str(trial)
        for _ in range(rng.randint(1, 3)):
            program = Program(folder, *arguments, "--resume")
            program.wait_for("Training on")
            try:
                program.process.wait(rng.uniform(0, seconds))
                seconds /= 2  # a run of its own was faster than the first
            except subprocess.TimeoutExpired:
                program.process.kill()
                hits += 1
            program.process.communicate()
            path = folder / "checkpoint.safetensors"
            if path.exists():
                checkpoints.read(path)
            for name in ("model.safetensors", "history.csv"):
                if (folder / name).exists():
                    assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        program = Program(folder, *arguments, "--resume")
        out, _ = program.end()
        assert "Going on with the run" in out or "finished" in out or "afresh" in out
        assert outputs(folder) == expected, f"trial {trial}"
        assert not list(folder.glob(".*.tmp"))
    print(f"killed {hits} times in {trial} trials")


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(number, tmp_path):
    arguments = [*TRAIN, "--augment", "--epochs", "6"]  # some left, however late it arrives
    Program(tmp_path / "whole", *arguments).end()
    program = Program(tmp_path / "a", *arguments)
    program.wait_for("Epoch 1/")
    program.process.send_signal(number)
    out, _ = program.end(128 + number)
    assert "interrupted" in out and "Wrote model.safetensors" in out
    checkpoint = checkpoints.read(tmp_path / "a" / "checkpoint.safetensors")
    assert 1 <= checkpoint.epoch < 6
    out, _ = Program(tmp_path / "a", "train", "--threads", "2", "--resume").end()
    assert f"after {checkpoint.epoch} of 6 epochs" in out
    assert outputs(tmp_path / "a") == outputs(tmp_path / "whole")


@posix
def test_full_disk(tmp_path):
    """Files may not grow beyond a size, as on a disk that is full."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    _, err = Program(tmp_path / "a", *TRAIN, preexec_fn=limit).end(1)
    assert "checkpoint.safetensors cannot be written: File too large. There is none yet." in err
    assert not list((tmp_path / "a").iterdir())

    arguments = [*TRAIN, "--epochs", "6"]
    program = Program(tmp_path / "a", *arguments)
    program.wait_for("Epoch 1/")
    program.process.send_signal(signal.SIGTERM)
    program.end(128 + signal.SIGTERM)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    resume = ["train", "--resume", "--threads", "1"]
    _, err = Program(tmp_path / "a", *resume, preexec_fn=limit).end(1)
    assert "cannot be written: File too large. The one before is intact." in err
    assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    Program(tmp_path / "a", *resume).end()
    Program(tmp_path / "whole", *arguments).end()
    assert outputs(tmp_path / "a") == outputs(tmp_path / "whole")


@pytest.fixture
def read_only():
    """Makes a folder read-only; to root, who may write anyway, by refusing to make files."""
    changed = []

    with pytest.MonkeyPatch.context() as patch:

        def change(folder: Path) -> None:
            folder.chmod(0o500)
            changed.append(folder)
            if os.access(folder, os.W_OK):

                def refuse(path, mode="r", *arguments, **keywords):
                    if "x" in mode and Path(path).parent == folder:
                        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
                    return open(path, mode, *arguments, **keywords)

                patch.setattr(saving, "open", refuse, raising=False)

        yield change
    for folder in changed:
        folder.chmod(0o700)


def test_read_only_folder(tmp_path, read_only):
    backup = BackupAndRestore(tmp_path / "a")
    with pytest.raises(CrashError):
        new_model().fit(*data(), BATCH, 2, verbose=0, callbacks=[backup, crash_before(5)])
    before = backup.path.read_bytes()
    read_only(backup.backup_dir)
    with pytest.raises(OSError, match="Permission denied. The one before is intact"):
        new_model().fit(*data(), BATCH, 2, verbose=0, callbacks=backup)
    assert backup.path.read_bytes() == before
    assert [path.name for path in backup.backup_dir.iterdir()] == ["checkpoint.safetensors"]
