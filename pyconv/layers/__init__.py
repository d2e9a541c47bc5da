"""The layers that a :class:`~pyconv.models.Sequential` is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyconv.layers.base import Input, Layer, Parameter
from pyconv.layers.convolutional import Conv2D, DepthwiseConv2D, ZeroPadding2D
from pyconv.layers.core import Activation, Dense, Dropout, Flatten, LeakyReLU, ReLU, Softmax
from pyconv.layers.normalization import BatchNormalization
from pyconv.layers.pooling import AveragePooling2D, GlobalAveragePooling2D, MaxPooling2D
from pyconv.names import missing

__all__ = [
    "Activation",
    "AveragePooling2D",
    "BatchNormalization",
    "Conv2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Flatten",
    "GlobalAveragePooling2D",
    "Input",
    "Layer",
    "LeakyReLU",
    "MaxPooling2D",
    "Parameter",
    "ReLU",
    "Softmax",
    "ZeroPadding2D",
    "deserialize",
    "serialize",
]

_LAYERS: dict[str, type[Layer]] = {
    layer.__name__: layer
    for layer in (
        Activation,
        AveragePooling2D,
        BatchNormalization,
        Conv2D,
        Dense,
        DepthwiseConv2D,
        Dropout,
        Flatten,
        GlobalAveragePooling2D,
        LeakyReLU,
        MaxPooling2D,
        ReLU,
        Softmax,
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


if not TYPE_CHECKING:  # a type checker shall report what there is not

    def __getattr__(name: str) -> Any:
        raise missing(__name__, name, __all__)
