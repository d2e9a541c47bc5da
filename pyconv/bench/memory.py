"""Peak memory of the tutorial's script on as much data as CIFAR-10 has.

This module also runs in interpreters without pyconv: only the standard library, NumPy and, within
the function, the framework itself.
"""

from __future__ import annotations

import importlib
import resource
import sys
from typing import Any

import numpy as np

from . import networks

CONTESTANTS = ("pyconv", "keras-tensorflow")


def peak() -> int:
    """Bytes of this process that have been resident at a time."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def tutorial(name: str, images: int, test_images: int, epochs: int = 1) -> dict[str, Any]:
    """Runs the tutorial's script, line by line, on random pixels.

    Returns:
        The peak after importing the framework, after preparing the data, and at the end, in bytes.
    """
    keras = importlib.import_module("pyconv" if name == "pyconv" else "keras")
    if name == "keras-tensorflow":
        importlib.import_module("tensorflow")
    imported = peak()

    rng = np.random.default_rng(0)
    train_images = rng.integers(0, 256, (images, *networks.TUTORIAL.image), np.uint8)
    test_images_ = rng.integers(0, 256, (test_images, *networks.TUTORIAL.image), np.uint8)
    train_labels = rng.integers(0, networks.TUTORIAL.classes, (images, 1), np.uint8)
    test_labels = rng.integers(0, networks.TUTORIAL.classes, (test_images, 1), np.uint8)

    # In place, as the tutorial does: `astype(...) / 255` would hold every pixel twice for a moment.
    train_data, test_data = train_images.astype("float32"), test_images_.astype("float32")
    train_data /= 255
    test_data /= 255
    train_one_hot = keras.utils.to_categorical(train_labels, networks.TUTORIAL.classes)
    test_one_hot = keras.utils.to_categorical(test_labels, networks.TUTORIAL.classes)
    prepared = peak()

    model = networks.TUTORIAL.layers(keras)
    model.compile(optimizer="rmsprop", loss="categorical_crossentropy", metrics=["accuracy"])
    model.fit(
        train_data,
        train_one_hot,
        batch_size=256,
        epochs=epochs,
        verbose=0,
        validation_data=(test_data, test_one_hot),
    )
    model.evaluate(test_data, test_one_hot, verbose=0)
    return {"imported": imported, "prepared": prepared, "peak": peak()}
