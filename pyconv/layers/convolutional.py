"""Convolution layers, and padding."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from pyconv import initializers
from pyconv.kernels import window_extent, window_pads
from pyconv.layers.base import (
    Layer,
    Shape,
    activation_name,
    image_channels,
    one_of,
    pair,
    positive,
    window_positions,
)


class Conv2D(Layer):
    """A convolution over images: ``activation(conv(x, kernel) + bias)``.

    Args:
        filters: number of output channels F.
        kernel_size: height and width of the window, an integer or a pair.
        strides: steps of the window, an integer or a pair.
        padding: "valid" (none) or "same" (zeros, so that the output has ``ceil(size / stride)``
            rows and columns; an odd one goes to the bottom and right, as in TensorFlow).
        dilation_rate: distance between the taps of the window, an integer or a pair.
        groups: number of groups G that the channels are divided into; must divide C and F.
        activation: None or a name, see :class:`Activation`; softmax is over the channels.
        use_bias: whether a bias is added.
        kernel_initializer, bias_initializer: a name or a function, see :mod:`pyconv.initializers`.
        input_shape: (H, W, C) of one image; for the first layer of a model.
        name: name of the layer.

    Input shape:
        (N, H, W, C).

    Output shape:
        (N, OH, OW, F), with ``OH = (H - dilation * (KH - 1) - 1) // stride + 1`` for "valid".
        The kernel is (KH, KW, C / G, F), the bias (F,).

    Raises:
        ValueError: if an argument is out of range or not supported.

    Example:
        >>> conv = Conv2D(8, 3, padding="same", activation="relu")
        >>> conv(np.zeros((1, 32, 32, 3), np.float32)).shape
        (1, 32, 32, 8)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1),
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = (1, 1),
        groups: int = 1,
        activation: str | None = None,
        use_bias: bool = True,
        kernel_initializer: str | initializers.Initializer = "glorot_uniform",
        bias_initializer: str | initializers.Initializer = "zeros",
        **options: Any,
    ) -> None:
        # Named, and in Keras's place, so that positional arguments mean what they mean there.
        super().__init__(data_format=data_format, **options)
        self.filters = positive(filters, "filters", self.name)
        self.kernel_size = pair(kernel_size, "kernel_size", self.name)
        self.strides = pair(strides, "strides", self.name)
        self.padding = one_of(padding, "padding", ("valid", "same"), self.name)
        self.dilation_rate = pair(dilation_rate, "dilation_rate", self.name)
        self.groups = positive(groups, "groups", self.name)
        if self.filters % self.groups:
            raise ValueError(
                f"{self.name}: filters must be a multiple of groups. "
                f"Received: filters={filters}, groups={groups}"
            )
        self.activation = activation_name(activation, self.name)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)

    def _build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        assert channels is not None
        self._add_parameters(
            (*self.kernel_size, channels // self.groups, self.filters),
            self.kernel_initializer,
            self.bias_initializer if self.use_bias else None,
        )

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels = image_channels(self, shape)
        if channels % self.groups:
            raise self._shape_error(f"a multiple of groups={self.groups} channels", shape)
        if self.built and channels != self.parameters[0].shape[2] * self.groups:
            raise self._shape_error(
                f"{self.parameters[0].shape[2] * self.groups} channels (the last axis), "
                "for which the layer was built",
                shape,
            )
        window = window_extent(self.kernel_size, self.dilation_rate)
        return (*window_positions(self, shape, window, self.strides, self.padding), self.filters)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": list(self.kernel_size),
            "strides": list(self.strides),
            "padding": self.padding,
            "dilation_rate": list(self.dilation_rate),
            "groups": self.groups,
            "activation": self.activation,
            "use_bias": self.use_bias,
            "kernel_initializer": initializers.serialize(self.kernel_initializer),
            "bias_initializer": initializers.serialize(self.bias_initializer),
        }


