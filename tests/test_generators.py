"""fit, evaluate and predict on what makes batches: the same numbers as on arrays, and no thread
left behind."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from pyconv.callbacks import Callback
from pyconv.data import prepared
from pyconv.layers import Conv2D, Dense, Dropout, Flatten, Input, MaxPooling2D
from pyconv.models import Sequential
from pyconv.preprocessing.image import ImageDataGenerator
from pyconv.utils import set_random_seed


def reals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_hot(n, classes=3):
    return np.eye(classes, dtype=np.float32)[np.random.default_rng(0).integers(0, classes, n)]


def dense_model():
    set_random_seed(3)
    model = Sequential([Input((4,)), Dense(8, "relu"), Dropout(0.2), Dense(3, "softmax")])
    model.compile("rmsprop", "categorical_crossentropy", metrics=["accuracy"])
    return model


def data(n=10):
    return reals(n, 4), one_hot(n)


def in_batches(x, y, size=4):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


class Indexed:
    """Batches by number, without an iterator; knows its passes."""

    def __init__(self, batches):
        self.batches, self.asked, self.passes = batches, [], 0

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        self.asked.append((self.passes, index))
        return self.batches[index]

    def on_epoch_end(self):
        self.passes += 1


class Anew:
    """An iterable that can start anew, of unknown length."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


def endless(batches):
    while True:
        yield from batches


