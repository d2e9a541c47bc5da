"""Images and transforms: data/record_images.py records them, test_preprocessing.py repeats them."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np

from pyconv.validation.cases import uniform


class ImageCase(NamedTuple):
    parameters: dict[str, Any]
    shape: tuple[int, int, int] = (9, 9, 3)
    range: tuple[float, float] = (-1.0, 1.0)


# Rotations, shears and zooms of square images only: about another one's centre Keras is mistaken.
GEOMETRY: dict[str, ImageCase] = {
    "shift": ImageCase({"tx": 1.25, "ty": -2.6}, (7, 10, 3)),
    "whole_shift": ImageCase({"tx": -2, "ty": 3}, (7, 10, 1)),
    "shift_and_flip": ImageCase({"tx": 0.4, "flip_horizontal": True}, (7, 10, 4)),
    "flips": ImageCase({"flip_horizontal": True, "flip_vertical": True}, (7, 10, 2)),
    "rotation": ImageCase({"theta": 33.3}),
    "shear": ImageCase({"shear": 21.0}),
    "zoom": ImageCase({"zx": 0.7, "zy": 1.3}),
    "far_out": ImageCase({"zx": 6.1, "zy": 5.3, "tx": 4.7}),
    "all": ImageCase(
        {"theta": -17.0, "tx": 1.5, "ty": 0.7, "shear": 12.0, "zx": 1.2, "zy": 0.8}
        | {"flip_horizontal": True, "flip_vertical": True},
        (8, 8, 3),
    ),
}

COLOURS: dict[str, ImageCase] = {
    "channel_shift": ImageCase({"channel_shift_intensity": 0.37}),
    "channel_shift_down": ImageCase({"channel_shift_intensity": -0.8}, (6, 7, 1)),
    "darker": ImageCase({"brightness": 0.7}, range=(0.0, 255.0)),
    "brighter": ImageCase({"brightness": 1.6}, range=(0.0, 255.0)),
    "brighter_grey": ImageCase({"brightness": 1.3}, (6, 7, 1), (0.0, 255.0)),
    "brighter_opaque": ImageCase({"brightness": 1.3}, (6, 7, 4), (0.0, 255.0)),
    "brightness_outside_of_bytes": ImageCase({"brightness": 1.2}, range=(-30.0, 300.0)),
}


def halve_squares(x: np.ndarray) -> np.ndarray:
    return x * x / np.float32(2)


# Arguments of the generator; on batches of values from 0 to 1.
STANDARDS: dict[str, dict[str, Any]] = {
    "rescale": {"rescale": 1 / 255},
    "function": {"preprocessing_function": halve_squares, "rescale": 3.0},
    "samplewise_center": {"samplewise_center": True},
    "samplewise": {"samplewise_std_normalization": True},
    "featurewise_center": {"featurewise_center": True, "rescale": 2.0},
    "featurewise": {"featurewise_std_normalization": True},
    "everything": {
        "preprocessing_function": halve_squares,
        "rescale": 5.0,
        "samplewise_std_normalization": True,
        "featurewise_std_normalization": True,
    },
}


def image(name: str, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0) -> np.ndarray:
    return uniform(zlib.crc32(name.encode()), shape, low, high)


def batch(name: str) -> np.ndarray:
    return image(name, (5, 6, 7, 3), 0.0, 1.0)
