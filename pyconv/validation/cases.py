"""The one table of problems, for kernel tests, gradients, recorded outputs and benchmarks."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ConvCase:
    name: str
    x: tuple[int, int, int, int]  # N, H, W, C
    kernel: tuple[int, int]
    filters: int
    strides: int | tuple[int, int] = 1
    padding: Any = "valid"
    dilation_rate: int | tuple[int, int] = 1
    groups: int = 1
    activation: str | None = None

    @property
    def w(self) -> tuple[int, int, int, int]:
        return (*self.kernel, self.x[3] // self.groups, self.filters)

    @property
    def geometry(self) -> dict[str, Any]:
        """Keyword arguments of every conv2d function, but for the activation."""
        return {
            "strides": self.strides,
            "padding": self.padding,
            "dilation_rate": self.dilation_rate,
            "groups": self.groups,
        }


@dataclass(frozen=True)
class PoolCase:
    name: str
    x: tuple[int, int, int, int]
    pool_size: int | tuple[int, int] = 2
    strides: int | tuple[int, int] | None = None
    padding: Any = "valid"

    @property
    def geometry(self) -> dict[str, Any]:
        return {"pool_size": self.pool_size, "strides": self.strides, "padding": self.padding}


@dataclass(frozen=True)
class DenseCase:
    name: str
    batch: int
    inputs: int
    units: int
    activation: str | None = None


def _tutorial_conv(batch: int) -> list[ConvCase]:
    layers = [
        ("1", 32, 3, 32, "same"),
        ("2", 32, 32, 32, "valid"),
        ("3", 15, 32, 64, "same"),
        ("4", 15, 64, 64, "valid"),
        ("5", 6, 64, 64, "same"),
        ("6", 6, 64, 64, "valid"),
    ]
    return [
        ConvCase(
            f"tutorial_conv{i}_n{batch}",
            (batch, size, size, c),
            (3, 3),
            f,
            padding=p,
            activation="relu",
        )
        for i, size, c, f, p in layers
    ]


_TAILS = (1, 3, 8, 15, 16, 17, 31, 33, 40, 48, 64)

CONV_CASES: tuple[ConvCase, ...] = (
    *_tutorial_conv(2),
    *_tutorial_conv(7),
    # Channel tails on either side of every vector width.
    *(
        ConvCase(f"in{c}_out{f}", (2, 6, 7, c), (3, 3), f, padding="same")
        for c, f in zip(_TAILS, (*_TAILS[4:], *_TAILS[:4]))
    ),
    *(ConvCase(f"channels{c}", (1, 5, 9, c), (3, 3), c) for c in _TAILS),
    # One channel on one side only.
    ConvCase("in1_out64", (2, 9, 8, 1), (3, 3), 64, padding="same"),
    ConvCase("in64_out1", (2, 9, 8, 64), (3, 3), 1, padding="same"),
    ConvCase("in200_out5", (1, 4, 5, 200), (3, 3), 5, padding="same"),
    ConvCase("in5_out200", (1, 4, 5, 5), (3, 3), 200, padding="same"),
    # Kernel shapes.
    ConvCase("k1x1", (2, 7, 5, 16), (1, 1), 33),
    ConvCase("k1x1_wide", (5, 4, 4, 48), (1, 1), 96, activation="relu"),
    ConvCase("k1x1_stride2", (2, 7, 8, 17), (1, 1), 16, strides=2),
    ConvCase("k1x1_padded", (1, 3, 4, 5), (1, 1), 8, padding=1),
    ConvCase("k2x2", (2, 6, 7, 8), (2, 2), 16),
    ConvCase("k2x2_same", (2, 5, 7, 3), (2, 2), 17, padding="same"),
    ConvCase("k2x2_same_stride2", (2, 7, 6, 16), (2, 2), 8, strides=2, padding="same"),
    ConvCase("k1x3", (2, 5, 9, 16), (1, 3), 16, padding="same"),
    ConvCase("k3x1", (2, 9, 5, 16), (3, 1), 16, padding="same"),
    ConvCase("k5x5", (2, 9, 11, 6), (5, 5), 16),
    ConvCase("k5x5_same", (1, 8, 8, 16), (5, 5), 33, padding="same", activation="relu"),
    ConvCase("k7x7_same_stride2", (1, 17, 15, 3), (7, 7), 16, strides=2, padding="same"),
    ConvCase("k7x7", (1, 9, 8, 4), (7, 7), 5),
    ConvCase("k2x5", (2, 6, 8, 3), (2, 5), 9),
    ConvCase("k_is_input", (3, 4, 5, 16), (4, 5), 17),
    ConvCase("k_above_input_same", (2, 3, 2, 8), (5, 7), 16, padding="same"),
    ConvCase("k_above_input_same_stride2", (2, 3, 4, 3), (7, 7), 8, strides=2, padding="same"),
    ConvCase("k4x4_same", (1, 7, 9, 5), (4, 4), 16, padding="same"),
    # Sizes and batches.
    ConvCase("n1_1x1_image", (1, 1, 1, 16), (1, 1), 16),
    ConvCase("n1_1x1_image_same", (1, 1, 1, 3), (3, 3), 17, padding="same"),
    ConvCase("n5_3x3_image", (5, 3, 3, 16), (3, 3), 32),
    # Few channels: a first layer.
    *(
        ConvCase(f"first_c{c}_stride{stride}", (2, 9, 23, c), (3, 5), 35, strides=stride, padding=2)
        for c, stride in ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (2, 4), (3, 2), (4, 2))
    ),
    ConvCase("first_many_rows", (1, 90, 60, 3), (5, 3), 16, padding="same", activation="relu"),
    ConvCase("first_dilated", (2, 11, 9, 4), (3, 3), 40, padding=3, dilation_rate=(3, 1)),
    ConvCase("first_padded_past", (1, 2, 3, 3), (3, 3), 8, padding=((4, 3), (5, 4))),
    # Few pixels and many weights, and the other way round.
    ConvCase("n1_1x1_many", (1, 1, 1, 150), (3, 3), 200, padding="same", activation="relu"),
    ConvCase("n2_1x1_groups", (2, 1, 1, 96), (1, 1), 132, groups=2, activation="relu"),
    ConvCase("n2_1x1_tail", (2, 1, 1, 37), (1, 1), 70),
    ConvCase("n3_2x2_many", (3, 2, 2, 80), (3, 3), 140, padding=1, activation="relu"),
    ConvCase("n2_5x5_groups", (2, 5, 5, 96), (3, 3), 150, padding=1, groups=2, activation="relu"),
    ConvCase("one_pixel", (1, 2, 3, 9), (4, 5), 12, padding=1, activation="relu"),
    ConvCase("one_pixel_groups", (1, 3, 3, 10), (3, 3), 22, groups=2),
    ConvCase("n70_2x3_image", (70, 2, 3, 9), (3, 3), 20, padding="same"),
    ConvCase("n40_stride2", (40, 5, 5, 8), (3, 3), 16, strides=2),
    ConvCase("n300_1x1_image", (300, 1, 1, 12), (1, 1), 18, activation="relu"),
    ConvCase("n13", (13, 5, 5, 8), (3, 3), 16, padding="same", activation="relu"),
    ConvCase("n13_tail", (13, 4, 7, 3), (3, 3), 10),
    ConvCase("wide", (1, 3, 70, 8), (3, 3), 16, padding="same"),
    ConvCase("tall", (1, 70, 3, 8), (3, 3), 16, padding="same"),
    ConvCase("one_row", (2, 1, 40, 16), (1, 3), 16),
    ConvCase("one_column", (2, 40, 1, 16), (3, 1), 16),
    # Strides.
    ConvCase("stride2", (2, 9, 9, 16), (3, 3), 16, strides=2),
    ConvCase("stride2_same_even", (2, 8, 8, 16), (3, 3), 16, strides=2, padding="same"),
    ConvCase("stride2_same_odd", (2, 9, 7, 3), (3, 3), 16, strides=2, padding="same"),
    ConvCase("stride3", (2, 11, 10, 8), (3, 3), 17, strides=3),
    ConvCase("stride3_same", (1, 10, 11, 5), (5, 5), 8, strides=3, padding="same"),
    ConvCase("stride1x2", (2, 7, 9, 16), (3, 3), 16, strides=(1, 2)),
    ConvCase("stride2x1_same", (2, 7, 9, 5), (3, 3), 9, strides=(2, 1), padding="same"),
    ConvCase("stride3x2", (1, 13, 11, 17), (3, 3), 16, strides=(3, 2), activation="relu"),
    ConvCase("stride_leftover", (1, 8, 10, 8), (3, 3), 16, strides=2),
    # The stride steps over inputs: their gradient is 0.
    ConvCase("stride_above_kernel", (2, 9, 11, 8), (2, 2), 16, strides=3),
    ConvCase("stride_above_kernel_1x1", (1, 10, 7, 16), (1, 1), 8, strides=(4, 3)),
    ConvCase("stride_above_kernel_same", (1, 9, 8, 3), (2, 1), 16, strides=4, padding="same"),
    ConvCase("stride_above_image", (2, 5, 6, 8), (3, 3), 16, strides=50),
    # Dilation.
    ConvCase("dilation2", (2, 9, 8, 8), (3, 3), 16, dilation_rate=2),
    ConvCase("dilation2_same", (2, 7, 9, 17), (3, 3), 16, padding="same", dilation_rate=2),
    ConvCase("dilation3x1", (1, 11, 6, 3), (3, 3), 8, dilation_rate=(3, 1)),
    ConvCase("dilation2_stride2", (2, 11, 10, 8), (3, 3), 16, strides=2, dilation_rate=2),
    ConvCase(
        "dilation2_stride3_same",
        (1, 10, 13, 5),
        (3, 2),
        9,
        strides=(3, 2),
        padding="same",
        dilation_rate=(2, 3),
    ),
    ConvCase("dilation_above_image_same", (1, 3, 4, 8), (3, 3), 8, padding="same", dilation_rate=6),
    # Groups.
    ConvCase("groups2", (2, 6, 7, 16), (3, 3), 32, padding="same", groups=2),
    ConvCase("groups3", (2, 6, 5, 9), (3, 3), 15, groups=3),
    ConvCase("groups4_1x1", (2, 5, 5, 32), (1, 1), 16, groups=4),
    ConvCase("depthwise16", (2, 7, 6, 16), (3, 3), 16, padding="same", groups=16),
    ConvCase("depthwise17_stride2", (2, 9, 8, 17), (3, 3), 17, strides=2, groups=17),
    ConvCase("depthwise3_x2", (2, 7, 6, 3), (3, 3), 6, padding="same", groups=3),
    ConvCase("depthwise16_x2", (1, 6, 7, 16), (5, 5), 32, padding="same", groups=16),
    ConvCase("groups2_dilation2", (1, 9, 9, 6), (3, 3), 10, dilation_rate=2, groups=2),
    ConvCase(
        "groups2_tails", (2, 6, 6, 34), (3, 3), 66, padding="same", groups=2, activation="relu"
    ),
    # Depthwise: vectors and tails of channels, cut rows, borders of every kind.
    *(
        ConvCase(f"depthwise{c}_relu", (2, 5, 11, c), (3, 3), c, 1, 1, 1, c, "relu")
        for c in (2, 8, 15, 31, 33, 64, 130)
    ),
    ConvCase("depthwise_one_row", (1, 1, 9, 100), (3, 3), 100, padding="same", groups=100),
    ConvCase("depthwise_stride2_same", (2, 8, 9, 24), (3, 3), 24, 2, "same", groups=24),
    ConvCase("depthwise_stride3x2", (3, 10, 11, 20), (5, 3), 20, (3, 2), 2, 1, 20, "relu"),
    ConvCase("depthwise_stride_above_kernel", (2, 9, 11, 18), (2, 2), 18, 3, groups=18),
    ConvCase("depthwise_dilated", (2, 9, 8, 12), (3, 3), 12, 1, "same", (2, 3), 12),
    ConvCase("depthwise_dilated_stride2", (1, 12, 13, 9), (3, 2), 9, 2, 3, 2, 9, "relu"),
    ConvCase("depthwise_above_image", (2, 3, 2, 10), (7, 5), 10, padding="same", groups=10),
    ConvCase("depthwise_padded_past", (1, 4, 5, 6), (3, 3), 6, 1, ((5, 3), (4, 6)), 1, 6),
    ConvCase("depthwise_1x1", (3, 4, 5, 40), (1, 1), 40, groups=40, activation="relu"),
    ConvCase("depthwise_many_rows", (3, 40, 16, 16), (3, 3), 16, padding="same", groups=16),
    ConvCase("depthwise5", (2, 8, 21, 20), (5, 5), 20, padding="same", groups=20),
    ConvCase("depthwise7_stride2", (2, 11, 26, 17), (7, 7), 17, 2, 3, 1, 17, "relu"),
    ConvCase("depthwise4x11", (1, 7, 30, 9), (4, 11), 9, groups=9),
    ConvCase("depthwise6_stride3", (2, 13, 32, 24), (6, 6), 24, 3, "same", groups=24),
    ConvCase("depthwise5_x3", (2, 6, 7, 5), (3, 3), 15, 1, 1, 1, 5, "relu"),
    # Few features of many channels: positions and taps that do not go up, tails, cut rows.
    *(
        ConvCase(
            f"last{f}_{c}", (2, 9, 11, c), (3, 3), f, 1, "same", 1, 1, "relu" if f % 2 else None
        )
        for f, c in ((1, 32), (1, 67), (2, 45), (2, 64), (3, 33), (3, 96), (4, 32), (4, 35))
    ),
    ConvCase("last3_kernel9", (1, 12, 10, 32), (9, 9), 3, padding="same"),
    ConvCase("last2_valid", (3, 7, 8, 40), (2, 5), 2, activation="relu"),
    ConvCase("last4_stride3x2", (2, 11, 13, 37), (3, 3), 4, (3, 2), 1, 1, 1, "relu"),
    ConvCase("last1_dilated", (2, 16, 17, 32), (3, 3), 1, 1, "same", (2, 3)),
    ConvCase("last3_dilated_stride2", (1, 17, 18, 33), (3, 2), 3, 2, 1, 2),
    ConvCase("last3_pad_one_side", (2, 8, 6, 34), (3, 3), 3, padding=((0, 2), (1, 0))),
    ConvCase("last2_gaps", (1, 40, 41, 32), (3, 3), 2, 1, "valid", 15),
    ConvCase("last1_1x1", (3, 14, 15, 39), (1, 1), 1, activation="relu"),
    ConvCase("last4_1x1_stride2", (2, 9, 10, 66), (1, 1), 4, 2),
    ConvCase("last2_wide", (1, 3, 600, 32), (1, 3), 2, padding="same", activation="relu"),
    ConvCase("last3_many_rows", (4, 70, 30, 32), (3, 3), 3, padding="same"),
    # Explicit padding.
    ConvCase("pad1", (2, 6, 7, 16), (3, 3), 16, padding=1),
    ConvCase("pad1x2", (2, 6, 7, 8), (3, 5), 16, padding=(1, 2)),
    ConvCase("pad_asymmetric", (2, 6, 7, 8), (3, 3), 16, padding=((2, 0), (0, 1))),
    ConvCase("pad_one_side", (1, 5, 6, 3), (3, 3), 17, padding=((0, 3), (4, 0))),
    ConvCase("pad_above_kernel", (1, 4, 5, 8), (3, 3), 16, padding=4),
    ConvCase(
        "pad_above_kernel_stride2", (1, 4, 5, 3), (2, 3), 16, strides=2, padding=((5, 3), (4, 6))
    ),
    ConvCase("pad_dilation", (1, 6, 5, 8), (3, 3), 8, padding=3, dilation_rate=3),
    ConvCase("pad_groups", (1, 5, 6, 8), (3, 3), 8, padding=((1, 2), (2, 1)), groups=4),
)


def _tutorial_pool(batch: int) -> list[PoolCase]:
    layers = [("1", 30, 32), ("2", 13, 64), ("3", 4, 64)]
    return [PoolCase(f"tutorial_pool{i}_n{batch}", (batch, s, s, c)) for i, s, c in layers]


POOL_CASES: tuple[PoolCase, ...] = (
    *_tutorial_pool(2),
    *_tutorial_pool(7),
    *(PoolCase(f"channels{c}", (2, 5, 8, c)) for c in _TAILS),
    PoolCase("n1_1x1", (1, 1, 1, 5), 1),
    PoolCase("whole_image", (3, 4, 5, 16), (4, 5)),
    PoolCase("pool1", (2, 4, 5, 8), 1),
    PoolCase("pool1_stride2", (2, 5, 6, 8), 1, 2),
    PoolCase("pool2_stride1", (2, 6, 5, 16), 2, 1),
    PoolCase("pool2_stride1_11_channels", (2, 6, 5, 11), 2, 1),
    PoolCase("pool3_stride2_29_channels", (1, 9, 8, 29), 3, 2),
    PoolCase("pool2_same_even", (2, 6, 8, 3), 2, padding="same"),
    PoolCase("pool2_same_odd", (2, 7, 5, 16), 2, padding="same"),
    PoolCase("pool2_same_stride1", (1, 5, 6, 17), 2, 1, "same"),
    PoolCase("pool3", (2, 9, 10, 16), 3),
    PoolCase("pool3_stride2", (2, 9, 10, 33), 3, 2),
    PoolCase("pool3_stride2_same", (2, 8, 9, 16), 3, 2, "same"),
    PoolCase("pool3_stride2_many_channels", (2, 9, 8, 135), 3, 2, "same"),
    PoolCase("pool3_stride1_same", (13, 5, 4, 8), 3, 1, "same"),
    PoolCase("pool2x3", (2, 7, 8, 5), (2, 3)),
    PoolCase("pool3x1_stride1x2", (2, 7, 9, 16), (3, 1), (1, 2)),
    PoolCase("stride_above_pool", (2, 9, 11, 16), 2, 3),
    PoolCase("stride_above_pool_few_channels", (2, 9, 11, 6), 2, 3),
    PoolCase("stride_above_pool_same", (1, 9, 10, 8), 2, (4, 3), "same"),
    PoolCase("pool_above_image_same", (2, 3, 2, 8), 5, 1, "same"),
    PoolCase("pool_above_image_same_stride3", (2, 4, 3, 8), (7, 6), 3, "same"),
    PoolCase("pad1", (2, 6, 7, 16), 3, 2, 1),
    PoolCase("pad_asymmetric", (2, 5, 6, 8), 3, 1, ((2, 0), (1, 2))),
    PoolCase("pool16_uint8", (1, 20, 18, 3), 16, 2),  # 256 positions, the last that fit into a byte
    PoolCase("pool17_int32", (1, 20, 19, 3), 17, 1),
    PoolCase("pool17_int32_same", (1, 9, 8, 16), (20, 17), 2, "same"),
    PoolCase("pool17_int32_disjoint", (1, 18, 35, 20), 17),
    PoolCase("wide", (1, 2, 130, 16)),
)

DENSE_CASES: tuple[DenseCase, ...] = (
    DenseCase("tutorial_dense1_n2", 2, 256, 512, "relu"),
    DenseCase("tutorial_dense2_n2", 2, 512, 10),
    DenseCase("tutorial_dense1_n7", 7, 256, 512, "relu"),
    DenseCase("tutorial_dense2_n7", 7, 512, 10),
    *(DenseCase(f"in{i}_out{u}", 5, i, u) for i, u in zip(_TAILS, (*_TAILS[4:], *_TAILS[:4]))),
    DenseCase("n1", 1, 100, 50, "relu"),
    DenseCase("n13", 13, 33, 47, "relu"),
    DenseCase("n64", 64, 64, 64),
    DenseCase("n67", 67, 17, 130),
    DenseCase("1x1x1", 1, 1, 1),
    DenseCase("mnist", 2, 784, 96, "relu"),
    # Few units, for which vectors run along the inputs.
    DenseCase("last1", 21, 67, 1),
    DenseCase("last2_rows", 1200, 70, 2, "relu"),
    DenseCase("last3_rows", 3000, 40, 3, "relu"),
    DenseCase("last4", 40, 33, 4),
    DenseCase("narrow_84_10", 33, 84, 10, "relu"),
    DenseCase("narrow_130_3", 70, 130, 3),
    DenseCase("narrow_200_20", 40, 200, 20, "relu"),
    DenseCase("narrow_64_1", 9, 64, 1),
    # A few rows, for which weights are not packed.
    DenseCase("row_last2", 1, 100, 2, "relu"),
    DenseCase("rows_last3", 5, 67, 3),
    DenseCase("row_7_3", 1, 7, 3),
    DenseCase("row_200_10", 1, 200, 10, "relu"),
    DenseCase("rows_90_25", 4, 90, 25),
    DenseCase("rows_50_300", 2, 50, 300, "relu"),
)


def named(table: tuple, names: tuple[str, ...]) -> list:
    found = {case.name: case for case in table}
    return [found[name] for name in names]


# Of warp_affine: what stands outside an image.
FILL_MODES = ("nearest", "constant", "reflect", "wrap")


# ------------------------------------------------------------------------------------------- inputs


def uniform(key: int, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """float32 numbers in [low, high), element i from the i-th 64-bit output of Philox4x64-10 with
    this key.

    Only the raw stream of NumPy's bit generator is used: NumPy promises that it never changes, so
    recorded outputs need no recorded inputs.
    """
    raw = np.random.Philox(key=key).random_raw(math.prod(shape))
    return (low + (high - low) * ((raw >> 11) * 2.0**-53)).astype(np.float32).reshape(shape)


def reals(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) that depend on the name alone."""
    return uniform(zlib.crc32(name.encode()), shape, -1.0, 1.0)


