"""Small helpers: for preparing data, for seeds, and for pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyconv.plotting import (
    plot_activations,
    plot_confusion_matrix,
    plot_filters,
    plot_history,
)
from pyconv.random import set_random_seed

__all__ = [
    "plot_activations",
    "plot_confusion_matrix",
    "plot_filters",
    "plot_history",
    "set_random_seed",
    "to_categorical",
]


def to_categorical(
    x: np.ndarray | Sequence[int], num_classes: int | None = None, dtype: str = "float32"
) -> np.ndarray:
    """Converts class numbers to one-hot vectors.

    Args:
        x: integers in 0 <= x < num_classes, of shape (...) or (..., 1).
        num_classes: number of classes K; by default the largest number plus one.
        dtype: dtype of the result.

    Returns:
        An array of shape (..., K) with a 1 at every class number.

    Raises:
        TypeError: if `x` does not hold numbers.
        ValueError: if a number is not an integer, or out of range.

    Example:
        >>> to_categorical([0, 2], num_classes=3)
        array([[1., 0., 0.],
               [0., 0., 1.]], dtype=float32)
    """
    given = np.asarray(x)
    if given.dtype.kind not in "buif":
        raise TypeError(f"to_categorical expects integers. Received: dtype {given.dtype}")
    if num_classes is not None and num_classes < 1:
        raise ValueError(
            f"num_classes must be a positive integer. Received: num_classes={num_classes!r}"
        )
    # Checked before the conversion, in which NaN would become a number.
    if given.dtype.kind == "f" and not np.all(given == np.floor(given)):
        raise ValueError(
            "to_categorical expects integers. Received: an array with fractions, NaN or infinity. "
            "Are these labels one-hot already?"
        )
    if given.size == 0 and num_classes is None:
        raise ValueError("to_categorical of no labels needs num_classes. Received: an empty array")
    classes = given.astype(np.int64)
    if classes.ndim > 1 and classes.shape[-1] == 1:
        classes = classes[..., 0]
    k = int(classes.max()) + 1 if num_classes is None else num_classes
    if classes.size and (classes.min() < 0 or classes.max() >= k):
        raise ValueError(
            f"to_categorical expects class numbers in 0 <= x < {max(k, 1)}. "
            f"Received: numbers from {classes.min()} to {classes.max()}"
            + ("" if num_classes is None else f" with num_classes={num_classes}")
        )
    one_hot = np.zeros((*classes.shape, k), dtype)
    np.put_along_axis(one_hot, classes[..., np.newaxis], 1, axis=-1)
    return one_hot
