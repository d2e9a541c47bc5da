"""The recorded forward pass: the same results as block by block, and never those of old weights."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from trainings import run

import pyconv
from pyconv import Input, Sequential, backend, kernels
from pyconv.layers import (
    Activation,
    AveragePooling2D,
    BatchNormalization,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAveragePooling2D,
    LeakyReLU,
    MaxPooling2D,
    ZeroPadding2D,
)
from pyconv.validation.cases import CONV_CASES

THREADS = (1, 2, 3, 7)
BATCHES = (1, 2, 7, 8, 9, 33, 130)


@pytest.fixture(autouse=True)
def settings():
    before = pyconv.isa(), pyconv.get_math_mode(), pyconv.get_num_threads()
    yield
    pyconv.set_isa(before[0])
    pyconv.set_math_mode(before[1])
    pyconv.set_num_threads(before[2])


def network():
    """Every kind of block, some layers with borders, some with few channels, some with many."""
    pyconv.utils.set_random_seed(3)
    return Sequential(
        [
            Input((18, 17, 3)),
            Conv2D(32, 3, padding="same", activation="relu"),
            Conv2D(24, 3, activation="relu"),
            MaxPooling2D(2),
            Dropout(0.5),
            Conv2D(33, 3, padding="same"),
            BatchNormalization(),
            Activation("relu"),
            MaxPooling2D(3, strides=2),
            Conv2D(16, 1, strides=2),
            LeakyReLU(),
            Conv2D(8, 3, padding="same", activation="relu"),
            ZeroPadding2D((1, 2)),
            AveragePooling2D(2, padding="same"),
            DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu"),
            DepthwiseConv2D(2),
            Flatten(),
            Activation("relu"),
            Dense(40, activation="tanh"),
            BatchNormalization(scale=False),
            Dense(10, activation="softmax"),
        ]
    )


def images(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 18, 17, 3)).astype(np.float32)


def block_by_block(model, x):
    """What `predict_on_batch` computes, kernel by kernel."""
    plan = model._plan_for_inference(len(x))
    plan._refresh(training=False)  # no batch has gone through it yet
    y = x
    for block in plan.blocks:
        y = block.forward(y, False, 0)
    return y.copy()


def record(sequence, call):
    """Makes the sequence that of the kernels in a call."""
    sequence.begin()
    call()
    sequence.end()


@pytest.mark.parametrize("mode", ["direct", "winograd4", "winograd6"])
def test_equals_block_by_block(isa, mode):
    pyconv.set_math_mode(mode)
    model = network()
    for n in BATCHES:
        x = images(n)
        for threads in THREADS[:2]:
            pyconv.set_num_threads(threads)
            np.testing.assert_array_equal(
                model.predict_on_batch(x), block_by_block(model, x), str((n, threads))
            )


def test_means_of_whole_images(isa):
    model = Sequential([Input((18, 17, 3)), Conv2D(24, 3), GlobalAveragePooling2D(), Dense(5)])
    for n in BATCHES:
        x = images(n)
        np.testing.assert_array_equal(model.predict_on_batch(x), block_by_block(model, x), str(n))


def test_same_bits_for_any_threads(isa):
    model = network()
    for n in BATCHES:
        x = images(n)
        expected = None
        for threads in THREADS:
            pyconv.set_num_threads(threads)
            for _ in range(2):  # from the second call on the threads stay from loop to loop
                y = model.predict_on_batch(x)
                expected = y if expected is None else expected
                np.testing.assert_array_equal(y, expected, str((n, threads)))
        # Another algorithm may have been chosen. The outputs are probabilities.
        np.testing.assert_allclose(expected, block_by_block(model, x), atol=2e-5, rtol=0)


def test_number_of_threads_changes_meanwhile():
    model, x = network(), images(1)
    expected = model.predict_on_batch(x)

    def change():
        for _ in range(200):
            for threads in THREADS:
                pyconv.set_num_threads(threads)
                time.sleep(0.0003)

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        while not changing.done():
            np.testing.assert_array_equal(model.predict_on_batch(x), expected)
        changing.result()


@pytest.mark.parametrize("limit", [1, 2])
def test_fewer_threads_than_asked_for(limit):
    """OpenMP may not have as many."""
    program = """