def integers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Integers from -4 to 4 in float32: sums of fewer than 2^20 products are exact in any order."""
    values = uniform(zlib.crc32(name.encode()), shape, -4.0, 5.0)
    return np.asarray(np.minimum(np.floor(values), np.float32(4)))


# --------------------------------------------------------------------------- the tutorial's network

TUTORIAL_SHAPES: tuple[tuple[int, ...], ...] = (
    *((3, 3, 3, 32), (32,), (3, 3, 32, 32), (32,)),
    *((3, 3, 32, 64), (64,), (3, 3, 64, 64), (64,)),
    *((3, 3, 64, 64), (64,), (3, 3, 64, 64), (64,)),
    *((256, 512), (512,), (512, 10), (10,)),
)


def tutorial_weights() -> list[np.ndarray]:
    """Glorot-uniform weights in Keras's order, and biases that are not 0, lest they be ignored."""
    weights = []
    for index, shape in enumerate(TUTORIAL_SHAPES):
        receptive = math.prod(shape[:-2])
        limit = 0.05 if len(shape) == 1 else math.sqrt(6.0 / (receptive * (shape[-2] + shape[-1])))
        weights.append(uniform(1000 + index, shape, -limit, limit))
    return weights


def tutorial_batch() -> tuple[np.ndarray, np.ndarray]:
    """Four images of noise, and their one-hot labels.

    Of the keys 2000 to 2299 the one whose ReLU inputs and pooling windows stay clearest of a tie
    with the weights above, by 2.5e-6: several times the rounding errors there, so every float32 run
    takes the same decisions in its first step.
    """
    return uniform(2200, (4, 32, 32, 3)), np.eye(10, dtype=np.float32)[[3, 1, 4, 1]]


