"""Preparing data for training."""

from pyconv.preprocessing import image

__all__ = ["image"]
