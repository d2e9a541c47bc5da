"""What labels must look like: checks that losses and metrics share."""

from __future__ import annotations

import math

import numpy as np


def require_pairs(name: str, y_true: np.ndarray, y_pred: np.ndarray) -> None:
    """Raises ValueError unless labels and predictions are of equally many samples."""
    if not y_true.ndim or not y_pred.ndim or len(y_true) != len(y_pred):
        raise ValueError(
            f"{name}: labels and predictions must have the same number of samples. "
            f"Received: y_true of shape {y_true.shape}, y_pred of shape {y_pred.shape}"
        )


def as_outputs(
    y_true: np.ndarray, output_shape: tuple[int, ...], name: str, sparse: str | None = None
) -> np.ndarray:
    """Returns labels that have the shape of a model's outputs.

    Args:
        y_true: labels (N, ...); one number a sample, (N,), also stands for outputs (N, 1).
        output_shape: shape of an output, without the batch axis.
        name: the loss or metric that asks, for the error.
        sparse: the one to suggest where the labels are class numbers.

    Returns:
        The labels, (N, *output_shape).

    Raises:
        ValueError: if they have another shape.
    """
    given = y_true.shape[1:]
    if given == output_shape:
        return y_true
    if given == () and output_shape == (1,):
        return y_true[:, np.newaxis]
    hint = ""
    if math.prod(given) == 1 and len(output_shape) == 1:
        if sparse is None:
            hint = f". For one number a sample, give the last layer 1 output, not {output_shape[0]}"
        else:
            hint = (
                f". These look like class numbers; use {sparse!r}, or make them one-hot: "
                f"y = pyconv.utils.to_categorical(y, {output_shape[-1]})"
            )
    elif len(given) == len(output_shape) == 1:
        hint = f". For {given[0]} values a sample, give the last layer {given[0]} outputs"
    raise ValueError(
        f"{name} expects labels of the shape of the model's outputs, {(None, *output_shape)}. "
        f"Received: y of shape {y_true.shape}{hint}"
    )


def class_numbers(
    y_true: np.ndarray, output_shape: tuple[int, ...], name: str, dense: str
) -> np.ndarray:
    """Returns labels that are class numbers.

    Args:
        y_true: labels (N,) or (N, 1) of any real dtype.
        output_shape: shape of an output, without the batch axis: (K,) for K classes.
        name: the loss or metric that asks, for the error.
        dense: the one to suggest where the labels are one-hot.

    Returns:
        The labels, (N,).

    Raises:
        ValueError: if the shapes do not fit, or a label is no integer in 0 <= y < K.
    """
    if len(output_shape) != 1:
        raise ValueError(needs_classes(name, output_shape))
    k = output_shape[0]
    if y_true.shape[1:] not in ((), (1,)):
        hint = ""
        if y_true.shape[1:] == output_shape:
            hint = (
                f". These look one-hot; use {dense!r}, or make them class numbers: "
                "y = y.argmax(axis=-1)"
            )
        raise ValueError(
            f"{name} expects class numbers, labels of shape (None,) or (None, 1). "
            f"Received: y of shape {y_true.shape}{hint}"
        )
    if not y_true.size:
        return y_true.reshape(len(y_true))
    if y_true.dtype.kind == "f" and not np.all(y_true == np.floor(y_true)):
        raise ValueError(
            f"{name} expects class numbers, integers in 0 <= y < {k}. Received: labels with "
            "fractions or NaN"
        )
    smallest, largest = float(y_true.min()), float(y_true.max())
    if smallest < 0 or largest >= k:
        hint = ""
        if smallest == 1 and largest == k:
            hint = ". Classes are counted from 0: y = y - 1"
        elif smallest >= 0 and math.isfinite(largest):
            n = int(largest) + 1
            hint = f". For {n} classes, give the last layer {n} outputs"
        raise ValueError(
            f"{name} expects class numbers in 0 <= y < {k}, as the model has {k} outputs. "
            f"Received: numbers from {smallest:.10g} to {largest:.10g}{hint}"
        )
    return y_true.reshape(len(y_true))


def needs_classes(name: str, output_shape: tuple[int, ...]) -> str:
    """What to say of outputs that are not one axis of classes."""
    return (
        f"{name} expects a model whose outputs have the shape (None, classes). "
        f"Received: outputs of shape {(None, *output_shape)}. End the model with Flatten() and "
        "Dense(classes, activation='softmax')"
    )


def one_hot(numbers: np.ndarray, classes: int, dtype: np.dtype) -> np.ndarray:
    """Returns checked class numbers, (N,) or (N, 1), as distributions (N, classes)."""
    result = np.zeros((len(numbers), classes), dtype)
    result[np.arange(len(numbers)), numbers.reshape(-1).astype(np.int64)] = 1
    return result