# ------------------------------------------------------------- a network with batch normalization


def norm_layers(layers: Any) -> list[Any]:
    """Layers of Keras's or ours, for images (6, 6, 2)."""
    return [
        layers.Conv2D(5, 3, use_bias=False),
        layers.BatchNormalization(momentum=0.9),
        layers.LeakyReLU(),
        layers.Conv2D(4, 2, activation="tanh"),
        layers.BatchNormalization(momentum=0.5, epsilon=0.01, scale=False),
        layers.Activation("softplus"),
        layers.Flatten(),
        layers.Dense(6, activation="sigmoid"),
        layers.BatchNormalization(center=False),
        layers.Dense(8, activation="leaky_relu"),
        layers.Dense(3, activation="softmax"),
    ]


def norm_weights(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Of one axis all are positive, for one of them is a variance."""
    return [
        uniform(3000 + i, shape, 0.2 if len(shape) == 1 else -0.5, 0.8)
        for i, shape in enumerate(shapes)
    ]


def norm_samples() -> tuple[np.ndarray, np.ndarray]:
    return uniform(3100, (7, 6, 6, 2), -1.0, 2.0), np.eye(3, dtype=np.float32)[
        [0, 2, 1, 1, 0, 2, 0]
    ]


def norm_steps(model: Any, optimizer: Any, steps: int = 5) -> tuple[list[float], list[np.ndarray]]:
    """The losses of some training steps, and all weights after them."""
    model.compile(optimizer, "categorical_crossentropy")
    losses = []
    for _ in range(steps):
        loss = model.train_on_batch(*norm_samples())
        losses.append(float(loss[0] if isinstance(loss, list) else loss))
        if hasattr(model, "reset_metrics"):
            model.reset_metrics()
    return losses, model.get_weights()


def sample(array: np.ndarray) -> np.ndarray:
    """At most 256 entries at a fixed stride; all of a small array."""
    flat = array.reshape(-1)
    return flat if flat.size <= 512 else flat[:: flat.size // 256][:256]
