"""Callbacks: when they are called, what they decide, and the files they write."""

from __future__ import annotations

import csv
import sys

import numpy as np
import pytest

from pyconv import optimizers
from pyconv.callbacks import (
    Callback,
    CSVLogger,
    EarlyStopping,
    LambdaCallback,
    LearningRateScheduler,
    ModelCheckpoint,
    ReduceLROnPlateau,
    TensorBoard,
    TerminateOnNaN,
)
from pyconv.layers import Dense, Input
from pyconv.models import Sequential, load_model
from pyconv.utils import set_random_seed
from recorder import Recorder


def data(n=10):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    return x, np.eye(3, dtype=np.float32)[rng.integers(0, 3, n)]


def new_model(optimizer="sgd"):
    set_random_seed(1)
    model = Sequential([Input((4,)), Dense(3, activation="softmax")])
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])
    return model


class Says(Callback):
    """Puts given values into the logs, epoch by epoch."""

    def __init__(self, **values):
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs.update({name: values[epoch] for name, values in self.values.items()})


class Weights(Callback):
    """Remembers the weights after every epoch."""

    def __init__(self):
        self.kernels = []

    def on_epoch_end(self, epoch, logs=None):
        self.kernels.append(self.model.get_weights()[0])


def fit(*callbacks, model=None, epochs=6, **options):
    model = model or new_model()
    return model.fit(*data(), epochs=epochs, verbose=0, callbacks=list(callbacks), **options)


