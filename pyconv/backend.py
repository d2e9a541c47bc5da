"""Which device runs the kernels, on how many threads, with which instruction set."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

__all__ = [
    "available_isas",
    "get_device",
    "get_math_mode",
    "get_num_threads",
    "isa",
    "set_device",
    "set_isa",
    "set_math_mode",
    "set_num_threads",
]

DEVICES = ("auto", "cpu", "cuda", "cuda-emulated")
INSTALL_CUPY = "pip install 'pyconv[cuda13]', or 'pyconv[cuda12]' for an older driver"

_device: str | None = None


@dataclass(frozen=True)
class Backend:
    """A device's kernels and its arrays.

    Attributes:
        name: "cpu", "cuda" or "cuda-emulated".
        kernels: the extension module.
        xp: the module whose arrays the kernels take, NumPy or CuPy.
    """

    name: str
    kernels: ModuleType
    xp: Any

    @property
    def fuses_pooling(self) -> bool:
        """Whether convolution, ReLU, pooling and dropout are one kernel."""
        return self.name != "cpu"

    def is_array(self, value: Any) -> bool:
        return isinstance(value, self.xp.ndarray)

    def require_array(self, value: Any, name: str) -> None:
        """Raises TypeError if `value` is not an array of this device."""
        if self.is_array(value):
            return
        kind = "NumPy" if self.xp is np else "CuPy"
        raise TypeError(
            f"{name}: expected a {kind} array, as the device is {self.name!r}. "
            f"Received: {type(value).__module__}.{type(value).__name__}. "
            + (
                "Convert it with cupy.asnumpy, or choose pyconv.set_device('cuda')."
                if self.xp is np and hasattr(value, "__cuda_array_interface__")
                else "Convert it with numpy.asarray."
                if self.xp is np
                else "Convert it with cupy.asarray, or choose pyconv.set_device('cpu')."
            )
        )


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


@functools.cache
def cuda_module() -> ModuleType | None:
    """The extension module with the CUDA kernels; None if this build has none. Needs no driver."""
    try:
        return importlib.import_module("pyconv._cuda")
    except ModuleNotFoundError:
        return None


def cuda_unavailable_reason() -> str:
    """Why the device "cuda" cannot be used, and what to do; empty if it can."""
    module = cuda_module()
    if module is None:
        return (
            "this build has no CUDA kernels. Install it where nvcc is found, "
            "with -C cmake.define.PYCONV_CUDA=ON to be sure"
        )
    reason = module.unavailable_reason()
    if reason:
        return f"{reason}. Install an NVIDIA driver and look for the device with nvidia-smi"
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy, whose arrays are used, is not installed. {INSTALL_CUPY}"
    return ""


@functools.cache
def _backend(name: str) -> Backend:
    """The backend of a device other than "auto".

    Raises:
        RuntimeError: if the device cannot be had.
    """
    if name == "cpu":
        return Backend(name, cpu(), np)
    if name == "cuda":
        reason = cuda_unavailable_reason()
        if reason:
            raise RuntimeError(f"The device 'cuda' cannot be used: {reason}.")
        module = cuda_module()
        assert module is not None
        cupy = importlib.import_module("cupy")
    else:
        architecture = os.environ.get("PYCONV_EMULATED_ARCH") or "80"
        suffixes = {"80": "", "75": "_sm75"}
        if architecture not in suffixes:
            raise ValueError(
                f"PYCONV_EMULATED_ARCH: expected 75 or 80. Received: {architecture!r}."
            )
        try:
            module = importlib.import_module(f"pyconv._cuda_emulated{suffixes[architecture]}")
        except ModuleNotFoundError:
            raise RuntimeError(
                "The device 'cuda-emulated' cannot be used: this build does not have it. It is for "
                "tests; install with -C cmake.define.PYCONV_CUDA_EMULATION=ON, which needs nvcc."
            ) from None
        cupy = np
    mode = os.environ.get("PYCONV_MATH_MODE")
    if mode:
        module.set_math_mode(mode)
    return Backend(name, module, cupy)


def _checked_device(name: str, source: str) -> str:
    if name in DEVICES:
        return name
    raise ValueError(
        f"{source}: expected one of {', '.join(map(repr, DEVICES))}. Received: {name!r}."
    )


def set_device(name: str) -> None:
    """Chooses the device that the kernels and models run on.

    Args:
        name: "cpu"; "cuda", with CuPy's arrays; "cuda-emulated", the CUDA kernels executed on the
            CPU, for tests; or "auto", which is "cpu" as long as models do not run on "cuda".

    Raises:
        ValueError: for any other name.
        RuntimeError: if the device cannot be used.
    """
    global _device
    name = _checked_device(name, "set_device")
    if name != "auto":
        _backend(name)
    _device = name


def get_device() -> str:
    """Returns the device in use: set_device's, else `PYCONV_DEVICE`'s, else "cpu"."""
    name = _device or _checked_device(os.environ.get("PYCONV_DEVICE") or "auto", "PYCONV_DEVICE")
    return "cpu" if name == "auto" else name


def current() -> Backend:
    """The backend of the device in use."""
    return _backend(get_device())


def set_math_mode(mode: str) -> None:
    """Chooses how convolutions on the device in use multiply.

    Args:
        mode: "fp32", or "tf32": factors rounded to 10 bits of mantissa, on tensor cores, in 3x3
            convolutions and their data gradients. CUDA only. The default is `PYCONV_MATH_MODE`'s,
            else "fp32".

    Raises:
        ValueError: for any other name, and for "tf32" on the CPU or on CUDA devices of compute
            capability below 8.0.
    """
    backend = current()
    if backend.name != "cpu":
        backend.kernels.set_math_mode(mode)
    elif mode != "fp32":
        raise ValueError(f"math_mode: expected 'fp32' on the device 'cpu'. Received: {mode!r}.")


def get_math_mode() -> str:
    """Returns how convolutions on the device in use multiply: "fp32" or "tf32"."""
    backend = current()
    return "fp32" if backend.name == "cpu" else backend.kernels.math_mode()


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
