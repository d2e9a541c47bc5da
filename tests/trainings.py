"""A small network with a layer of each kind, its training, and hashes of what that ends with.

For tests of what must not change a bit, most of which `run` it in processes of their own.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import pyconv
from pyconv.layers import (
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Input,
    MaxPooling2D,
)
from pyconv.models import Sequential
from pyconv.utils import set_random_seed

CLASSES, SAMPLES, BATCH = 4, 50, 22  # the last batch has 6
SIZE = int(os.environ.get("TRAININGS_SIZE", "20"))  # of the images


def data(samples: int = SAMPLES) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, SIZE, SIZE, 3)).astype(np.float32)
    return x, np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, samples)]


def new_model(seed: int = 1) -> Sequential:
    set_random_seed(seed)
    model = Sequential(
        [
            Input((SIZE, SIZE, 3)),
            Conv2D(12, 3, padding="same"),
            BatchNormalization(),
            Activation("relu"),
            Conv2D(16, 3, activation="relu"),
            MaxPooling2D(2),
            Dropout(0.25),
            Flatten(),
            Dense(20, activation="relu"),
            Dropout(0.5),
            Dense(CLASSES, activation="softmax"),
        ]
    )
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    return model


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def trained(seed: int = 1, epochs: int = 2, **options: object) -> Sequential:
    model = new_model(seed)
    model.fit(*data(), BATCH, epochs, verbose=0, **options)
    return model


def training(seed: int = 1, epochs: int = 2, **options: object) -> str:
    """The hash of what a training ends with: the weights, and what they predict."""
    model = trained(seed, epochs, **options)
    return digest(*model.get_weights(), model.predict(data()[0], verbose=0))


def run(
    program: str | Path, *arguments: str, timeout: float = 120, **environment: str | None
) -> list[str]:
    """The words that code, or a file, prints in a new process with this module and the package.

    Variables of the environment that are None are removed.
    """
    inherited = {k: v for k, v in os.environ.items() if k not in environment}
    paths = [str(Path(pyconv.__file__).parents[1]), str(Path(__file__).parent)]
    given = {name: value for name, value in environment.items() if value is not None}
    done = subprocess.run(
        [
            sys.executable,
            *([program] if isinstance(program, Path) else ["-c", program]),
            *arguments,
        ],
        env={**inherited, "PYTHONPATH": os.pathsep.join(paths), **given},
        cwd=Path(__file__).parent,  # not where a source tree would hide what is installed
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
