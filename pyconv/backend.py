"""Which device runs the kernels, on how many threads, with which instruction set."""

from __future__ import annotations

import functools
import os
from types import ModuleType

__all__ = [
    "available_isas",
    "get_device",
    "get_num_threads",
    "isa",
    "set_device",
    "set_isa",
    "set_num_threads",
]

DEVICES = ("auto", "cpu")

_device: str | None = None


@functools.cache
def cpu() -> ModuleType:
    """The extension module with the CPU kernels, loaded at first use."""
    from pyconv import _cpu

    threads = os.environ.get("PYCONV_NUM_THREADS")
    if threads:
        if not threads.isdecimal():
            raise ValueError(f"PYCONV_NUM_THREADS: expected a count. Received: {threads!r}.")
        _cpu.set_num_threads(int(threads))
    return _cpu


def _checked_device(name: str, source: str) -> str:
    if name in DEVICES:
        return name
    raise ValueError(
        f"{source}: expected one of {', '.join(map(repr, DEVICES))}; this version has CPU kernels "
        f"only. Received: {name!r}."
    )


def set_device(name: str) -> None:
    """Chooses the device that models run on.

    Args:
        name: "cpu", or "auto" for the best one there is.

    Raises:
        ValueError: for any other name.
    """
    global _device
    _device = _checked_device(name, "set_device")


def get_device() -> str:
    """Returns the device in use: set_device's, else `PYCONV_DEVICE`'s, else the best there is."""
    name = _device or _checked_device(os.environ.get("PYCONV_DEVICE") or "auto", "PYCONV_DEVICE")
    return "cpu" if name == "auto" else name


def set_num_threads(count: int) -> None:
    """Sets how many threads the CPU kernels use. Results do not depend on it.

    Args:
        count: from 1 to 1024. The default is `PYCONV_NUM_THREADS`, else `OMP_NUM_THREADS`, else the
            CPUs that the affinity mask and the cgroup's quota grant.

    Raises:
        ValueError: if count is out of range.
    """
    cpu().set_num_threads(count)


def get_num_threads() -> int:
    """Returns how many threads the CPU kernels use."""
    return cpu().num_threads()


def isa() -> str:
    """Returns the instruction set that the CPU kernels run on: "avx512", "avx2" or "portable".

    Raises:
        ValueError: if `PYCONV_FORCE_ISA` names one that is unknown or that this machine lacks.
    """
    return cpu().isa()


def available_isas() -> list[str]:
    """Returns the instruction sets that this machine can run, fastest first."""
    return cpu().available_isas()


def set_isa(name: str) -> None:
    """Makes the CPU kernels run on the named instruction set from now on.

    Raises:
        ValueError: if the name is unknown or this machine lacks it.
    """
    cpu().set_isa(name)