class TestHooks:
    def test_validation_in_fit(self):
        recorder = Recorder()
        fit(recorder, epochs=1, batch_size=10, validation_data=data(4))
        assert [call[0] for call in recorder.calls] == [
            "on_train_begin",
            "on_epoch_begin",
            "on_train_batch_begin",
            "on_train_batch_end",
            "on_test_begin",
            "on_test_batch_begin",
            "on_test_batch_end",
            "on_test_end",
            "on_epoch_end",
            "on_train_end",
        ]
        assert list(recorder.calls[7][1]) == ["loss", "accuracy"]
        assert recorder.calls[-1][1]["val_loss"] == recorder.calls[7][1]["loss"]

    def test_evaluate(self):
        recorder = Recorder()
        loss, _ = new_model().evaluate(*data(), batch_size=6, verbose=0, callbacks=recorder)
        assert [call[:2] for call in recorder.calls[:-1]] == [
            ("on_test_begin", None),
            ("on_test_batch_begin", 0),
            ("on_test_batch_end", 0),
            ("on_test_batch_begin", 1),
            ("on_test_batch_end", 1),
        ]
        assert recorder.calls[-1] == ("on_test_end", recorder.calls[-2][2])
        assert recorder.calls[-1][1]["loss"] == loss
        assert recorder.params == {"steps": 2, "samples": 10, "batch_size": 6, "verbose": 0}

    def test_predict(self):
        recorder = Recorder()
        y = new_model().predict(data()[0], batch_size=6, verbose=0, callbacks=[recorder])
        names = ["on_predict_begin", *["on_predict_batch_begin", "on_predict_batch_end"] * 2]
        assert [call[0] for call in recorder.calls] == [*names, "on_predict_end"]
        outputs = [call[2]["outputs"] for call in recorder.calls if call[0].endswith("batch_end")]
        np.testing.assert_array_equal(np.concatenate(outputs), y)

    def test_weights_changed_during_prediction_are_used(self):
        model = new_model()
        kernel = model.layers[0].parameters[0]
        change = LambdaCallback(
            on_predict_batch_begin=lambda batch, _: kernel.assign(np.full((4, 3), batch))
        )
        x = data()[0]
        y = model.predict(x, batch_size=5, verbose=0, callbacks=change)
        np.testing.assert_allclose(y[:5], 1 / 3, rtol=1e-6)
        np.testing.assert_array_equal(y[5:], model.predict(x[5:], verbose=0))

    def test_no_callback(self):
        with pytest.raises(TypeError, match="derived from pyconv.callbacks.Callback"):
            new_model().predict(data()[0], callbacks=[print])

    def test_after_ctrl_c(self):
        class Interrupt(Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == 1:
                    raise KeyboardInterrupt

        recorder = Recorder()
        history = fit(recorder, Interrupt())
        assert recorder.calls[-1][0] == "on_train_end"
        assert recorder.calls[-1][1]["loss"] == history.history["loss"][0]


class TestLambda:
    def test_every_hook(self):
        seen = []
        callback = LambdaCallback(
            on_epoch_end=lambda epoch, logs: seen.append((epoch, logs["loss"])),
            on_train_batch_end=lambda batch, logs: seen.append(batch),
            on_train_begin=None,
        )
        history = fit(callback, epochs=1)
        assert seen == [0, (0, history.history["loss"][0])]

    def test_bad_arguments(self):
        with pytest.raises(TypeError, match=r"no hook 'on_epoch'. Expected some of .*on_epoch_end"):
            LambdaCallback(on_epoch=print)
        with pytest.raises(TypeError, match="on_epoch_end must be a function. Received: .*3"):
            LambdaCallback(on_epoch_end=3)


class TestEarlyStopping:
    @pytest.mark.parametrize(
        ("options", "epochs"),
        [
            ({}, 3),  # 3, 2, 2: the third is not better
            ({"patience": 1}, 3),
            ({"patience": 2}, 4),
            ({"patience": 3}, 6),  # 1 in the fifth epoch is better again
            ({"patience": 2, "start_from_epoch": 1}, 4),
            ({"patience": 1, "start_from_epoch": 3}, 6),
            ({"min_delta": 1.0}, 2),  # 2 is not less than 3 - 1
            ({"min_delta": -0.5, "patience": 1}, 3),
            ({"mode": "max"}, 2),
            ({"patience": 3, "baseline": 0.5}, 3),  # better ones above the baseline count, too
        ],
    )
    def test_when_it_stops(self, options, epochs):
        stopping = EarlyStopping("value", **{"mode": "min", **options})
        history = fit(Says(value=[3, 2, 2, 2, 1, 0.9]), stopping)
        assert len(history.epoch) == epochs
        assert stopping.stopped_epoch == (0 if epochs == 6 else epochs - 1)

    @pytest.mark.parametrize("patience", [1, 9])
    def test_the_best_weights(self, patience, capsys):
        weights = Weights()
        model = new_model()
        stopping = EarlyStopping("loss", patience=patience, restore_best_weights=True, verbose=1)
        fit(Says(loss=[3, 1, 2, 2, 2, 2]), weights, stopping, model=model)
        assert stopping.best_epoch == 1 and stopping.best == 1
        np.testing.assert_array_equal(model.get_weights()[0], weights.kernels[1])
        assert (weights.kernels[1] != weights.kernels[2]).any()
        printed = capsys.readouterr().out
        assert ("Epoch 3: early stopping" in printed) == (patience == 1)
        assert "best epoch: 2" in printed

    def test_nan_is_no_improvement(self):
        stopping = EarlyStopping("loss", patience=2)
        fit(Says(loss=[np.nan, 2, np.nan, 1, np.nan, np.nan]), stopping)
        assert stopping.best == 1 and stopping.stopped_epoch == 5

    def test_starts_anew_in_the_next_fit(self):
        stopping, model = EarlyStopping("loss"), new_model()
        fit(Says(loss=[1, 1]), stopping, model=model)
        assert len(fit(Says(loss=[5, 4, 3, 2, 1, 0]), stopping, model=model).epoch) == 6

    def test_a_value_that_is_not_there(self):
        with pytest.warns(UserWarning, match="'val_loss', which there is not. Known: loss, acc"):
            fit(EarlyStopping(), epochs=1)

    def test_acc_is_accuracy(self):
        stopping = EarlyStopping("val_acc")
        fit(stopping, epochs=1, validation_data=data())
        assert stopping.best is not None

    def test_what_is_better(self):
        with pytest.raises(ValueError, match="'value' is better cannot be told.*mode='min'"):
            EarlyStopping("value")
        with pytest.raises(ValueError, match="one of auto, min, max. Received: mode='least'"):
            EarlyStopping(mode="least")


class TestReduceLROnPlateau:
    @pytest.mark.parametrize(
        ("options", "rates"),
        [
            ({"patience": 1}, [1, 1, 1, 0.5, 0.25, 0.25]),
            ({"patience": 2}, [1, 1, 1, 1, 0.5, 0.5]),
            ({"patience": 1, "cooldown": 2}, [1, 1, 1, 0.5, 0.5, 0.5]),
            ({"patience": 1, "min_lr": 0.4}, [1, 1, 1, 0.5, 0.4, 0.4]),
            ({"patience": 1, "min_delta": 5}, [1, 1, 0.5, 0.25, 0.125, 0.0625]),
            ({"patience": 1, "mode": "max"}, [1, 1, 0.5, 0.25, 0.125, 0.0625]),
        ],
    )
    def test_rates(self, options, rates, capsys):
        """The history has the rate of each epoch, before what its value changes."""
        callback = ReduceLROnPlateau("loss", factor=0.5, verbose=1, **options)
        model = new_model(optimizers.SGD(1.0))
        history = fit(Says(loss=[3, 2, 2, 2, 1, 0.9]), callback, model=model)
        assert history.history["learning_rate"] == pytest.approx(rates)
        assert capsys.readouterr().out.count("reducing learning rate") >= len(set(rates)) - 1

    def test_bad_factor(self):
        with pytest.raises(ValueError, match="0 <= factor < 1. Received: factor=1.0"):
            ReduceLROnPlateau(factor=1.0)

    def test_not_with_a_schedule(self):
        schedule = optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)
        with pytest.raises(TypeError, match="follows ExponentialDecay.*cannot be set"):
            fit(
                Says(loss=[1] * 6),
                ReduceLROnPlateau("loss", patience=1),
                model=new_model(optimizers.SGD(schedule)),
            )


