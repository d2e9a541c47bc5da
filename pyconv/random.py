"""Seeds: one 64-bit seed for the process, and a stream of independent 64-bit seeds drawn from it.

Everything random in the library (initial weights, shuffling, dropout) asks :func:`next_seed` once
and computes the rest by a counter-based generator, so results depend on neither threads nor the
order of scheduling.
"""

from __future__ import annotations

import operator
import os
import random as _python_random

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

_seed: int | None = None
_count = 0


def set_random_seed(seed: int) -> None:
    """Makes everything random that follows repeatable.

    Seeds the library's own stream and, as Keras does, Python's ``random`` and ``numpy.random``,
    which programs commonly use to prepare their data.

    Args:
        seed: integer, 0 <= seed < 2**32.

    Raises:
        ValueError: if `seed` is out of range or not an integer.

    Example:
        >>> pyconv.utils.set_random_seed(1)
        >>> model = build_model()       # the same initial weights in every run
    """
    global _seed, _count
    value = integer_seed(seed, 32)
    _seed, _count = value, 0
    _python_random.seed(value)
    np.random.seed(value)


def next_seed() -> int:
    """Returns the next 64-bit seed of the stream: splitmix64 of (seed, count).

    Without :func:`set_random_seed` the stream starts from the operating system's entropy.
    """
    global _count
    seed, _ = begun_state()
    _count += 1
    return _splitmix64((_splitmix64(seed) + _count * _GOLDEN) & _MASK)


def begun_state() -> tuple[int, int]:
    """Returns :func:`get_state`; a stream without a seed is given one."""
    global _seed
    if _seed is None:
        _seed = int.from_bytes(os.urandom(8), "little")
    return _seed, _count


def get_state() -> tuple[int | None, int]:
    """Returns where the stream is, for :func:`set_state`: its seed and how many were drawn."""
    return _seed, _count


def set_state(seed: int | None, count: int) -> None:
    """Goes back, or on, to where :func:`get_state` was called."""
    global _seed, _count
    _seed, _count = None if seed is None else integer_seed(seed, 64), operator.index(count)


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
