"""Finding, downloading and reading data files without trusting them."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

# What reading a damaged gzip stream can raise.
GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)

RETRIES = 2  # of a download


class DataError(RuntimeError):
    """A data file is damaged or unreadable, or could not be downloaded."""


class DataNotFoundError(DataError, FileNotFoundError):
    """A data file is not on this machine and could not be downloaded."""


def data_dir() -> Path:
    """Returns the folder of the data files: `PYCONV_DATA_DIR`, else the user's cache directory."""
    if folder := os.environ.get("PYCONV_DATA_DIR"):
        return Path(folder).expanduser()
    import pooch

    return Path(pooch.os_cache("pyconv"))


def damaged(path: Path, problem: str) -> DataError:
    """Returns the error for a file that is there but is not what it should be."""
    return DataError(
        f"{path} is damaged: {problem}. Delete it, and pyconv downloads it again; or put an intact "
        "copy in its place."
    )


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Opens a data file, decompressing `.gz`; every failure while it is open names the file."""
    try:
        with open(path, "rb") as raw:
            if path.suffix == ".gz":
                with gzip.open(raw) as stream:
                    yield cast(BinaryIO, stream)
            else:
                yield raw
    except GZIP_ERRORS as error:
        raise damaged(path, str(error) or type(error).__name__) from error
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}. Check that it is a file and that you "
            "have permission to read it."
        ) from error


def read_exactly(stream: IO[bytes], shape: tuple[int, ...], path: Path) -> NDArray[np.uint8]:
    """Reads as many bytes as `shape` holds.

    The size comes from the caller, never from the file, so that no file can make this allocate.
    """
    array = np.empty(shape, np.uint8)
    flat = array.reshape(-1)
    done = 0
    while done < flat.size:
        chunk = stream.read(min(flat.size - done, 1 << 20))
        if not chunk:
            raise damaged(path, f"it ends after {done:,} of {flat.size:,} bytes of data")
        flat[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
        done += len(chunk)
    return array


def check_labels(labels: NDArray[np.uint8], path: Path) -> None:
    if labels.max(initial=0) > 9:
        raise damaged(path, f"labels must be 0 to 9. Received: {labels.max()}")


def download(name: str, url: str, md5: str) -> Path:
    """Downloads one file into the data folder.

    The file appears under its name only when it is whole and its checksum is right; a download that
    fails or is interrupted leaves nothing behind.

    Args:
        name: Path below the data folder, with `/`.
        url: Address to download from.
        md5: Expected checksum, 32 hexadecimal digits.

    Returns:
        The path of the file.

    Raises:
        DataNotFoundError: The file could not be had; the message says where to put it.
    """
    import pooch
    import requests

    folder = data_dir()
    path = folder / name
    try:
        pooch.create(
            path=folder,
            base_url="",
            registry={name: f"md5:{md5}"},
            urls={name: url},
            retry_if_failed=RETRIES,
        ).fetch(
            name,
            # Chunks of more than pooch's 1 KiB, each of which it flushes; connect and read limits.
            downloader=pooch.HTTPDownloader(progressbar=True, chunk_size=1 << 16, timeout=(10, 30)),
        )
    except (requests.RequestException, ValueError) as error:
        raise DataNotFoundError(
            f"{path} is not there, and downloading it failed ({_reason(error)}). Download {url} by "
            f"other means and put it at {path}, or set PYCONV_DATA_DIR to a folder that has {name}."
        ) from error
    except OSError as error:
        raise DataNotFoundError(
            f"{path} is not there, and cannot be written: {error.strerror or error}. Set "
            "PYCONV_DATA_DIR to a folder that has it, or to one that you may write to."
        ) from error
    return path


def _reason(error: Exception) -> str:
    """One line for people; what requests raises nests four exceptions in one another's text."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "the server did not answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was closed before the end"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return " ".join(str(error).split())
