"""Losses: what training makes small.

Names, arguments and values are those of Keras 3, with its reduction "sum_over_batch_size": the loss
of a sample is the mean over what its formula leaves of the sample, and the loss of a batch is the
mean over its samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyconv import labels
from pyconv.names import Names, only_defaults

_EPSILON = np.float32(1e-7)


class Loss:
    """Base class of the losses, and of your own: define :meth:`losses` and :meth:`gradient`."""

    name = "loss"

    def losses(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        """Returns the losses of the samples, (N,), for labels and predictions (N, K)."""
        raise NotImplementedError

    def gradient(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        """Returns the gradient of the mean loss with respect to `y_pred`, as a new array."""
        raise NotImplementedError

    def check_labels(self, y_true: np.ndarray, output_shape: tuple[int, ...]) -> np.ndarray:
        """Returns labels in the shape in which :meth:`losses` takes them.

        Called before labels are used. By default they must have the shape of the model's outputs,
        or be (N,) for outputs (N, 1).

        Args:
            y_true: NumPy's real numbers, (N, ...).
            output_shape: shape of an output, without the batch axis.

        Raises:
            ValueError: if they do not fit.
        """
        return labels.as_outputs(y_true, output_shape, self.name)

    def __call__(self, y_true: np.ndarray, y_pred: np.ndarray) -> float:
        """Returns the mean loss.

        Args:
            y_true: labels, as the loss takes them: (N, K), or class numbers (N,).
            y_pred: predictions (N, K).

        Raises:
            ValueError: if the labels do not fit the predictions.
        """
        y_true, y_pred = np.asarray(y_true, np.float32), np.asarray(y_pred, np.float32)
        labels.require_pairs(self.name, y_true, y_pred)
        y_true = self.check_labels(y_true, y_pred.shape[1:])
        return float(self.losses(y_true, y_pred).mean(dtype=np.float64))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as values that JSON can hold."""
        return {}

    def _only_defaults(self, given: dict[str, Any], **others: Any) -> None:
        known = {"reduction": "sum_over_batch_size", "name": self.name, "dtype": None}
        only_defaults(self, given, {**known, **others})


