"""Drawn shapes: a synthetic data set in CIFAR-10's layout that needs no files and no network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyconv import random

CLASS_NAMES = (
    "circle",
    "square",
    "triangle",
    "cross",
    "ring",
    "star",
    "crescent",
    "heart",
    "arrow",
    "bar",
)

SIZE = 32
# Images are drawn in blocks, each from its own random stream: memory stays bounded, and the first
# images of a large set are those of a small one.
BLOCK = 1000
CLUTTER = 2

Split = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Floats = NDArray[np.float32]


def load_data(n_train: int = 10_000, n_test: int = 2_000, seed: int = 0) -> tuple[Split, Split]:
    """Draws the data set: one shape an image, at a random place, size and angle.

    Colours, background, clutter behind the shape and noise are random too. The same seed gives the
    same images; a larger set begins with the images of a smaller one.

    Args:
        n_train: Number of training images.
        n_test: Number of test images. They do not depend on `n_train`.
        seed: Integer from 0 to 2^64 - 1.

    Returns:
        `((x_train, y_train), (x_test, y_test))`: images uint8 `(n, 32, 32, 3)`, values 0 to 255;
        labels uint8 `(n, 1)`, 0 to 9, with the meaning of `CLASS_NAMES`.

    Raises:
        ValueError: A number of images is negative, or the seed out of range.

    Example:
        >>> (x_train, y_train), (x_test, y_test) = pyconv.datasets.shapes.load_data(seed=1)
    """
    for name, n in (("n_train", n_train), ("n_test", n_test)):
        if n < 0:
            raise ValueError(f"{name} must not be negative. Received: {n}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be from 0 to 2^64 - 1. Received: {seed}")
    return _draw_split(n_train, seed, 0), _draw_split(n_test, seed, 1)


def _draw_split(n: int, seed: int, split: int) -> Split:
    x = np.empty((n, SIZE, SIZE, 3), np.uint8)
    y = np.empty((n, 1), np.uint8)
    for block, start in enumerate(range(0, n, BLOCK)):
        images, labels = _draw_block(random.generator(seed, stream=split << 32 | block))
        x[start : start + BLOCK] = images[: n - start]
        y[start : start + BLOCK, 0] = labels[: n - start]
    return x, y


def _draw_block(rng: np.random.Generator) -> Split:
    def uniform(low: float, high: float, *shape: int) -> Floats:
        return low + (high - low) * rng.random((BLOCK, *shape), np.float32)

    labels = rng.permutation(np.arange(BLOCK) % len(CLASS_NAMES)).astype(np.uint8)

    # Pixel centres, in pixels from the middle. While drawing, an image is three planes of pixels in
    # one row each: long inner loops are several times as fast as loops over three channels.
    pixels = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    x, y = np.tile(pixels, SIZE), np.repeat(pixels, SIZE)

    # Bright shapes on a darker ground with dim clutter: with any colours on any ground, the
    # tutorial's network finds nothing to begin with for many epochs.
    background = uniform(0, 0.4, 3, 1)
    gradient = uniform(-0.012, 0.012, 2, 3, 1)
    image = gradient[:, 0] * x
    image += gradient[:, 1] * y
    image += background

    for _ in range(CLUTTER):
        center, radius = uniform(-16, 16, 2, 1), uniform(1, 4, 1)
        distance = _length(x - center[:, 0], y - center[:, 1]) - radius
        _paint(image, distance, uniform(0, 0.6, 3, 1))

    radius = uniform(9, 14, 1)
    # The larger the shape, the nearer to the middle, so that no more than its tips are cut off.
    center = uniform(-1, 1, 2, 1) * (16 - 0.85 * radius)[:, None]
    # Turned, but not so far that a triangle would need to be learnt at every angle.
    angle = uniform(-0.4, 0.4, 1)
    color = uniform(0.5, 1, 3, 1)
    # Where it would be hard to see, it differs in every channel.
    faint = np.abs(color - background).max(axis=1, keepdims=True) < 0.35
    color = np.where(faint, background + 0.4, color)

    dx, dy = (x - center[:, 0]) / radius, (y - center[:, 1]) / radius
    u = np.cos(angle) * dx + np.sin(angle) * dy
    v = np.cos(angle) * dy - np.sin(angle) * dx
    distance = np.empty_like(u)
    for label, shape in enumerate(_SHAPES):
        members = labels == label
        distance[members] = shape(u[members], v[members])
    _paint(image, distance * radius, color)

    # The difference of two uniform bytes: nearly bell-shaped, and quick.
    noise = np.frombuffer(rng.bytes(2 * image.size), np.uint8).reshape(2, *image.shape)
    image += uniform(0, 0.2 / 255, 1, 1) * np.subtract(noise[0], noise[1], dtype=np.float32)
    np.clip(image, 0, 1, out=image)
    image *= 255
    image += 0.5
    drawn = np.empty((BLOCK, SIZE, SIZE, 3), np.uint8)
    for channel in range(3):
        drawn[..., channel] = image[:, channel].reshape(-1, SIZE, SIZE)
    return drawn, labels


def _paint(image: Floats, distance: Floats, color: Floats) -> None:
    """Lays a colour over the image where `distance`, in pixels, is negative, with a soft edge."""
    coverage = np.clip(0.5 - distance, 0, 1)[:, None]
    difference = color - image
    difference *= coverage
    image += difference


def _length(u: Floats, v: Floats) -> Floats:
    # Five times as fast as np.hypot, whose care with overflow nothing here needs.
    return np.sqrt(u * u + v * v)


# Signed distances to shapes about as large as the unit circle: negative inside, exact at the edge.


def _box(u: Floats, v: Floats, half_width: float, half_height: float) -> Floats:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _half_plane(u: Floats, v: Floats, normal_u: float, normal_v: float, offset: float) -> Any:
    length = np.float32(np.hypot(normal_u, normal_v))
    return (normal_u * u + normal_v * v - offset) / length


def _circle(u: Floats, v: Floats) -> Floats:
    return _length(u, v) - np.float32(0.8)


def _square(u: Floats, v: Floats) -> Floats:
    return _box(u, v, 0.7, 0.7)


def _triangle(u: Floats, v: Floats) -> Floats:
    # Two of the sides are mirror images.
    return np.maximum(-u - np.float32(0.5), _half_plane(u, np.abs(v), 1, 3**0.5, 1))


def _cross(u: Floats, v: Floats) -> Floats:
    return np.minimum(_box(u, v, 0.9, 0.25), _box(u, v, 0.25, 0.9))


def _ring(u: Floats, v: Floats) -> Floats:
    return np.abs(_length(u, v) - np.float32(0.68)) - np.float32(0.17)


def _star(u: Floats, v: Floats) -> Floats:
    # Folded onto one tenth, a star is the side from its tip to the notch beside it.
    sector = np.float32(2 * np.pi / 5)
    angle = np.arctan2(v, u)
    angle = np.abs(angle - sector * np.rint(angle / sector))
    radius = _length(u, v)
    tip, notch = 1.05, 0.42
    notch_u, notch_v = notch * np.cos(np.pi / 5), notch * np.sin(np.pi / 5)
    normal_u, normal_v = float(notch_v), float(tip - notch_u)
    return _half_plane(
        radius * np.cos(angle), radius * np.sin(angle), normal_u, normal_v, tip * normal_u
    )


def _crescent(u: Floats, v: Floats) -> Floats:
    return np.maximum(_length(u, v) - np.float32(0.95), 0.8 - _length(u - np.float32(0.45), v))


def _heart(u: Floats, v: Floats) -> Floats:
    # A square and a disc on each of two sides that meet.
    u, v = u + np.float32(0.2), v + np.float32(0.2)
    discs = np.minimum(_length(u - np.float32(0.5), v), _length(u, v - np.float32(0.5)))
    return np.minimum(_box(u, v, 0.5, 0.5), discs - np.float32(0.5))


def _arrow(u: Floats, v: Floats) -> Floats:
    head = np.maximum(-u, _half_plane(u, np.abs(v), 0.75, 1, 0.75))
    return np.minimum(head, _box(u + np.float32(0.4), v, 0.6, 0.2))


def _bar(u: Floats, v: Floats) -> Floats:
    return _box(u, v, 0.95, 0.3)


_SHAPES = (_circle, _square, _triangle, _cross, _ring, _star, _crescent, _heart, _arrow, _bar)
