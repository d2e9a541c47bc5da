"""Layers without an image: Dense, Activation, Dropout, Flatten."""

from __future__ import annotations

from typing import Any

from pyconv import initializers, random
from pyconv.layers.base import Layer, Shape, activation_name, flat_size, positive


class Dense(Layer):
    """A fully connected layer: ``activation(x @ kernel + bias)``.

    Args:
        units: number of outputs U.
        activation: None or "linear", "relu", "softmax".
        use_bias: whether a bias is added.
        kernel_initializer, bias_initializer: a name or a function, see :mod:`pyconv.initializers`.
        input_shape: shape of one sample; for the first layer of a model.
        name: name of the layer.

    Input shape:
        (N, ..., I); the layer acts on the last axis.

    Output shape:
        (N, ..., U). The kernel is (I, U), the bias (U,).

    Raises:
        ValueError: if an argument is out of range or not supported.

    Example:
        >>> Dense(10, activation="softmax")(np.zeros((2, 256), np.float32)).shape
        (2, 10)
    """

    def __init__(
        self,
        units: int,
        activation: str | None = None,
        use_bias: bool = True,
        kernel_initializer: str | initializers.Initializer = "glorot_uniform",
        bias_initializer: str | initializers.Initializer = "zeros",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.units = positive(units, "units", self.name)
        self.activation = activation_name(activation, self.name)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)

    def _build(self, input_shape: Shape) -> None:
        inputs = input_shape[-1]
        assert inputs is not None
        self._add_parameters(
            (inputs, self.units),
            self.kernel_initializer,
            self.bias_initializer if self.use_bias else None,
        )

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.built and shape[-1] != self.parameters[0].shape[0]:
            raise self._shape_error(
                f"{self.parameters[0].shape[0]} values on the last axis, for which the layer was "
                "built",
                shape,
                "Keep the shape of the inputs, or make a new layer",
            )
        return (*shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "units": self.units,
            "activation": self.activation,
            "use_bias": self.use_bias,
            "kernel_initializer": initializers.serialize(self.kernel_initializer),
            "bias_initializer": initializers.serialize(self.bias_initializer),
        }


class Activation(Layer):
    """Applies a function to every element ("relu", "linear") or over the last axis ("softmax").

    Args:
        activation: "relu", "softmax" or "linear".
        input_shape, name: as for every layer.

    Input shape:
        (N, ...).

    Output shape:
        The input's.

    Raises:
        ValueError: if `activation` is not one of the above.

    Example:
        >>> Activation("relu")(np.array([[-1.0, 2.0]], np.float32))
        array([[0., 2.]], dtype=float32)
    """

    def __init__(self, activation: str, **options: Any) -> None:
        super().__init__(**options)
        self.activation = activation_name(activation, self.name)

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"activation": self.activation}


class Dropout(Layer):
    """In training, sets a share of the inputs to zero and scales the others by ``1 / (1 - rate)``.

    Args:
        rate: share of the inputs to drop, 0 <= rate < 1.
        seed: 64-bit integer; by default it is drawn when the layer is built (see
            :func:`pyconv.utils.set_random_seed`). Which elements are dropped depends on the seed,
            the training step and the element's index only.
        input_shape, name: as for every layer.

    Input shape:
        (N, ...).

    Output shape:
        The input's.

    Raises:
        ValueError: if `rate` or `seed` is out of range.

    Example:
        >>> Dropout(0.5)(np.ones((1, 4), np.float32), training=True)
        array([[2., 0., 0., 2.]], dtype=float32)
    """

    def __init__(self, rate: float, seed: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise ValueError(f"{self.name}: rate must be in 0 <= rate < 1. Received: rate={rate!r}")
        self.rate = float(rate)
        self.seed = None if seed is None else random.integer_seed(seed, 64)
        self.drawn_seed = 0

    def _build(self, input_shape: Shape) -> None:
        self.drawn_seed = random.next_seed() if self.seed is None else self.seed

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"rate": self.rate, "seed": self.seed}


class Flatten(Layer):
    """Makes one axis of all but the batch.

    Args:
        input_shape, name: as for every layer.

    Input shape:
        (N, ...).

    Output shape:
        (N, product of the other sizes), in row-major order: (N, H, W, C) -> (N, H*W*C).

    Example:
        >>> Flatten()(np.zeros((2, 4, 4, 3), np.float32)).shape
        (2, 48)
    """

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (flat_size(shape),)
