"""Choices made from bytes, and values that nobody should pass.

The same bytes make the same choices; after their end every choice is the first, so that short
inputs are simple ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


class Source:
    """Makes choices from the bytes of one input."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def bytes(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        return self.bytes(len(self._data))

    def below(self, count: int) -> int:
        """An integer from 0 to below `count`."""
        width = 1 if count <= 256 else 2 if count <= 65536 else 8
        return int.from_bytes(self.bytes(width), "little") % count

    def flag(self, one_in: int = 2) -> bool:
        """True once in so many times."""
        return self.below(one_in) == one_in - 1

    def pick(self, values: Sequence[Any]) -> Any:
        return values[self.below(len(values))]

    def odd(self) -> Any:
        """A value that somebody may pass by mistake."""
        return self.pick(ODD)

    def array(self, *shape: int, dtype: Any = np.float32) -> np.ndarray:
        """An array of numbers that may be special."""
        size = math.prod(shape)
        if np.dtype(dtype) == np.float32:
            numbers = self.pick(NUMBERS)
            if size > _MANY:
                numbers = np.resize(numbers, size)
            return numbers[:size].reshape(shape).copy()
        some = np.frombuffer(self.bytes(8) or b"\0", np.uint8)
        return np.resize(some, shape).astype(dtype)

    def damaged(self, array: np.ndarray, others: Sequence[np.ndarray]) -> Any:
        """Something like the array, but for what makes it one that kernels take."""
        if not array.ndim or math.prod(max(1, size) for size in array.shape) > 2**20:
            return self.odd()  # it is damaged already, or there is nothing to damage
        try:
            return self.pick(DAMAGES)(self, array, others)
        except (TypeError, ValueError, IndexError):  # NumPy's, of what is damaged already
            return self.odd()


class Stubborn:
    """Is asked for a number or an array, and refuses."""

    def __index__(self) -> int:
        raise ValueError("no")

    def __float__(self) -> float:
        raise ValueError("no")

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise ValueError("no")

    def __len__(self) -> int:
        raise ValueError("no")


class Liar:
    """Pretends to be an array of another library."""

    shape = (1, 2, 3, 4)
    ndim = 4

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (2**40,), "typestr": "<f4", "data": (8, False)}

    def __dlpack__(self, *_: object, **__: object) -> object:
        return object()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


_f32 = np.float32
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 4, 7, 255, 256, 257),
    *(2**31 - 2, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64),
    *(10**30, -(10**30), 10**400, 0.0, -0.0, 0.5, 0.9999999999, 1.5, -1.5, 1e-45, 1e39, -1e308),
    *(float("nan"), float("inf"), float("-inf"), 1j),
    *("", "same", "valid", "relu", "softmax", "tanh", "adam", "x", "\ud800", "a\0b", "9" * 99),
    *(b"", b"same", (), (1,), (1, 1), (0, 0), (2, 3), (-1, 1), (2**31 - 1, 1), (1, 2**31 - 1)),
    *((1, 1, 1), (1, 1, 1, 1), ((1, 1), (1, 1)), ((0, 2**31 - 1), (0, 0)), (None, 3), ("1", 1)),
    *([], [1], [1, 1], [[1, 1]], [None], {}, {"a": 1}, {1}, range(3), object, object(), print),
    *(_f32(1), np.int64(1), np.int8(-1), np.uint64(2**64 - 1), np.bool_(True), np.str_("same")),
    *(np.array(1), np.array(1, _f32), np.array(2**64 - 1, np.uint64), np.zeros(0, _f32)),
    *(np.ones((1, 1, 1, 1), _f32), np.ones((2, 3), _f32), np.array([None]), np.array("x")),
    *(Stubborn(), Liar(), memoryview(b"1234"), ...),
]

_MANY = 2**16

# Repeated in advance, as arrays are most of what a run makes.
NUMBERS = [
    np.resize(np.array(values, _f32), _MANY)
    for values in (
        [1, -2, 0.5, 3, 0.25, -1, 2],
        [0],
        [1],
        [np.nan],
        [np.inf, 1, -np.inf, 0],
        [1e-40, -1e-45, 1e-38, 0],
        [3e38, -3e38, 1],
        [1, np.nan, 2, 3, 4],
        [-1],
        [1e4, -1e4, 88.8, -104],
    )
]


def _misaligned(_: Source, array: np.ndarray, __: object) -> np.ndarray:
    raw = np.zeros(array.nbytes + 1, np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape)


def _locked(_: Source, array: np.ndarray, __: object) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def _overlapping(source: Source, array: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """In the memory of another one."""
    other = source.pick(others)
    if other.nbytes < array.nbytes or not other.flags.c_contiguous:
        return other
    raw = other.reshape(-1).view(np.uint8)
    return raw[: array.nbytes].view(array.dtype).reshape(array.shape)


def _resized(source: Source, array: np.ndarray, _: object) -> np.ndarray:
    shape = list(array.shape) or [1]
    axis = source.below(len(shape))
    shape[axis] = max(0, shape[axis] + source.pick([-1, 1, -shape[axis], 8]))
    return np.ones(shape, array.dtype)


def _empty_and_huge(source: Source, array: np.ndarray, _: object) -> np.ndarray:
    """No elements, and axes whose product is at the limit of 63 bits."""
    axes = max(np.ndim(array), 1)
    shape = [0] + [source.pick([1, 2**20, 2**29, 2**31])] * (axes - 1)
    try:
        return np.empty(shape, array.dtype)
    except ValueError:
        return np.empty([0] * axes, array.dtype)


def _repeated(_: Source, array: np.ndarray, __: object) -> np.ndarray:
    """2^40 elements in the memory of one."""
    return np.lib.stride_tricks.as_strided(array.reshape(-1)[:1], (2**40,), (0,))


def _broadcast(_: Source, array: np.ndarray, __: object) -> np.ndarray:
    return np.broadcast_to(array[..., :1], array.shape) if array.ndim else array


def _converted(source: Source, array: np.ndarray, _: object) -> np.ndarray:
    dtypes = ["f8", "f2", "i4", "i8", "u1", "u8", "c8", "?", "O", "V4", "M8[s]", ">f4", "S4"]
    return np.zeros(array.shape, source.pick(dtypes))


DAMAGES = [
    lambda s, a, o: s.odd(),
    _converted,
    _resized,
    _misaligned,
    _locked,
    _overlapping,
    _broadcast,
    _repeated,
    _empty_and_huge,
    lambda s, a, o: a[::-1],
    lambda s, a, o: np.asfortranarray(a),
    lambda s, a, o: a.T,
    lambda s, a, o: np.repeat(a, 2, -1)[..., ::2],
    lambda s, a, o: a[None],
    lambda s, a, o: a[0] if a.ndim and len(a) else a,
    lambda s, a, o: a.tolist(),
    lambda s, a, o: a.view(np.matrix) if a.ndim == 2 else a.view(np.recarray),
    lambda s, a, o: np.ma.masked_array(a, True),
    lambda s, a, o: memoryview(a),
]
