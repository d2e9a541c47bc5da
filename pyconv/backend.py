"""Which device runs the kernels, on what arrays, on how many threads, with which instructions."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
from collections.abc import Iterator
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

# Where DLPack says that something is: DLDeviceType in dlpack.h.
_ON_HOST = (1, 3)  # memory, pinned or not
_ON_CUDA = (2, 13)  # a GPU's memory, managed or not

_LINE = 64  # bytes in a cache line, and in a vector register of AVX-512

_ANYWHERE = contextlib.nullcontext()  # where kernels on the host run: there are no streams

_device: str | None = None
_current: Backend | None = None


@dataclass(frozen=True, eq=False)
class Backend:
    """A device's kernels and its arrays.

    Of the array module only what needs no compiler at run time is used: memory, copies and views.
    Arithmetic is the kernels'.

    Attributes:
        name: "cpu", "cuda" or "cuda-emulated".
        kernels: the extension module.
        xp: the module whose arrays the kernels take, NumPy or CuPy.
    """

    name: str
    kernels: ModuleType
    xp: Any

    @property
    def on_host(self) -> bool:
        """Whether the arrays are NumPy's."""
        return self.xp is np

    @property
    def captures(self) -> bool:
        """Whether training steps and forward passes may be captured as graphs: on "cuda", if
        `PYCONV_CUDA_GRAPH` is not 0; on "cuda-emulated", where that saves nothing, if it is 1."""
        if self.name == "cpu":
            return False
        wanted = os.environ.get("PYCONV_CUDA_GRAPH") or str(int(self.name == "cuda"))
        if wanted not in ("0", "1"):
            raise ValueError(f"PYCONV_CUDA_GRAPH: expected 0 or 1. Received: {wanted!r}.")
        return wanted == "1"

    @functools.cached_property
    def stream(self) -> Any:
        """The CuPy stream that models run on: the default one cannot be captured.

        It waits for the default stream and the default stream for it, so arrays that a caller made
        there are safe.
        """
        return self.xp.cuda.Stream()

    def running(self) -> contextlib.AbstractContextManager[None]:
        """Within it, kernels run on `stream`, after what the caller's stream was given before."""
        return _ANYWHERE if self.on_host else self._running_on_stream()

    @contextlib.contextmanager
    def _running_on_stream(self) -> Iterator[None]:
        caller = self.xp.cuda.get_current_stream()
        if caller == self.stream:
            yield
            return
        self.stream.wait_event(caller.record())
        try:
            with self.stream:
                yield
        finally:
            caller.wait_event(self.stream.record())

    # Arrays

    def is_array(self, value: Any) -> bool:
        """Whether the kernels take it; on "cuda", also what other libraries keep there."""
        return isinstance(value, self.xp.ndarray) or (
            not self.on_host and hasattr(value, "__cuda_array_interface__")
        )

    def address(self, array: Any) -> int:
        """Where an array begins in memory."""
        address: int = array.ctypes.data if self.on_host else array.data.ptr
        return address

    def adopt(self, value: Any) -> Any:
        """An array that `is_array` as one of `xp`'s, without a copy."""
        return value if isinstance(value, self.xp.ndarray) else self.xp.asarray(value)

    def require_array(self, value: Any, name: str) -> None:
        """Raises TypeError if `value` is not an array of this device."""
        if self.is_array(value):
            return
        kind = "NumPy" if self.on_host else "CuPy"
        text = f"{name}: expected a {kind} array. Received: {type(value).__name__}."
        raise TypeError(" ".join(filter(None, (text, self.advice(value)))))

    def advice(self, value: Any) -> str:
        """What to do about an array of another device; empty if it is not one."""
        where = _dlpack_device(value)
        if self.on_host and (hasattr(value, "__cuda_array_interface__") or where in _ON_CUDA):
            return (
                f"It lies on a GPU, but the device is {self.name!r}: copy it with cupy.asnumpy, "
                "or choose pyconv.set_device('cuda')."
            )
        if not self.on_host and isinstance(value, np.ndarray):
            return (
                f"It is NumPy's, but the device is {self.name!r}: copy it with cupy.asarray, or "
                "choose pyconv.set_device('cpu')."
            )
        if where is not None and where not in _ON_HOST + _ON_CUDA:
            return f"It lies on another device (DLPack's number {where}): copy it to the host."
        return ""

    def empty(self, shape: Any, dtype: Any = np.float32) -> Any:
        """A new array of any content; on the host it starts at a cache line, as vectors like it."""
        if not self.on_host:
            return self.xp.empty(shape, dtype)
        count = math.prod(shape)
        raw: np.ndarray = np.empty(count + _LINE // np.dtype(dtype).itemsize, dtype)
        return _from_line(raw, count).reshape(shape)

    def zeros(self, size: int, dtype: Any = np.float32) -> Any:
        """A flat array of zeros that starts at a cache line. Untouched, it costs no host memory."""
        if not self.on_host:
            return self.xp.zeros(size, dtype)
        raw: np.ndarray = np.zeros(size + _LINE // np.dtype(dtype).itemsize, dtype)
        return _from_line(raw, size)

    def to_device(self, host: np.ndarray) -> Any:
        """A NumPy array where the kernels run; itself if that is the host."""
        if self.on_host:
            return host
        array = self.empty(host.shape, host.dtype)
        array.set(host, stream=self.stream)
        return array


def shared(value: Any) -> Any:
    """What another library keeps, by DLPack, as an array of the device in use or NumPy's.

    Nothing is copied: both have the same memory. Arrays of the device, NumPy's, and what is no
    array or lies where it cannot be used come back as they are.

    Raises:
        TypeError: if the library does not hand it out, or if it holds what NumPy has no dtype for.
    """
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__"):
        return value
    device, where = current(), _dlpack_device(value)
    if device.is_array(value) or hasattr(value, "__cuda_array_interface__"):
        return value
    try:
        if where in _ON_HOST:
            return np.from_dlpack(value)
        if where in _ON_CUDA and not device.on_host:
            return device.xp.from_dlpack(value)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"Expected what can be shared by DLPack. Received: {type(value).__name__}, for which "
            f"that fails: {error}. Detach it from its gradients (detach() in PyTorch), and make it "
            "float32 or another dtype that NumPy has; a read-only one needs NumPy 2.1 or a copy."
        ) from error
    return value


def _dlpack_device(value: Any) -> int | None:
    """The number of the kind of device that it lies on; None if it does not say."""
    if not hasattr(value, "__dlpack_device__"):
        return None
    try:
        return int(value.__dlpack_device__()[0])
    except (BufferError, RuntimeError, TypeError, ValueError):
        return None


def to_host(array: Any) -> np.ndarray:
    """An array as NumPy's, once what computes it is done; itself if it is NumPy's."""
    if isinstance(array, np.ndarray):
        return array
    host: np.ndarray = array.get(stream=_backend("cuda").stream)
    return host


def copy(source: Any, destination: Any) -> None:
    """Copies between contiguous arrays of one shape and dtype, wherever either lies."""
    if isinstance(destination, np.ndarray):
        destination[...] = to_host(source)
        return
    stream = _backend("cuda").stream
    if isinstance(source, np.ndarray):
        destination.set(source, stream=stream)
    elif source.nbytes:
        destination.data.copy_from_device_async(source.data, source.nbytes, stream)


@functools.cache
def cpu() -> ModuleType:
    """The extension module with the CPU kernels, loaded at first use."""
    with _spinning_briefly():
        from pyconv import _cpu

    threads = os.environ.get("PYCONV_NUM_THREADS")
    if threads:
        if not threads.isdecimal():
            raise ValueError(f"PYCONV_NUM_THREADS: expected a count. Received: {threads!r}.")
        _cpu.set_num_threads(int(threads))
    return _cpu


@contextlib.contextmanager
def _spinning_briefly() -> Iterator[None]:
    """Within it, GNU's OpenMP is loaded with a limit on how long idle threads spin.

    Its default is some ten milliseconds. Where another process takes one of the cores away, that is
    how long each parallel loop then waits: the spinning thread keeps the other core from the one
    that was interrupted. After some tenths of a millisecond it sleeps instead. What the user has
    set counts, and other programs and child processes do not see it.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "10000"
    try:
        yield
    finally:
        os.environ.pop("GOMP_SPINCOUNT", None)  # another thread may have been here, too


def _from_line(raw: np.ndarray, count: int) -> np.ndarray:
    """The `count` elements of a flat array that begin at its first cache line."""
    start = -raw.ctypes.data % _LINE // raw.itemsize
    return raw[start : start + count]


def _extension(name: str) -> ModuleType | str:
    """An extension module of this package, or why there is none: "" if it was not built."""
    try:
        return importlib.import_module(f"pyconv.{name}")
    except ModuleNotFoundError:
        return ""
    except ImportError as error:
        return f"pyconv.{name} cannot be loaded: {error}"


def _cupy() -> ModuleType | str:
    """CuPy, or why there is none."""
    try:
        return importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        found = "is not installed" if error.name == "cupy" else f"cannot be imported: {error}"
        return f"CuPy, whose arrays are used, {found}"
    except Exception as error:  # whatever a broken installation raises
        return f"CuPy, whose arrays are used, cannot be imported: {error}"


def cuda_module() -> ModuleType | None:
    """The extension module with the CUDA kernels; None if this build has none. Needs no driver."""
    module = _extension("_cuda")
    return module if isinstance(module, ModuleType) else None


def cuda_unavailable_reason() -> str:
    """Why the device "cuda" cannot be used, and what to do; empty if it can."""
    module = _extension("_cuda")
    if isinstance(module, str):
        return module or (
            "the CUDA kernels are not in this build. Install it where nvcc is found, "
            "with -C cmake.define.PYCONV_CUDA=ON to be sure"
        )
    reason = module.unavailable_reason()
    if reason:
        return f"{reason}. Install an NVIDIA driver and look for the device with nvidia-smi"
    cupy = _cupy()
    if isinstance(cupy, str):
        major = module.toolkit_version().partition(".")[0]
        return f"{cupy}. Install it: pip install 'pyconv[cuda{major}]'"
    return ""


@functools.cache
def _backend(name: str) -> Backend:
    """The backend of a device other than "auto".

    Raises:
        RuntimeError: if the device cannot be had.
    """
    module: ModuleType | str
    xp: Any = np
    if name == "cpu":
        module = cpu()
    elif name == "cuda":
        reason = cuda_unavailable_reason()
        if reason:
            raise RuntimeError(f"The device 'cuda' cannot be used: {reason}.")
        module, xp = _extension("_cuda"), _cupy()
    else:
        architecture = os.environ.get("PYCONV_EMULATED_ARCH") or "80"
        suffixes = {"80": "", "75": "_sm75"}
        if architecture not in suffixes:
            raise ValueError(
                f"PYCONV_EMULATED_ARCH: expected 75 or 80. Received: {architecture!r}."
            )
        module = _extension(f"_cuda_emulated{suffixes[architecture]}")
        if isinstance(module, str):
            raise RuntimeError(
                "The device 'cuda-emulated' cannot be used: "
                + (module or "this build does not have it")
                + ". It is for tests; install with -C cmake.define.PYCONV_CUDA_EMULATION=ON, which "
                "needs nvcc."
            )
    assert isinstance(module, ModuleType)
    backend = Backend(name, module, xp)
    mode = os.environ.get("PYCONV_MATH_MODE")
    if mode:
        try:
            module.set_math_mode(mode)
        except ValueError as error:
            raise ValueError(f"PYCONV_MATH_MODE: {error}") from None
    return backend


def _checked_device(name: str, source: str) -> str:
    if name in DEVICES:
        return name
    raise ValueError(
        f"{source}: expected one of {', '.join(map(repr, DEVICES))}. Received: {name!r}."
    )


def set_device(name: str) -> None:
    """Chooses the device that the kernels and models run on.

    Models may change over at any time: their weights and the state of their training move with
    them.

    Args:
        name: "cpu"; "cuda", with CuPy's arrays; "cuda-emulated", the CUDA kernels executed on the
            CPU, for tests; or "auto": "cuda" where that can be used, else "cpu".

    Raises:
        ValueError: for any other name.
        RuntimeError: if the device cannot be used. The one in use stays.
    """
    global _device, _current
    name = _checked_device(name, "set_device")
    if name != "auto":
        _backend(name)
    _device, _current = name, None


def get_device() -> str:
    """Returns the device in use: set_device's, else `PYCONV_DEVICE`'s, else the best there is."""
    if _current is not None:
        return _current.name
    name = _device or _checked_device(os.environ.get("PYCONV_DEVICE") or "auto", "PYCONV_DEVICE")
    if name == "auto":
        return "cpu" if cuda_unavailable_reason() else "cuda"
    return name


def current() -> Backend:
    """The backend of the device in use. `PYCONV_DEVICE` counts when it is first asked for."""
    global _current
    if _current is None:
        _current = _backend(get_device())
    return _current


def set_math_mode(mode: str) -> None:
    """Chooses how convolutions on the device in use multiply.

    Args:
        mode: "fp32": the fastest in float32, on the CPU by Winograd's algorithm where that pays;
            "direct", CPU only: product by product, as defined, with the smallest rounding errors;
            "winograd4" and "winograd6", CPU only: Winograd's algorithm, with tiles of 4x4 or 6x6
            outputs, in all 3x3 convolutions that it fits;
            "tf32", CUDA only: factors rounded to 10 bits of mantissa, on tensor cores, in 3x3
            convolutions and their data gradients. The default is `PYCONV_MATH_MODE`'s, else
            "fp32".

    Raises:
        ValueError: for any other name, for a mode of the other device, and for "tf32" on CUDA
            devices of compute capability below 8.0.
    """
    current().kernels.set_math_mode(mode)


def get_math_mode() -> str:
    """Returns how convolutions on the device in use multiply, as :func:`set_math_mode` names it."""
    mode: str = current().kernels.math_mode()
    return mode


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