import numpy as np, pyconv
from test_sequence import images, network
model, x = network(), images(1)
pyconv.set_num_threads(1)
expected = model.predict_on_batch(x)
pyconv.set_num_threads(7)
for _ in range(3): np.testing.assert_array_equal(model.predict_on_batch(x), expected)
"""
    run(program, OMP_THREAD_LIMIT=str(limit))


def test_images_do_not_mix():
    model, x = network(), images(40)
    whole = model.predict_on_batch(x)
    x[17] = np.nan
    changed = model.predict_on_batch(x)
    np.testing.assert_array_equal(np.delete(changed, 17, 0), np.delete(whole, 17, 0))
    assert np.isnan(changed[17]).all()


class TestOtherInputs:
    """What is not float32, contiguous and of the right shape, to a model that has been recorded."""

    @pytest.fixture
    def model(self):
        model = network()
        model.predict_on_batch(images(2))
        return model

    @pytest.mark.parametrize(
        "change",
        [
            lambda x: x.astype(np.float64),
            lambda x: x.astype(">f4"),
            lambda x: np.asfortranarray(x),
            lambda x: np.repeat(x, 2, 0)[::2],
            lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
            lambda x: np.frombuffer(b"0" + x.tobytes(), np.float32, offset=1).reshape(x.shape),
            lambda x: x.tolist(),
            lambda x: x.view(np.recarray),
        ],
    )
    def test_converted(self, model, change):
        x = images(2)
        y = model.predict_on_batch(change(x))
        assert type(y) is np.ndarray and y.dtype == np.float32
        np.testing.assert_array_equal(y, model.predict_on_batch(x))

    @pytest.mark.parametrize(
        "x, error, message",
        [
            (images(2)[:, 1:], ValueError, "expected x of shape"),
            (images(2)[0], ValueError, "expected x of shape"),
            (images(0), ValueError, "no samples"),
            (np.float32(1), TypeError, "Expected a NumPy array"),
            (np.full((2, 18, 17, 3), "a"), TypeError, "real numbers"),
        ],
    )
    def test_refused(self, model, x, error, message):
        with pytest.raises(error, match=message):
            model.predict_on_batch(x)

    def test_results_are_new(self, model):
        first = model.predict_on_batch(images(2))
        kept = first.copy()
        model.predict_on_batch(images(2, seed=1))
        np.testing.assert_array_equal(first, kept)

    def test_more_than_before(self, model):
        x = images(70)
        np.testing.assert_array_equal(model.predict_on_batch(x)[:2], model.predict_on_batch(x[:2]))


class TestNewWeights:
    def check(self, change):
        model, x = network(), images(5)
        model.compile("sgd", "categorical_crossentropy")
        old = model.predict_on_batch(x)
        change(model)
        new = model.predict_on_batch(x)
        assert np.abs(new - old).max() > 1e-4
        np.testing.assert_allclose(new, block_by_block(model, x), atol=2e-5, rtol=0)

    def test_assign(self):
        def change(model):
            kernel = model.layers[1].parameters[0]
            kernel.assign(np.asarray(kernel) * -1)

        self.check(change)

    def test_set_weights(self):
        self.check(lambda model: model.set_weights([w * 1.5 for w in model.get_weights()]))

    def test_training(self):
        labels = np.eye(10, dtype=np.float32)[np.arange(5)]
        self.check(lambda model: model.train_on_batch(images(5), labels))

    def test_layer_of_another_model(self):
        def change(model):
            other = Sequential([Input((18, 17, 3)), model.layers[0], Flatten(), Dense(10)])
            other.compile("sgd", "categorical_crossentropy")
            kernel = other.layers[0].parameters[0]
            kernel.assign(np.asarray(kernel) * -1)

        self.check(change)

    def test_array_and_written(self):
        def change(model):
            kernel = model.layers[1].parameters[0]
            kernel.array[...] *= -1
            kernel.written()

        self.check(change)

    def test_value_cannot_be_written(self):
        kernel = network().layers[0].parameters[0]
        with pytest.raises(ValueError, match="read-only"):
            kernel.value[...] = 0
        with pytest.raises(ValueError, match="read-only"):
            np.asarray(kernel)[...] = 0


def test_another_isa():
    model, x = network(), images(9)
    results = []
    for isa in (*pyconv.available_isas(), *pyconv.available_isas()):
        pyconv.set_isa(isa)
        results.append(model.predict_on_batch(x))
    half = len(results) // 2
    for first, second in zip(results[:half], results[half:]):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, results[0], atol=2e-5, rtol=0)


def test_two_threads_with_one_model():
    """They share the arrays for the results, but nothing else may go wrong."""
    model, x = network(), images(3)
    model.predict_on_batch(x)
    stop = time.monotonic() + 1

    def predict():
        while time.monotonic() < stop:
            assert np.isfinite(model.predict_on_batch(x)).all()

    def write():
        while time.monotonic() < stop:
            model.layers[0].parameters[0].written()

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(predict) for _ in range(3)] + [pool.submit(write)]:
            future.result()


def test_evaluate():
    model, x = network(), images(50)
    model.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
    labels = np.eye(10, dtype=np.float32)[np.arange(50) % 10]
    loss, accuracy = model.evaluate(x, labels, batch_size=16, verbose=0)
    p = block_by_block(model, x)
    assert loss == pytest.approx(-np.log(p[np.arange(50), np.arange(50) % 10]).mean(), abs=1e-4)
    assert accuracy == pytest.approx((p.argmax(1) == np.arange(50) % 10).mean())


def test_no_kernels():
    model = Sequential([Input((2, 3)), Dropout(0.5), Flatten()])
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    np.testing.assert_array_equal(model.predict_on_batch(x), x.reshape(2, 6))


@pytest.mark.parametrize("case", CONV_CASES, ids=lambda case: case.name)
def test_convolutions(isa, case):
    """With kept weights, every convolution has the same bits as without."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(case.x).astype(np.float32)
    w = rng.standard_normal(case.w).astype(np.float32)
    b = rng.standard_normal(case.filters).astype(np.float32)
    sequence = backend.cpu().Sequence()
    for mode in ("direct", "winograd4", "winograd6"):
        pyconv.set_math_mode(mode)
        expected = kernels.conv2d(x, w, b, **case.geometry, activation=case.activation)
        record(
            sequence,
            lambda: kernels.conv2d(x[:1], w, b, **case.geometry, activation=case.activation),
        )
        for threads in (1, 3):
            pyconv.set_num_threads(threads)
            y = np.full_like(expected, np.nan)
            sequence.run(x, y)
            np.testing.assert_array_equal(y, expected, f"{mode}, {threads} threads")


