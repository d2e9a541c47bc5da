"""Losses: what training makes small."""

from __future__ import annotations

from typing import Any

import numpy as np

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

    def __call__(self, y_true: np.ndarray, y_pred: np.ndarray) -> float:
        """Returns the mean loss.

        Args:
            y_true: labels (N, K).
            y_pred: predictions (N, K).

        Raises:
            ValueError: if the shapes differ.
        """
        y_true, y_pred = np.asarray(y_true, np.float32), np.asarray(y_pred, np.float32)
        if y_true.shape != y_pred.shape:
            raise ValueError(
                f"{self.name}: labels and predictions must have the same shape. "
                f"Received: y_true of shape {y_true.shape}, y_pred of shape {y_pred.shape}"
            )
        return float(self.losses(y_true, y_pred).mean(dtype=np.float64))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as values that JSON can hold."""
        return {}


class CategoricalCrossentropy(Loss):
    """Cross-entropy between labels t and probabilities p: ``-sum_k t_k log p_k``.

    When the model ends in a softmax, training and evaluation compute it from the softmax's inputs,
    which is exact for probabilities near 0. Otherwise the probabilities are divided by their sum
    and clipped to 1e-7.

    Args:
        from_logits: whether the model's outputs are logits, that is, the inputs of a softmax.
        label_smoothing: 0 <= s < 1; labels become ``t (1 - s) + s / K``.

    Raises:
        ValueError: if `label_smoothing` is out of range.

    Example:
        >>> loss = CategoricalCrossentropy()
        >>> loss(np.array([[0.0, 1.0]]), np.array([[0.5, 0.5]]))    # log(2)
        0.6931471824645996
    """

    name = "categorical_crossentropy"

    def __init__(self, from_logits: bool = False, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                "label_smoothing must be in 0 <= label_smoothing < 1. "
                f"Received: label_smoothing={label_smoothing!r}"
            )
        self.from_logits = bool(from_logits)
        self.label_smoothing = float(label_smoothing)

    def smooth(self, y_true: np.ndarray) -> np.ndarray:
        """Returns the labels with label smoothing applied."""
        if self.label_smoothing == 0:
            return y_true
        smoothing = np.float32(self.label_smoothing)
        return y_true * (1 - smoothing) + smoothing / np.float32(y_true.shape[-1])

    def losses(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        t = self.smooth(y_true)
        if self.from_logits:
            z = y_pred - y_pred.max(axis=-1, keepdims=True)
            log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        else:
            p = y_pred / y_pred.sum(axis=-1, keepdims=True)
            log_p = np.log(np.clip(p, _EPSILON, 1 - _EPSILON))
        return -(t * log_p).sum(axis=-1)

    def gradient(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        t = self.smooth(y_true)
        n = np.float32(len(y_pred))
        if self.from_logits:
            p = np.exp(y_pred - y_pred.max(axis=-1, keepdims=True))
            p /= p.sum(axis=-1, keepdims=True)
            return (p * t.sum(axis=-1, keepdims=True) - t) / n
        total = y_pred.sum(axis=-1, keepdims=True)
        p = y_pred / total
        # Where clipping acts, the loss does not depend on p.
        dp = np.where(
            (p >= _EPSILON) & (p <= 1 - _EPSILON), -t / np.maximum(p, _EPSILON), np.float32(0)
        )
        # Through p = y / sum(y).
        return (dp - (dp * p).sum(axis=-1, keepdims=True)) / (total * n)

    def get_config(self) -> dict[str, Any]:
        return {"from_logits": self.from_logits, "label_smoothing": self.label_smoothing}


_LOSSES: dict[str, type[Loss]] = {
    "categorical_crossentropy": CategoricalCrossentropy,
    "CategoricalCrossentropy": CategoricalCrossentropy,
}


def get(identifier: str | Loss | dict[str, Any]) -> Loss:
    """Returns a loss for a name or what :func:`serialize` returned; a loss is returned as it is.

    Raises:
        ValueError: if it is unknown.
    """
    if isinstance(identifier, Loss):
        return identifier
    name, config = identifier, {}
    if isinstance(identifier, dict):
        name, config = identifier["class_name"], identifier["config"]
    if isinstance(name, str) and name in _LOSSES:
        return _LOSSES[name](**config)
    raise ValueError(
        "Unknown loss. Expected 'categorical_crossentropy' or an object of a class derived from "
        "Loss. "
        f"Received: {identifier!r}"
    )


def serialize(loss: Loss) -> dict[str, Any]:
    """Returns ``{"class_name": ..., "config": ...}``, which JSON can hold."""
    return {"class_name": type(loss).__name__, "config": loss.get_config()}
