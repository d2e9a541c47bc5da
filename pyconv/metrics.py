"""Metrics: what is reported beside the loss."""

from __future__ import annotations

from typing import Any

import numpy as np


class Mean:
    """A running mean, accumulated in float64 and weighted by samples."""

    def __init__(self) -> None:
        self.reset_state()

    def reset_state(self) -> None:
        """Forgets everything."""
        self._total, self._count = 0.0, 0

    def add(self, values: np.ndarray) -> None:
        """Takes in one value per sample, (N,)."""
        self._total += float(values.sum(dtype=np.float64))
        self._count += len(values)

    def result(self) -> float:
        """Returns the mean so far; 0 if there is nothing yet, as in Keras."""
        return self._total / self._count if self._count else 0.0


class Metric:
    """Base class of the metrics, and of your own: define :meth:`values`.

    Args:
        name: the name in logs and histories.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._mean = Mean()

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        """Returns the values of the samples, (N,), for labels and predictions (N, K)."""
        raise NotImplementedError

    def update_state(self, y_true: np.ndarray, y_pred: np.ndarray) -> None:
        """Takes in a batch of labels and predictions (N, K)."""
        self._mean.add(self.values(np.asarray(y_true), np.asarray(y_pred)))

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

    Of equally large ones the first counts.

    Args:
        name: the name in logs and histories.

    Example:
        >>> accuracy = CategoricalAccuracy()
        >>> accuracy(np.array([[0, 1], [1, 0]]), np.array([[0.2, 0.8], [0.3, 0.7]]))
        0.5
    """

    def __init__(self, name: str = "categorical_accuracy") -> None:
        super().__init__(name)

    def values(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        return y_true.argmax(axis=-1) == y_pred.argmax(axis=-1)


_METRICS = {"CategoricalAccuracy": CategoricalAccuracy}
_NAMES = {"acc": "accuracy", "accuracy": "accuracy", "categorical_accuracy": "categorical_accuracy"}


def get(identifier: str | Metric | dict[str, Any]) -> Metric:
    """Returns a metric for a name or what :func:`serialize` returned; a metric as it is.

    Raises:
        ValueError: if it is unknown.
    """
    if isinstance(identifier, Metric):
        return identifier
    if isinstance(identifier, dict) and identifier["class_name"] in _METRICS:
        return _METRICS[identifier["class_name"]](**identifier["config"])
    if isinstance(identifier, str) and identifier in _NAMES:
        return CategoricalAccuracy(_NAMES[identifier])
    raise ValueError(
        f"Unknown metric. Expected one of {', '.join(_NAMES)}, or an object of a class derived "
        "from Metric. "
        f"Received: {identifier!r}"
    )


def serialize(metric: Metric) -> dict[str, Any]:
    """Returns ``{"class_name": ..., "config": ...}``, which JSON can hold."""
    return {"class_name": type(metric).__name__, "config": metric.get_config()}