class TestLearningRateScheduler:
    def test_of_epoch_and_rate(self, capsys):
        callback = LearningRateScheduler(lambda epoch, rate: rate / 2 if epoch else rate, verbose=1)
        history = fit(callback, model=new_model(optimizers.SGD(1.0)), epochs=3)
        assert history.history["learning_rate"] == [1, 0.5, 0.25]
        assert "Epoch 3: LearningRateScheduler setting learning rate to 0.25." in (
            capsys.readouterr().out
        )

    def test_of_the_epoch(self):
        for schedule in (
            lambda epoch: 1 / (1 + epoch),
            optimizers.schedules.InverseTimeDecay(1, 1, 1),
        ):
            history = fit(LearningRateScheduler(schedule), epochs=2)
            assert history.history["learning_rate"] == [1, 0.5]

    def test_bad_schedules(self):
        with pytest.raises(TypeError, match="must be a function"):
            LearningRateScheduler(0.1)
        with pytest.raises(ValueError, match="must return a number. Received: None for epoch 0"):
            fit(LearningRateScheduler(lambda epoch: None))

    def test_an_error_in_the_schedule_is_not_hidden(self):
        with pytest.raises(TypeError, match="unsupported operand"):
            fit(LearningRateScheduler(lambda epoch, rate: rate + "x"))


