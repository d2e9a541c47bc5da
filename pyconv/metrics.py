"""Metrics: what is reported beside the loss. Names, arguments and values are those of Keras 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyconv import labels, losses
from pyconv.floats import as_float
from pyconv.losses import sample_means
from pyconv.names import Names, only_defaults


class Mean:
    """A running mean, accumulated in float64 and weighted by samples."""

    def __init__(self) -> None:
        self.reset_state()

    def reset_state(self) -> None:
        """Forgets everything."""
        self._total, self._count = 0.0, 0

    def add(self, values: np.ndarray) -> None:
        """Takes in one value per sample, (N,)."""
        self.add_sum(float(values.sum(dtype=np.float64)), len(values))

    def add_sum(self, total: float, count: int) -> None:
        """Takes in the sum of the values of so many samples."""
        self._total += total
        self._count += count

    def result(self) -> float:
        """Returns the mean so far; 0 if there is nothing yet, as in Keras."""
        return self._total / self._count if self._count else 0.0

    def get_state(self) -> tuple[float, int]:
        """Returns what :meth:`set_state` takes to go on from here."""
        return self._total, self._count

    def set_state(self, total: float, count: int) -> None:
        self._total, self._count = float(total), int(count)


class Metric:
    """Base class of the metrics, and of your own: define :meth:`values`.

    Args:
        name: the name in logs and histories.
        unsupported: arguments that only Keras's metrics have; taken where they change nothing.
    """

    def __init__(self, name: str, **unsupported: Any) -> None:
        only_defaults(self, unsupported, {"dtype": None})
        self.name = name
        self._mean = Mean()

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        """Returns the values of the samples, (N,), for labels and predictions (N, K)."""
        raise NotImplementedError

    def check_labels(self, y_true: np.ndarray, output_shape: tuple[int, ...]) -> np.ndarray:
        """Returns labels in a shape that :meth:`values` takes; by default as they are.

        Called before labels are used, in models after the loss's own
        :meth:`~pyconv.losses.Loss.check_labels`.

        Args:
            y_true: NumPy's real numbers, (N, ...).
            output_shape: shape of an output, without the batch axis.

        Raises:
            ValueError: if they do not fit.
        """
        return y_true

    def update_state(self, y_true: np.ndarray, y_pred: np.ndarray) -> None:
        """Takes in a batch of labels, (N, K) or class numbers (N,), and predictions (N, K).

        Raises:
            ValueError: if the labels do not fit the predictions.
        """
        y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
        labels.require_pairs(self.name, y_true, y_pred)
        y_true = self.check_labels(y_true, y_pred.shape[1:])
        self._mean.add(self.values(y_true, y_pred))

    def result(self) -> float:
        """Returns the mean over all samples since the last :meth:`reset_state`."""
        return self._mean.result()

    def reset_state(self) -> None:
        """Forgets all samples."""
        self._mean.reset_state()

    def __call__(self, y_true: np.ndarray, y_pred: np.ndarray) -> float:
        """Takes in a batch and returns :meth:`result`."""
        self.update_state(y_true, y_pred)
        return self.result()

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as values that JSON can hold."""
        return {"name": self.name}


class CategoricalAccuracy(Metric):
    """Share of the samples whose largest prediction is at the largest label.

    Labels and predictions are (N, K). Of equally large ones the first counts.

    Args:
        name: the name in logs and histories.

    Example:
        >>> accuracy = CategoricalAccuracy()
        >>> accuracy(np.array([[0, 1], [1, 0]]), np.array([[0.2, 0.8], [0.3, 0.7]]))
        0.5
    """

    def __init__(self, name: str = "categorical_accuracy", **unsupported: Any) -> None:
        super().__init__(name, **unsupported)

    def check_labels(self, y_true: np.ndarray, output_shape: tuple[int, ...]) -> np.ndarray:
        return labels.as_outputs(y_true, output_shape, self.name, "sparse_categorical_accuracy")

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return sample_means(y_true.argmax(axis=-1) == y_pred.argmax(axis=-1))


