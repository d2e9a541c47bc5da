"""Optimizers: how gradients change the weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pyconv import backend, kernels
from pyconv.floats import as_float
from pyconv.layers.base import Parameter
from pyconv.names import missing
from pyconv.optimizers import schedules

Rate = float | schedules.LearningRateSchedule | dict[str, Any]


class Optimizer:
    """Base class of the optimizers.

    Args:
        learning_rate: size of a step; may be set at any time, e.g. by a callback. Or one of
            :mod:`pyconv.optimizers.schedules`, which gives it for every step.

    Attributes:
        learning_rate: the size of the next step.
        iterations: number of steps made.
        slots: what the optimizer remembers, by name: flat arrays of the layout of the model's
            parameters, on the device of the last step; empty before the first.
    """

    slot_names: tuple[str, ...] = ()

    def __init__(self, learning_rate: Rate, **unsupported: Any) -> None:
        for argument, value in unsupported.items():
            hint = "Use learning_rate." if argument == "lr" else "Leave it out."
            raise ValueError(
                f"{type(self).__name__} does not support {argument}. {hint} Received: "
                f"{argument}={value!r}"
            )
        self._learning_rate: float | schedules.LearningRateSchedule = 0.0
        self.iterations = 0
        # mypy does not know setters that take more than their getter returns.
        self._set_learning_rate(learning_rate)
        self.slots: dict[str, np.ndarray] = {}

    @property
    def learning_rate(self) -> float:
        if isinstance(self._learning_rate, schedules.LearningRateSchedule):
            return _number("learning_rate", self._learning_rate(self.iterations), 0, math.inf)
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._set_learning_rate(value)

    def _set_learning_rate(self, value: Rate) -> None:
        if isinstance(value, (dict, schedules.LearningRateSchedule)):
            self._learning_rate = schedules.get(value)
            return
        if isinstance(self._learning_rate, schedules.LearningRateSchedule):
            raise TypeError(
                f"{type(self).__name__}: the learning rate follows {self._learning_rate!r}, so it "
                "cannot be set. Make the optimizer with a number, or set another schedule. "
                f"Received: learning_rate={value!r}"
            )
        self._learning_rate = _number("learning_rate", value, 0, math.inf)

    def apply(self, weights: np.ndarray, gradients: np.ndarray) -> None:
        """Changes `weights` in place by one step.

        Args:
            weights, gradients: float32 arrays of equal shape, C-contiguous.

        Raises:
            ValueError: if the optimizer has been working on weights of another shape.
        """
        self.prepare(weights)
        self.step(weights, gradients, self.learning_rate, self.iterations + 1)
        Parameter.written()
        self.iterations += 1

    def prepare(self, weights: np.ndarray) -> None:
        """Makes `slots` for the weights, on the device in use, or moves them there.

        Raises:
            ValueError: if the optimizer has been working on weights of another shape.
        """
        device = backend.current()
        if not self.slots:
            self.slots = {
                name: device.zeros(weights.size).reshape(weights.shape) for name in self.slot_names
            }
        for name, slot in self.slots.items():
            if slot.shape != weights.shape:
                raise ValueError(
                    f"{type(self).__name__}: this optimizer belongs to another model, or the "
                    "model has changed. "
                    f"Compile again with a new optimizer. Received: {weights.size} weights, "
                    f"expected {slot.size}"
                )
            if not device.is_array(slot):
                self.slots[name] = device.to_device(backend.to_host(slot))

    def step(
        self,
        weights: np.ndarray,
        gradients: np.ndarray,
        learning_rate: kernels.Rate,
        iteration: kernels.Counter,
    ) -> None:
        """Changes `weights` and `slots` in place and nothing else: a step that can be replayed.

        Args:
            weights, gradients: as for :meth:`apply`.
            learning_rate, iteration: numbers, or arrays of one number on the device. Iterations
                count from 1.
        """
        raise NotImplementedError

    @property
    def replayed_with(self) -> tuple[Any, ...] | None:
        """What a replayed step has for good; None if steps of this class cannot be replayed."""
        # A class of the user's own may do in `step` what is not on the device.
        if type(self).step not in (SGD.step, RMSprop.step, Adam.step):
            return None
        config = self.get_config()
        del config["learning_rate"]
        # By identity: a slot that was replaced lies elsewhere.
        return (*config.values(), *map(id, self.slots.values()))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as values that JSON can hold."""
        rate = self._learning_rate
        if isinstance(rate, schedules.LearningRateSchedule):
            return {"learning_rate": schedules.serialize(rate)}
        return {"learning_rate": rate}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


