"""Pictures: curves of a training run, filters, activations, confusion matrices.

They leave matplotlib's settings and its current figure alone, and need no display.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyconv.extras import extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyconv.callbacks import History
    from pyconv.layers import Layer
    from pyconv.models import Sequential


def plot_history(
    history: Mapping[str, Sequence[float]] | History,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws loss and accuracy by epoch, for training and validation, side by side.

    Args:
        history: What `model.fit` returned, or its `history`: one list of each measured value. Must
            have `loss`; `val_loss`, `accuracy` (or `acc`) and `val_accuracy` are drawn if there.
        path: PNG file to write, or None.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `history` has no `loss`.
        OSError: The file cannot be written.

    Example:
        >>> history = model.fit(x, y, validation_data=(x_test, y_test), epochs=10)
        >>> pyconv.plotting.plot_history(history.history, "curves.png")
    """
    if not isinstance(history, Mapping):
        history = history.history
    figure = _figure(10, 4)
    from matplotlib.ticker import MaxNLocator

    if "loss" not in history:
        raise ValueError(f"history must have 'loss'. Received: {', '.join(history) or 'nothing'}")
    accuracy = "acc" if "acc" in history and "accuracy" not in history else "accuracy"
    for axes, (name, title) in zip(
        figure.subplots(1, 2), (("loss", "Loss"), (accuracy, "Accuracy")), strict=True
    ):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if key in history:
                epochs = range(1, len(history[key]) + 1)
                # A dot for each epoch, so that one epoch alone can be seen as well.
                axes.plot(epochs, history[key], marker=".", label=label)
        axes.set(title=title, xlabel="Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    return _written(figure, path)


def plot_filters(
    layer: Layer,
    path: str | os.PathLike[str] | None = None,
    channel: int = 0,
    max_filters: int = 64,
) -> Figure:
    """Draws the filters of a convolution.

    Each has its own scale, from its smallest weight to its largest.

    Args:
        layer: A built `Conv2D`, e.g. `model.layers[0]`, whose kernel is (KH, KW, C, F).
        path: PNG file to write, or None.
        channel: The input channel that is drawn, unless there are three, which are drawn in colour.
        max_filters: Only the first so many filters are drawn.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The layer has no such kernel, or no such channel.
        OSError: The file cannot be written.
    """
    kernel = layer.parameters[0].value if layer.parameters else np.zeros(0)
    if kernel.ndim != 4:
        raise ValueError(
            f"plot_filters draws the kernel of a built Conv2D, of 4 axes. Received: {layer!r} with "
            f"{[parameter.shape for parameter in layer.parameters] or 'no weights'}"
        )
    channels = kernel.shape[2]
    if channels != 3 and not 0 <= channel < channels:
        raise ValueError(
            f"{layer.name}: there are {channels} input channels. Received: channel={channel!r}"
        )
    images = np.moveaxis(kernel, 3, 0)[:max_filters]
    return _written(_grid(images if channels == 3 else images[..., channel], layer.name), path)


def plot_activations(
    model: Sequential,
    x: np.ndarray,
    layer: str | int,
    path: str | os.PathLike[str] | None = None,
    max_maps: int = 64,
) -> Figure:
    """Draws what a layer makes of an image, channel by channel.

    Each map has its own scale, from its smallest value to its largest.

    Args:
        model: A model.
        x: One image (H, W, C), or a batch of one.
        layer: Name or index of a layer whose output has the shape (1, OH, OW, F).
        path: PNG file to write, or None.
        max_maps: Only the first so many channels are drawn.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: `x` does not fit the model, or there is no such layer, or its output
            has no maps.
        OSError: The file cannot be written.
    """
    from pyconv.plan import run

    found = model.get_layer(index=layer) if isinstance(layer, int) else model.get_layer(layer)
    x = np.asarray(x)
    if model.input_shape is not None and x.ndim == len(model.input_shape) - 1:
        x = x[np.newaxis]
    x = model._check_inputs(x)
    if len(x) != 1:
        raise ValueError(f"plot_activations draws one image. Received: {len(x)} images")
    layers = model.layers
    maps = run(layers[: layers.index(found) + 1], x, False, None)
    if maps.ndim != 4:
        raise ValueError(
            f"The output of {found.name} has no maps: its shape is {maps.shape}. Take a layer "
            "before Flatten."
        )
    return _written(_grid(np.moveaxis(maps[0], 2, 0)[:max_maps], found.name), path)


def plot_confusion_matrix(
    y_true: np.ndarray | Sequence[int],
    y_pred: np.ndarray | Sequence[int],
    class_names: Sequence[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    normalize: bool = False,
) -> Figure:
    """Draws how many samples of every class were taken for which.

    Args:
        y_true: Labels, class numbers (N,) or one-hot (N, K).
        y_pred: Predictions, class numbers (N,) or probabilities (N, K).
        class_names: K names; by default the numbers.
        path: PNG file to write, or None.
        normalize: Whether shares of the samples of a class are drawn instead of counts.

    Returns:
        The figure: a row for each true class, a column for each predicted one.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The numbers of samples or classes do not fit, or a class is no number.
        OSError: The file cannot be written.

    Example:
        >>> plot_confusion_matrix(y_test, model.predict(x_test), cifar10.CLASS_NAMES)
    """
    true, predicted = _classes("y_true", y_true), _classes("y_pred", y_pred)
    if len(true) != len(predicted) or not len(true):
        raise ValueError(
            "y_true and y_pred must have the same number of samples, at least one. "
            f"Received: {len(true)} and {len(predicted)}"
        )
    known = [np.shape(y)[1] for y in (y_true, y_pred) if np.ndim(y) == 2 and np.shape(y)[1] > 1]
    count = max(int(true.max()) + 1, int(predicted.max()) + 1, *known, len(class_names or ()))
    if class_names is not None and len(class_names) != count:
        raise ValueError(f"There are {count} classes. Received: {len(class_names)} class_names")
    matrix = np.zeros((count, count), np.int64)
    np.add.at(matrix, (true, predicted), 1)
    shown: np.ndarray = matrix
    if normalize:
        shown = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = max(4.0, 1.5 + 0.55 * count)
    figure = _figure(size + 1, size)
    axes = figure.subplots()
    image = axes.imshow(shown, cmap="Blues", vmin=0)
    figure.colorbar(image, ax=axes)
    names = list(class_names or map(str, range(count)))
    axes.set(xlabel="Predicted", ylabel="True")
    axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(count), names)
    if count <= 20:  # more would not be readable
        for row, column in np.ndindex(shown.shape):
            value = shown[row, column]
            axes.text(
                column,
                row,
                f"{value:.2f}" if normalize else str(value),
                ha="center",
                va="center",
                color="white" if value > shown.max() / 2 else "black",
                fontsize=8,
            )
    return _written(figure, path)


def _figure(width: float, height: float) -> Figure:
    with extra("plot", "drawing pictures needs matplotlib"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _grid(images: np.ndarray, title: str) -> Figure:
    """Images (N, H, W) or (N, H, W, 3) side by side, each with a scale of its own."""
    columns = min(8, math.ceil(math.sqrt(len(images))))
    rows = math.ceil(len(images) / columns)
    figure = _figure(columns + 0.5, rows + 0.8)
    figure.suptitle(title)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image in zip(figure.axes, images):
        low, high = image.min(), image.max()
        scaled = (image - low) / (high - low) if high > low else np.zeros_like(image)
        axes.imshow(scaled, cmap="gray", vmin=0, vmax=1)
    return figure


def _classes(argument: str, y: Any) -> np.ndarray:
    """Class numbers of labels that are numbers, or one-hot, or probabilities."""
    array = np.asarray(y)
    if array.ndim == 2 and array.shape[1] > 1:
        return array.argmax(axis=1)
    array = array.reshape(len(array)) if array.ndim == 2 else array
    numbers = array.astype(np.int64) if array.dtype.kind in "uif" else np.zeros(0, np.int64)
    if array.ndim != 1 or not np.array_equal(numbers, array) or (numbers < 0).any():
        raise ValueError(
            f"{argument} must be class numbers (N,) or an array (N, K). Received: dtype "
            f"{array.dtype}, shape {array.shape}"
        )
    return numbers


def _written(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """The figure, which is a PNG file now as well, if there is a path."""
    if path is not None:
        from pyconv.saving import atomic_write

        png = io.BytesIO()
        figure.savefig(png, format="png")
        atomic_write(path, png.getvalue())
    return figure
