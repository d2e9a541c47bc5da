"""Data sets: CIFAR-10, MNIST, and a synthetic one that needs no files."""

from __future__ import annotations

from pyconv.datasets import cifar10, mnist, shapes
from pyconv.datasets._files import DataError, DataNotFoundError, data_dir

__all__ = ["DataError", "DataNotFoundError", "cifar10", "data_dir", "mnist", "shapes"]