class TestTerminateOnNaN:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_stops(self, value, capsys):
        x, y = data()
        x[3:6] = value
        model = new_model()
        model.fit(x, y, 2, 4, verbose=0, shuffle=False, callbacks=TerminateOnNaN())
        assert model.optimizer.iterations == 2
        assert "Batch 1: the loss is" in capsys.readouterr().out

    def test_error(self):
        x, y = data()
        with pytest.raises(RuntimeError, match="The loss is nan after batch 0"):
            new_model().fit(x * np.nan, y, verbose=0, callbacks=TerminateOnNaN(raise_error=True))

    def test_finite(self):
        assert len(fit(TerminateOnNaN()).epoch) == 6


class TestModelCheckpoint:
    def test_every_epoch(self, tmp_path):
        weights, model = Weights(), new_model()
        path = tmp_path / "new" / "{epoch:02d}-{val_acc:.2f}.safetensors"
        history = fit(
            weights, ModelCheckpoint(path), model=model, epochs=2, validation_data=data()
        ).history
        names = [f"{i + 1:02d}-{history['val_acc'][i]:.2f}.safetensors" for i in range(2)]
        assert sorted(p.name for p in (tmp_path / "new").iterdir()) == names
        for name, kernel in zip(names, weights.kernels):
            loaded = load_model(tmp_path / "new" / name)
            np.testing.assert_array_equal(loaded.get_weights()[0], kernel)
            assert loaded.optimizer is not None

    @pytest.mark.parametrize(
        ("options", "best"), [({}, 4), ({"mode": "max"}, 0), ({"initial_value_threshold": 0.5}, 5)]
    )
    def test_best_only(self, tmp_path, options, best, capsys):
        weights, path = Weights(), tmp_path / "best"
        callback = ModelCheckpoint(path, "loss", 1, save_best_only=True, **options)
        fit(Says(loss=[3, 2, 2, 2.5, 1, 0.4 if best == 5 else 1]), weights, callback)
        loaded = load_model(path)
        np.testing.assert_array_equal(loaded.get_weights()[0], weights.kernels[best])
        printed = capsys.readouterr().out
        assert "did not improve from" in printed and f"saving to {path}" in printed

    def test_the_best_is_kept_for_the_next_fit(self, tmp_path):
        callback, model = ModelCheckpoint(tmp_path / "m", "loss", save_best_only=True), new_model()
        fit(Says(loss=[1]), callback, model=model, epochs=1)
        before = (tmp_path / "m").read_bytes()
        fit(Says(loss=[2]), callback, model=model, epochs=1)
        assert (tmp_path / "m").read_bytes() == before

    def test_every_few_batches(self, tmp_path):
        callback = ModelCheckpoint(tmp_path / "{epoch}-{batch}", save_freq=2)
        fit(callback, epochs=2, batch_size=4)  # 3 batches an epoch
        assert sorted(p.name for p in tmp_path.iterdir()) == ["1-2", "2-1", "2-3"]

    @pytest.mark.parametrize("ending", [".weights.h5", ".safetensors"])
    def test_weights_only(self, tmp_path, ending):
        if ending == ".weights.h5":
            pytest.importorskip("h5py")
        model = new_model()
        fit(ModelCheckpoint(tmp_path / f"w{ending}", save_weights_only=True), model=model)
        other = new_model()
        other.load_weights(tmp_path / f"w{ending}")
        np.testing.assert_array_equal(other.get_weights()[0], model.get_weights()[0])

    def test_unknown_placeholder(self, tmp_path):
        with pytest.raises(KeyError, match="asks for 'val_loss'.*Known: loss, accuracy, epoch"):
            fit(ModelCheckpoint(tmp_path / "{val_loss}"))

    def test_a_value_that_is_not_there(self, tmp_path):
        """As in Keras it is saved then."""
        with pytest.warns(UserWarning, match="ModelCheckpoint monitors 'val_loss'"):
            fit(ModelCheckpoint(tmp_path / "m", save_best_only=True), epochs=1)
        assert (tmp_path / "m").is_file()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"filepath": "m.keras"}, "must end in .safetensors"),
            ({"filepath": "m.h5"}, "must end in .safetensors"),
            ({"filepath": "m.weights.h5"}, "with save_weights_only=True in .weights.h5"),
            ({"filepath": "m", "save_freq": 0}, "save_freq=0"),
            ({"filepath": "m", "save_freq": "batch"}, "save_freq='batch'"),
            ({"filepath": "m", "save_freq": True}, "save_freq=True"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            ModelCheckpoint(**arguments)


def rows(path, delimiter=","):
    with open(path, newline="") as file:
        return list(csv.reader(file, delimiter=delimiter))


class TestCSVLogger:
    def test_table(self, tmp_path):
        history = fit(CSVLogger(tmp_path / "t", separator=";"), epochs=2, validation_data=data())
        header, *lines = rows(tmp_path / "t", ";")
        assert header == ["epoch", "accuracy", "loss", "val_accuracy", "val_loss"]
        assert [line[0] for line in lines] == ["0", "1"]
        assert [float(line[2]) for line in lines] == history.history["loss"]
        assert [p.name for p in tmp_path.iterdir()] == ["t"]

    def test_without_validation(self, tmp_path):
        fit(CSVLogger(tmp_path / "t"), epochs=1)
        header, line = rows(tmp_path / "t")
        assert header == ["epoch", "accuracy", "loss", "val_accuracy", "val_loss"]
        assert line[3:] == ["NA", "NA"]

    @pytest.mark.parametrize("append", [False, True])
    def test_append(self, tmp_path, append):
        logger = CSVLogger(tmp_path / "t", append=append)
        fit(logger, epochs=2)
        fit(logger, epochs=1)
        assert [line[0] for line in rows(tmp_path / "t")] == (
            ["epoch", "0", "1", "0"] if append else ["epoch", "0"]
        )

    def test_other_values(self, tmp_path):
        fit(Says(note=["a,b"], sizes=[[1, 2]]), CSVLogger(tmp_path / "t"), epochs=1)
        header, line = rows(tmp_path / "t")
        values = dict(zip(header, line))
        assert (values["note"], values["sizes"]) == ("a,b", "[1, 2]")

    def test_cannot_be_written(self, tmp_path):
        model = new_model()
        with pytest.raises(FileNotFoundError):
            fit(CSVLogger(tmp_path / "nowhere" / "t"), model=model)
        assert model.optimizer.iterations == 0

    def test_bad_separator(self):
        with pytest.raises(TypeError, match="one character. Received: separator=';;'"):
            CSVLogger("t", separator=";;")


class TestTensorBoard:
    @staticmethod
    def events(folder):
        """Values by tag: (step, value)."""
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util import tensor_util

        found = {}
        for path in folder.iterdir():
            for event in EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    array = tensor_util.make_ndarray(value.tensor)
                    found.setdefault(value.tag, []).append((event.step, array))
        return found

    def test_scalars(self, tmp_path):
        pytest.importorskip("tensorboard")
        callback = TensorBoard(tmp_path, update_freq="batch", write_steps_per_second=True)
        history = fit(callback, epochs=2, batch_size=4, validation_data=data()).history
        train, validation = self.events(tmp_path / "train"), self.events(tmp_path / "validation")
        assert set(train) == {
            *("epoch_loss", "epoch_accuracy", "epoch_learning_rate", "epoch_steps_per_second"),
            *("batch_loss", "batch_accuracy"),
        }
        assert [step for step, _ in train["epoch_loss"]] == [0, 1]
        assert [value for _, value in train["epoch_loss"]] == pytest.approx(history["loss"])
        assert [step for step, _ in train["batch_loss"]] == list(range(6))
        assert [value for _, value in validation["epoch_loss"]] == pytest.approx(
            history["val_loss"]
        )
        assert [step for step, _ in validation["evaluation_loss_vs_iterations"]] == [3, 6]

    def test_histograms_and_every_few_batches(self, tmp_path):
        pytest.importorskip("tensorboard")
        model = new_model()
        fit(
            TensorBoard(tmp_path, histogram_freq=2, update_freq=2),
            model=model,
            epochs=3,
            batch_size=4,
        )
        train = self.events(tmp_path / "train")
        assert [step for step, _ in train["dense/kernel/histogram"]] == [0, 2]
        assert train["dense/kernel/histogram"][0][1][:, 2].sum() == 12  # counts of 4 x 3 weights
        assert [step for step, _ in train["batch_loss"]] == [0, 2, 4, 6, 8]
        assert not (tmp_path / "validation").exists()

    def test_evaluate(self, tmp_path):
        pytest.importorskip("tensorboard")
        model = new_model()
        model.evaluate(*data(), verbose=0, callbacks=TensorBoard(tmp_path))
        assert "evaluation_loss_vs_iterations" in self.events(tmp_path / "validation")

    def test_without_tensorboard(self, tmp_path, monkeypatch):
        name = "tensorboard.summary.writer.event_file_writer"
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=r"pip install 'pyconv\[tensorboard\]'"):
            fit(TensorBoard(tmp_path))

    def test_bad_arguments(self):
        TensorBoard(write_graph=False, profile_batch=0)
        with pytest.raises(ValueError, match="does not support write_images"):
            TensorBoard(write_images=True)
        with pytest.raises(TypeError, match="no argument 'logdir'"):
            TensorBoard(logdir="x")
        with pytest.raises(ValueError, match="update_freq=0"):
            TensorBoard(update_freq=0)


