"""Pooling layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyconv.layers.base import Layer, image_channels, one_of, pair, window_positions


class _Pooling2D(Layer):
    """What the layers that slide a window share."""

    def __init__(
        self,
        pool_size: int | Sequence[int] = (2, 2),
        strides: int | Sequence[int] | None = None,
        padding: str = "valid",
        data_format: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data_format=data_format, **options)
        self.pool_size = pair(pool_size, "pool_size", self.name)
        self.strides = self.pool_size if strides is None else pair(strides, "strides", self.name)
        self.padding = one_of(padding, "padding", ("valid", "same"), self.name)

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels = image_channels(self, shape)
        return (
            *window_positions(self, shape, self.pool_size, self.strides, self.padding),
            channels,
        )

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "pool_size": list(self.pool_size),
            "strides": list(self.strides),
            "padding": self.padding,
        }


class MaxPooling2D(_Pooling2D):
    """The largest value of every window, channel by channel.

    Args:
        pool_size: height and width of the window, an integer or a pair.
        strides: steps of the window, an integer or a pair; by default `pool_size`.
        padding: "valid" (rows and columns that do not fill a window are dropped) or "same" (windows
            that stick out see only what lies inside).
        input_shape, name: as for every layer.

    Input shape:
        (N, H, W, C).

    Output shape:
        (N, OH, OW, C), with ``OH = (H - pool_height) // stride + 1`` for "valid", ``ceil(H /
        stride)`` for "same".

    Raises:
        ValueError: if an argument is out of range or not supported.

    Example:
        >>> MaxPooling2D((2, 2))(np.zeros((1, 13, 13, 8), np.float32)).shape
        (1, 6, 6, 8)
    """


class AveragePooling2D(_Pooling2D):
    """The mean of every window, channel by channel.

    Args:
        pool_size: height and width of the window, an integer or a pair.
        strides: steps of the window, an integer or a pair; by default `pool_size`.
        padding: "valid" (rows and columns that do not fill a window are dropped) or "same" (windows
            that stick out average what lies inside: padding does not count, as in TensorFlow).
        input_shape, name: as for every layer.

    Input shape:
        (N, H, W, C).

    Output shape:
        (N, OH, OW, C), as for :class:`MaxPooling2D`.

    Raises:
        ValueError: if an argument is out of range or not supported.

    Example:
        >>> AveragePooling2D()(np.array([[[[1.0], [2.0]], [[3.0], [6.0]]]], np.float32))
        array([[[[3.]]]], dtype=float32)
    """


class GlobalAveragePooling2D(Layer):
    """The mean of every channel over the whole image.

    Args:
        keepdims: whether rows and columns remain, one of each.
        input_shape, name: as for every layer.

    Input shape:
        (N, H, W, C).

    Output shape:
        (N, C), or with `keepdims` (N, 1, 1, C).

    Raises:
        ValueError: if an argument is not supported.

    Example:
        >>> GlobalAveragePooling2D()(np.zeros((2, 7, 7, 8), np.float32)).shape
        (2, 8)
    """

    def __init__(
        self, data_format: str | None = None, keepdims: bool = False, **options: Any
    ) -> None:
        super().__init__(data_format=data_format, **options)
        self.keepdims = bool(keepdims)

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels = image_channels(self, shape)
        return (1, 1, channels) if self.keepdims else (channels,)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"keepdims": self.keepdims}
