"""The kernels of a CUDA device, called with NumPy's arrays: for tests that run on every target."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pyconv import backend, kernels

BAND = 256  # bytes; a store of any vector width past either end lands in a band
PATTERN = 0xA5


def device_reason() -> str:
    """Why there is no CUDA device; empty if there is one."""
    return backend.cuda_unavailable_reason()


@contextlib.contextmanager
def host_arrays() -> Iterator[None]:
    """Within it, `pyconv.kernels` takes NumPy's arrays on the device "cuda".

    Each call copies them to the device, as far past a multiple of 64 bytes as they lie in host
    memory and between guard bands, and copies back those that may be written.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in kernels.__all__:
            kernel = getattr(kernels, name)
            if callable(kernel) and name not in ("argmax_dtype", "window_output_size"):
                patch.setattr(kernels, name, _with_copies(kernel))
        yield


def _with_copies(kernel: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(kernel)
    def call(*arguments: Any, **named: Any) -> Any:
        if backend.current().on_host:
            return kernel(*arguments, **named)
        copies: dict[int, _Copy] = {}

        def there(value: Any) -> Any:
            if not isinstance(value, np.ndarray):
                return value
            return copies.setdefault(id(value), _Copy(value)).array

        def back(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(back, value))
            for copy in copies.values():
                if value is copy.array:
                    return copy.host
            return backend.to_host(value) if hasattr(value, "get") else value

        with backend.current().running():
            result = kernel(*map(there, arguments), **{k: there(v) for k, v in named.items()})
        if not copies:
            return result  # a kernel that another one has called
        for copy in copies.values():
            copy.finish()
        return back(result)

    return call


class _Copy:
    """An array's copy on the device."""

    def __init__(self, host: np.ndarray) -> None:
        xp = backend.current().xp
        self.host = host
        raw = xp.empty(host.nbytes + 2 * BAND + 64, np.uint8)
        start = BAND + (host.ctypes.data - raw.data.ptr - BAND) % 64
        self._bands = slice(0, start), slice(start + host.nbytes, raw.size)
        before = np.full(raw.size, PATTERN, np.uint8)
        before[start : start + host.nbytes] = np.ascontiguousarray(host).reshape(-1).view(np.uint8)
        self._raw, self._before = raw, before
        raw.set(before)
        inside = raw[start : start + host.nbytes].view(host.dtype)
        self.array = inside.reshape(host.shape)
        if not host.flags.c_contiguous:
            # What the kernels refuse must look on the device as it did on the host.
            self.array = self.array.T.copy().T if host.ndim > 1 else self.array.repeat(2)[::2]

    def finish(self) -> None:
        """Looks at the guard bands and copies results back."""
        after = backend.to_host(self._raw)
        for band in self._bands:
            assert (after[band] == PATTERN).all(), "wrote outside of an array on the device"
        if self.host.flags.writeable:
            inside = after[self._bands[0].stop : self._bands[1].start]
            self.host[...] = inside.view(self.host.dtype).reshape(self.host.shape)
        else:
            assert (after == self._before).all(), "wrote to an input on the device"
