"""Initial values of weights: functions of (shape, rng) that return float32 arrays.

Names and distributions are Keras's. The functions draw with the default settings; the classes, such
as ``RandomNormal(stddev=0.01)``, have settings, and their objects are such functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pyconv.floats import as_float

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
    return _uniform(shape, math.sqrt(6.0 / sum(_fans(shape))), rng)


def glorot_normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Normal, sigma = sqrt(2 / (fan_in + fan_out)), cut off at two standard deviations."""
    return _normal_of_variance(shape, 2.0 / sum(_fans(shape)), rng)


def he_uniform(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Uniform in +-sqrt(6 / fan_in) (He et al. 2015)."""
    return _uniform(shape, math.sqrt(6.0 / _fans(shape)[0]), rng)


def he_normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Normal, sigma = sqrt(2 / fan_in), cut off at two standard deviations (He et al. 2015)."""
    return _normal_of_variance(shape, 2.0 / _fans(shape)[0], rng)


def lecun_uniform(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Uniform in +-sqrt(3 / fan_in) (LeCun et al. 1998)."""
    return _uniform(shape, math.sqrt(3.0 / _fans(shape)[0]), rng)


def lecun_normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Normal, sigma = sqrt(1 / fan_in), cut off at two standard deviations."""
    return _normal_of_variance(shape, 1.0 / _fans(shape)[0], rng)


class _Configured:
    """An initializer with settings, which are numbers and its attributes."""

    def __init__(self, unsupported: dict[str, Any], **settings: float) -> None:
        for argument, value in unsupported.items():
            if argument != "seed":
                raise TypeError(
                    f"{type(self).__name__} has no argument {argument!r}. Received: "
                    f"{argument}={value!r}"
                )
            if value is not None:
                raise ValueError(
                    f"{type(self).__name__} does not support a seed of its own. Leave it out, and "
                    f"call pyconv.utils.set_random_seed(seed). Received: seed={value!r}"
                )
        for argument, value in settings.items():
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
                raise ValueError(
                    f"{type(self).__name__}: {argument} must be a number. Received: "
                    f"{argument}={value!r}"
                )
            if not math.isfinite(as_float(value)):
                raise ValueError(
                    f"{type(self).__name__}: {argument} must be finite. Received: "
                    f"{argument}={value!r}"
                )
            setattr(self, argument, float(value))
        self._settings = {argument: float(value) for argument, value in settings.items()}

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        raise NotImplementedError

    def get_config(self) -> dict[str, float]:
        """Returns the constructor's arguments as values that JSON can hold."""
        return dict(self._settings)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._settings.items())
        return f"{type(self).__name__}({arguments})"


class Constant(_Configured):
    """The same value everywhere.

    Args:
        value: the value.

    Raises:
        ValueError: if it is not a finite number.
    """

    value: float

    def __init__(self, value: float = 0.0) -> None:
        super().__init__({}, value=value)

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return np.full(shape, self.value, np.float32)


class RandomNormal(_Configured):
    """A normal distribution.

    Args:
        mean, stddev: its mean and standard deviation.

    Raises:
        ValueError: if one is not a finite number, or a `seed` is given.
    """

    mean: float
    stddev: float

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, **unsupported: Any) -> None:
        super().__init__(unsupported, mean=mean, stddev=stddev)

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        values = rng.standard_normal(shape, dtype=np.float32)
        return values * np.float32(self.stddev) + np.float32(self.mean)


class TruncatedNormal(RandomNormal):
    """A normal distribution cut off at two standard deviations, which makes it narrower.

    Args and errors are those of :class:`RandomNormal`.
    """

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return _truncated(shape, rng) * np.float32(self.stddev) + np.float32(self.mean)


class RandomUniform(_Configured):
    """A uniform distribution.

    Args:
        minval, maxval: its bounds.

    Raises:
        ValueError: if one is not a finite number, or a `seed` is given.
    """

    minval: float
    maxval: float

    def __init__(self, minval: float = -0.05, maxval: float = 0.05, **unsupported: Any) -> None:
        super().__init__(unsupported, minval=minval, maxval=maxval)

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        values = rng.random(shape, dtype=np.float32)
        return values * np.float32(self.maxval - self.minval) + np.float32(self.minval)


class Orthogonal(_Configured):
    """A random orthogonal matrix (Saxe et al. 2014).

    Its rows are all axes of the shape but the last, its columns the last; if it is not square, the
    fewer of rows and columns are orthonormal.

    Args:
        gain: the matrix is multiplied by that.

    Raises:
        ValueError: if it is not a finite number, or if the shape has fewer than two axes.
    """

    gain: float

    def __init__(self, gain: float = 1.0, **unsupported: Any) -> None:
        super().__init__(unsupported, gain=gain)

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        if len(shape) < 2:
            raise ValueError(
                "orthogonal needs a shape of at least two axes; use zeros for a bias. "
                f"Received: shape={shape}"
            )
        rows, columns = math.prod(shape[:-1]), shape[-1]
        q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        # Which signs a decomposition has is its own affair; with these all matrices are as likely
        # as each other (Mezzadri 2007).
        q *= np.where(np.diag(r) < 0, -1, 1)
        matrix = q if rows >= columns else q.T
        return (self.gain * matrix).reshape(shape).astype(np.float32)


