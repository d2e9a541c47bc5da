"""What all callbacks share, the history, and the display of progress."""

from __future__ import annotations

import contextlib
import io
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyconv.models import Sequential

_ALIASES = {"acc": "accuracy", "val_acc": "val_accuracy"}


class Logs(dict[str, Any]):
    """Values by name, in which "acc" and "val_acc" also find "accuracy" and "val_accuracy"."""

    def __missing__(self, key: str) -> Any:
        if key in _ALIASES and dict.__contains__(self, _ALIASES[key]):
            return self[_ALIASES[key]]
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return dict.__contains__(self, key) or dict.__contains__(self, _ALIASES.get(str(key), key))

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default


class Callback:
    """Base class: define the methods of the moments that you want to know of.

    `fit`, `evaluate` and `predict` take `callbacks`. In `fit` the validation after an epoch calls
    the hooks of a test as well. Epochs and batches are counted from 0. `logs` holds "loss", the
    metrics by name (running means of the epoch), and at the end of an epoch "val_loss" and so on.
    Raising KeyboardInterrupt stops training like Ctrl-C; ``self.model.stop_training = True`` stops
    it after the current batch.

    Attributes:
        model: the model that is trained.
        params: a dict with "epochs", "steps" (batches in an epoch), "samples", "batch_size" and
            "verbose". What is not known of generated batches is None.
        state_names: names of the attributes that :meth:`get_state` returns.
        number_names: those of them that are numbers, or None before there is one. What a file has
            in their place is checked.
        comes_last: whether it is called after all that are not, whatever the order in the list.
        first_process_only: whether it is called in the first one only of processes that train
            together, as what writes files must be. What it prints elsewhere is not shown anyway.
        reads_batches: whether its hooks after a batch look at `logs`. Where no callback does, these
            are empty, and training on a GPU need not wait for the values of every batch.
    """

    comes_last = False
    first_process_only = False
    state_names: tuple[str, ...] = ()
    number_names: tuple[str, ...] = ()
    model: Sequential
    params: dict[str, Any]

    @property
    def reads_batches(self) -> bool:
        return True

    def set_model(self, model: Sequential) -> None:
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        self.params = params

    def get_state(self) -> dict[str, Any]:
        """Returns what the callback has to know to go on with a training that was cut off.

        Plain data and float32 arrays, by name; see :class:`BackupAndRestore`. By default the
        attributes named in `state_names`.
        """
        return {name: getattr(self, name) for name in self.state_names}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`get_state` returned elsewhere; called after `on_train_begin`."""
        for name in self.number_names:
            value, before = state[name], getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number and not (value is None and before is None):
                raise ValueError(
                    f"{type(self).__name__}: {name} must be a number. Received: {value!r}"
                )
        for name in self.state_names:
            setattr(self, name, state[name])

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Called before the first epoch."""

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Called after the last epoch, also if training was interrupted.

        `logs` are those of the last epoch that was completed; None if there was none.
        """

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Called before the first batch of an epoch."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Called after the last batch of an epoch and its validation."""

    def on_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Another name of :meth:`on_train_batch_begin`."""

    def on_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Another name of :meth:`on_train_batch_end`."""

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Called before every batch."""
        self.on_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Called after every batch, when the weights have changed."""
        self.on_batch_end(batch, logs)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Called before the first batch of an evaluation or validation."""

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Called after its last batch; `logs` holds the loss and the metrics, without "val_"."""

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Called before every batch of an evaluation or validation."""

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Called after every batch of an evaluation or validation."""

    def on_predict_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Called before the first batch of a prediction."""

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        """Called after the last batch of a prediction."""

    def on_predict_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Called before every batch of a prediction."""

    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Called after every batch of a prediction; ``logs["outputs"]`` is what it gave."""


class LambdaCallback(Callback):
    """A callback made of functions.

    Args:
        hooks: functions by the names of the hooks of :class:`Callback`, called with their
            arguments: ``f(epoch, logs)``, ``f(batch, logs)`` or ``f(logs)``; None is left out.

    Raises:
        TypeError: if there is no such hook, or if a value cannot be called.

    Example:
        >>> LambdaCallback(on_epoch_end=lambda epoch, logs: print(epoch, logs["loss"]))
    """

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        known = [name for name in dir(Callback) if name.startswith("on_")]
        for name, function in hooks.items():
            if name not in known:
                raise TypeError(
                    f"LambdaCallback: there is no hook {name!r}. Expected some of "
                    f"{', '.join(known)}."
                )
            if function is None:
                continue
            if not callable(function):
                raise TypeError(
                    f"LambdaCallback: {name} must be a function. Received: {name}={function!r}"
                )
            setattr(self, name, function)


class CallbackList(Callback):
    """Calls several callbacks, one after the other.

    Args:
        callbacks: the callbacks, or one of them, or None.
        model: the model that is trained.
        params: see :class:`Callback`.
        more: more callbacks, which are called after them.
        is_first: whether this process is the first one, or the only one, that trains the model.

    Attributes:
        callbacks: all of them, in their order.

    Raises:
        TypeError: if one of them is not a callback.
    """

    def __init__(
        self,
        callbacks: Callback | Iterable[Callback] | None,
        model: Sequential,
        params: dict[str, Any],
        more: Iterable[Callback] = (),
        is_first: bool = True,
    ) -> None:
        users = [callbacks] if isinstance(callbacks, Callback) else callbacks or ()
        self.callbacks = [*users, *more]
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(
                    "callbacks must be objects of classes derived from pyconv.callbacks.Callback. "
                    f"Received: {callback!r}"
                )
            callback.set_model(model)
            callback.set_params(params)
        self.callbacks.sort(key=lambda callback: callback.comes_last)
        self._called: list[Any] = [
            callback if is_first else _Silent(callback)
            for callback in self.callbacks
            if is_first or not callback.first_process_only
        ]

    @property
    def read_train_batches(self) -> bool:
        """Whether one of them looks at the logs of training's batches."""
        return self._read("on_train_batch_end", "on_batch_end")

    @property
    def read_test_batches(self) -> bool:
        """Whether one of them looks at the logs of an evaluation's batches."""
        return self._read("on_test_batch_end")

    def _read(self, *hooks: str) -> bool:
        return any(
            callback.reads_batches and any(_defines(callback, hook) for hook in hooks)
            for callback in self.callbacks
        )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        for callback in self._called:
            callback.on_train_begin(logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        for callback in self._called:
            callback.on_train_end(logs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for callback in self._called:
            callback.on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for callback in self._called:
            callback.on_epoch_end(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        for callback in self._called:
            callback.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        for callback in self._called:
            callback.on_train_batch_end(batch, logs)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        for callback in self._called:
            callback.on_test_begin(logs)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        for callback in self._called:
            callback.on_test_end(logs)

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        for callback in self._called:
            callback.on_test_batch_begin(batch, logs)

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        for callback in self._called:
            callback.on_test_batch_end(batch, logs)

    def on_predict_begin(self, logs: dict[str, Any] | None = None) -> None:
        for callback in self._called:
            callback.on_predict_begin(logs)

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        for callback in self._called:
            callback.on_predict_end(logs)

    def on_predict_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        for callback in self._called:
            callback.on_predict_batch_begin(batch, logs)

    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        for callback in self._called:
            callback.on_predict_batch_end(batch, logs)


class History(Callback):
    """What `fit` returns: the values of every epoch.

    Attributes:
        history: lists by name; ``history["acc"]`` and ``history["accuracy"]`` are the same, and so
            with "val_".
        epoch: the numbers of the epochs that were completed.
        model: the model, None if nothing else has kept it.
        params: see :class:`Callback`.
        interrupted: whether training was stopped by Ctrl-C.

    Example:
        >>> history = model.fit(x, y, epochs=2, validation_data=(x_test, y_test))
        >>> plt.plot(history.history["acc"])
        >>> plt.plot(history.history["val_acc"])
    """

    def __init__(self) -> None:
        self.history: Logs = Logs()
        self.epoch: list[int] = []
        self.interrupted = False

    # The model has its history. If that had the model, too, the memory of a model would not be free
    # as soon as the program drops it, but some time later, when Python looks for cycles.
    def set_model(self, model: Sequential) -> None:
        self._model = weakref.ref(model)

    @property
    def model(self) -> Sequential | None:  # type: ignore[override]
        return self._model()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)


class _Nowhere(io.TextIOBase):
    """Where text is lost."""

    def write(self, text: str) -> int:
        return len(text)


class _Silent:
    """A callback, nothing of which is printed."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback

    def __getattr__(self, name: str) -> Callable[..., None]:
        hook = getattr(self._callback, name)

        def call(*arguments: Any) -> None:
            with contextlib.redirect_stdout(_Nowhere()):
                hook(*arguments)

        return call


def _defines(callback: Callback, hook: str) -> bool:
    """Whether a hook is not the base class's."""
    return getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)


class Progress:
    """Shows how far a pass over the data is: a bar in a terminal, else one line at its end.

    Args:
        title: what stands before the values in the line, e.g. "Epoch 1/25".
        samples: number of samples of the pass; None if it is not known.
        steps: number of batches of the pass, which are counted then; may be None as well.
        verbose: 0 shows nothing, 1 a bar in a terminal and a line elsewhere, 2 always a line.
        first: where the bar begins, in a pass that is resumed.
    """

    def __init__(
        self, title: str, samples: int | None, steps: int | None, verbose: int, first: int = 0
    ) -> None:
        self._title, self._verbose = title, verbose
        self._start = time.perf_counter()
        self._done = 0
        self._rate = 0.0
        self._counts_samples = samples is not None
        self._bar: Any = None
        if verbose == 1 and sys.stdout.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=samples if self._counts_samples else steps,
                initial=first,
                file=sys.stdout,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
                "[{elapsed}<{remaining}{postfix}]",
            )

    @property
    def is_due(self) -> bool:
        """Whether the next update will show its values: a bar does several times a second."""
        return (
            self._bar is not None and time.time() - self._bar.last_print_t >= self._bar.mininterval
        )

    def update(self, samples: int, logs: dict[str, Any]) -> None:
        """Counts a batch of so many samples; `logs` are the running means, empty if not due."""
        done = samples if self._counts_samples else 1
        self._done += done
        # Measured here, so that the validation at the end of an epoch does not count.
        self._rate = self._done / max(time.perf_counter() - self._start, 1e-9)
        if self._bar is not None:
            if logs:
                self._bar.set_postfix_str(", ".join(self._values(logs)), refresh=False)
            self._bar.update(done)

    def finish(self, logs: dict[str, Any]) -> None:
        """Shows the final values."""
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._values(logs)))
            self.close()
        elif self._verbose:
            seconds = time.perf_counter() - self._start
            print(" - ".join([self._title, f"{seconds:.1f}s", *self._values(logs)]), flush=True)

    def close(self) -> None:
        """Leaves the bar as it is; also needed when a pass is broken off."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _values(self, logs: dict[str, Any]) -> list[str]:
        unit = "images" if self._counts_samples else "batches"
        return [f"{self._rate:.0f} {unit}/s"] + [
            f"{name}: {_text(value)}" for name, value in logs.items()
        ]


class ProgbarLogger(Callback):
    """Shows the progress of training; `fit` adds it unless `verbose` is 0."""

    first_process_only = True
    _progress: Progress | None = None

    @property
    def reads_batches(self) -> bool:
        return self._progress is not None and self._progress.is_due

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        verbose, samples = self.params["verbose"], self.params["samples"]
        title = f"Epoch {epoch + 1}/{self.params['epochs']}"
        if verbose == 1 and sys.stdout.isatty():
            print(title, flush=True)
        first = self.model._run.batch if self.model._run is not None else 0
        if samples is not None:
            first *= self.params["batch_size"]
        self._progress = Progress(title, samples, self.params["steps"], verbose, first)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        assert self._progress is not None
        size, samples = self.params["batch_size"], self.params["samples"]
        if samples is not None:
            size = min(size, samples - batch * size)
        self._progress.update(size, logs or {})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert self._progress is not None
        self._progress.finish(logs or {})

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._progress is not None:
            self._progress.close()


def check_save_freq(owner: str, save_freq: Any) -> str | int:
    """`save_freq` if it is "epoch" or a positive number of batches, or ValueError."""
    if save_freq == "epoch":
        return "epoch"
    if isinstance(save_freq, (bool, str)) or int(save_freq) != save_freq or save_freq < 1:
        raise ValueError(
            f"{owner}: save_freq must be 'epoch' or a positive number of batches. "
            f"Received: save_freq={save_freq!r}"
        )
    return int(save_freq)


def _text(value: Any) -> str:
    """A value of the logs; callbacks may have put anything there."""
    if not isinstance(value, (int, float)):
        return str(value)
    return f"{value:.4e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"
