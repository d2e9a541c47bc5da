"""Images in files, read with Pillow."""

from __future__ import annotations

import os
import warnings

import numpy as np

from pyconv.extras import extra


def load_image(path: str | os.PathLike[str], shape: tuple[int, int, int]) -> np.ndarray:
    """Reads an image as a network takes it.

    Args:
        path: a file of any kind that Pillow reads.
        shape: (H, W, C), to which the image is scaled (bilinear); grey for C = 1, coloured for 3.

    Returns:
        A float32 array of that shape with values from 0 to 1.

    Raises:
        ImportError: Pillow is not installed.
        FileNotFoundError: there is no such file.
        ValueError: it is no image, is damaged or suspiciously large, or C is neither 1 nor 3.
    """
    with extra("image", "reading images needs Pillow"):
        from PIL import Image
    height, width, channels = shape
    if channels not in (1, 3):
        raise ValueError(f"An image has 1 or 3 channels. Received: shape={shape}")
    with open(path, "rb") as file, warnings.catch_warnings():
        # Pillow warns of what is suspiciously large, and refuses only what is twice as large.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as image:
                pixels = image.convert("L" if channels == 1 else "RGB")
                pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
        # Which exceptions damaged files cause depends on their kind; SyntaxError is one of them.
        except Exception as error:
            raise ValueError(f"{os.fspath(path)} cannot be read as an image: {error}") from error
    return np.asarray(pixels, np.float32).reshape(shape) / np.float32(255)
