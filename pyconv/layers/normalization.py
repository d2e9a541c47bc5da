"""Normalization layers."""

from __future__ import annotations

from typing import Any

from pyconv import initializers, random
from pyconv.floats import as_float
from pyconv.layers.base import Layer, Shape


class BatchNormalization(Layer):
    """Gives every channel a mean and a variance of its own: ``gamma * xh + beta``.

    In training ``xh = (x - mean) / sqrt(variance + epsilon)``, with the mean and the variance of
    the batch, over all axes but the last; and the moving averages go ``1 - momentum`` of the way
    towards them. Otherwise, and where `trainable` is False, the moving averages take their place,
    and stay. (S. Ioffe, C. Szegedy, "Batch normalization", arXiv:1502.03167.)

    Args:
        axis: the axis of the channels; -1, the last, alone is supported.
        momentum: of the moving averages, from 0 to 1.
        epsilon: added to the variance, above 0.
        center: whether there is a beta.
        scale: whether there is a gamma.
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer: a
            name or a function, see :mod:`pyconv.initializers`.
        trainable: False freezes the layer: it has no gradients and works as in inference. It can be
            set later, and counts from the next `compile` of the model on.
        input_shape, name: as for every layer.

    Input shape:
        (N, ..., C), e.g. (N, C) or (N, H, W, C).

    Output shape:
        The input's. gamma, beta, the moving mean and the moving variance are (C,) each; the first
        two are trained. The variance is the mean of ``(x - mean) ** 2``, also in its moving
        average, as in Keras.

    Raises:
        ValueError: if an argument is out of range or not supported.

    Example:
        >>> layer = BatchNormalization()
        >>> layer(np.array([[1.0], [3.0]], np.float32), training=True).round(2)
        array([[-1.],
               [ 1.]], dtype=float32)
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: str | initializers.Initializer = "zeros",
        gamma_initializer: str | initializers.Initializer = "ones",
        moving_mean_initializer: str | initializers.Initializer = "zeros",
        moving_variance_initializer: str | initializers.Initializer = "ones",
        *,
        trainable: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if isinstance(axis, bool) or axis != -1:
            raise ValueError(
                f"{self.name}: axis must be -1, the channels are the last axis. Move them there, "
                f"e.g. with np.moveaxis(x, 1, -1). Received: axis={axis!r}"
            )
        self.axis = -1
        self.momentum = _number(momentum, "momentum", self.name)
        self.epsilon = _number(epsilon, "epsilon", self.name)
        if not 0 <= self.momentum <= 1:
            raise ValueError(
                f"{self.name}: momentum must be in 0 <= momentum <= 1. Received: {momentum!r}"
            )
        if not 0 < self.epsilon < float("inf"):
            raise ValueError(
                f"{self.name}: epsilon must be a finite number above 0. Received: {epsilon!r}"
            )
        self.center, self.scale = bool(center), bool(scale)
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)
        self.trainable = trainable

    @property
    def trainable(self) -> bool:
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)
        for parameter in self.parameters:
            parameter.trainable = self._trainable and not parameter.name.startswith("moving_")

    def _build(self, input_shape: Shape) -> None:
        shape = (input_shape[-1] or 0,)
        rng = random.generator(random.next_seed())
        for name, wanted in (
            ("gamma", self.scale),
            ("beta", self.center),
            ("moving_mean", True),
            ("moving_variance", True),
        ):
            if wanted:
                self._add_parameter(name, shape, getattr(self, f"{name}_initializer"), rng)
        self.trainable = self._trainable

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.built and shape[-1:] != self.parameters[-1].shape:
            raise self._shape_error(
                f"{self.parameters[-1].size} channels (the last axis), for which the layer was "
                "built",
                shape,
            )
        return shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "axis": self.axis,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "beta_initializer": initializers.serialize(self.beta_initializer),
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
            "moving_mean_initializer": initializers.serialize(self.moving_mean_initializer),
            "moving_variance_initializer": initializers.serialize(self.moving_variance_initializer),
            "trainable": self.trainable,
        }


def _number(value: Any, argument: str, owner: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{owner}: {argument} must be a number. Received: {argument}={value!r}")
    return as_float(value)