@pytest.mark.filterwarnings("default")  # Keras's own
class TestKeras:
    """The same decisions as Keras's callbacks, on random values; where Keras is installed."""

    @pytest.fixture(autouse=True)
    def keras(self):
        return pytest.importorskip("keras", exc_type=ImportError, reason="compares with Keras")

    @staticmethod
    def drive(callback, optimizer, values):
        """The learning rates in the logs, and the epoch after which training is stopped."""

        class Model:
            stop_training = False
            metrics = ()

        model = Model()
        model.optimizer = optimizer
        callback.set_model(model)
        callback.on_train_begin()
        rates = []
        for epoch, value in enumerate(values):
            callback.on_epoch_begin(epoch)
            logs = {"loss": float(value)}
            callback.on_epoch_end(epoch, logs)
            rates.append(logs.get("learning_rate"))
            if model.stop_training:
                return rates, epoch
        return rates, None

    @pytest.mark.parametrize("seed", range(20))
    def test_decisions(self, keras, seed):
        rng = np.random.default_rng(seed)
        values = rng.integers(0, 10, 15) / 8  # exact, and often the same
        shared = {
            "monitor": "loss",
            "min_delta": float(rng.choice([0, 0.25])),
            "patience": int(rng.integers(0, 5)),
            "mode": str(rng.choice(["auto", "min", "max"])),
        }
        stopping = shared | {
            "baseline": [None, 0.5][rng.integers(0, 2)],
            "start_from_epoch": int(rng.integers(0, 4)),
        }
        assert (
            self.drive(EarlyStopping(**stopping), None, values)[1]
            == self.drive(keras.callbacks.EarlyStopping(**stopping), None, values)[1]
        )
        plateau = shared | {"factor": 0.5, "cooldown": int(rng.integers(0, 3)), "min_lr": 0.125}
        ours = self.drive(ReduceLROnPlateau(**plateau), optimizers.SGD(1.0), values)
        other = keras.callbacks.ReduceLROnPlateau(**plateau)
        assert ours == self.drive(other, keras.optimizers.SGD(1.0), values)


@pytest.mark.parametrize("value", ["1", [1], {}, True])
def test_states_of_the_wrong_type_are_refused(value):
    stopping = EarlyStopping()
    with pytest.raises(ValueError, match="EarlyStopping: best must be a number"):
        stopping.set_state({**stopping.get_state(), "best": value})
