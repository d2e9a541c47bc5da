"""Callbacks that act on training: stop it, or change its learning rate."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from pyconv.callbacks.base import Callback, Logs

_MODES = ("auto", "min", "max")
# What the name of a metric ends in if less, or more, of it is better.
_BETTER_IF_LESS = ("loss", "error", "crossentropy", "divergence", "mse", "mae")
_BETTER_IF_MORE = ("acc", "accuracy", "precision", "recall", "auc", "score", "similarity")


class Monitor:
    """Compares the values of one of the logs with the best so far.

    Args:
        owner: the callback's name, for errors.
        name: which value, e.g. "val_loss".
        mode: "min" if less is better, "max" if more is; "auto" decides that by the name.
        min_delta: changes of not more than that count for nothing.

    Raises:
        ValueError: if `mode` is unknown, or if the name does not tell what is better.
    """

    def __init__(self, owner: str, name: str, mode: str = "auto", min_delta: float = 0.0) -> None:
        if mode not in _MODES:
            raise ValueError(
                f"{owner}: mode must be one of {', '.join(_MODES)}. Received: mode={mode!r}"
            )
        self._owner, self._name = owner, name
        if mode == "auto":
            if name.endswith(_BETTER_IF_LESS):
                mode = "min"
            elif name.endswith(_BETTER_IF_MORE):
                mode = "max"
            else:
                raise ValueError(
                    f"{owner}: whether less or more of {name!r} is better cannot be told from its "
                    "name. Pass mode='min' or mode='max'. Received: mode='auto'"
                )
        self._sign = 1 if mode == "max" else -1
        self._min_delta = abs(min_delta)

    def value(self, logs: dict[str, Any] | None) -> float | None:
        """The value; None, with a warning, if the logs lack it."""
        known = Logs(logs or {})
        if self._name in known:
            return float(known[self._name])
        warnings.warn(
            f"{self._owner} monitors {self._name!r}, which there is not. Known: "
            f"{', '.join(known) or 'nothing'}. Validation values need validation_data.",
            stacklevel=3,
        )
        return None

    def improves(self, value: float, best: float | None) -> bool:
        """Whether `value` is better than `best` by more than `min_delta`; NaN never is."""
        if best is None:
            return not math.isnan(value)
        return self._sign * (value - best) > self._min_delta


class EarlyStopping(Callback):
    """Stops training when a value has not improved for a number of epochs.

    Args:
        monitor: name of the value.
        min_delta: changes of not more than that are no improvement.
        patience: number of epochs without improvement after which training stops.
        verbose: 1 says when it stops.
        mode: "min", "max", or "auto", which decides by the name.
        baseline: the value must be better than that as well to count; None for no such bound.
        restore_best_weights: whether the weights of the best epoch are put back at the end, also
            when training ended otherwise.
        start_from_epoch: epochs before this one, counted from 0, are ignored.

    Attributes:
        stopped_epoch: the epoch, from 0, after which training was stopped; 0 if it was not.
        best_epoch, best: the best epoch, from 0, and its value.

    Raises:
        ValueError: if `mode` is unknown, or "auto" cannot decide.

    Example:
        >>> model.fit(x, y, epochs=100, validation_split=0.1,
        ...           callbacks=[EarlyStopping(patience=5, restore_best_weights=True)])
    """

    number_names = ("wait", "stopped_epoch", "best_epoch", "best")
    state_names = (*number_names, "best_weights")

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        self._monitor = Monitor("EarlyStopping", monitor, mode, min_delta)
        self.monitor, self.patience, self.verbose = monitor, patience, verbose
        self.baseline, self.restore_best_weights = baseline, restore_best_weights
        self.start_from_epoch = start_from_epoch
        self._start()

    def _start(self) -> None:
        self.wait = self.stopped_epoch = self.best_epoch = 0
        self.best: float | None = None
        self.best_weights: list[np.ndarray] | None = None

    def set_state(self, state: dict[str, Any]) -> None:
        weights = state["best_weights"]
        if weights is not None and [np.shape(weight) for weight in weights] != [
            np.shape(weight) for weight in self.model.get_weights()
        ]:
            raise ValueError("EarlyStopping: the best weights are not those of this model")
        super().set_state(state)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._start()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        value = self._monitor.value(logs)
        if value is None or epoch < self.start_from_epoch:
            return
        self.wait += 1
        if self._monitor.improves(value, self.best):
            self.best, self.best_epoch = value, epoch
            if self.restore_best_weights:
                self.best_weights = self.model.get_weights()
            if self.baseline is None or self._monitor.improves(value, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.stopped_epoch and self.verbose:
            print(f"Epoch {self.stopped_epoch + 1}: early stopping")
        if self.best_weights is not None:
            if self.verbose:
                print(f"Restoring the weights of the best epoch: {self.best_epoch + 1}.")
            self.model.set_weights(self.best_weights)


class ReduceLROnPlateau(Callback):
    """Makes the learning rate smaller when a value no longer improves.

    Adds "learning_rate" to the logs, and so to the history.

    Args:
        monitor: name of the value.
        factor: the learning rate is multiplied by that; below 1.
        patience: number of epochs without improvement after which that happens.
        verbose: 1 says when it happens.
        mode: "min", "max", or "auto", which decides by the name.
        min_delta: changes of not more than that are no improvement.
        cooldown: number of epochs after a reduction in which nothing is counted.
        min_lr: the learning rate never becomes smaller than that.

    Raises:
        ValueError: if `factor` is 1 or more, `mode` is unknown, or "auto" cannot decide.
        TypeError: in training, if the optimizer's learning rate is a schedule.
    """

    state_names = number_names = ("wait", "cooldown_counter", "best")

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        if not 0 <= factor < 1:
            raise ValueError(
                f"ReduceLROnPlateau: factor must be in 0 <= factor < 1. Received: factor={factor!r}"
            )
        self._monitor = Monitor("ReduceLROnPlateau", monitor, mode, min_delta)
        self.monitor, self.factor, self.patience, self.verbose = monitor, factor, patience, verbose
        self.cooldown, self.min_lr = cooldown, min_lr
        self._start()

    def _start(self) -> None:
        self.wait = self.cooldown_counter = 0
        self.best: float | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._start()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        optimizer = self.model.optimizer
        assert optimizer is not None
        value = self._monitor.value(logs)
        if logs is not None:
            logs["learning_rate"] = optimizer.learning_rate
        if value is None:
            return
        if self.cooldown_counter:
            self.cooldown_counter -= 1
            self.wait = 0
        if self._monitor.improves(value, self.best):
            self.best, self.wait = value, 0
        elif not self.cooldown_counter:
            self.wait += 1
            if self.wait >= self.patience and optimizer.learning_rate > self.min_lr:
                optimizer.learning_rate = max(optimizer.learning_rate * self.factor, self.min_lr)
                self.wait, self.cooldown_counter = 0, self.cooldown
                if self.verbose:
                    print(
                        f"Epoch {epoch + 1}: ReduceLROnPlateau reducing learning rate to "
                        f"{optimizer.learning_rate}."
                    )


class LearningRateScheduler(Callback):
    """Sets the learning rate before every epoch.

    Adds "learning_rate" to the logs, and so to the history. For a rate that changes with every
    step, see :mod:`pyconv.optimizers.schedules`.

    Args:
        schedule: a function of the epoch, counted from 0, or of the epoch and the learning rate so
            far, that returns the learning rate.
        verbose: 1 says which it is.

    Raises:
        TypeError: if `schedule` is not a function; in training, if the optimizer's learning rate is
            a schedule.
        ValueError: in training, if it returns something else than a number.

    Example:
        >>> LearningRateScheduler(lambda epoch, rate: rate if epoch < 10 else rate * 0.9)
    """

    def __init__(self, schedule: Callable[..., float], verbose: int = 0) -> None:
        if not callable(schedule):
            raise TypeError(
                "LearningRateScheduler: schedule must be a function of (epoch, learning_rate) or "
                f"(epoch). Received: schedule={schedule!r}"
            )
        self.schedule, self.verbose = schedule, verbose
        try:
            inspect.signature(schedule).bind(0, 0.0)
            self._takes_the_rate = True
        except (TypeError, ValueError):
            self._takes_the_rate = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        optimizer = self.model.optimizer
        assert optimizer is not None
        arguments = (epoch, optimizer.learning_rate) if self._takes_the_rate else (epoch,)
        rate = self.schedule(*arguments)
        if isinstance(rate, bool) or not isinstance(rate, (int, float, np.floating)):
            raise ValueError(
                "LearningRateScheduler: schedule must return a number. Received: "
                f"{rate!r} for epoch {epoch}"
            )
        optimizer.learning_rate = float(rate)
        if self.verbose:
            print(
                f"Epoch {epoch + 1}: LearningRateScheduler setting learning rate to "
                f"{optimizer.learning_rate}."
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert self.model.optimizer is not None
        if logs is not None:
            logs["learning_rate"] = self.model.optimizer.learning_rate


class TerminateOnNaN(Callback):
    """Stops training when the loss is NaN or infinite.

    Args:
        raise_error: whether that is an error instead.

    Raises:
        RuntimeError: in training, with `raise_error`.
    """

    def __init__(self, raise_error: bool = False) -> None:
        self.raise_error = raise_error

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        loss = (logs or {}).get("loss")
        if loss is None or math.isfinite(loss):
            return
        if self.raise_error:
            raise RuntimeError(
                f"The loss is {loss} after batch {batch}. Try a smaller learning rate, and check "
                "the data for NaN."
            )
        print(f"Batch {batch}: the loss is {loss}, terminating training")
        self.model.stop_training = True