class SparseCategoricalAccuracy(Metric):
    """Share of the samples whose largest prediction is at their class number.

    Labels are integers in 0 <= y < K, (N,) or (N, 1), predictions (N, K). Of equally large ones the
    first counts.

    Args:
        name: the name in logs and histories.

    Example:
        >>> accuracy = SparseCategoricalAccuracy()
        >>> accuracy(np.array([1, 0]), np.array([[0.2, 0.8], [0.3, 0.7]]))
        0.5
    """

    def __init__(self, name: str = "sparse_categorical_accuracy", **unsupported: Any) -> None:
        super().__init__(name, **unsupported)

    def check_labels(self, y_true: np.ndarray, output_shape: tuple[int, ...]) -> np.ndarray:
        return labels.class_numbers(y_true, output_shape, self.name, "categorical_accuracy")

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return y_true.reshape(-1) == y_pred.argmax(axis=-1)


class BinaryAccuracy(Metric):
    """Share of the predictions that are above the threshold where the label is 1, else not.

    Labels have the shape of the predictions, or are (N,) for predictions (N, 1). As in Keras a
    prediction at the threshold counts as 0, and labels other than 0 and 1 are never met.

    Args:
        name: the name in logs and histories.
        dtype: only None.
        threshold: 0.5 for probabilities; 0.0 says the same of logits.

    Raises:
        ValueError: if `threshold` is not a number.

    Example:
        >>> accuracy = BinaryAccuracy()
        >>> accuracy(np.array([[1], [0]]), np.array([[0.6], [0.7]]))
        0.5
    """

    def __init__(
        self, name: str = "binary_accuracy", dtype: None = None, threshold: float = 0.5
    ) -> None:
        super().__init__(name, dtype=dtype)
        if isinstance(threshold, bool) or not isinstance(
            threshold, (int, float, np.integer, np.floating)
        ):
            raise ValueError(f"threshold must be a number. Received: threshold={threshold!r}")
        self.threshold = as_float(threshold)

    def check_labels(self, y_true: np.ndarray, output_shape: tuple[int, ...]) -> np.ndarray:
        return labels.as_outputs(y_true, output_shape, self.name, "sparse_categorical_accuracy")

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return sample_means((y_pred > self.threshold) == y_true.reshape(y_pred.shape))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "threshold": self.threshold}


class AutomaticAccuracy(Metric):
    """What "accuracy" stands for: the accuracy that fits the shapes, chosen as Keras does.

    For one output a sample it is :class:`BinaryAccuracy`; for class numbers as labels, (N,) or
    (N, 1) beside predictions (N, K), :class:`SparseCategoricalAccuracy`; otherwise
    :class:`CategoricalAccuracy`, also for several yes-or-no outputs, of which
    ``"binary_accuracy"`` has to be asked for.

    Args:
        name: the name in logs and histories.
    """

    def __init__(self, name: str = "accuracy", **unsupported: Any) -> None:
        super().__init__(name, **unsupported)
        self._binary = BinaryAccuracy(name)
        self._sparse = SparseCategoricalAccuracy(name)
        self._categorical = CategoricalAccuracy(name)

    def check_labels(self, y_true: np.ndarray, output_shape: tuple[int, ...]) -> np.ndarray:
        return self._chosen(y_true.shape[1:], output_shape).check_labels(y_true, output_shape)

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return self._chosen(y_true.shape[1:], y_pred.shape[1:]).values(y_true, y_pred)

    def _chosen(self, of_labels: tuple[int, ...], of_outputs: tuple[int, ...]) -> Metric:
        if of_outputs[-1:] in ((), (1,)):
            return self._binary
        if len(of_labels) < len(of_outputs) or of_labels[-1:] == (1,):
            return self._sparse
        return self._categorical