_CLASSES: dict[str, type[_Configured]] = {
    initializer.__name__: initializer
    for initializer in (Constant, Orthogonal, RandomNormal, RandomUniform, TruncatedNormal)
}
_INITIALIZERS: dict[str, Initializer] = {
    **{
        function.__name__: function
        for function in (
            glorot_normal,
            glorot_uniform,
            he_normal,
            he_uniform,
            lecun_normal,
            lecun_uniform,
            ones,
            zeros,
        )
    },
    "constant": Constant(),
    "orthogonal": Orthogonal(),
    "random_normal": RandomNormal(),
    "random_uniform": RandomUniform(),
    "truncated_normal": TruncatedNormal(),
}
# Keras's other spellings, and what Keras has beside.
_OTHER_NAMES = {"normal": "random_normal", "uniform": "random_uniform", "one": "ones"}
_OTHER_NAMES["zero"] = "zeros"
_NOT_SUPPORTED = ("identity", "variance_scaling", "stft")


def get(identifier: str | Initializer | dict[str, Any]) -> Initializer:
    """Returns the initializer of that name, e.g. "he_normal" or "HeNormal".

    What :func:`serialize` returned gives the initializer again; a function is returned as it is.

    Raises:
        ValueError: if the name is unknown, or one of Keras's that is not supported.
    """
    if callable(identifier):
        return identifier
    if isinstance(identifier, dict) and set(identifier) == {"class_name", "config"}:
        name, config = identifier["class_name"], identifier["config"]
        if isinstance(name, str) and name in _CLASSES:
            return _CLASSES[name](**config)
    if isinstance(identifier, str):
        # RandomNormal and random_normal are the same.
        name = "".join(f"_{c.lower()}" if c.isupper() else c for c in identifier).lstrip("_")
        name = _OTHER_NAMES.get(name, name)
        if name in _INITIALIZERS:
            return _INITIALIZERS[name]
        if name in _NOT_SUPPORTED:
            raise ValueError(
                f"The initializer {identifier!r} of Keras is not supported. Use one of "
                f"{', '.join(sorted(_INITIALIZERS))}, or a function of (shape, rng)."
            )
    raise ValueError(
        "Unknown initializer. Expected a function of (shape, rng) or one of "
        f"{', '.join(sorted(_INITIALIZERS))}. "
        f"Received: {identifier!r}"
    )


def serialize(initializer: Initializer) -> str | dict[str, Any]:
    """Returns what :func:`get` makes the initializer of: its name, or class and settings.

    Raises:
        ValueError: if it is a function of the user's own.
    """
    for name, function in _INITIALIZERS.items():
        if function is initializer:
            return name
    if type(initializer) in _CLASSES.values():
        assert isinstance(initializer, _Configured)
        return {"class_name": type(initializer).__name__, "config": initializer.get_config()}
    raise ValueError(
        f"An initializer of your own cannot be written to a configuration. Use one of "
        f"{', '.join(sorted(_INITIALIZERS))}, or set the weights with set_weights(). Received: "
        f"{initializer!r}"
    )


def _uniform(shape: tuple[int, ...], limit: float, rng: np.random.Generator) -> np.ndarray:
    return (2 * rng.random(shape, dtype=np.float32) - 1) * np.float32(limit)


def _truncated(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A standard normal distribution without what is beyond +-2."""
    values = rng.standard_normal(shape, dtype=np.float32)
    outside = np.abs(values) > 2
    while outside.any():
        values[outside] = rng.standard_normal(int(outside.sum()), dtype=np.float32)
        outside = np.abs(values) > 2
    return values


def _normal_of_variance(
    shape: tuple[int, ...], variance: float, rng: np.random.Generator
) -> np.ndarray:
    # Cutting the tails off makes the distribution narrower; the division restores its width.
    return _truncated(shape, rng) * np.float32(math.sqrt(variance) / _TRUNCATED_STDDEV)


def _fans(shape: tuple[int, ...]) -> tuple[float, float]:
    """Inputs and outputs of one unit: (I, U) for dense weights, (KH*KW*C, KH*KW*F) for HWIO."""
    if len(shape) < 2:
        size = math.prod(shape)
        return size, size
    receptive_field = math.prod(shape[:-2])
    return receptive_field * shape[-2], receptive_field * shape[-1]