class DepthwiseConv2D(Layer):
    """A convolution of every channel by itself, with filters of its own.

    Args:
        kernel_size: height and width of the window, an integer or a pair.
        strides: steps of the window, an integer or a pair.
        padding: "valid" or "same", as for :class:`Conv2D`.
        depth_multiplier: number of filters M of each channel.
        dilation_rate: distance between the taps of the window, an integer or a pair.
        activation: None or "linear", "relu", "softmax" (over the channels).
        use_bias: whether a bias is added.
        depthwise_initializer, bias_initializer: a name or a function, see
            :mod:`pyconv.initializers`.
        input_shape: (H, W, C) of one image; for the first layer of a model.
        name: name of the layer.

    Input shape:
        (N, H, W, C).

    Output shape:
        (N, OH, OW, C * M), OH and OW as for :class:`Conv2D`; channel c makes the outputs c * M to
        c * M + M - 1. The kernel is (KH, KW, C, M), the bias (C * M,).

    Raises:
        ValueError: if an argument is out of range or not supported.

    Example:
        >>> conv = DepthwiseConv2D(3, padding="same", depth_multiplier=2)
        >>> conv(np.zeros((1, 32, 32, 8), np.float32)).shape
        (1, 32, 32, 16)
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1),
        padding: str = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = (1, 1),
        activation: str | None = None,
        use_bias: bool = True,
        depthwise_initializer: str | initializers.Initializer = "glorot_uniform",
        bias_initializer: str | initializers.Initializer = "zeros",
        **options: Any,
    ) -> None:
        super().__init__(data_format=data_format, **options)
        self.kernel_size = pair(kernel_size, "kernel_size", self.name)
        self.strides = pair(strides, "strides", self.name)
        self.padding = one_of(padding, "padding", ("valid", "same"), self.name)
        self.depth_multiplier = positive(depth_multiplier, "depth_multiplier", self.name)
        self.dilation_rate = pair(dilation_rate, "dilation_rate", self.name)
        self.activation = activation_name(activation, self.name)
        self.use_bias = bool(use_bias)
        self.depthwise_initializer = initializers.get(depthwise_initializer)
        self.bias_initializer = initializers.get(bias_initializer)

    def _build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        assert channels is not None
        self._add_parameters(
            (*self.kernel_size, channels, self.depth_multiplier),
            self.depthwise_initializer,
            self.bias_initializer if self.use_bias else None,
            channels * self.depth_multiplier,
        )

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels = image_channels(self, shape)
        if self.built and channels != self.parameters[0].shape[2]:
            raise self._shape_error(
                f"{self.parameters[0].shape[2]} channels (the last axis), for which the layer was "
                "built",
                shape,
            )
        window = window_extent(self.kernel_size, self.dilation_rate)
        return (
            *window_positions(self, shape, window, self.strides, self.padding),
            channels * self.depth_multiplier,
        )

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "kernel_size": list(self.kernel_size),
            "strides": list(self.strides),
            "padding": self.padding,
            "depth_multiplier": self.depth_multiplier,
            "dilation_rate": list(self.dilation_rate),
            "activation": self.activation,
            "use_bias": self.use_bias,
            "depthwise_initializer": initializers.serialize(self.depthwise_initializer),
            "bias_initializer": initializers.serialize(self.bias_initializer),
        }


class ZeroPadding2D(Layer):
    """Rows and columns of zeros around every image.

    In front of a convolution with padding "valid" it costs nothing: that pads by itself then.

    Args:
        padding: an integer for all sides, (rows above and below, columns on the left and right), or
            ((top, bottom), (left, right)).
        input_shape, name: as for every layer.

    Input shape:
        (N, H, W, C).

    Output shape:
        (N, top + H + bottom, left + W + right, C).

    Raises:
        ValueError: if an argument is out of range or not supported.

    Example:
        >>> ZeroPadding2D(((1, 0), (2, 2)))(np.zeros((1, 28, 28, 3), np.float32)).shape
        (1, 29, 32, 3)
    """

    def __init__(
        self,
        padding: int | Sequence[int] | Sequence[Sequence[int]] = (1, 1),
        data_format: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data_format=data_format, **options)
        sides: tuple[int, ...] = ()
        if not isinstance(padding, str):
            with contextlib.suppress(ValueError):
                sides = window_pads(padding, (0, 0), (0, 0), (1, 1))
        if not sides or min(sides) < 0:
            raise ValueError(
                f"{self.name}: padding must be an integer from 0, a pair of them, or ((top, "
                f"bottom), (left, right)). Received: padding={padding!r}"
            )
        self.padding = ((sides[0], sides[1]), (sides[2], sides[3]))

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels = image_channels(self, shape)
        (top, bottom), (left, right) = self.padding
        return top + shape[0] + bottom, left + shape[1] + right, channels

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"padding": [list(sides) for sides in self.padding]}