class SGD(Optimizer):
    """Gradient descent: ``w -= learning_rate * g``, or with momentum (as in Keras).

    Args:
        learning_rate: size of a step.
        momentum: 0 <= momentum < 1: ``v = momentum * v - learning_rate * g; w += v``.
        nesterov: whether ``w += momentum * v - learning_rate * g`` instead.

    Raises:
        ValueError: if an argument is out of range or not supported.
    """

    def __init__(
        self,
        learning_rate: Rate = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        **unsupported: Any,
    ) -> None:
        super().__init__(learning_rate, **unsupported)
        self.momentum = _number("momentum", momentum, 0, 1)
        self.nesterov = bool(nesterov)
        self.slot_names = ("velocity",) if self.momentum else ()

    def step(
        self,
        weights: np.ndarray,
        gradients: np.ndarray,
        learning_rate: kernels.Rate,
        iteration: kernels.Counter,
    ) -> None:
        kernels.sgd_step(
            weights,
            gradients,
            self.slots.get("velocity"),
            learning_rate,
            self.momentum,
            self.nesterov,
        )

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"momentum": self.momentum, "nesterov": self.nesterov}


class RMSprop(Optimizer):
    """RMSprop (Hinton 2012), with Keras's formula.

    ``v = rho * v + (1 - rho) * g**2; w -= learning_rate * g / sqrt(v + epsilon)``

    Args:
        learning_rate: size of a step.
        rho: 0 <= rho < 1, how long squared gradients are remembered.
        momentum: not supported; must be 0.
        epsilon: keeps the division finite.

    Raises:
        ValueError: if an argument is out of range or not supported.
    """

    slot_names = ("velocity",)

    def __init__(
        self,
        learning_rate: Rate = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        **unsupported: Any,
    ) -> None:
        super().__init__(learning_rate, **unsupported)
        if momentum != 0:
            raise ValueError(
                f"RMSprop does not support momentum other than 0.0. Received: momentum={momentum!r}"
            )
        self.rho = _number("rho", rho, 0, 1)
        self.epsilon = _number("epsilon", epsilon, 0, math.inf)

    def step(
        self,
        weights: np.ndarray,
        gradients: np.ndarray,
        learning_rate: kernels.Rate,
        iteration: kernels.Counter,
    ) -> None:
        kernels.rmsprop_step(
            weights, gradients, self.slots["velocity"], learning_rate, self.rho, self.epsilon
        )

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"rho": self.rho, "epsilon": self.epsilon}


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), with Keras's formula.

    ``m += (g - m) * (1 - beta_1); v += (g**2 - v) * (1 - beta_2)`` and then
    ``w -= alpha * m / (sqrt(v) + epsilon)``
    with ``alpha = learning_rate * sqrt(1 - beta_2**t) / (1 - beta_1**t)`` in step t = 1, 2, ...

    Args:
        learning_rate: size of a step.
        beta_1, beta_2: 0 <= beta < 1, how long gradients and squared gradients are remembered.
        epsilon: keeps the division finite.

    Raises:
        ValueError: if an argument is out of range or not supported.
    """

    slot_names = ("m", "v")

    def __init__(
        self,
        learning_rate: Rate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **unsupported: Any,
    ) -> None:
        super().__init__(learning_rate, **unsupported)
        self.beta_1 = _number("beta_1", beta_1, 0, 1)
        self.beta_2 = _number("beta_2", beta_2, 0, 1)
        self.epsilon = _number("epsilon", epsilon, 0, math.inf)

    def step(
        self,
        weights: np.ndarray,
        gradients: np.ndarray,
        learning_rate: kernels.Rate,
        iteration: kernels.Counter,
    ) -> None:
        kernels.adam_step(
            weights,
            gradients,
            self.slots["m"],
            self.slots["v"],
            iteration,
            learning_rate,
            self.beta_1,
            self.beta_2,
            self.epsilon,
        )

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


_OPTIMIZERS: dict[str, type[Optimizer]] = {
    optimizer.__name__.lower(): optimizer for optimizer in (Adam, RMSprop, SGD)
}


def get(identifier: str | Optimizer | dict[str, Any]) -> Optimizer:
    """Returns an optimizer for a name or what :func:`serialize` returned; an optimizer as it is.

    Raises:
        ValueError: if it is unknown.
    """
    if isinstance(identifier, Optimizer):
        return identifier
    name, config = identifier, {}
    if isinstance(identifier, dict):
        name, config = identifier["class_name"], identifier["config"]
    if isinstance(name, str) and name.lower() in _OPTIMIZERS:
        return _OPTIMIZERS[name.lower()](**config)
    raise ValueError(
        f"Unknown optimizer. Expected one of {', '.join(sorted(_OPTIMIZERS))}, or an object of a "
        "class derived "
        f"from Optimizer. Received: {identifier!r}"
    )


def serialize(optimizer: Optimizer) -> dict[str, Any]:
    """Returns ``{"class_name": ..., "config": ...}``, which JSON can hold."""
    return {"class_name": type(optimizer).__name__, "config": optimizer.get_config()}


def _number(argument: str, value: float, low: float, high: float) -> float:
    """A number with low <= value < high."""
    if isinstance(value, (int, float, np.integer, np.floating)):
        number = as_float(value)
        if low <= number < high:
            return number
    raise ValueError(
        f"{argument} must be a number in {low} <= {argument} < {high}. Received: "
        f"{argument}={value!r}"
    )


if not TYPE_CHECKING:  # a type checker shall report what there is not

    def __getattr__(name: str) -> Any:
        raise missing(
            __name__, name, (*(cls.__name__ for cls in _OPTIMIZERS.values()), "Optimizer")
        )