def weights(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("pyconv-batches")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not threads()


KINDS = {
    "list": list,
    "tuple": tuple,
    "indexed": Indexed,
    "anew": Anew,
}


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_training_as_on_arrays(kind, workers):
    """Passes over all batches, the smaller last one included; bit for bit."""
    x, y = data(10)
    expected = dense_model()
    of_arrays = expected.fit(
        x, y, 4, epochs=3, shuffle=False, verbose=0, validation_data=(x[:5], y[:5])
    )
    model = dense_model()
    history = model.fit(
        KINDS[kind](in_batches(x, y)),
        epochs=3,
        verbose=0,
        validation_data=KINDS[kind](in_batches(x[:5], y[:5]))
        if kind != "tuple"
        else (x[:5], y[:5]),
        workers=workers,
    )
    np.testing.assert_array_equal(weights(model), weights(expected))
    assert history.history == of_arrays.history
    assert history.epoch == [0, 1, 2]
    assert history.params["steps"] == (None if kind == "anew" else 3)
    assert history.params["samples"] is history.params["batch_size"] is None


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_steps_go_on_where_the_last_epoch_ended(workers):
    x, y = data(10)
    expected = dense_model()
    for i in (0, 1, 2, 0, 1, 2, 0, 1):
        expected.train_on_batch(*in_batches(x, y)[i])
    for source in (endless(in_batches(x, y)), Indexed(in_batches(x, y)), Anew(in_batches(x, y))):
        model = dense_model()
        history = model.fit(source, steps_per_epoch=2, epochs=4, verbose=0, workers=workers)
        np.testing.assert_array_equal(weights(model), weights(expected))
        assert history.epoch == [0, 1, 2, 3]
        assert history.params["steps"] == 2


def test_more_steps_than_batches():
    x, y = data(10)
    indexed, anew = Indexed(in_batches(x, y)), Anew(in_batches(x, y))
    for source in (indexed, anew):
        model = dense_model()
        model.fit(source, steps_per_epoch=7, verbose=0)
        assert model.optimizer.iterations == 7
    assert indexed.asked == [(i // 3, i % 3) for i in range(7)]
    assert indexed.passes == 2 and anew.passes == 3


def test_every_pass_has_ended_before_the_next_begins():
    """on_epoch_end comes after all batches of a pass have been made, whatever the workers."""

    class Slow(Indexed):
        def __getitem__(self, index):
            time.sleep(0.002 * (3 - index))
            return super().__getitem__(index)

    slow = Slow(in_batches(*data(12)))
    dense_model().fit(slow, epochs=3, verbose=0, workers=3)
    assert sorted(slow.asked) == [(i, j) for i in range(3) for j in range(3)]
    assert [p for p, _ in slow.asked] == sorted(p for p, _ in slow.asked)


def test_a_generator_gives_no_more_batches_than_are_trained_on():
    taken = []

    def counting():
        for i, batch in enumerate(endless(in_batches(*data()))):
            taken.append(i)
            yield batch

    dense_model().fit(counting(), steps_per_epoch=5, epochs=2, verbose=0)
    assert taken == list(range(10))


def test_how_far_ahead():
    """Never more batches than asked for are waiting."""
    made, trained = [], []

    def counting():
        for batch in endless(in_batches(*data())):
            made.append(1)
            yield batch

    class Count(Callback):
        def on_train_batch_end(self, batch, logs=None):
            time.sleep(0.01)  # the thread is ahead as far as it may be
            trained.append(len(made))

    dense_model().fit(
        counting(), steps_per_epoch=20, verbose=0, max_queue_size=3, callbacks=[Count()]
    )
    assert all(seen <= i + 1 + 3 for i, seen in enumerate(trained))
    assert max(seen - i - 1 for i, seen in enumerate(trained)) == 3


def test_batches_are_made_in_the_background():
    names = set()

    def generate():
        for batch in in_batches(*data()):
            names.add(threading.current_thread().name.rpartition("_")[0])
            yield batch

    dense_model().fit(generate(), verbose=0, workers=4)
    assert names == {"pyconv-batches"}
    names.clear()
    dense_model().fit(generate(), verbose=0, workers=0)
    assert names == {threading.current_thread().name.rpartition("_")[0]}


def test_a_generator_is_asked_by_one_thread_at_a_time():
    def generate():
        for batch in in_batches(*data(40), size=2):
            time.sleep(0.001)
            yield batch  # a second thread in here would raise "generator already executing"

    model = dense_model()
    model.fit(generate(), verbose=0, workers=8)
    assert model.optimizer.iterations == 20


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_what_a_generator_raises_reaches_the_caller(workers):
    def broken():
        yield from in_batches(*data())
        raise OSError("disk gone")

    model = dense_model()
    with pytest.raises(OSError, match="disk gone"):
        model.fit(broken(), verbose=0, workers=workers)
    assert model.optimizer.iterations == 3  # what came before it was trained on
    with pytest.raises(OSError, match="disk gone"):
        model.evaluate(broken(), verbose=0, workers=workers)
    with pytest.raises(OSError, match="disk gone"):
        model.predict(broken(), verbose=0, workers=workers)

    class Broken(Indexed):
        def __getitem__(self, index):
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        model.fit(Broken([1, 2]), verbose=0, workers=workers)


class Raise(Callback):
    def __init__(self, error):
        self.error = error

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            assert len(threads()) >= 1
            raise self.error


@pytest.mark.parametrize("workers", [1, 3])
def test_the_threads_end_with_training(workers):
    x, y = data()
    for source in (endless(in_batches(x, y)), Indexed(in_batches(x, y))):
        arguments = {"steps_per_epoch": 50, "verbose": 0, "workers": workers}
        history = dense_model().fit(source, callbacks=[Raise(KeyboardInterrupt())], **arguments)
        assert history.interrupted
        assert not threads()
        with pytest.raises(RuntimeError, match="enough"):
            dense_model().fit(source, callbacks=[Raise(RuntimeError("enough"))], **arguments)
        assert not threads()


def test_stop_training():
    class Stop(Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 2

    model = dense_model()
    history = model.fit(
        endless(in_batches(*data())), steps_per_epoch=9, epochs=3, verbose=0, callbacks=[Stop()]
    )
    assert history.epoch == [0]
    assert model.optimizer.iterations == 3


def test_data_that_run_out():
    x, y = data(10)
    model = dense_model()
    with pytest.warns(UserWarning, match="ran out after 0 batches of an epoch; expected any"):
        history = model.fit(iter(in_batches(x, y)), epochs=3, verbose=0)
    assert history.epoch == [0]
    with pytest.warns(UserWarning, match="ran out after 1 batches of an epoch; expected 2"):
        history = model.fit(iter(in_batches(x, y)), steps_per_epoch=2, epochs=3, verbose=0)
    assert history.epoch == [0, 1]
    with pytest.warns(UserWarning, match="ran out after 0"):
        assert model.fit(iter([]), verbose=0).epoch == []
    with pytest.warns(UserWarning, match="ran out"):
        assert model.evaluate(iter(in_batches(x, y)), steps=4, verbose=0)
    for method in (model.evaluate, model.predict):
        with (
            pytest.warns(UserWarning, match="ran out"),
            pytest.raises(ValueError, match="there was no batch"),
        ):
            method(iter([]), verbose=0)


def test_evaluate_and_predict():
    x, y = data(10)
    model = dense_model()
    values, outputs = model.evaluate(x, y, 4, verbose=0), model.predict(x, 4, verbose=0)
    for kind in ("list", "indexed", "anew"):
        assert model.evaluate(KINDS[kind](in_batches(x, y)), verbose=0) == values
    assert model.evaluate(iter(in_batches(x, y)), verbose=0, workers=0) == values
    assert model.evaluate(endless(in_batches(x, y)), steps=3, verbose=0) == values
    logs = model.evaluate(Indexed(in_batches(x, y)), verbose=0, return_dict=True)
    assert list(logs.values()) == values
    alone = [x for x, _ in in_batches(x, y)]
    for source in (
        Indexed(in_batches(x, y)),
        iter(alone),
        iter([(x,) for x in alone]),
        Anew(in_batches(x, y)),
    ):
        got = model.predict(source, verbose=0)
        np.testing.assert_array_equal(got, outputs)
    got = model.predict(endless(alone), steps=4, verbose=0)
    np.testing.assert_array_equal(got, np.concatenate([outputs, outputs[:4]]))


def test_old_names():
    x, y = data(10)
    model, expected = dense_model(), dense_model()
    of_fit = expected.fit(x, y, 4, epochs=2, shuffle=False, verbose=0, validation_data=(x, y))
    history = model.fit_generator(
        endless(in_batches(x, y)),
        steps_per_epoch=3,
        epochs=2,
        verbose=0,
        validation_data=endless(in_batches(x, y)),
        validation_steps=3,
        workers=4,
        use_multiprocessing=True,
    )
    assert history.history == of_fit.history
    np.testing.assert_array_equal(weights(model), weights(expected))
    assert model.evaluate_generator(Indexed(in_batches(x, y))) == model.evaluate(x, y, 4, verbose=0)
    np.testing.assert_array_equal(
        model.predict_generator(Indexed(in_batches(x, y)), steps=2), model.predict(x[:8], 4)
    )


def test_other_arrays():
    """Of other types, and of other libraries that can pass for NumPy's."""

    class Tensor:
        def __init__(self, values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            return self.values

    x, y = data(8)
    x = np.round(x)
    expected = dense_model()
    expected.fit(x, y, 4, shuffle=False, verbose=0)
    for change in (np.float64, np.int8):
        model = dense_model()
        model.fit([(a.astype(change), b.astype(int)) for a, b in in_batches(x, y)], verbose=0)
        np.testing.assert_array_equal(weights(model), weights(expected))
    for change in (Tensor, np.ndarray.tolist, np.asfortranarray):
        model = dense_model()
        model.fit([(change(a), change(b)) for a, b in in_batches(x, y)], verbose=0)
        np.testing.assert_array_equal(weights(model), weights(expected))


def test_progress_counts_batches(capsys):
    model = dense_model()
    model.fit(in_batches(*data()), epochs=1)
    line = capsys.readouterr().out
    assert line.startswith("Epoch 1/1 - ") and "batches/s" in line and "accuracy: " in line
    model.evaluate(iter(in_batches(*data())))
    assert "batches/s" in capsys.readouterr().out


def test_a_bar_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    model = dense_model()
    model.fit(in_batches(*data()))
    assert "3/3" in capsys.readouterr().out
    model.fit(iter(in_batches(*data())))  # of unknown length
    assert "3/?" in capsys.readouterr().out
    model.predict(iter([data()[0]]))
    capsys.readouterr()


# --------------------------------------------------------------------------------- augmented images


def image_model():
    set_random_seed(3)
    model = Sequential([Input((12, 12, 3)), Conv2D(8, 3, activation="relu"), MaxPooling2D()])
    for layer in (Dropout(0.25), Flatten(), Dense(3, activation="softmax")):
        model.add(layer)
    model.compile("rmsprop", "categorical_crossentropy", metrics=["accuracy"])
    return model


def test_the_tutorials_second_half():
    """Its calls, word for word."""
    train_data, train_labels_one_hot = reals(50, 12, 12, 3), one_hot(50)
    test_data, test_labels_one_hot = reals(9, 12, 12, 3, seed=1), one_hot(9)
    model2, batch_size, epochs = image_model(), 16, 2

    datagen = ImageDataGenerator(
        width_shift_range=0.1,  # randomly shift images horizontally (fraction of total width)
        height_shift_range=0.1,  # randomly shift images vertically (fraction of total height)
        horizontal_flip=True,  # randomly flip images
        vertical_flip=False,
    )  # randomly flip images
    datagen.fit(train_data)
    history2 = model2.fit_generator(
        datagen.flow(train_data, train_labels_one_hot, batch_size=batch_size),
        steps_per_epoch=int(np.ceil(train_data.shape[0] / float(batch_size))),
        epochs=epochs,
        validation_data=(test_data, test_labels_one_hot),
        workers=4,
    )
    model2.evaluate(test_data, test_labels_one_hot)
    assert [len(history2.history[k]) for k in ("loss", "val_loss", "acc", "val_acc")] == [2] * 4
    assert model2.optimizer.iterations == 8


@pytest.mark.parametrize("threads_of_kernels", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_workers_change_no_bit(workers, threads_of_kernels, num_threads):
    def train(workers):
        model = image_model()
        generator = ImageDataGenerator(rotation_range=20, zoom_range=0.2, horizontal_flip=True)
        flow = generator.flow(reals(50, 12, 12, 3), one_hot(50), batch_size=8, seed=5)
        history = model.fit(flow, epochs=2, verbose=0, workers=workers, validation_data=flow)
        return weights(model), history.history

    num_threads(1)
    expected = train(0)
    num_threads(threads_of_kernels)
    got = train(workers)
    np.testing.assert_array_equal(got[0], expected[0])
    assert got[1] == expected[1]


def test_a_flow_goes_on_from_fit_to_fit():
    flow = ImageDataGenerator().flow(reals(20, 12, 12, 3), one_hot(20), batch_size=8)
    model = image_model()
    model.fit(flow, epochs=2, verbose=0)
    assert flow.epoch == 2
    model.fit(flow, epochs=1, verbose=0)
    assert flow.epoch == 3


# ------------------------------------------------------------------------------------ bad arguments


def test_bad_batches():
    x, y = data(4)
    model = dense_model()
    for batches, error, message in [
        ([(x, y, np.ones(4))], ValueError, "sample weights, which are not supported"),
        ([(x, y, y, y)], ValueError, r"Expected batches \(x, y\).* Received: tuple of 4"),
        ([(x,)], ValueError, "Received: tuple of 1"),
        (Anew([x]), ValueError, "Received: ndarray"),
        ([(x, y[:2])], ValueError, "the same number of samples"),
        ([(x[:, :3], y)], ValueError, r"expected x of shape \(None, 4\)"),
        ([(x[:0], y[:0])], ValueError, "there are no samples"),
        ([(x.astype(str), y)], TypeError, "real numbers"),
    ]:
        for workers in (0, 1):
            with pytest.raises(error, match=message):
                model.fit(batches, verbose=0, workers=workers)
    with pytest.raises(ValueError, match="an empty tuple"):
        model.predict(Anew([()]))


def test_bad_arguments():
    x, y = data(4)
    model, batches = dense_model(), [data(4)]
    for arguments, message in [
        ({"x": Anew(batches), "y": y}, "leave y out. Received: x of type Anew and y of type ndarr"),
        ({"x": batches, "batch_size": 4}, "batch_size is for arrays.* batch_size=4 with list"),
        ({"x": batches, "validation_split": 0.2}, "give validation_data beside"),
        ({"x": batches, "steps_per_epoch": 0}, "steps_per_epoch must be an integer of at least 1"),
        ({"x": batches, "workers": -1}, "workers must be an integer of at least 0"),
        ({"x": batches, "max_queue_size": 0}, "max_queue_size must be an integer of at least 1"),
        ({"x": x, "y": y, "steps_per_epoch": 3}, "steps_per_epoch is for generators"),
        ({"x": x, "y": y, "validation_steps": 3}, "validation_steps is for generators"),
        (
            {"x": batches, "validation_data": (x, y), "validation_steps": 3},
            "validation_steps is for generators",
        ),
        ({"x": batches, "validation_data": (x, y, y)}, "pair of arrays.* Received: tuple of 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.fit(**arguments, verbose=0)
    with pytest.raises(ValueError, match="steps is for generators"):
        model.evaluate(x, y, steps=3)
    with pytest.raises(ValueError, match="steps is for generators"):
        model.predict(x, steps=3)
    for method in (model.fit_generator, model.evaluate_generator, model.predict_generator):
        with pytest.raises(TypeError, match="something that makes batches.* Received: ndarray"):
            method(x)
    with pytest.raises(RuntimeError, match="needs a compiled model"):
        Sequential([Input((4,)), Dense(3)]).fit(batches)


# ----------------------------------------------------------------------------------------- prepared


def test_prepared_keeps_the_order():
    def slowly(i):
        time.sleep(0.001 * (i % 3))
        return i

    tasks = [lambda i=i: slowly(i) for i in range(20)]
    for workers in (0, 1, 4):
        assert list(prepared(tasks, workers, 5)) == list(range(20))


def test_prepared_drops_what_has_not_begun():
    begun, gate = [], threading.Event()

    def task(i):
        begun.append(i)
        gate.wait(5)
        return i

    results = prepared([lambda i=i: task(i) for i in range(100)], 1, 10)
    gate.set()
    assert next(results) == 0
    gate.clear()
    time.sleep(0.05)
    gate.set()
    results.close()
    assert len(begun) <= 12
    assert not threads()
