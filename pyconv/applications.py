"""Networks that are ready to compile."""

from __future__ import annotations

from pyconv.layers import Conv2D, Dense, Dropout, Flatten, Input, MaxPooling2D
from pyconv.models import Sequential


def tutorial_network(
    input_shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10
) -> Sequential:
    """Returns the network of "Image Classification using Convolutional Neural Networks in Keras".

    Three times two 3x3 convolutions, 2x2 max pooling and dropout, then two dense layers; 276,138
    parameters for the default arguments.

    Args:
        input_shape: Height, width and channels of an image; at least 28 x 28.
        classes: Number of classes.

    Returns:
        A built `Sequential`, not compiled.

    Example:
        >>> model = pyconv.applications.tutorial_network()
        >>> model.compile("rmsprop", "categorical_crossentropy", metrics=["accuracy"])
    """
    model = Sequential([Input(input_shape)])
    for filters in (32, 64, 64):
        model.add(Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(Conv2D(filters, 3, activation="relu"))
        model.add(MaxPooling2D(2))
        model.add(Dropout(0.25))
    model.add(Flatten())
    model.add(Dense(512, activation="relu"))
    model.add(Dropout(0.5))
    model.add(Dense(classes, activation="softmax"))
    return model
