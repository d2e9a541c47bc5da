"""A stand-in for CuPy and for `pyconv._cuda`, to test what is Python's on machines without a GPU.

Arrays lie in host memory and the kernels are the CPU's, but the rules are a GPU's: what is launched
on a stream runs when somebody waits for it, an array does not turn into NumPy's by itself and has
no arithmetic, the default stream cannot be captured, and a capture allows nothing but launches.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np


class Error(RuntimeError):
    """`pyconv._cuda.Error`."""


# ------------------------------------------------------------------------------------------ streams


class Stream:
    """Work in order. A stream and the default stream wait for each other, as CUDA's blocking ones
    do."""

    everything: list[Stream] = []  # noqa: RUF012
    null: Stream

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        assert not non_blocking, "would not wait for the default stream"
        self.recording: list[Callable[[], None]] | None = None
        self._work: list[Callable[[], None]] = []
        self._done = 0
        self._outer: list[Stream] = []
        Stream.everything.append(self)

    @property
    def ptr(self) -> int:
        return 0 if self is Stream.null else id(self)

    def submit(self, work: Callable[[], None]) -> None:
        if self.recording is not None:
            self.recording.append(work)
            return
        others = Stream.everything if self is Stream.null else [Stream.null]
        for event in [other.record() for other in others if other is not self]:
            self._work.append(event.wait)
        self._work.append(work)

    def finish(self, count: int) -> None:
        while self._done < count:
            self._done += 1
            work = self._work[self._done - 1]
            self._work[self._done - 1] = _nothing
            work()

    def synchronize(self) -> None:
        _forbidden_in_a_capture("synchronize")
        self.finish(len(self._work))

    def record(self) -> Event:
        return Event(self, len(self._work))

    def wait_event(self, event: Event) -> None:
        self.submit(event.wait)

    def __enter__(self) -> Stream:
        global _current
        self._outer.append(_current)
        _current = self
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = self._outer.pop()


class Event:
    def __init__(self, stream: Stream, position: int) -> None:
        self._stream, self._position = stream, position

    def wait(self) -> None:
        self._stream.finish(self._position)


def _nothing() -> None:
    pass


Stream.null = Stream(null=True)
_current = Stream.null


def get_current_stream() -> Stream:
    return _current


def _forbidden_in_a_capture(what: str) -> None:
    if any(stream.recording is not None for stream in Stream.everything):
        raise Error(f"{what}: cudaErrorStreamCaptureUnsupported")


# ------------------------------------------------------------------------------------------- arrays


class Transfers:
    """Bytes that went from host to device and back."""

    to_device = 0
    to_host = 0


class MemoryPointer:
    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    @property
    def ptr(self) -> int:
        return self._array.ctypes.data

    def copy_from_device_async(self, source: MemoryPointer, size: int, stream: Stream) -> None:
        _forbidden_in_a_capture("memcpy")
        assert size == self._array.nbytes == source._array.nbytes
        destination, origin = self._array.reshape(-1), source._array.reshape(-1)
        stream.submit(lambda: np.copyto(destination, origin))


class ndarray:
    """Only what needs no compiler on a real device: copies and views."""

    def __init__(self, host: np.ndarray) -> None:
        self._host = host

    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    dtype = property(lambda self: self._host.dtype)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    data = property(lambda self: MemoryPointer(self._host))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._host.ctypes.data, False),
            "strides": None if self._host.flags.c_contiguous else self.strides,
            "stream": _current.ptr or 1,
            "version": 3,
        }

    def __len__(self) -> int:
        return len(self._host)

    def __getitem__(self, index: slice) -> ndarray:
        assert isinstance(index, slice), "would need a kernel"
        return ndarray(self._host[index])

    def reshape(self, *shape: Any) -> ndarray:
        result = self._host.reshape(*shape)
        assert np.shares_memory(result, self._host) or not result.size, "would need a kernel"
        return ndarray(result)

    def view(self, dtype: Any) -> ndarray:
        return ndarray(self._host.view(dtype))

    def set(self, host: np.ndarray, stream: Stream | None = None) -> None:
        _forbidden_in_a_capture("set")
        assert isinstance(host, np.ndarray)
        assert (host.dtype, host.shape) == (self.dtype, self.shape)
        Transfers.to_device += host.nbytes
        staged, destination = host.copy(), self._host
        (stream or _current).submit(lambda: np.copyto(destination, staged))

    def get(self, stream: Stream | None = None) -> np.ndarray:
        _forbidden_in_a_capture("get")
        stream = stream or _current
        result = np.empty_like(self._host)
        stream.submit(lambda: np.copyto(result, self._host))
        stream.synchronize()
        Transfers.to_host += result.nbytes
        return result

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __bool__(self) -> bool:
        raise TypeError("would wait for the device")


def empty(shape: Any, dtype: Any = float) -> ndarray:
    _forbidden_in_a_capture("malloc")
    array = np.empty(tuple(np.atleast_1d(shape)), dtype)
    array.reshape(-1).view(np.uint8)[...] = 0xA5
    return ndarray(array)


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    array = empty(shape, dtype)
    _current.submit(lambda: array._host.fill(0))
    return array


def asarray(value: Any) -> ndarray:
    if isinstance(value, ndarray):
        return value
    if hasattr(value, "wrapped"):  # another library's array
        return value.wrapped
    host = np.ascontiguousarray(value)
    array = empty(host.shape, host.dtype)
    array.set(host)
    return array


def asnumpy(array: ndarray) -> np.ndarray:
    return array.get()


# ------------------------------------------------------------------------------------ pyconv._cuda


OPERATIONS = (
    "conv2d",
    "conv2d_backward_data",
    "conv2d_backward_weights",
    "conv2d_pool",
    "conv2d_pool_backward",
    "conv2d_backward",
    "dense",
    "dense_backward_data",
    "dense_backward_weights",
    "dense_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "pad2d",
    "relu",
    "relu_backward",
    "round_bfloat16",
    "activate",
    "activate_backward",
    "batch_norm",
    "batch_norm_training",
    "batch_norm_backward",
    "softmax",
    "softmax_backward",
    "softmax_cross_entropy",
    "dropout",
    "sgd_step",
    "rmsprop_step",
    "adam_step",
)


class FakeCuda(types.ModuleType):
    """`pyconv._cuda`, with the CPU's kernels.

    Attributes:
        launches: names of the kernels launched, and "graph", in order; not those being captured.
        streams: the streams on which they were launched.
        captures: number of graphs captured.
        reason: why there is no device; empty if there is.
        capture_error: what beginning a capture raises; None for nothing.
        tensor_cores: whether "tf32" is there.
    """

    Error = Error

    def __init__(self) -> None:
        super().__init__("pyconv._cuda")
        from pyconv import _cpu

        self.launches: list[str] = []
        self.streams: list[Stream] = []
        self.captures = 0
        self.reason = ""
        self.capture_error: BaseException | None = None
        self.tensor_cores = True
        self._mode = "fp32"
        for name in OPERATIONS:
            setattr(self, name, self._kernel(name, getattr(_cpu, name)))
        self.gather = self._kernel("gather", _gather)
        module = self

        class Graph:
            def __init__(self) -> None:
                self._work: list[Callable[[], None]] | None = None
                self._stream: Stream | None = None

            def begin_capture(self) -> None:
                if module.capture_error is not None:
                    raise module.capture_error
                if _current is Stream.null:
                    raise Error("begin of a graph: cudaErrorStreamCaptureUnsupported")
                self._stream = _current
                self._stream.recording = []

            def end_capture(self) -> None:
                assert self._stream is not None
                self._work, self._stream.recording = self._stream.recording, None
                module.captures += 1

            def launch(self) -> None:
                if self._work is None:
                    raise Error("launch of a graph: it was not captured")
                module.launches.append("graph")
                module.streams.append(_current)
                for work in self._work:
                    _current.submit(work)

            def discard(self) -> None:
                if self._stream is not None:
                    self._stream.recording = None
                self._work = None

        self.Graph = Graph

    def _kernel(self, name: str, function: Callable[..., Any]) -> Callable[..., None]:
        def launch(*arguments: Any) -> None:
            for argument in arguments:
                if isinstance(argument, np.ndarray):
                    raise TypeError(
                        "x: expected an array on the CUDA device, such as CuPy's. "
                        f"Received: {type(argument).__name__}."
                    )
            host = [a._host if isinstance(a, ndarray) else a for a in arguments]
            if _current.recording is None:
                self.launches.append(name)
                self.streams.append(_current)
            _current.submit(lambda: function(*host))

        return launch

    def device_count(self) -> int:
        return 0 if self.reason else 1

    def unavailable_reason(self) -> str:
        return self.reason

    def toolkit_version(self) -> str:
        return "13.0"

    def driver_version(self) -> str:
        return "13.1"

    def architectures(self) -> list[str]:
        return ["75", "80", "120"]

    def devices(self) -> list[dict[str, Any]]:
        return [
            {
                "name": "NVIDIA Fake",
                "compute_capability": "8.0",
                "multiprocessors": 108,
                "memory": 40 * 2**30,
            }
        ]

    def kernels(self) -> list[dict[str, Any]]:
        return [
            {
                "name": "relu",
                "threads": 256,
                "registers": 18,
                "shared_bytes": 1024,
                "local_bytes": 0,
                "occupancy": 0.75,
            }
        ]

    def math_mode(self) -> str:
        return self._mode

    def set_math_mode(self, mode: str) -> None:
        if mode not in ("fp32", "tf32"):
            raise ValueError(f"math_mode: expected 'fp32' or 'tf32'. Received: '{mode}'.")
        if mode == "tf32" and not self.tensor_cores:
            raise ValueError("math_mode: 'tf32' needs a device of compute capability 8.0 or later.")
        self._mode = mode


def _gather(source, indices, out, scale, bytes) -> None:
    assert source.dtype == (np.uint8 if bytes else np.float32) and indices.dtype == np.int64
    out[...] = source[np.clip(indices, 0, len(source) - 1)]
    out *= np.float32(scale)


def modules() -> tuple[types.ModuleType, FakeCuda]:
    """New modules `cupy` and `pyconv._cuda`, and nothing under way."""
    Stream.everything = [Stream.null]
    Stream.null.__init__(null=True)  # type: ignore[misc]
    Stream.everything = [Stream.null]
    cupy = types.ModuleType("cupy")
    for name in ("ndarray", "empty", "zeros", "asarray", "asnumpy"):
        setattr(cupy, name, globals()[name])
    cupy.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        Stream=Stream, get_current_stream=get_current_stream
    )
    Transfers.to_device = Transfers.to_host = 0
    return cupy, FakeCuda()