class SoftmaxCrossentropy(Loss):
    """Base of the cross-entropies over classes, which one kernel computes with the softmax.

    When a model ends in a softmax, or the loss takes logits, training and evaluation use that
    kernel on the softmax's inputs, and the formulas here are not used.

    Attributes:
        from_logits: whether predictions are the inputs of a softmax.
    """

    from_logits: bool

    def distributions(self, y_true: np.ndarray, classes: int, dtype: np.dtype) -> np.ndarray:
        """Returns labels as the distributions t, (N, classes), that the kernel takes.

        Args:
            y_true: labels as :meth:`check_labels` returned them.
            classes: number of classes K.
            dtype: dtype of the result where it is made anew.
        """
        raise NotImplementedError

    def log_probabilities(self, y_pred: np.ndarray) -> np.ndarray:
        """Returns log p for predictions that are probabilities, (N, K)."""
        raise NotImplementedError

    def probability_gradient(self, t: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        """Returns the gradients of the losses of the samples for distributions t, (N, K)."""
        raise NotImplementedError

    def losses(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        t = self.distributions(y_true, y_pred.shape[-1], y_pred.dtype)
        if self.from_logits:
            z = y_pred - y_pred.max(axis=-1, keepdims=True)
            log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        else:
            log_p = self.log_probabilities(y_pred)
        return -(t * log_p).sum(axis=-1)

    def gradient(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        t = self.distributions(y_true, y_pred.shape[-1], y_pred.dtype)
        n = np.float32(len(y_pred))
        if self.from_logits:
            p = np.exp(y_pred - y_pred.max(axis=-1, keepdims=True))
            p /= p.sum(axis=-1, keepdims=True)
            return (p * t.sum(axis=-1, keepdims=True) - t) / n
        return self.probability_gradient(t, y_pred) / n


class CategoricalCrossentropy(SoftmaxCrossentropy):
    """Cross-entropy between labels t and probabilities p: ``-sum_k t_k log p_k``.

    Labels are one-hot or distributions, (N, K). When the model ends in a softmax, training and
    evaluation compute it from the softmax's inputs, which is exact for probabilities near 0.
    Otherwise the probabilities are divided by their sum and clipped to 1e-7.

    Args:
        from_logits: whether the model's outputs are logits, that is, the inputs of a softmax.
        label_smoothing: 0 <= s < 1; labels become ``t (1 - s) + s / K``.

    Raises:
        ValueError: if `label_smoothing` is out of range, or another argument of Keras's is not its
            default.

    Example:
        >>> loss = CategoricalCrossentropy()
        >>> loss(np.array([[0.0, 1.0]]), np.array([[0.5, 0.5]]))    # log(2)
        0.6931471824645996
    """

    name = "categorical_crossentropy"

    def __init__(
        self, from_logits: bool = False, label_smoothing: float = 0.0, **unsupported: Any
    ) -> None:
        self._only_defaults(unsupported, axis=-1)
        self.from_logits = bool(from_logits)
        self.label_smoothing = _smoothing(label_smoothing)

    def check_labels(self, y_true: np.ndarray, output_shape: tuple[int, ...]) -> np.ndarray:
        """Returns labels (N, K) as they are; for errors see :meth:`Loss.check_labels`."""
        y_true = labels.as_outputs(
            y_true, output_shape, self.name, "sparse_categorical_crossentropy"
        )
        if len(output_shape) != 1:
            raise ValueError(labels.needs_classes(self.name, output_shape))
        return y_true

    def smooth(self, y_true: np.ndarray) -> np.ndarray:
        """Returns the labels with label smoothing applied."""
        return _smoothed(y_true, self.label_smoothing, y_true.shape[-1])

    def distributions(self, y_true: np.ndarray, classes: int, dtype: np.dtype) -> np.ndarray:
        return self.smooth(y_true)

    def log_probabilities(self, y_pred: np.ndarray) -> np.ndarray:
        p = y_pred / y_pred.sum(axis=-1, keepdims=True)
        return np.log(np.clip(p, _EPSILON, 1 - _EPSILON))

    def probability_gradient(self, t: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        total = y_pred.sum(axis=-1, keepdims=True)
        p = y_pred / total
        dp = np.where(_unclipped(p), -t / np.maximum(p, _EPSILON), np.float32(0))
        # Through p = y / sum(y).
        return (dp - (dp * p).sum(axis=-1, keepdims=True)) / total

    def get_config(self) -> dict[str, Any]:
        return {"from_logits": self.from_logits, "label_smoothing": self.label_smoothing}


class SparseCategoricalCrossentropy(SoftmaxCrossentropy):
    """Cross-entropy between class numbers c and probabilities p: ``-log p_c``.

    Labels are integers in 0 <= c < K of any dtype, (N,) or (N, 1). They are made one-hot when a
    batch is fed, so that training computes what :class:`CategoricalCrossentropy` does, by the same
    kernel. Where the model does not end in a softmax, the probabilities are clipped to 1e-7 and
    divided by their sum, in this order, as in Keras.

    Args:
        from_logits: whether the model's outputs are logits, that is, the inputs of a softmax.

    Raises:
        ValueError: if another argument of Keras's is not its default.

    Example:
        >>> loss = SparseCategoricalCrossentropy()
        >>> loss(np.array([1]), np.array([[0.5, 0.5]]))    # log(2)
        0.6931471824645996
    """

    name = "sparse_categorical_crossentropy"

    def __init__(self, from_logits: bool = False, **unsupported: Any) -> None:
        self._only_defaults(unsupported, axis=-1, ignore_class=None)
        self.from_logits = bool(from_logits)

    def check_labels(self, y_true: np.ndarray, output_shape: tuple[int, ...]) -> np.ndarray:
        """Returns class numbers, (N,).

        Raises:
            ValueError: if `y_true` is not (N,) or (N, 1), or holds what is no class number.
        """
        return labels.class_numbers(y_true, output_shape, self.name, "categorical_crossentropy")

    def distributions(self, y_true: np.ndarray, classes: int, dtype: np.dtype) -> np.ndarray:
        return labels.one_hot(y_true, classes, dtype)

    def log_probabilities(self, y_pred: np.ndarray) -> np.ndarray:
        p = np.clip(y_pred, _EPSILON, 1 - _EPSILON)
        return np.log(p) - np.log(p.sum(axis=-1, keepdims=True))

    def probability_gradient(self, t: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        p = np.clip(y_pred, _EPSILON, 1 - _EPSILON)
        dp = 1 / p.sum(axis=-1, keepdims=True) - t / p
        return np.where(_unclipped(y_pred), dp, np.float32(0))

    def get_config(self) -> dict[str, Any]:
        return {"from_logits": self.from_logits}


class BinaryCrossentropy(Loss):
    """Cross-entropy of yes-or-no questions: ``mean_k -(t_k log p_k + (1 - t_k) log(1 - p_k))``.

    Labels are in 0 <= t <= 1 and have the shape of the outputs, or are (N,) for outputs (N, 1).
    Probabilities are clipped to 1e-7 <= p <= 1 - 1e-7. From logits z, with p = 1 / (1 + exp(-z)),
    it is computed as ``max(z, 0) - z t + log(1 + exp(-|z|))``, which is exact for any z; a network
    that does not end in a sigmoid needs ``from_logits=True``, and
    ``BinaryAccuracy(threshold=0.0)`` then counts the logits above 0.

    Args:
        from_logits: whether the model's outputs are logits, that is, the inputs of a sigmoid.
        label_smoothing: 0 <= s < 1; labels become ``t (1 - s) + s / 2``.

    Raises:
        ValueError: if `label_smoothing` is out of range, or another argument of Keras's is not its
            default.

    Example:
        >>> loss = BinaryCrossentropy(from_logits=True)
        >>> loss(np.array([[1.0]]), np.array([[0.0]]))    # log(2)
        0.6931471824645996
    """

    name = "binary_crossentropy"

    def __init__(
        self, from_logits: bool = False, label_smoothing: float = 0.0, **unsupported: Any
    ) -> None:
        self._only_defaults(unsupported, axis=-1)
        self.from_logits = bool(from_logits)
        self.label_smoothing = _smoothing(label_smoothing)

    def check_labels(self, y_true: np.ndarray, output_shape: tuple[int, ...]) -> np.ndarray:
        """Returns labels in the shape of the outputs.

        Raises:
            ValueError: if they have another shape, or are not in 0 <= t <= 1.
        """
        y_true = labels.as_outputs(
            y_true, output_shape, self.name, "sparse_categorical_crossentropy"
        )
        if y_true.size:
            smallest, largest = float(y_true.min()), float(y_true.max())
            if not (smallest >= 0 and largest <= 1):  # NaN neither
                raise ValueError(
                    f"{self.name} expects labels in 0 <= y <= 1. "
                    f"Received: numbers from {smallest:.10g} to {largest:.10g}"
                )
        return y_true

    def smooth(self, y_true: np.ndarray) -> np.ndarray:
        """Returns the labels with label smoothing applied."""
        return _smoothed(y_true, self.label_smoothing, 2)

    def losses(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        t = self.smooth(y_true)
        if self.from_logits:
            decay = np.exp(-np.abs(y_pred))
            return sample_means(np.maximum(y_pred, 0) - y_pred * t + np.log1p(decay))
        p = np.clip(y_pred, _EPSILON, 1 - _EPSILON)
        return sample_means(-(t * np.log(p) + (1 - t) * np.log(1 - p)))

    def gradient(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        t = self.smooth(y_true)
        n = np.float32(y_pred.size)
        if self.from_logits:
            decay = np.exp(-np.abs(y_pred))  # at most 1, so nothing overflows
            return (np.where(y_pred >= 0, 1, decay) / (1 + decay) - t) / n
        p = np.clip(y_pred, _EPSILON, 1 - _EPSILON)
        return np.where(_unclipped(y_pred), (p - t) / (p * (1 - p)), np.float32(0)) / n

    def get_config(self) -> dict[str, Any]:
        return {"from_logits": self.from_logits, "label_smoothing": self.label_smoothing}


class MeanSquaredError(Loss):
    """``mean_k (y_k - t_k)^2`` for outputs y and labels t.

    Labels have the shape of the outputs, or are (N,) for outputs (N, 1).

    Raises:
        ValueError: if an argument of Keras's is not its default.

    Example:
        >>> MeanSquaredError()(np.array([[0.0, 1.0]]), np.array([[2.0, 1.0]]))
        2.0
    """

    name = "mean_squared_error"

    def __init__(self, **unsupported: Any) -> None:
        self._only_defaults(unsupported)

    def losses(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return sample_means(np.square(y_pred - y_true))

    def gradient(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return (y_pred - y_true) * np.float32(2 / y_pred.size)


class MeanAbsoluteError(Loss):
    """``mean_k |y_k - t_k|`` for outputs y and labels t; its gradient at y = t is 0.

    Labels have the shape of the outputs, or are (N,) for outputs (N, 1).

    Raises:
        ValueError: if an argument of Keras's is not its default.

    Example:
        >>> MeanAbsoluteError()(np.array([[0.0, 1.0]]), np.array([[2.0, 1.0]]))
        1.0
    """

    name = "mean_absolute_error"

    def __init__(self, **unsupported: Any) -> None:
        self._only_defaults(unsupported)

    def losses(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return sample_means(np.abs(y_pred - y_true))

    def gradient(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return np.sign(y_pred - y_true) / np.float32(y_pred.size)


def _smoothing(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(
            f"label_smoothing must be in 0 <= label_smoothing < 1. Received: "
            f"label_smoothing={value!r}"
        )
    return float(value)


def _smoothed(y_true: np.ndarray, smoothing: float, classes: int) -> np.ndarray:
    """Labels of which this share is dealt out among the classes."""
    if smoothing == 0:
        return y_true
    share = np.float32(smoothing)
    return y_true * (1 - share) + share / np.float32(classes)


def _unclipped(p: np.ndarray) -> np.ndarray:
    """Where the loss depends on p, because clipping does not act."""
    return (p >= _EPSILON) & (p <= 1 - _EPSILON)


def sample_means(values: np.ndarray) -> np.ndarray:
    """Returns the means of the samples, (N,), of values (N, ...)."""
    return values.mean(axis=tuple(range(1, values.ndim)))


_NAMES = Names(
    "loss",
    Loss,
    {
        loss.name: loss
        for loss in (
            BinaryCrossentropy,
            CategoricalCrossentropy,
            MeanAbsoluteError,
            MeanSquaredError,
            SparseCategoricalCrossentropy,
        )
    },
    {"bce": "binary_crossentropy", "mae": "mean_absolute_error", "mse": "mean_squared_error"},
    (
        *("BinaryFocalCrossentropy", "CategoricalFocalCrossentropy", "Crossentropy", "CE"),
        *("KLDivergence", "KLD", "Poisson", "CTC", "Dice", "Tversky", "Circle", "CosineSimilarity"),
        *("Hinge", "SquaredHinge", "CategoricalHinge", "Huber", "LogCosh", "LossFunctionWrapper"),
        *("MeanAbsolutePercentageError", "MAPE", "MeanSquaredLogarithmicError", "MSLE"),
    ),
)


def get(identifier: str | type[Loss] | Loss | dict[str, Any]) -> Loss:
    """Returns a loss for a name, a class or what :func:`serialize` returned; a loss as it is.

    Names are those of the classes, those in lower case, e.g. "mean_squared_error", and "bce", "mse"
    and "mae".

    Raises:
        ValueError: if it is unknown, or one of Keras's that is not supported.
    """
    if isinstance(identifier, Loss):
        return identifier
    cls, config = _NAMES.find(identifier)
    loss: Loss = cls(**config)
    return loss


def serialize(loss: Loss) -> dict[str, Any]:
    """Returns ``{"class_name": ..., "config": ...}``, which JSON can hold."""
    return {"class_name": type(loss).__name__, "config": loss.get_config()}


if not TYPE_CHECKING:  # a type checker shall report what there is not

    def __getattr__(name: str) -> Any:
        raise _NAMES.missing(__name__, name)