class TopKCategoricalAccuracy(Metric):
    """Share of the samples for which fewer than k predictions are larger than that of their class.

    Labels, of which the largest is the class, and predictions are (N, K). So of equal predictions
    none keeps another out: where several are equal at the k-th place, all of them are in the top k.
    A sample with a prediction that is not finite does not count. This is what Keras computes with
    TensorFlow.

    Args:
        k: how many predictions are looked at.
        name: the name in logs and histories.

    Raises:
        ValueError: if `k` is not a positive integer.

    Example:
        >>> accuracy = TopKCategoricalAccuracy(k=2)
        >>> accuracy(np.array([[0, 0, 1], [1, 0, 0]]), np.array([[0.1, 0.6, 0.3], [0.1, 0.3, 0.6]]))
        0.5
    """

    def __init__(
        self, k: int = 5, name: str = "top_k_categorical_accuracy", **unsupported: Any
    ) -> None:
        super().__init__(name, **unsupported)
        self.k = _k(k)

    def check_labels(self, y_true: np.ndarray, output_shape: tuple[int, ...]) -> np.ndarray:
        return labels.as_outputs(
            y_true, output_shape, self.name, "sparse_top_k_categorical_accuracy"
        )

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return sample_means(_in_top_k(y_true.argmax(axis=-1), y_pred, self.k))

    def get_config(self) -> dict[str, Any]:
        return {"k": self.k, **super().get_config()}


class SparseTopKCategoricalAccuracy(Metric):
    """:class:`TopKCategoricalAccuracy` for class numbers, integers in 0 <= y < K, (N,) or (N, 1).

    Args:
        k: how many predictions are looked at.
        name: the name in logs and histories.

    Raises:
        ValueError: if `k` is not a positive integer.
    """

    def __init__(
        self, k: int = 5, name: str = "sparse_top_k_categorical_accuracy", **unsupported: Any
    ) -> None:
        from_sorted_ids = unsupported.pop("from_sorted_ids", False)
        super().__init__(name, **unsupported)
        only_defaults(self, {"from_sorted_ids": from_sorted_ids}, {"from_sorted_ids": False})
        self.k = _k(k)

    def check_labels(self, y_true: np.ndarray, output_shape: tuple[int, ...]) -> np.ndarray:
        return labels.class_numbers(y_true, output_shape, self.name, "top_k_categorical_accuracy")

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return _in_top_k(y_true.reshape(-1).astype(np.int64), y_pred, self.k)

    def get_config(self) -> dict[str, Any]:
        return {"k": self.k, **super().get_config()}


class LossMetric(Metric):
    """Base of the metrics whose values are those of a loss, on what the model predicts.

    Args:
        loss: the loss.
        name: the name in logs and histories.
    """

    def __init__(self, loss: losses.Loss, name: str, **unsupported: Any) -> None:
        super().__init__(name, **unsupported)
        self._loss = loss

    def check_labels(self, y_true: np.ndarray, output_shape: tuple[int, ...]) -> np.ndarray:
        return self._loss.check_labels(y_true, output_shape)

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        # Differences of unsigned integers would be wrong.
        y_pred = y_pred if y_pred.dtype.kind == "f" else y_pred.astype(np.float32)
        return self._loss.losses(y_true.astype(y_pred.dtype, copy=False), y_pred)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._loss.get_config()}


class MeanSquaredError(LossMetric):
    """The values of :class:`pyconv.losses.MeanSquaredError`.

    Args:
        name: the name in logs and histories.
    """

    def __init__(self, name: str = "mean_squared_error", **unsupported: Any) -> None:
        super().__init__(losses.MeanSquaredError(), name, **unsupported)


class MeanAbsoluteError(LossMetric):
    """The values of :class:`pyconv.losses.MeanAbsoluteError`.

    Args:
        name: the name in logs and histories.
    """

    def __init__(self, name: str = "mean_absolute_error", **unsupported: Any) -> None:
        super().__init__(losses.MeanAbsoluteError(), name, **unsupported)


