"""Initial values of weights: functions of (shape, rng) that return float32 arrays."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Initializer = Callable[[tuple[int, ...], np.random.Generator], np.ndarray]

# The standard deviation of a standard normal distribution cut off at two standard deviations.
_TRUNCATED_STDDEV = 0.87962566103423978


def zeros(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """All zeros."""
    return np.zeros(shape, np.float32)


def ones(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """All ones."""
    return np.ones(shape, np.float32)


def glorot_uniform(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    fan_in, fan_out = _fans(shape)
    return _uniform(shape, math.sqrt(6.0 / (fan_in + fan_out)), rng)


def he_uniform(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Uniform in +-sqrt(6 / fan_in) (He et al. 2015)."""
    return _uniform(shape, math.sqrt(6.0 / _fans(shape)[0]), rng)


def he_normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Normal, sigma = sqrt(2 / fan_in), cut off at two standard deviations (He et al. 2015)."""
    values = rng.standard_normal(shape, dtype=np.float32)
    outside = np.abs(values) > 2
    while outside.any():
        values[outside] = rng.standard_normal(int(outside.sum()), dtype=np.float32)
        outside = np.abs(values) > 2
    # Cutting the tails off makes the distribution narrower; the division restores its width.
    return values * np.float32(math.sqrt(2.0 / _fans(shape)[0]) / _TRUNCATED_STDDEV)


_INITIALIZERS: dict[str, Initializer] = {
    function.__name__: function for function in (glorot_uniform, he_normal, he_uniform, ones, zeros)
}


def get(identifier: str | Initializer) -> Initializer:
    """Returns the initializer of that name; a function is returned as it is.

    Raises:
        ValueError: if the name is unknown.
    """
    if callable(identifier):
        return identifier
    if identifier in _INITIALIZERS:
        return _INITIALIZERS[identifier]
    raise ValueError(
        "Unknown initializer. Expected a function of (shape, rng) or one of "
        f"{', '.join(sorted(_INITIALIZERS))}. "
        f"Received: {identifier!r}"
    )


def serialize(initializer: Initializer) -> str:
    """Returns the name under which :func:`get` finds the initializer.

    Raises:
        ValueError: if it is a function of the user's own.
    """
    for name, function in _INITIALIZERS.items():
        if function is initializer:
            return name
    raise ValueError(
        f"An initializer of your own cannot be written to a configuration. Use one of "
        f"{', '.join(sorted(_INITIALIZERS))}, or set the weights with set_weights(). Received: "
        f"{initializer!r}"
    )


def _uniform(shape: tuple[int, ...], limit: float, rng: np.random.Generator) -> np.ndarray:
    return (2 * rng.random(shape, dtype=np.float32) - 1) * np.float32(limit)


def _fans(shape: tuple[int, ...]) -> tuple[float, float]:
    """Inputs and outputs of one unit: (I, U) for dense weights, (KH*KW*C, KH*KW*F) for HWIO."""
    if len(shape) < 2:
        size = math.prod(shape)
        return size, size
    receptive_field = math.prod(shape[:-2])
    return receptive_field * shape[-2], receptive_field * shape[-1]
