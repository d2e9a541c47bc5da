"""Learning rates that change with every step: functions of the number of steps done.

The formulas are those of Keras's schedules of the same names. A saved model keeps the schedule; the
number of steps done is not saved, so a loaded model starts it anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyconv.floats import as_float
from pyconv.names import missing


class LearningRateSchedule:
    """Base class; one of your own defines `__call__` and, to be saved, `get_config`.

    Pass it as an optimizer's `learning_rate`.
    """

    def __call__(self, step: int) -> float:
        """Returns the learning rate of the step that follows `step` steps."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(step)")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as values that JSON can hold."""
        raise NotImplementedError(f"{type(self).__name__} must define get_config()")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LearningRateSchedule:
        """Creates a schedule from what :meth:`get_config` returned."""
        return cls(**config)

    def __repr__(self) -> str:
        return type(self).__name__


class _Decay(LearningRateSchedule):
    """What the schedules below share: where they start, and in how many steps they decay."""

    def __init__(self, initial_learning_rate: float, decay_steps: float, name: str | None) -> None:
        self.initial_learning_rate = _number(self, "initial_learning_rate", initial_learning_rate)
        self.decay_steps = _number(self, "decay_steps", decay_steps)
        if not self.decay_steps > 0:
            raise ValueError(
                f"{type(self).__name__}: decay_steps must be positive. "
                f"Received: decay_steps={decay_steps!r}"
            )
        self.name = name or type(self).__name__

    def get_config(self) -> dict[str, Any]:
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "decay_steps": self.decay_steps,
            "name": self.name,
        }

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


class ExponentialDecay(_Decay):
    """``initial_learning_rate * decay_rate ** (step / decay_steps)``.

    Args:
        initial_learning_rate: learning rate of the first step.
        decay_steps: number of steps in which it is multiplied by `decay_rate`.
        decay_rate: see above.
        staircase: whether ``step / decay_steps`` is rounded down.
        name: of no effect.

    Raises:
        ValueError: if an argument is not a number or out of range.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        decay_rate: float,
        staircase: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(initial_learning_rate, decay_steps, name)
        self.decay_rate = _number(self, "decay_rate", decay_rate)
        self.staircase = bool(staircase)

    def __call__(self, step: int) -> float:
        return self.initial_learning_rate * self.decay_rate ** self._periods(step)

    def _periods(self, step: int) -> float:
        periods = step / self.decay_steps
        return math.floor(periods) if self.staircase else periods

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"decay_rate": self.decay_rate, "staircase": self.staircase}


class InverseTimeDecay(ExponentialDecay):
    """``initial_learning_rate / (1 + decay_rate * step / decay_steps)``.

    Args and errors are those of :class:`ExponentialDecay`.
    """

    def __call__(self, step: int) -> float:
        return self.initial_learning_rate / (1 + self.decay_rate * self._periods(step))


class PolynomialDecay(_Decay):
    """``(initial_learning_rate - end) * (1 - step / decay_steps) ** power + end``.

    Args:
        initial_learning_rate: learning rate of the first step.
        decay_steps: number of steps until `end_learning_rate`, which stays.
        end_learning_rate: end in the formula.
        power: see above; 1 is a straight line.
        cycle: whether, instead of staying, `decay_steps` becomes its first multiple that is not
            below the step.
        name: of no effect.

    Raises:
        ValueError: if an argument is not a number or out of range.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
        cycle: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(initial_learning_rate, decay_steps, name)
        self.end_learning_rate = _number(self, "end_learning_rate", end_learning_rate)
        self.power = _number(self, "power", power)
        self.cycle = bool(cycle)

    def __call__(self, step: int) -> float:
        steps = self.decay_steps
        if self.cycle:
            steps *= max(1, math.ceil(step / steps))
        remaining = 1 - min(step, steps) / steps
        difference = self.initial_learning_rate - self.end_learning_rate
        return float(difference * remaining**self.power + self.end_learning_rate)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "end_learning_rate": self.end_learning_rate,
            "power": self.power,
            "cycle": self.cycle,
        }


class CosineDecay(_Decay):
    """Half a cosine, after an optional warmup along a straight line.

    Without warmup ``initial_learning_rate * ((1 - alpha) * c + alpha)`` with
    ``c = (1 + cos(pi * step / decay_steps)) / 2`` (Loshchilov and Hutter 2017, without restarts).
    With it the learning rate first goes from `initial_learning_rate` to `warmup_target` (Goyal et
    al. 2017), and the cosine starts from there.

    Args:
        initial_learning_rate: learning rate of the first step.
        decay_steps: length of the decay, warmup not included; the last value stays.
        alpha: the share of the learning rate that is left at the end.
        name: of no effect.
        warmup_target: learning rate after the warmup; None for no warmup.
        warmup_steps: length of the warmup.

    Raises:
        ValueError: if an argument is not a number or out of range.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        alpha: float = 0.0,
        name: str | None = None,
        warmup_target: float | None = None,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(initial_learning_rate, decay_steps, name)
        self.alpha = _number(self, "alpha", alpha)
        self.warmup_target = (
            None if warmup_target is None else _number(self, "warmup_target", warmup_target)
        )
        self.warmup_steps = _number(self, "warmup_steps", warmup_steps)

    def __call__(self, step: int) -> float:
        top = self.initial_learning_rate
        if self.warmup_target is not None:
            if step < self.warmup_steps:
                return top + (self.warmup_target - top) * step / self.warmup_steps
            top, step = self.warmup_target, step - int(self.warmup_steps)
        cosine = (1 + math.cos(math.pi * min(step / self.decay_steps, 1))) / 2
        return top * ((1 - self.alpha) * cosine + self.alpha)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "alpha": self.alpha,
            "warmup_target": self.warmup_target,
            "warmup_steps": self.warmup_steps,
        }


