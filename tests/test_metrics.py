"""Metrics: their values, which labels they take, their choice for "accuracy", and their names."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pyconv import losses, metrics
from pyconv.layers import Dense, Input
from pyconv.metrics import (
    AutomaticAccuracy,
    BinaryAccuracy,
    BinaryCrossentropy,
    CategoricalAccuracy,
    CategoricalCrossentropy,
    MeanAbsoluteError,
    MeanSquaredError,
    SparseCategoricalAccuracy,
    SparseCategoricalCrossentropy,
    SparseTopKCategoricalAccuracy,
    TopKCategoricalAccuracy,
)
from pyconv.models import Sequential, load_model
from pyconv.utils import set_random_seed, to_categorical

# Of eighths, so that there are ties.
SCORES = np.random.default_rng(0).integers(1, 8, (40, 6)) / 8
NUMBERS = np.random.default_rng(1).integers(0, 6, 40)
YES_OR_NO = np.random.default_rng(2).integers(0, 2, (40, 6))

CASES = [
    (CategoricalAccuracy(), to_categorical(NUMBERS)),
    (SparseCategoricalAccuracy(), NUMBERS),
    (SparseCategoricalAccuracy(), NUMBERS[:, np.newaxis]),
    (BinaryAccuracy(), YES_OR_NO),
    (BinaryAccuracy(threshold=0.25), YES_OR_NO),
    *((TopKCategoricalAccuracy(k), to_categorical(NUMBERS)) for k in (1, 2, 5, 6, 7)),
    *((SparseTopKCategoricalAccuracy(k), NUMBERS) for k in (1, 3, 5)),
    (MeanSquaredError(), YES_OR_NO),
    (MeanAbsoluteError(), YES_OR_NO),
    (BinaryCrossentropy(), YES_OR_NO),
    (BinaryCrossentropy(from_logits=True, label_smoothing=0.1), YES_OR_NO),
    (CategoricalCrossentropy(), to_categorical(NUMBERS)),
    (CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), to_categorical(NUMBERS)),
    (SparseCategoricalCrossentropy(), NUMBERS),
    (SparseCategoricalCrossentropy(from_logits=True), NUMBERS),
]
IDS = [f"{type(metric).__name__}-{metric.get_config()}-{y.shape}" for metric, y in CASES]


@pytest.mark.parametrize(
    ("metric", "y_true", "y_pred", "expected"),
    [
        # Right, wrong; and as of equal ones the first counts, right, wrong.
        (
            SparseCategoricalAccuracy(),
            [1, 1, 0, 1],
            [[0.1, 0.9], [0.9, 0.1], [0.5, 0.5], [0.5, 0.5]],
            [1, 0, 1, 0],
        ),
        (BinaryAccuracy(), [1, 0, 1, 0], [[0.6], [0.6], [0.5], [0.5]], [1, 0, 0, 1]),
        (BinaryAccuracy(threshold=0.0), [1, 0, 1], [[0.1], [-0.1], [0]], [1, 1, 0]),
        (BinaryAccuracy(), [[1, 0], [1, 1]], [[0.9, 0.9], [0.8, 0.7]], [0.5, 1]),
        (BinaryAccuracy(), [[0.9]], [[0.9]], [0]),  # labels are 0 or 1
        # Two are larger than the class's own: it is in the top 3, not in the top 2.
        (SparseTopKCategoricalAccuracy(3), [1], [[0.4, 0.2, 0.1, 0.3]], [1]),
        (SparseTopKCategoricalAccuracy(2), [1], [[0.4, 0.2, 0.1, 0.3]], [0]),
        # Three share the second place: none of them keeps another out.
        (SparseTopKCategoricalAccuracy(2), [0, 1, 2, 3], [[0.2, 0.2, 0.4, 0.2]] * 4, [1] * 4),
        (SparseTopKCategoricalAccuracy(1), [0, 1, 2, 3], [[0.2, 0.2, 0.4, 0.2]] * 4, [0, 0, 1, 0]),
        (SparseTopKCategoricalAccuracy(9), [0, 1], [[0.2, 0.8]] * 2, [1, 1]),
        (SparseTopKCategoricalAccuracy(2), [0, 0], [[np.nan, 1], [1, np.inf]], [0, 0]),
        (TopKCategoricalAccuracy(1), [[0, 0.6, 0.4]], [[0.1, 0.8, 0.1]], [1]),
        (MeanSquaredError(), [[1, 2], [3, 4]], [[1, 4], [0, 0]], [2, 12.5]),
        (MeanAbsoluteError(), [[1, 2], [3, 4]], [[1, 4], [0, 0]], [1, 3.5]),
        (MeanSquaredError(), [2, 3], [[4], [3]], [4, 0]),
    ],
)
def test_values(metric, y_true, y_pred, expected):
    y_true, y_pred = np.array(y_true), np.array(y_pred)
    checked = metric.check_labels(y_true, y_pred.shape[1:])
    np.testing.assert_allclose(metric.values(checked, y_pred), expected, rtol=1e-6)
    metric.reset_state()
    assert metric(y_true, y_pred) == pytest.approx(np.mean(expected))
    metric.reset_state()


def test_unsigned_integers_do_not_wrap_around():
    assert MeanSquaredError()(np.array([[3]], np.uint8), np.array([[1]], np.uint8)) == 4
    assert MeanAbsoluteError()(np.array([[1]], np.uint8), np.array([[3]], np.uint8)) == 2


def test_values_are_those_of_the_losses():
    for metric, y in CASES:
        if (cls := getattr(losses, type(metric).__name__, None)) is not None:
            config = metric.get_config()
            del config["name"]
            metric.reset_state()
            assert metric(y, SCORES) == pytest.approx(cls(**config)(y, SCORES), rel=1e-6)


@pytest.mark.parametrize(("metric", "y_true"), CASES, ids=IDS)
@pytest.mark.filterwarnings("default")  # Keras's own
def test_same_as_keras(metric, y_true):
    keras = pytest.importorskip("keras", exc_type=ImportError)
    theirs = getattr(keras.metrics, type(metric).__name__)(**metric.get_config())
    assert theirs.name == metric.name
    metric.reset_state()
    for rows in (slice(0, 10), slice(10, 40)):
        metric.update_state(y_true[rows], SCORES[rows])
        theirs.update_state(y_true[rows].astype(np.float32), SCORES[rows].astype(np.float32))
        assert metric.result() == pytest.approx(float(theirs.result()), rel=1e-5)


@pytest.mark.filterwarnings("default")
def test_top_k_of_what_is_not_finite_is_that_of_keras():
    keras = pytest.importorskip("keras", exc_type=ImportError)
    if keras.backend.backend() != "tensorflow":
        pytest.skip("other backends of Keras's differ")
    scores = np.array([[np.nan, 1, 2], [np.inf, 1, 2], [1, 2, -np.inf], [1, 2, 3]], np.float32)
    for k in (1, 2, 3):
        for number in range(3):
            mine, theirs = (
                module.SparseTopKCategoricalAccuracy(k) for module in (metrics, keras.metrics)
            )
            numbers = np.full(4, number, np.float32)
            assert mine(numbers, scores) == pytest.approx(float(theirs(numbers, scores)))


class TestNames:
    @pytest.mark.parametrize("metric", [*(case[0] for case in CASES), AutomaticAccuracy("acc2")])
    def test_round_trip(self, metric):
        again = metrics.get(json.loads(json.dumps(metrics.serialize(metric))))
        assert type(again) is type(metric)
        assert again.get_config() == metric.get_config()
        assert again.name == metric.name

    @pytest.mark.parametrize(
        ("cls", "names"),
        [
            (AutomaticAccuracy, ["accuracy", "Accuracy"]),
            (BinaryAccuracy, ["binary_accuracy", "BinaryAccuracy"]),
            (TopKCategoricalAccuracy, ["top_k_categorical_accuracy", "TopKCategoricalAccuracy"]),
            (SparseTopKCategoricalAccuracy, ["sparse_top_k_categorical_accuracy"]),
            (SparseCategoricalAccuracy, ["sparse_categorical_accuracy"]),
            (MeanSquaredError, ["mean_squared_error", "mse", "MSE"]),
            (MeanAbsoluteError, ["mae"]),
            (BinaryCrossentropy, ["bce", "binary_crossentropy"]),
            (SparseCategoricalCrossentropy, ["sparse_categorical_crossentropy"]),
        ],
    )
    def test_get(self, cls, names):
        for name in names:
            metric = metrics.get(name)
            assert type(metric) is cls
            assert metric.name == name
        assert type(metrics.get(cls)) is cls

    @pytest.mark.parametrize("name", ["AUC", "auc", "Precision", "f1_score", "mean_io_u", "hinge"])
    def test_not_supported(self, name):
        message = f"metric '{name}' of Keras is not supported. Use one of acc, accuracy, .*, mse"
        with pytest.raises(ValueError, match=message):
            metrics.get(name)

    @pytest.mark.parametrize("given", ["top_k", 7, {"class_name": "X", "config": {}}, print])
    def test_unknown(self, given):
        with pytest.raises(ValueError, match="Unknown metric. .*top_k_categ.* from Metric"):
            metrics.get(given)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "AUC",
                "pyconv.metrics.AUC of Keras is not supported. There are Auto.*derived from Metric",
            ),
            ("Accuracy", "pyconv.metrics.Accuracy of Keras is not supported"),
            ("binary_accuracy", "Use the class pyconv.metrics.BinaryAccuracy"),
            ("TopK", "has no attribute 'TopK'"),
        ],
    )
    def test_attributes(self, name, message):
        with pytest.raises(AttributeError, match=message):
            getattr(metrics, name)

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: TopKCategoricalAccuracy(0), ValueError, "positive integer. Received: k=0"),
            (lambda: SparseTopKCategoricalAccuracy(2.0), ValueError, "k=2.0"),
            (lambda: BinaryAccuracy(threshold="x"), ValueError, "threshold='x'"),
            (lambda: BinaryAccuracy("x", "float16"), ValueError, "dtype other than None"),
            (lambda: CategoricalAccuracy(top=3), TypeError, "no argument 'top'"),
            (
                lambda: SparseTopKCategoricalAccuracy(from_sorted_ids=True),
                ValueError,
                "does not support from_sorted_ids other than False",
            ),
        ],
    )
    def test_bad_arguments(self, make, error, message):
        with pytest.raises(error, match=message):
            make()


@pytest.mark.parametrize(
    ("metric", "shape", "message"),
    [
        (CategoricalAccuracy(), (40,), "use 'sparse_categorical_accuracy', or make them one-hot"),
        (SparseCategoricalAccuracy(), (40, 6), "look one-hot; use 'categorical_accuracy', or"),
        (TopKCategoricalAccuracy(), (40, 1), "use 'sparse_top_k_categorical_accuracy'"),
        (SparseTopKCategoricalAccuracy(), (40, 6), "use 'top_k_categorical_accuracy'"),
        (BinaryAccuracy(), (40, 5), r"binary_accuracy expects .*\(None, 6\).*\(40, 5\)"),
        (MeanSquaredError(), (40, 5), r"mean_squared_error expects"),
        (MeanSquaredError(), (39, 6), r"same number of samples.*\(39, 6\).*\(40, 6\)"),
        (MeanSquaredError(), (), "same number of samples"),
        (AutomaticAccuracy(), (40, 5), "accuracy expects labels of the shape of the model's"),
    ],
)
def test_labels_that_do_not_fit(metric, shape, message):
    with pytest.raises(ValueError, match=message):
        metric(np.ones(shape), SCORES)


def test_class_numbers_out_of_range():
    for metric in (SparseCategoricalAccuracy(), SparseTopKCategoricalAccuracy()):
        with pytest.raises(ValueError, match="0 <= y < 6, .* Received: numbers from 0 to 6"):
            metric([0, 6], SCORES[:2])


def model_of(outputs, end, loss, names):
    set_random_seed(1)
    model = Sequential([Input((4,)), Dense(outputs, activation=end)])
    model.compile("sgd", loss, list(names))
    return model


X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
CLASSES = np.arange(20) % 3
LOGITS = losses.BinaryCrossentropy(from_logits=True)
# Outputs, the last activation, the loss, labels, and the accuracy that "accuracy" is for them.
CHOICES = [
    (3, "softmax", "categorical_crossentropy", to_categorical(CLASSES), CategoricalAccuracy),
    (3, "softmax", "sparse_categorical_crossentropy", CLASSES, SparseCategoricalAccuracy),
    (3, "softmax", "sparse_categorical_crossentropy", CLASSES[:, None], SparseCategoricalAccuracy),
    (1, None, LOGITS, CLASSES % 2, BinaryAccuracy),
    (1, None, LOGITS, CLASSES[:, None] % 2, BinaryAccuracy),
    (3, None, LOGITS, to_categorical(CLASSES), CategoricalAccuracy),
    (1, None, "mse", CLASSES % 2, BinaryAccuracy),
    (3, "softmax", "mse", to_categorical(CLASSES), CategoricalAccuracy),
]


class TestInModels:
    @pytest.mark.parametrize(("outputs", "end", "loss", "y", "chosen"), CHOICES)
    @pytest.mark.parametrize("given", ["accuracy", "acc"])
    def test_the_choice_of_accuracy(self, outputs, end, loss, y, chosen, given):
        model = model_of(outputs, end, loss, [given, chosen("other")])
        history = model.fit(X, y, batch_size=6, epochs=2, verbose=0, validation_data=(X, y)).history
        for prefix in ("", "val_"):
            assert history[f"{prefix}accuracy"] == history[f"{prefix}other"]
        assert model.metrics_names == ["loss", "accuracy", "other"]
        values = model.evaluate(X, y, verbose=0)
        assert values[1] == values[2] == chosen()(y, model.predict(X, verbose=0))

    @pytest.mark.parametrize(("outputs", "end", "loss", "y", "chosen"), CHOICES)
    @pytest.mark.filterwarnings("default")
    def test_the_choice_is_that_of_keras(self, outputs, end, loss, y, chosen):
        keras = pytest.importorskip("keras", exc_type=ImportError)
        mine = model_of(outputs, end, loss, ["accuracy", "mse"] if y.ndim > 1 else ["accuracy"])
        if y.shape[-1] != outputs:
            mine.compile("sgd", loss, ["accuracy"])
        theirs = keras.Sequential([keras.Input((4,)), keras.layers.Dense(outputs, end)])
        theirs.set_weights(mine.get_weights())
        if not isinstance(loss, str):
            loss = keras.losses.BinaryCrossentropy(from_logits=True)
        theirs.compile("sgd", loss, metrics=mine.metrics_names[1:])
        expected = theirs.evaluate(X, y, verbose=0, return_dict=True)
        results = mine.evaluate(X, y, verbose=0, return_dict=True)
        assert sorted(results) == sorted(expected)
        for name, value in expected.items():
            assert results[name] == pytest.approx(float(value), rel=1e-5)

    def test_all_in_a_saved_model(self, tmp_path):
        names = [
            *("accuracy", "sparse_categorical_accuracy", "sparse_categorical_crossentropy"),
            SparseTopKCategoricalAccuracy(2, "top2"),
        ]
        model = model_of(3, "softmax", "sparse_categorical_crossentropy", names)
        history = model.fit(X, CLASSES, batch_size=7, verbose=0, validation_data=(X, CLASSES))
        assert set(history.history) >= {"val_top2", "sparse_categorical_accuracy", "val_accuracy"}
        values = model.evaluate(X, CLASSES, verbose=0, return_dict=True)
        # The metric has the formula on probabilities, the loss that on logits.
        assert values["sparse_categorical_crossentropy"] == pytest.approx(values["loss"], rel=1e-5)
        assert values["top2"] > values["accuracy"] == values["sparse_categorical_accuracy"]
        model.save(tmp_path / "m")
        loaded = load_model(tmp_path / "m")
        assert loaded.get_compile_config() == model.get_compile_config()
        assert loaded.evaluate(X, CLASSES, verbose=0, return_dict=True) == values

    @pytest.mark.parametrize(
        ("loss", "y", "name", "message"),
        [
            (
                "sparse_categorical_crossentropy",
                CLASSES,
                "categorical_accuracy",
                r"^dense \(Dense\), the last layer .*; categorical_accuracy expects .* class "
                "numbers; use 'sparse_categorical_accuracy'",
            ),
            (
                "categorical_crossentropy",
                to_categorical(CLASSES),
                "sparse_top_k_categorical_accuracy",
                r"^dense \(Dense\), .*use 'top_k_categorical_accuracy'",
            ),
            ("sparse_categorical_crossentropy", CLASSES, "mse", "mean_squared_error expects"),
        ],
    )
    def test_metrics_that_do_not_fit_the_loss(self, loss, y, name, message):
        """Found out before the first step."""
        model = model_of(3, "softmax", loss, [name])
        with pytest.raises(ValueError, match=message):
            model.fit(X, y, verbose=0)
        assert model.optimizer.iterations == 0

    def test_names_must_differ(self):
        with pytest.raises(ValueError, match="names of their own"):
            model_of(1, None, "mse", ["mse", MeanAbsoluteError("mse")])
