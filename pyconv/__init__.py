"""pyconv: convolutional networks on hand-written kernels, with Keras's names.

    from pyconv.models import Sequential
    from pyconv.layers import Conv2D, Dense, Flatten, MaxPooling2D

The kernels themselves are in `pyconv.kernels`.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from pyconv import (
    applications,
    callbacks,
    datasets,
    initializers,
    kernels,
    layers,
    losses,
    metrics,
    mixed_precision,
    models,
    optimizers,
    preprocessing,
    saving,
    utils,
)
from pyconv.backend import (
    available_isas,
    get_device,
    get_math_mode,
    get_num_threads,
    isa,
    set_device,
    set_isa,
    set_math_mode,
    set_num_threads,
)
from pyconv.layers import Input
from pyconv.models import Sequential

try:
    __version__ = version("pyconv")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0+unknown"

__all__ = [
    "Input",
    "Sequential",
    "applications",
    "available_isas",
    "callbacks",
    "datasets",
    "get_device",
    "get_math_mode",
    "get_num_threads",
    "initializers",
    "isa",
    "kernels",
    "layers",
    "losses",
    "metrics",
    "mixed_precision",
    "models",
    "optimizers",
    "preprocessing",
    "saving",
    "set_device",
    "set_isa",
    "set_math_mode",
    "set_num_threads",
    "utils",
]