class BinaryCrossentropy(LossMetric):
    """The values of :class:`pyconv.losses.BinaryCrossentropy`.

    Args:
        name: the name in logs and histories.
        dtype: only None.
        from_logits, label_smoothing: as for the loss.
    """

    def __init__(
        self,
        name: str = "binary_crossentropy",
        dtype: None = None,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(losses.BinaryCrossentropy(from_logits, label_smoothing), name, dtype=dtype)


class CategoricalCrossentropy(LossMetric):
    """The values of :class:`pyconv.losses.CategoricalCrossentropy`, by its formulas.

    Args:
        name: the name in logs and histories.
        dtype: only None.
        from_logits, label_smoothing: as for the loss.
    """

    def __init__(
        self,
        name: str = "categorical_crossentropy",
        dtype: None = None,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            losses.CategoricalCrossentropy(from_logits, label_smoothing), name, dtype=dtype
        )


class SparseCategoricalCrossentropy(LossMetric):
    """The values of :class:`pyconv.losses.SparseCategoricalCrossentropy`, by its formulas.

    Args:
        name: the name in logs and histories.
        dtype: only None.
        from_logits: as for the loss.
    """

    def __init__(
        self,
        name: str = "sparse_categorical_crossentropy",
        dtype: None = None,
        from_logits: bool = False,
    ) -> None:
        super().__init__(losses.SparseCategoricalCrossentropy(from_logits), name, dtype=dtype)


def _k(value: int) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1:
        return int(value)
    raise ValueError(f"k must be a positive integer. Received: k={value!r}")


def _in_top_k(classes: np.ndarray, y_pred: np.ndarray, k: int) -> np.ndarray:
    of_class = np.take_along_axis(y_pred, classes[..., np.newaxis], axis=-1)
    larger = (y_pred > of_class).sum(axis=-1)
    found: np.ndarray = (larger < k) & np.isfinite(y_pred).all(axis=-1)
    return found


_NAMES = Names(
    "metric",
    Metric,
    {
        "accuracy": AutomaticAccuracy,
        "binary_accuracy": BinaryAccuracy,
        "binary_crossentropy": BinaryCrossentropy,
        "categorical_accuracy": CategoricalAccuracy,
        "categorical_crossentropy": CategoricalCrossentropy,
        "mean_absolute_error": MeanAbsoluteError,
        "mean_squared_error": MeanSquaredError,
        "sparse_categorical_accuracy": SparseCategoricalAccuracy,
        "sparse_categorical_crossentropy": SparseCategoricalCrossentropy,
        "sparse_top_k_categorical_accuracy": SparseTopKCategoricalAccuracy,
        "top_k_categorical_accuracy": TopKCategoricalAccuracy,
    },
    {
        "acc": "accuracy",
        "bce": "binary_crossentropy",
        "mae": "mean_absolute_error",
        "mse": "mean_squared_error",
    },
    (
        *("AUC", "Precision", "PrecisionAtRecall", "Recall", "RecallAtPrecision", "Accuracy"),
        *("FalseNegatives", "FalsePositives", "TrueNegatives", "TruePositives"),
        *("SensitivityAtSpecificity", "SpecificityAtSensitivity", "F1Score", "FBetaScore"),
        *("IoU", "BinaryIoU", "MeanIoU", "OneHotIoU", "OneHotMeanIoU", "RootMeanSquaredError"),
        *("MeanAbsolutePercentageError", "MAPE", "MeanSquaredLogarithmicError", "MSLE"),
        *("CosineSimilarity", "LogCoshError", "R2Score", "PearsonCorrelation"),
        *("ConcordanceCorrelation", "KLDivergence", "Poisson", "Hinge", "SquaredHinge"),
        *("CategoricalHinge", "MeanMetricWrapper", "Mean", "Sum"),
    ),
)


def get(identifier: str | type[Metric] | Metric | dict[str, Any]) -> Metric:
    """Returns a metric for a name, a class or what :func:`serialize` returned; a metric as it is.

    Names are those of the classes, those in lower case, e.g. "top_k_categorical_accuracy", and
    "bce", "mse" and "mae"; "accuracy" and "acc" stand for the accuracy that fits, see
    :class:`AutomaticAccuracy`. As in Keras the metric has the name by which it was asked for, but
    "acc" becomes "accuracy", which histories find under both names.

    Raises:
        ValueError: if it is unknown, or one of Keras's that is not supported.
    """
    if isinstance(identifier, Metric):
        return identifier
    if isinstance(identifier, str) and identifier.lower() in ("acc", "accuracy"):
        return AutomaticAccuracy("accuracy" if identifier == "acc" else identifier)
    cls, config = _NAMES.find(identifier)
    if isinstance(identifier, str):
        config = {"name": identifier}
    metric: Metric = cls(**config)
    return metric


def serialize(metric: Metric) -> dict[str, Any]:
    """Returns ``{"class_name": ..., "config": ...}``, which JSON can hold."""
    return {"class_name": type(metric).__name__, "config": metric.get_config()}


if not TYPE_CHECKING:  # a type checker shall report what there is not

    def __getattr__(name: str) -> Any:
        raise _NAMES.missing(__name__, name)
