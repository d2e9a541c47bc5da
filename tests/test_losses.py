"""Losses: their formulas and gradients, which labels they take, in training, and in files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pyconv import losses, metrics, optimizers
from pyconv.layers import Conv2D, Dense, Input
from pyconv.losses import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    MeanAbsoluteError,
    MeanSquaredError,
    SparseCategoricalCrossentropy,
)
from pyconv.models import Sequential, load_model
from pyconv.utils import set_random_seed, to_categorical

NUMBERS = np.array([0, 3, 2])
LOGITS = np.random.default_rng(0).normal(size=(3, 4))
PROBABILITIES = np.random.default_rng(1).uniform(0.05, 0.95, (3, 4))  # their sums are not 1
YES_OR_NO = np.random.default_rng(2).integers(0, 2, (3, 4)).astype(float)
VALUES = np.random.default_rng(3).normal(size=(3, 4))

CASES = [
    (SparseCategoricalCrossentropy(), NUMBERS, PROBABILITIES),
    (SparseCategoricalCrossentropy(from_logits=True), NUMBERS, LOGITS),
    (CategoricalCrossentropy(label_smoothing=0.1), np.eye(4)[NUMBERS], PROBABILITIES),
    (CategoricalCrossentropy(True, 0.1), np.eye(4)[NUMBERS], LOGITS),
    (BinaryCrossentropy(), YES_OR_NO, PROBABILITIES),
    (BinaryCrossentropy(label_smoothing=0.2), YES_OR_NO, PROBABILITIES),
    (BinaryCrossentropy(from_logits=True), YES_OR_NO, LOGITS),
    (BinaryCrossentropy(True, 0.2), YES_OR_NO, LOGITS),
    (BinaryCrossentropy(True), YES_OR_NO[:, :1], LOGITS[:, :1]),
    (MeanSquaredError(), VALUES, LOGITS),
    (MeanSquaredError(), VALUES.reshape(3, 2, 2), LOGITS.reshape(3, 2, 2)),
    (MeanAbsoluteError(), VALUES, LOGITS),
]
IDS = [f"{loss.name}-{loss.get_config()}-{y.shape}" for loss, _, y in CASES]


@pytest.mark.parametrize(
    ("loss", "y_true", "y_pred", "expected"),
    [
        # 0.25, 0.25 and 0.5 are what is left of the probabilities when they are divided by the sum.
        (SparseCategoricalCrossentropy(), [2, 0], [[0.25, 0.25, 0.5]] * 2, np.log(8) / 2),
        (SparseCategoricalCrossentropy(), [2], [[0.5, 0.5, 1]], np.log(2)),
        (SparseCategoricalCrossentropy(), [0], [[0, 1]], -np.log(1e-7)),
        (SparseCategoricalCrossentropy(True), [[1]], [[0, np.log(3)]], np.log(4 / 3)),
        (SparseCategoricalCrossentropy(True), [0], [[-1000, 1000]], 2000),
        (BinaryCrossentropy(), [[1, 0]], [[0.5, 0.75]], (np.log(2) + np.log(4)) / 2),
        (BinaryCrossentropy(), [1], [[0]], -np.log(1e-7)),
        (
            BinaryCrossentropy(label_smoothing=0.5),
            [1],
            [[0.2]],
            -0.75 * np.log(0.2) - 0.25 * np.log(0.8),
        ),
        (BinaryCrossentropy(True), [1, 0], [[np.log(3)], [np.log(3)]], np.log(16 / 3) / 2),
        (BinaryCrossentropy(True), [[1, 0, 0, 1]], [[1000, -1000, 1000, -1000]], 500),
        (MeanSquaredError(), [[0, 1], [2, 3]], [[1, 1], [0, 0]], (1 + 4 + 9) / 4),
        (MeanSquaredError(), [1, 2], [[2], [4]], 2.5),
        (MeanSquaredError(), [1, 2], [2, 4], 2.5),
        (MeanAbsoluteError(), [[0, 1], [2, 3]], [[1, 1], [0, 0]], (1 + 2 + 3) / 4),
    ],
)
def test_values(loss, y_true, y_pred, expected):
    assert loss(y_true, y_pred) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("loss", "y_true", "y_pred"), CASES, ids=IDS)
def test_gradients(loss, y_true, y_pred):
    h = 1e-6
    expected = np.zeros_like(y_pred)
    for index in np.ndindex(y_pred.shape):
        step = np.zeros_like(y_pred)
        step[index] = h
        above, below = (loss.losses(y_true, y).mean() for y in (y_pred + step, y_pred - step))
        expected[index] = (above - below) / (2 * h)
    # The losses are below 4, so rounding in float64 costs 4 * 2^-53 / h = 4e-10; constants, such as
    # the number of samples and label smoothing, are float32.
    np.testing.assert_allclose(loss.gradient(y_true, y_pred), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", [BinaryCrossentropy(), SparseCategoricalCrossentropy()])
def test_gradients_where_clipping_acts(loss):
    gradient = loss.gradient(np.array([[1.0]] * 2), np.array([[0.0, 0.5], [0.5, 1.0]]))
    np.testing.assert_array_equal(gradient == 0, [[True, False], [False, True]])


def test_gradients_of_huge_logits():
    y = np.array([[1e4, -1e4, 1e4, -1e4]], np.float32)
    t = np.array([[1, 1, 0, 0]], np.float32)
    np.testing.assert_array_equal(BinaryCrossentropy(True).gradient(t, y), [[0, -0.25, 0.25, 0]])


def test_gradient_of_the_absolute_error_at_0():
    np.testing.assert_array_equal(MeanAbsoluteError().gradient(VALUES, VALUES), 0)


@pytest.mark.parametrize(("loss", "y_true", "y_pred"), CASES, ids=IDS)
def test_float32_stays(loss, y_true, y_pred):
    y_true, y_pred = y_true.astype(np.float32), y_pred.astype(np.float32)
    assert loss.losses(y_true, y_pred).dtype == np.float32
    assert loss.losses(y_true, y_pred).shape == (3,)
    gradient = loss.gradient(y_true, y_pred)
    assert gradient.dtype == np.float32
    assert gradient.shape == y_pred.shape


@pytest.mark.parametrize(("loss", "y_true", "y_pred"), CASES, ids=IDS)
@pytest.mark.filterwarnings("default")  # Keras's own
def test_same_as_keras(loss, y_true, y_pred):
    keras = pytest.importorskip("keras", exc_type=ImportError)
    theirs = getattr(keras.losses, type(loss).__name__)(**loss.get_config())
    y_true, y_pred = y_true.astype(np.float32), y_pred.astype(np.float32)
    assert loss(y_true, y_pred) == pytest.approx(float(theirs(y_true, y_pred)), rel=1e-5)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("y_true", [[0.0], [1.0]])
@pytest.mark.parametrize("y_pred", [[0.0, 1.0], [1e-8, 1 - 1e-8], [-1.0, 2.0], [0.1, 0.2]])
def test_clipping_is_that_of_keras(y_true, y_pred):
    keras = pytest.importorskip("keras", exc_type=ImportError)
    numbers, y_pred = np.array(y_true, np.float32), np.array([y_pred], np.float32)
    for name, labels in (
        ("SparseCategoricalCrossentropy", numbers),
        ("BinaryCrossentropy", np.array([[1.0 - y_true[0], y_true[0]]], np.float32)),
    ):
        expected = float(getattr(keras.losses, name)()(labels, y_pred))
        # At 1 - 1e-7 the loss has an error of half the spacing of float32 there, 6e-8.
        assert getattr(losses, name)()(labels, y_pred) == pytest.approx(
            expected, rel=1e-5, abs=6e-8
        )


class TestNames:
    @pytest.mark.parametrize(
        ("cls", "names"),
        [
            (BinaryCrossentropy, ["binary_crossentropy", "bce", "BCE", "BinaryCrossentropy"]),
            (SparseCategoricalCrossentropy, ["sparse_categorical_crossentropy"]),
            (MeanSquaredError, ["mean_squared_error", "mse", "MSE", "MeanSquaredError"]),
            (MeanAbsoluteError, ["mean_absolute_error", "mae", "MAE"]),
        ],
    )
    def test_get(self, cls, names):
        for name in [*names, cls]:
            assert type(losses.get(name)) is cls

    @pytest.mark.parametrize("loss", [case[0] for case in CASES], ids=IDS)
    def test_round_trip(self, loss):
        again = losses.get(json.loads(json.dumps(losses.serialize(loss))))
        assert type(again) is type(loss)
        assert again.get_config() == loss.get_config()

    @pytest.mark.parametrize("name", ["kl_divergence", "KLDivergence", "hinge", "Huber", "mape"])
    def test_not_supported(self, name):
        message = f"loss '{name}' of Keras is not supported. Use one of bce, binary_crossentropy"
        with pytest.raises(ValueError, match=message):
            losses.get(name)

    @pytest.mark.parametrize(
        "given",
        ["categorical", 7, None, {"class_name": "X", "config": {}}, {"class_name": ["mse"]}],
    )
    def test_unknown(self, given):
        with pytest.raises(ValueError, match="Unknown loss.*mse, sparse_.*derived from Loss"):
            losses.get(given)

    def test_a_function(self):
        with pytest.raises(ValueError, match="Functions are not supported: derive a class from"):
            losses.get(lambda y_true, y_pred: 0)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("Hinge", "pyconv.losses.Hinge of Keras is not supported. There are BinaryCross"),
            ("kl_divergence", "kl_divergence of Keras is not supported"),
            ("mse", "a function of Keras's, is not supported. Use the class .*MeanSquaredError"),
            ("Mse", "has no attribute 'Mse'. There are BinaryCrossentropy, Categorical"),
        ],
    )
    def test_attributes(self, name, message):
        with pytest.raises(AttributeError, match=message):
            getattr(losses, name)
        assert not hasattr(losses, name)

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: BinaryCrossentropy(axis=1), ValueError, "axis other than -1.*axis=1"),
            (lambda: MeanSquaredError(reduction="sum"), ValueError, "MeanSquaredError does not"),
            (lambda: SparseCategoricalCrossentropy(ignore_class=0), ValueError, "ignore_class"),
            (lambda: MeanSquaredError(from_logits=True), TypeError, "no argument 'from_logits'"),
            (lambda: BinaryCrossentropy(label_smoothing=-0.1), ValueError, "label_smoothing=-0.1"),
        ],
    )
    def test_arguments_that_are_not_supported(self, make, error, message):
        with pytest.raises(error, match=message):
            make()
        MeanSquaredError(reduction="sum_over_batch_size", name="mean_squared_error", dtype=None)


def model_of(outputs, end=None, loss="mse", names=(), optimizer="sgd", seed=1):
    set_random_seed(seed)
    model = Sequential([Input((4,)), Dense(8, activation="relu"), Dense(outputs, activation=end)])
    model.compile(optimizer, loss, list(names))
    return model


def samples(n=10, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)


CLASSES = np.arange(10) % 3


class TestClassNumbers:
    @pytest.mark.parametrize("end", ["softmax", None])
    def test_same_training_as_with_one_hot_labels(self, end):
        """By the same kernel, so to the last bit."""
        results = []
        for loss, y in (
            (CategoricalCrossentropy(end is None), to_categorical(CLASSES)),
            (SparseCategoricalCrossentropy(end is None), CLASSES),
        ):
            model = model_of(3, end, loss, ["accuracy"], "rmsprop")
            history = model.fit(
                samples(), y, 4, 3, verbose=0, validation_data=(samples(), y)
            ).history
            results.append((history, model.get_weights(), model.evaluate(samples(), y, verbose=0)))
            assert model._training_plan.on_device
        assert list(results[0][0]) == ["loss", "accuracy", "val_loss", "val_accuracy"]
        assert results[0][0] == results[1][0]
        assert results[0][2] == results[1][2]
        for a, b in zip(results[0][1], results[1][1]):
            np.testing.assert_array_equal(a, b)

    @pytest.mark.parametrize(
        "y",
        [
            *(CLASSES.astype(dtype) for dtype in ("u1", "i2", "i8", "u8", "f2", "f4", "f8", ">f4")),
            CLASSES[:, np.newaxis],
            CLASSES.tolist(),
            np.repeat(CLASSES, 2)[::2],
        ],
        ids=lambda y: getattr(y, "dtype", None),
    )
    def test_labels_of_any_dtype(self, y):
        expected = model_of(3, "softmax", "sparse_categorical_crossentropy", ["accuracy"])
        expected.fit(samples(), CLASSES, 4, verbose=0)
        model = model_of(3, "softmax", "sparse_categorical_crossentropy", ["accuracy"])
        model.fit(samples(), y, 4, verbose=0)
        for a, b in zip(model.get_weights(), expected.get_weights()):
            np.testing.assert_array_equal(a, b)
        results = expected.evaluate(samples(), CLASSES, verbose=0)
        assert model.evaluate(samples(), y, verbose=0) == results
        assert model.test_on_batch(samples(), y) == pytest.approx(results, rel=1e-6)
        assert model.train_on_batch(samples(), y) == pytest.approx(results, rel=1e-6)

    def test_booleans(self):
        y = CLASSES == 1
        model = model_of(2, "softmax", "sparse_categorical_crossentropy")
        assert model.test_on_batch(samples(), y) == model.test_on_batch(samples(), y.astype(int))

    def test_generators(self):
        def batches():
            for first in (0, 4, 8):
                yield samples()[first : first + 4], CLASSES[first : first + 4]

        models = [
            model_of(3, "softmax", "sparse_categorical_crossentropy", ["accuracy"])
            for _ in range(2)
        ]
        of_arrays = models[0].fit(
            samples(), CLASSES, 4, shuffle=False, verbose=0, validation_data=(samples(), CLASSES)
        )
        made = models[1].fit(batches(), verbose=0, validation_data=list(batches()))
        assert made.history["loss"] == of_arrays.history["loss"]
        assert made.history["val_accuracy"] == pytest.approx(of_arrays.history["val_accuracy"])

        def bad():
            yield samples(), CLASSES + 1

        with pytest.raises(ValueError, match=r"numbers from 1 to 3. .*counted from 0: y = y - 1"):
            models[1].fit(bad(), verbose=0)

    def test_probabilities_that_no_softmax_made(self):
        """The formulas, on outputs that are positive here."""
        model = model_of(3, "relu", "sparse_categorical_crossentropy")
        p = np.clip(model.predict(samples(), verbose=0), 1e-7, 1 - 1e-7)
        expected = -np.log(p[np.arange(10), CLASSES] / p.sum(axis=1)).mean()
        assert model.train_on_batch(samples(), CLASSES) == pytest.approx(expected, rel=1e-5)

    def test_a_validation_split(self):
        model = model_of(3, "softmax", "sparse_categorical_crossentropy", ["acc"])
        history = model.fit(samples(), CLASSES, validation_split=0.2, verbose=0).history
        assert history["val_accuracy"][0] == pytest.approx(
            model.evaluate(samples()[8:], CLASSES[8:], verbose=0)[1]
        )


class TestBadLabels:
    SPARSE, CATEGORICAL = "sparse_categorical_crossentropy", "categorical_crossentropy"

    @pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
    @pytest.mark.parametrize(
        ("loss", "outputs", "y", "message"),
        [
            (SPARSE, 3, np.eye(3)[CLASSES], r"look one-hot; use 'categorical_crossentropy', or"),
            (SPARSE, 3, np.zeros((10, 2)), r"of shape \(None,\) or \(None, 1\).*\(10, 2\)$"),
            (SPARSE, 3, CLASSES + 0.5, "integers in 0 <= y < 3. .*fractions or NaN"),
            (SPARSE, 3, np.full(10, np.nan), "fractions or NaN"),
            (
                SPARSE,
                1,
                np.ones(10, bool),
                "0 <= y < 1, .* numbers from 1 to 1. Classes are counted",
            ),
            (SPARSE, 3, np.full(10, np.inf), "numbers from inf to inf$"),
            (SPARSE, 3, CLASSES - 1, "in 0 <= y < 3, .* 3 outputs. .* from -1 to 1$"),
            (SPARSE, 3, CLASSES + 1, "from 1 to 3. Classes are counted from 0: y = y - 1"),
            (SPARSE, 3, np.arange(10), "from 0 to 9. For 10 classes, give the last layer 10 out"),
            (CATEGORICAL, 3, CLASSES, "use 'sparse_categorical_crossentropy', or make them one-"),
            (CATEGORICAL, 3, CLASSES, r"y = pyconv.utils.to_categorical\(y, 3\)"),
            (CATEGORICAL, 3, np.eye(5)[CLASSES], "5 values a sample, give the last layer 5 outp"),
            ("bce", 3, CLASSES, "class numbers; use 'sparse_categorical_crossentropy'"),
            ("bce", 1, CLASSES, "labels in 0 <= y <= 1. Received: numbers from 0 to 2"),
            ("bce", 1, np.full(10, np.nan), "labels in 0 <= y <= 1"),
            ("mse", 3, CLASSES, "For one number a sample, give the last layer 1 output, not 3"),
            ("mse", 1, np.zeros((10, 2)), r"\(None, 1\). Received: y of shape \(10, 2\). For 2"),
            ("mse", 1, np.zeros(9), "same number of samples"),
        ],
    )
    def test_errors_name_the_layer(self, method, loss, outputs, y, message):
        model = model_of(outputs, "softmax" if outputs > 1 else None, loss)
        before = model.get_weights()
        with pytest.raises(ValueError, match=message) as caught:
            getattr(model, method)(samples(), y)
        if len(y) == 10:
            assert str(caught.value).startswith(
                "dense_1 (Dense), the last layer of sequential, has outputs of shape "
                f"(None, {outputs}); "
            )
        for a, b in zip(model.get_weights(), before):
            np.testing.assert_array_equal(a, b)

    def test_validation_data(self):
        with pytest.raises(ValueError, match="look one-hot"):
            model_of(3, "softmax", self.SPARSE).fit(
                samples(), CLASSES, verbose=0, validation_data=(samples(), np.eye(3)[CLASSES])
            )

    @pytest.mark.parametrize("loss", [SPARSE, CATEGORICAL])
    def test_outputs_with_more_axes(self, loss):
        model = Sequential([Input((6, 6, 2)), Conv2D(3, 3, activation="softmax")])
        model.compile("sgd", loss)
        y = np.zeros((2, 4, 4, 3) if loss == self.CATEGORICAL else (2, 4, 4))
        with pytest.raises(ValueError, match=f"{loss} expects .* outputs of shape .*Flatten"):
            model.train_on_batch(np.zeros((2, 6, 6, 2), np.float32), y)

    @pytest.mark.parametrize("loss", [SPARSE, CATEGORICAL])
    def test_a_single_class(self, loss):
        with pytest.warns(UserWarning, match="always 0, .* use the loss 'binary_crossentropy'"):
            model_of(1, "softmax", loss).train_on_batch(samples(), np.zeros((10, 1)))

    def test_probabilities_of_a_linear_layer_are_probably_a_mistake(self):
        with pytest.warns(
            UserWarning, match="without an activation. Give it .*sigmoid.* Binary.*from_logits=True"
        ):
            model_of(1, None, "bce").train_on_batch(samples(), np.zeros(10))
        model_of(1, "relu", "bce").train_on_batch(samples(), np.zeros(10))

    def test_called_by_themselves(self):
        with pytest.raises(ValueError, match=r"same number of samples.*\(2,\).*\(3, 4\)"):
            SparseCategoricalCrossentropy()([0, 1], LOGITS)
        with pytest.raises(ValueError, match="numbers from 0 to 4"):
            SparseCategoricalCrossentropy()([0, 1, 4], LOGITS)
        with pytest.raises(ValueError, match=r"\(None, 4\). Received: y of shape \(3, 3\)"):
            MeanSquaredError()(np.zeros((3, 3)), LOGITS)


class TestTraining:
    @pytest.mark.parametrize("given", [(400,), (400, 1)])
    def test_binary_crossentropy(self, given):
        x = samples(400)
        y = (x[:, 0] * x[:, 1] > 0).astype(np.uint8).reshape(given)
        accuracy = metrics.BinaryAccuracy(threshold=0.0)
        loss = BinaryCrossentropy(from_logits=True)
        model = model_of(1, None, loss, [accuracy], optimizers.Adam(0.01))
        history = model.fit(x, y, batch_size=16, epochs=20, verbose=0).history
        assert history["loss"][-1] < 0.5 * history["loss"][0]
        test = samples(200, seed=1)
        assert model.evaluate(test, test[:, 0] * test[:, 1] > 0, verbose=0)[1] > 0.9
        z = model.predict(test, verbose=0)[:, 0]
        assert np.mean((z > 0) == (test[:, 0] * test[:, 1] > 0)) > 0.9

    @pytest.mark.parametrize("loss", ["mse", "mae"])
    def test_regression(self, loss):
        x = samples(400)
        y = x @ np.array([[1.0, 0.5], [-2, 0], [0, 3], [1, 1]])
        model = model_of(2, None, loss, ["mae", "mse"], optimizers.Adam(0.01))
        history = model.fit(x, y, batch_size=16, epochs=30, verbose=0).history
        assert history["loss"][-1] < 0.1 * history["loss"][0]
        difference = model.predict(x, verbose=0).astype(np.float64) - y
        value, mae, mse = model.evaluate(x, y, verbose=0)
        assert [mae, mse] == pytest.approx(
            [np.abs(difference).mean(), np.square(difference).mean()], rel=1e-4
        )
        assert value == {"mae": mae, "mse": mse}[loss]

    def test_regression_of_images(self):
        """Outputs with more than one axis, which a convolution can learn exactly."""
        set_random_seed(1)
        model = Sequential([Input((6, 6, 2)), Conv2D(1, 1)])
        model.compile(optimizers.Adam(0.05), MeanSquaredError())
        x = np.random.default_rng(0).normal(size=(20, 6, 6, 2))
        y = x @ np.array([[2.0], [-1.0]]) + 0.5
        assert model.fit(x, y, epochs=200, verbose=0).history["loss"][-1] < 1e-4

    def test_sparse_categorical_crossentropy(self):
        x = samples(400)
        y = x[:, :3].argmax(axis=1)
        loss = SparseCategoricalCrossentropy(from_logits=True)
        model = model_of(3, None, loss, ["accuracy"], optimizers.Adam(0.01))
        history = model.fit(x, y, batch_size=16, epochs=15, verbose=0).history
        assert history["accuracy"][-1] > 0.9

    @pytest.mark.parametrize(
        ("loss", "y", "outputs"),
        [
            (BinaryCrossentropy(True, 0.1), YES_OR_NO[:, :2], 2),
            (MeanSquaredError(), VALUES[:, :2], 2),
            (MeanAbsoluteError(), VALUES[:, :2], 2),
            (SparseCategoricalCrossentropy(), np.array([0, 1, 1]), 2),
        ],
    )
    def test_gradients_reach_the_weights(self, loss, y, outputs):
        """A single linear layer: dW = x^T dy, db = the sum of dy."""
        model = Sequential([Input((4,)), Dense(outputs)])
        model.compile(optimizers.SGD(0.0), loss)
        model.set_weights([0.1 + 0.2 * np.random.default_rng(0).random((4, 2)), np.full(2, 0.1)])
        x = np.abs(samples(3))
        y_pred = model.predict(x, verbose=0)
        assert model.train_on_batch(x, y) == pytest.approx(loss(y, y_pred), rel=1e-5)
        dy = loss.gradient(y, y_pred)
        np.testing.assert_allclose(model.gradients[0], x.T @ dy, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(model.gradients[1], dy.sum(axis=0), rtol=1e-4, atol=1e-6)

    def test_ones_own_labels(self):
        """A loss of one's own decides which labels it takes."""

        class Signs(losses.Loss):
            def check_labels(self, y_true, output_shape):
                if y_true.ndim != 1:
                    raise ValueError("signs expects (N,)")
                return y_true

            def losses(self, y_true, y_pred):
                return (y_true[:, np.newaxis] - y_pred).sum(axis=-1) ** 2

            def gradient(self, y_true, y_pred):
                error = (y_true[:, np.newaxis] - y_pred).sum(axis=-1, keepdims=True)
                return np.broadcast_to(-2 * error, y_pred.shape) / len(y_pred)

        model = model_of(3, None, Signs(), optimizer=optimizers.Adam(0.01))
        y = samples()[:, 0]
        history = model.fit(samples(), y, epochs=30, verbose=0).history
        assert history["loss"][-1] < history["loss"][0]
        with pytest.raises(ValueError, match=r"dense_1 \(Dense\).*; signs expects \(N,\)"):
            model.evaluate(samples(), y[:, np.newaxis], verbose=0)


@pytest.mark.parametrize(
    ("loss", "end", "y"),
    [
        (SparseCategoricalCrossentropy(), "softmax", CLASSES),
        (BinaryCrossentropy(True, 0.1), None, to_categorical(CLASSES)),
        ("mse", None, to_categorical(CLASSES)),
        ("mae", None, to_categorical(CLASSES)),
    ],
)
def test_in_a_saved_model(loss, end, y, tmp_path):
    model = model_of(3, end, loss, ["accuracy"])
    model.fit(samples(), y, verbose=0)
    model.save(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.get_compile_config() == model.get_compile_config()
    assert loaded.evaluate(samples(), y, verbose=0) == model.evaluate(samples(), y, verbose=0)