@pytest.mark.parametrize("image", [(1, 1), (2, 3), (6, 6)])
def test_one_batch_after_another(isa, image):
    """Few images are padded, many are not, and then some taps reach none of them: the weights that
    are kept serve both."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, *image, 16)).astype(np.float32)
    w = rng.standard_normal((5, 5, 16, 24)).astype(np.float32)
    expected = kernels.conv2d(x, w, None, padding="same")
    sequence = backend.cpu().Sequence()
    for batches in ((300, 1, 4), (1, 300, 2)):
        record(sequence, lambda: kernels.conv2d(x[:1], w, None, padding="same"))
        for n in batches:
            y = np.full_like(expected[:n], np.nan)
            sequence.run(x[:n], y)
            np.testing.assert_array_equal(y, expected[:n], str((batches, n)))


@pytest.mark.parametrize("features", [8, 33, 72, 144, 200, 336, 1000])
def test_few_results_of_many_weights(isa, features):
    """A tile with few rows goes through several panels of the kept weights at once."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((5, 5, 40, features)).astype(np.float32)
    b = rng.standard_normal(features).astype(np.float32)
    dense, small = w.reshape(-1, features), np.ascontiguousarray(w[1:4, 1:4])
    for mode in ("direct", "winograd4", "winograd6"):
        pyconv.set_math_mode(mode)
        for n in (1, 2, 3, 4, 7):
            image = rng.standard_normal((n, 5, 5, 40)).astype(np.float32)
            tile = np.ascontiguousarray(image[:, :4, :4])
            for call, x in (
                (lambda x: kernels.dense(x, dense, b, activation="relu"), image.reshape(n, -1)),
                (lambda x: kernels.conv2d(x, w, b), image),
                (lambda x: kernels.conv2d(x, small, b, padding="same"), tile),
            ):
                expected = call(x)
                sequence = backend.cpu().Sequence()
                record(sequence, lambda call=call, x=x: call(x[:1]))
                for threads in (1, 3):
                    pyconv.set_num_threads(threads)
                    y = np.full_like(expected, np.nan)
                    sequence.run(x, y)
                    np.testing.assert_array_equal(y, expected, str((mode, x.shape, threads)))


