"""Layers without an image: Dense, activations, Dropout, Flatten."""

from __future__ import annotations

from typing import Any

from pyconv import initializers, random
from pyconv.floats import as_float
from pyconv.layers.base import Layer, Shape, activation_name, flat_size, positive


class Dense(Layer):
    """A fully connected layer: ``activation(x @ kernel + bias)``.

    Args:
        units: number of outputs U.
        activation: None or a name, see :class:`Activation`.
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
    """Applies a function to every element, or softmax over the last axis.

    Args:
        activation: "relu", "sigmoid", "tanh", "leaky_relu" (of slope 0.2 below 0), "softplus",
            "softmax" or "linear".
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


class ReLU(Activation):
    """``Activation("relu")`` under its own name.

    Args:
        max_value, negative_slope, threshold: as in Keras; None, 0 and 0 alone are supported.
        input_shape, name: as for every layer.

    Input shape, output shape:
        As for :class:`Activation`.

    Raises:
        ValueError: if an argument is not supported.

    Example:
        >>> ReLU()(np.array([[-1.0, 2.0]], np.float32))
        array([[0., 2.]], dtype=float32)
    """

    def __init__(
        self,
        max_value: float | None = None,
        negative_slope: float = 0.0,
        threshold: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__("relu", **options)
        if max_value is not None or negative_slope != 0 or threshold != 0:
            raise ValueError(
                f"{self.name}: only max_value=None, negative_slope=0 and threshold=0 are "
                f"supported; for a slope there is LeakyReLU. Received: max_value={max_value!r}, "
                f"negative_slope={negative_slope!r}, threshold={threshold!r}"
            )

    def get_config(self) -> dict[str, Any]:
        return Layer.get_config(self)


class LeakyReLU(Activation):
    """``x`` where it is positive, else ``negative_slope * x``.

    Args:
        negative_slope: at least 0. As in Keras, 0.3 here and 0.2 for the function "leaky_relu".
        input_shape, name: as for every layer.

    Input shape, output shape:
        As for :class:`Activation`.

    Raises:
        ValueError: if `negative_slope` is not a finite number of at least 0.

    Example:
        >>> LeakyReLU(0.5)(np.array([[-1.0, 2.0]], np.float32))
        array([[-0.5,  2. ]], dtype=float32)
    """

    def __init__(self, negative_slope: float = 0.3, **options: Any) -> None:
        super().__init__("leaky_relu", **options)
        if (
            isinstance(negative_slope, bool)
            or not isinstance(negative_slope, (int, float))
            or not 0 <= as_float(negative_slope) < float("inf")
        ):
            raise ValueError(
                f"{self.name}: negative_slope must be a finite number of at least 0. "
                f"Received: negative_slope={negative_slope!r}"
            )
        self.negative_slope = float(negative_slope)

    def get_config(self) -> dict[str, Any]:
        return Layer.get_config(self) | {"negative_slope": self.negative_slope}


class Softmax(Activation):
    """``Activation("softmax")`` under its own name.

    Args:
        axis: -1, the last axis, alone is supported.
        input_shape, name: as for every layer.

    Input shape, output shape:
        As for :class:`Activation`.

    Raises:
        ValueError: if `axis` is not supported.

    Example:
        >>> Softmax()(np.zeros((1, 2), np.float32))
        array([[0.5, 0.5]], dtype=float32)
    """

    def __init__(self, axis: int = -1, **options: Any) -> None:
        super().__init__("softmax", **options)
        if axis != -1:
            raise ValueError(
                f"{self.name}: axis must be -1, the last axis. Received: axis={axis!r}"
            )

    def get_config(self) -> dict[str, Any]:
        return Layer.get_config(self) | {"axis": -1}


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
