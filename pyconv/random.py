"""Seeds: one 64-bit seed for the process, and a stream of independent 64-bit seeds drawn from it.

Everything random in the library (initial weights, shuffling, dropout) asks :func:`next_seed` once
and computes the rest by a counter-based generator, so results depend on neither threads nor the
order of scheduling. A thread that sets a seed has a stream of its own from then on: what it does is
repeatable whatever other threads draw.
"""

from __future__ import annotations

import operator
import os
import random as _python_random
import threading

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class _Stream:
    """A stream of seeds: the seed behind it, None until it is needed, and how many were drawn."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed, self.count = seed, 0


_stream = _Stream()  # of threads that have set no seed: the last one that was set
_of_thread = threading.local()
_lock = threading.Lock()


def _forget_lock() -> None:
    """In a forked child, where a thread that held it does not exist."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


def _current() -> _Stream:
    stream: _Stream = getattr(_of_thread, "stream", _stream)
    return stream


def set_random_seed(seed: int) -> None:
    """Makes everything random that follows repeatable.

    Seeds the library's own stream and, as Keras does, Python's ``random`` and ``numpy.random``,
    which programs commonly use to prepare their data. In a program whose threads train models at
    the same time, each thread sets its own, and draws from that alone; threads that have set none
    draw from the one that was set last.

    Args:
        seed: integer, 0 <= seed < 2**32.

    Raises:
        ValueError: if `seed` is out of range or not an integer.

    Example:
        >>> pyconv.utils.set_random_seed(1)
        >>> model = build_model()       # the same initial weights in every run
    """
    global _stream
    value = integer_seed(seed, 32)
    _stream = _of_thread.stream = _Stream(value)
    _python_random.seed(value)
    np.random.seed(value)


def next_seed() -> int:
    """Returns the next 64-bit seed of the stream: splitmix64 of (seed, count).

    Without :func:`set_random_seed` the stream starts from the operating system's entropy.
    """
    stream = _current()
    with _lock:
        seed, _ = _begun(stream)
        stream.count += 1
        count = stream.count
    return _splitmix64((_splitmix64(seed) + count * _GOLDEN) & _MASK)


def begun_state() -> tuple[int, int]:
    """Returns :func:`get_state`; a stream without a seed is given one."""
    with _lock:
        return _begun(_current())


def _begun(stream: _Stream) -> tuple[int, int]:
    if stream.seed is None:
        stream.seed = int.from_bytes(os.urandom(8), "little")
    return stream.seed, stream.count


def get_state() -> tuple[int | None, int]:
    """Returns where the stream is, for :func:`set_state`: its seed and how many were drawn."""
    stream = _current()
    return stream.seed, stream.count


def set_state(seed: int | None, count: int) -> None:
    """Goes back, or on, to where :func:`get_state` was called."""
    stream = _current()
    seed, count = None if seed is None else integer_seed(seed, 64), operator.index(count)
    stream.seed, stream.count = seed, count


def generator(key: int, stream: int = 0) -> np.random.Generator:
    """Returns NumPy's Philox generator number `stream` of the seed `key` (both 64-bit)."""
    return np.random.Generator(np.random.Philox(key=key | stream << 64))


def integer_seed(seed: int, bits: int) -> int:
    """`seed` as a Python integer of at most `bits` bits, or ValueError."""
    try:
        value = operator.index(seed)
    except TypeError:
        raise ValueError(f"A seed must be an integer. Received: {seed!r}") from None
    if not 0 <= value < 1 << bits:
        raise ValueError(f"A seed must be in 0 <= seed < 2**{bits}. Received: {seed!r}")
    return value


def _splitmix64(state: int) -> int:
    """One output of the splitmix64 generator (Steele, Lea, Flood 2014) for the given state."""
    z = (state + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
