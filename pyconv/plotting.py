"""Curves of a training run."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_history(
    history: Mapping[str, Sequence[float]], path: str | os.PathLike[str] | None = None
) -> Figure:
    """Draws loss and accuracy by epoch, for training and validation, side by side.

    Leaves matplotlib's settings and its current figure alone, and needs no display.

    Args:
        history: One list an epoch of each measured value, such as `model.fit(...).history`. Must
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
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError(
            "drawing curves needs matplotlib. Install it with: pip install 'pyconv[plot]'"
        ) from error
    from pyconv.saving import atomic_write

    if "loss" not in history:
        raise ValueError(f"history must have 'loss'. Received: {', '.join(history) or 'nothing'}")
    figure = Figure(figsize=(10, 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
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
    if path is not None:
        png = io.BytesIO()
        canvas.print_png(png)
        atomic_write(path, png.getvalue())
    return figure