class PiecewiseConstantDecay(LearningRateSchedule):
    """``values[i]`` with the first i for which ``step <= boundaries[i]``, else the last value.

    Args:
        boundaries: numbers of steps, ascending.
        values: learning rates, one more than there are boundaries.
        name: of no effect.

    Raises:
        ValueError: if the lengths do not fit, the boundaries do not ascend, or one is no number.

    Example:
        >>> PiecewiseConstantDecay([1000, 2000], [0.1, 0.01, 0.001])
    """

    def __init__(
        self, boundaries: Sequence[float], values: Sequence[float], name: str | None = None
    ) -> None:
        self.boundaries = [_number(self, "boundaries", boundary) for boundary in boundaries]
        self.values = [_number(self, "values", value) for value in values]
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                "PiecewiseConstantDecay: there must be one more value than boundaries. Received: "
                f"boundaries={list(boundaries)}, values={list(values)}"
            )
        if sorted(self.boundaries) != self.boundaries:
            raise ValueError(
                "PiecewiseConstantDecay: the boundaries must ascend. Received: "
                f"boundaries={list(boundaries)}"
            )
        self.name = name or type(self).__name__

    def __call__(self, step: int) -> float:
        for boundary, value in zip(self.boundaries, self.values):
            if step <= boundary:
                return value
        return self.values[-1]

    def get_config(self) -> dict[str, Any]:
        return {"boundaries": self.boundaries, "values": self.values, "name": self.name}


_SCHEDULES: dict[str, type[LearningRateSchedule]] = {
    schedule.__name__: schedule
    for schedule in (
        CosineDecay,
        ExponentialDecay,
        InverseTimeDecay,
        PiecewiseConstantDecay,
        PolynomialDecay,
    )
}


def get(identifier: LearningRateSchedule | dict[str, Any]) -> LearningRateSchedule:
    """Returns the schedule for what :func:`serialize` returned; a schedule as it is.

    Raises:
        ValueError: if it is unknown.
    """
    if isinstance(identifier, LearningRateSchedule):
        return identifier
    name = identifier.get("class_name")
    if not isinstance(name, str) or name not in _SCHEDULES:
        raise ValueError(
            f"Unknown schedule. Expected one of {', '.join(sorted(_SCHEDULES))}, or an object of a "
            f"class derived from LearningRateSchedule. Received: {identifier!r}"
        )
    return _SCHEDULES[name].from_config(identifier["config"])


deserialize = get


def serialize(schedule: LearningRateSchedule) -> dict[str, Any]:
    """Returns ``{"class_name": ..., "config": ...}``, which JSON can hold."""
    return {"class_name": type(schedule).__name__, "config": schedule.get_config()}


def _number(owner: LearningRateSchedule, argument: str, value: Any) -> float:
    try:
        number = as_float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, (str, bool)) or not math.isfinite(number):
        raise ValueError(
            f"{type(owner).__name__}: {argument} must be a finite number. Received: {value!r}"
        )
    return number


if not TYPE_CHECKING:  # a type checker shall report what there is not

    def __getattr__(name: str) -> Any:
        raise missing(__name__, name, (*_SCHEDULES, "LearningRateSchedule"))
