"""CIFAR-10: 60,000 colour photographs, 32 x 32 pixels, ten classes."""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from pyconv.datasets import _files

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
ARCHIVE = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"

BATCHES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
RECORDS = 10_000  # a batch
PIXELS = 3 * 32 * 32
# The archive unpacks to 184 MB; one that goes on beyond this is not it.
MAX_UNPACKED = 256 << 20

Split = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def load_data() -> tuple[Split, Split]:
    """Loads CIFAR-10, downloading it (170 MB) if it is not there.

    The file is `cifar-10-binary.tar.gz`, or the folder `cifar-10-batches-bin` that it unpacks to,
    in `PYCONV_DATA_DIR` (default: the user's cache directory). A file that is there is used if its
    structure is right; one that is downloaded must have the official checksum as well.

    Returns:
        `((x_train, y_train), (x_test, y_test))`: images uint8 `(50000, 32, 32, 3)` and
        `(10000, 32, 32, 3)`, values 0 to 255; labels uint8 `(50000, 1)` and `(10000, 1)`, 0 to 9,
        with the meaning of `CLASS_NAMES`.

    Raises:
        DataNotFoundError: It is not there and cannot be downloaded.
        DataError: What is there is damaged or unreadable.

    Example:
        >>> (x_train, y_train), (x_test, y_test) = pyconv.datasets.cifar10.load_data()
        >>> x_train = x_train.astype("float32") / 255
    """
    path = find() or _files.download(ARCHIVE, URL, MD5)
    batches = _read_folder(path) if path.name == FOLDER else _read_archive(path)
    train = [batches[name] for name in BATCHES[:-1]]
    return (
        (np.concatenate([x for x, _ in train]), np.concatenate([y for _, y in train])),
        batches[BATCHES[-1]],
    )


def find() -> Path | None:
    """Returns the folder or archive that `load_data` would use, or None if it is not there."""
    folder = _files.data_dir()
    return next((p for p in (folder / FOLDER, folder / ARCHIVE) if p.exists()), None)


def _read_folder(folder: Path) -> dict[str, Split]:
    batches = {}
    for name in BATCHES:
        path = folder / name
        with _files.reading(path) as stream:
            batches[name] = _read_batch(stream, path)
            if stream.read(1):
                raise _files.damaged(path, f"it is longer than {RECORDS * (1 + PIXELS):,} bytes")
    return batches


def _read_archive(path: Path) -> dict[str, Split]:
    batches: dict[str, Split] = {}
    with _files.reading(path) as unpacked:
        stream = cast(BinaryIO, _Limited(unpacked, path))
        try:
            with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if name not in BATCHES:
                        continue
                    if name in batches:
                        raise _files.damaged(path, f"{name} is in it twice")
                    size = RECORDS * (1 + PIXELS)
                    content = archive.extractfile(member) if member.isreg() else None
                    if content is None or member.size != size:
                        raise _files.damaged(
                            path,
                            f"{name} must be a file of {size:,} bytes. Received: {member.size:,}",
                        )
                    batches[name] = _read_batch(content, path)
        # RecursionError, ValueError and the like: tarfile on headers made to confuse it.
        except (tarfile.TarError, RecursionError, ValueError, OverflowError) as error:
            raise _files.damaged(path, str(error) or type(error).__name__) from error
        # The archive ends before the compressed stream does, whose checksum comes last.
        while stream.read(1 << 20):
            pass
    if missing := [name for name in BATCHES if name not in batches]:
        raise _files.damaged(path, f"it lacks {', '.join(missing)}")
    return batches


def _read_batch(stream: IO[bytes], path: Path) -> Split:
    records = _files.read_exactly(stream, (RECORDS, 1 + PIXELS), path)
    labels = records[:, :1].copy()
    _files.check_labels(labels, path)
    # A record is a label, then the red plane, the green and the blue. Plane by plane is ten times
    # as fast as one transposition.
    images = np.empty((RECORDS, 32, 32, 3), np.uint8)
    for channel, plane in enumerate(np.split(records[:, 1:], 3, axis=1)):
        images[..., channel] = plane.reshape(-1, 32, 32)
    return images, labels


class _Limited:
    """A stream that fails when it goes on for too long (a decompression bomb)."""

    def __init__(self, stream: BinaryIO, path: Path):
        self.stream = stream
        self.path = path
        self.left = MAX_UNPACKED

    def read(self, size: int) -> bytes:
        chunk = self.stream.read(size)
        # At the end of the file too: tarfile goes on and on to skip what a lying header announces.
        self.left -= len(chunk) or size
        if self.left < 0:
            raise _files.damaged(
                self.path, f"it unpacks, or claims to, to more than {MAX_UNPACKED:,} bytes"
            )
        return chunk
