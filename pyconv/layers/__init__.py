"""The layers that a :class:`~pyconv.models.Sequential` is made of."""

from __future__ import annotations

from typing import Any

from pyconv.layers.base import Input, Layer, Parameter
from pyconv.layers.convolutional import Conv2D, DepthwiseConv2D, ZeroPadding2D
from pyconv.layers.core import Activation, Dense, Dropout, Flatten
from pyconv.layers.pooling import AveragePooling2D, GlobalAveragePooling2D, MaxPooling2D

__all__ = [
    "Activation",
    "AveragePooling2D",
    "Conv2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Flatten",
    "GlobalAveragePooling2D",
    "Input",
    "Layer",
    "MaxPooling2D",
    "Parameter",
    "ZeroPadding2D",
    "deserialize",
    "serialize",
]

_LAYERS: dict[str, type[Layer]] = {
    layer.__name__: layer
    for layer in (
        Activation,
        AveragePooling2D,
        Conv2D,
        Dense,
        DepthwiseConv2D,
        Dropout,
        Flatten,
        GlobalAveragePooling2D,
        MaxPooling2D,
        ZeroPadding2D,
    )
}


def serialize(layer: Layer) -> dict[str, Any]:
    """Returns ``{"class_name": ..., "config": ...}``, which JSON can hold (without the weights)."""
    return {"class_name": type(layer).__name__, "config": layer.get_config()}


def deserialize(description: dict[str, Any]) -> Layer:
    """Creates a layer from what :func:`serialize` returned.

    Raises:
        ValueError: if the class is unknown.
    """
    class_name = description["class_name"]
    if class_name not in _LAYERS:
        raise ValueError(
            f"Unknown layer. Expected one of {', '.join(sorted(_LAYERS))}. Received: {class_name!r}"
        )
    return _LAYERS[class_name].from_config(description["config"])
