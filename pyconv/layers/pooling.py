"""Pooling layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyconv.layers.base import Layer, image_channels, one_of, pair, window_positions


class MaxPooling2D(Layer):
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