class TestExtension:
    """The class of the extension by itself."""

    @pytest.fixture
    def sequence(self):
        cpu = backend.cpu()
        sequence = cpu.Sequence()
        x, y = np.ones((1, 6), np.float32), np.zeros((1, 6), np.float32)
        record(sequence, lambda: cpu.relu(x, y))
        return sequence

    def test_records_without_running(self, sequence):
        x = np.arange(-6, 6, dtype=np.float32).reshape(2, 6)
        y = np.full((2, 6), 9, np.float32)
        sequence.run(x, y)
        np.testing.assert_array_equal(y, np.maximum(x, 0))

    @pytest.mark.parametrize(
        "x, out, message",
        [
            ((2, 5), (2, 6), "x: expected samples of 6 values"),
            ((2, 6), (2, 7), "out: expected 2 samples of 6 values"),
            ((), (2, 6), "x: expected samples"),
        ],
    )
    def test_wrong_sizes(self, sequence, x, out, message):
        with pytest.raises(ValueError, match=message):
            sequence.run(np.zeros(x, np.float32), np.zeros(out, np.float32))

    def test_overlap(self, sequence):
        x = np.zeros((2, 6), np.float32)
        with pytest.raises(ValueError, match="overlaps"):
            sequence.run(x, x)

    def test_nothing_recorded(self):
        sequence = backend.cpu().Sequence()
        with pytest.raises(ValueError, match="at least one kernel"):
            sequence.run(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))

    def test_empty_batch(self, sequence):
        sequence.run(np.zeros((0, 6), np.float32), np.zeros((0, 6), np.float32))

    def test_not_for_training(self):
        cpu = backend.cpu()
        sequence = cpu.Sequence()
        x = np.zeros((1, 6), np.float32)
        sequence.begin()
        try:
            with pytest.raises(RuntimeError, match="for inference"):
                cpu.relu_backward(x, x, x.copy())
        finally:
            sequence.end()

    def test_not_a_chain(self):
        cpu = backend.cpu()
        sequence = cpu.Sequence()
        x, y = np.zeros((1, 6), np.float32), np.zeros((1, 6), np.float32)
        sequence.begin()
        try:
            cpu.relu(x, y)
            with pytest.raises(RuntimeError, match="the result of the one before"):
                cpu.relu(x, y)
        finally:
            sequence.end()

    def test_may_go_while_it_is_recorded(self):
        cpu = backend.cpu()
        sequence = cpu.Sequence()
        sequence.begin()
        del sequence
        x, y = np.ones((1, 6), np.float32), np.zeros((1, 6), np.float32)
        cpu.relu(x, y)
        np.testing.assert_array_equal(x, y)

    def test_one_at_a_time(self, sequence):
        sequence.begin()
        try:
            with pytest.raises(RuntimeError, match="already"):
                backend.cpu().Sequence().begin()
        finally:
            sequence.end()
        with pytest.raises(RuntimeError, match="not being recorded"):
            sequence.end()
