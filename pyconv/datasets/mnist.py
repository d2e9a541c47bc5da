"""MNIST: 70,000 handwritten digits, 28 x 28 grey pixels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyconv.datasets import _files

CLASS_NAMES = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FOLDER = "mnist"
MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
N_TRAIN = 60_000
N_TEST = 10_000

Split = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def load_data() -> tuple[Split, Split]:
    """Loads MNIST, downloading it (12 MB) if it is not there.

    The files are `train-images-idx3-ubyte.gz`, `train-labels-idx1-ubyte.gz` and their `t10k`
    counterparts, or what they unpack to, in the folder `mnist` of `PYCONV_DATA_DIR` (default: the
    user's cache directory). Files that are there are used if their structure is right; one that is
    downloaded must have the official checksum as well.

    Returns:
        `((x_train, y_train), (x_test, y_test))`: images uint8 `(60000, 28, 28)` and
        `(10000, 28, 28)`, values 0 (paper) to 255 (ink); labels uint8 `(60000,)` and `(10000,)`.

    Raises:
        DataNotFoundError: A file is not there and cannot be downloaded.
        DataError: A file that is there is damaged or unreadable.

    Example:
        >>> (x_train, y_train), (x_test, y_test) = pyconv.datasets.mnist.load_data()
        >>> x_train = x_train[..., None].astype("float32") / 255
    """
    return _load_split("train", N_TRAIN), _load_split("t10k", N_TEST)


def find() -> Path | None:
    """Returns the folder that `load_data` would use, or None if it lacks any of the files."""
    return _files.data_dir() / FOLDER if all(map(_find_file, MD5)) else None


def _load_split(prefix: str, n: int) -> Split:
    images = _read_idx(f"{prefix}-images-idx3-ubyte", (n, 28, 28))
    labels = _read_idx(f"{prefix}-labels-idx1-ubyte", (n,))
    return images, labels


def _find_file(name: str) -> Path | None:
    folder = _files.data_dir() / FOLDER
    return next((p for p in (folder / f"{name}.gz", folder / name) if p.exists()), None)


def _read_idx(name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    path = _find_file(name) or _files.download(f"{FOLDER}/{name}.gz", f"{URL}{name}.gz", MD5[name])
    with _files.reading(path) as stream:
        # Two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension.
        header = _files.read_exactly(stream, (4 + 4 * len(shape),), path).tobytes()
        expected = bytes((0, 0, 8, len(shape))) + b"".join(d.to_bytes(4, "big") for d in shape)
        if header != expected:
            raise _files.damaged(
                path, f"its header must be {expected.hex(' ', 4)}. Received: {header.hex(' ', 4)}"
            )
        array = _files.read_exactly(stream, shape, path)
        # Also makes gzip reach, and check, the checksum at its end.
        if stream.read(1):
            raise _files.damaged(path, f"it holds more than {math.prod(shape):,} bytes of data")
    if len(shape) == 1:
        _files.check_labels(array, path)
    return array
