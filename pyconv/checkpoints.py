"""Where a training is, in one file, so that another process can go on with it to the same bits.

A checkpoint is a safetensors file. Its tensors are the weights (`weights/conv2d/kernel`), what the
optimizer remembers (`optimizer/velocity`) and arrays of callbacks (`arrays/0`), all float32. Its
text metadata hold the rest, as JSON under the key `pyconv_checkpoint`. Nothing in it is executed.

All random numbers are functions of seeds and counters, so a few integers are their whole state.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyconv import backend, random, saving
from pyconv.data import Batches
from pyconv.means import Means
from pyconv.optimizers.schedules import LearningRateSchedule

if TYPE_CHECKING:
    from pyconv.callbacks import Callback
    from pyconv.distribute import MPI
    from pyconv.models import Sequential

_KEY = "pyconv_checkpoint"
_WEIGHTS, _SLOTS, _ARRAYS = "weights/", "optimizer/", "arrays/"


class Run:
    """Where a `fit` is, between two batches.

    Attributes:
        batches, validation: what it passes over; `validation` may be None.
        callbacks: what listens to it.
        means: the running means of the epoch's values.
        epoch: number of the epoch at hand, from 0.
        batch: how many of its batches are done.
    """

    def __init__(
        self,
        batches: Batches,
        validation: Batches | None,
        callbacks: Sequence[Callback],
        means: Means,
        epoch: int,
    ) -> None:
        self.batches, self.validation, self.callbacks = batches, validation, callbacks
        self.begin_epoch(epoch, means)

    def begin_epoch(self, epoch: int, means: Means) -> None:
        self.epoch, self.batch, self.means = epoch, 0, means
        # An evaluation that was broken off is made once more, from where it began.
        self._validation_state = None if self.validation is None else self.validation.get_state()

    def get_state(self) -> dict[str, Any]:
        """Returns what :meth:`set_state` takes, as plain data; callbacks are not part of it."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "means": self.means.get_state(),
            "batches": self.batches.get_state(),
            "validation": self._validation_state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where another run of the same data was."""
        epoch, batch = _count(state["epoch"]), _count(state["batch"])
        self.means.set_state(state["means"])
        self.batches.set_state(state["batches"])
        if self.validation is not None and state["validation"] is not None:
            self.validation.set_state(state["validation"])
        self.begin_epoch(epoch, self.means)
        self.batch = batch


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        path: where it was read.
        tensors: by name, see above.
        description: the rest.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    description: dict[str, Any]

    @property
    def epoch(self) -> int:
        """How many epochs are complete."""
        return _count(self.description["run"]["epoch"])

    @property
    def batch(self) -> int:
        """How many batches of the next one are done."""
        return _count(self.description["run"]["batch"])

    @property
    def epochs(self) -> int:
        """How many epochs were planned."""
        return _count(self.description["epochs"])

    @property
    def settings(self) -> dict[str, Any]:
        """What the training was begun with, by name."""
        return dict(self.description["settings"])


def write(
    path: str | os.PathLike[str], model: Sequential, epochs: int, settings: Mapping[str, Any]
) -> None:
    """Writes where the model's `fit` is; the file is replaced as a whole or not at all.

    Args:
        path: the file.
        model: a model that is being trained, between two batches.
        epochs: how many are planned.
        settings: plain data by name, which whoever goes on must have as well.

    Raises:
        ValueError: the history or the settings are not plain data.
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    import pyconv

    optimizer, run, history = model.optimizer, model._run, model.history
    assert optimizer is not None and run is not None and history is not None
    description = {
        "format": saving.FORMAT,
        "version": pyconv.__version__,
        "settings": {**_facts(model, run), **settings},
        "arithmetic": arithmetic(),
        "epochs": epochs,
        "run": run.get_state(),
        "step": model._step,
        "seeds": {layer.name: layer.drawn_seed for layer in _drawing(model)},
        "random": random.get_state(),
        "optimizer": {
            "iterations": optimizer.iterations,
            "learning_rate": constant_rate(model),
        },
        "history": {"epoch": history.epoch, "values": dict(history.history)},
        "callbacks": [
            [type(callback).__name__, state]
            for callback in run.callbacks
            if (state := callback.get_state())
        ],
    }
    arrays: list[np.ndarray] = []
    try:
        # One key, because safetensors writes several in random order.
        metadata = {_KEY: saving.as_text(_encoded(description, arrays))}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the state of the training cannot be saved, because the history, the settings or "
            f"the state of a callback are not plain data: {error}"
        ) from error
    tensors = {_WEIGHTS + name: value for name, value in saving.get_tensors(model).items()}
    for name, slot in optimizer.slots.items():
        tensors[_SLOTS + name] = np.ascontiguousarray(backend.to_host(slot))
    for number, array in enumerate(arrays):
        tensors[f"{_ARRAYS}{number}"] = np.ascontiguousarray(array)
    saving.atomic_write(path, save(tensors, metadata=metadata))


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint; everything in it is checked, at the latest, when it is used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, is damaged, or was written by a newer format.
    """
    path = Path(path)
    tensors, description = saving.read_tensors(path, _KEY, "checkpoint", "BackupAndRestore")
    with _reporting_damage(path):
        checkpoint = Checkpoint(path, tensors, _decoded(description, tensors))
        _ = checkpoint.epoch, checkpoint.batch, checkpoint.epochs, checkpoint.settings
    return checkpoint


def restore(checkpoint: Checkpoint, model: Sequential, settings: Mapping[str, Any]) -> None:
    """Puts a model, at the beginning of its `fit`, where another one was.

    Args:
        checkpoint: of the other one.
        model: a model that is compiled and fitted like it. Unless all fits, it is left as it is.
        settings: as for :func:`write`.

    Raises:
        ValueError: the checkpoint is of another network or data set, or of other settings, or is
            damaged.
    """
    optimizer, run, history = model.optimizer, model._run, model.history
    assert optimizer is not None and run is not None and history is not None
    path, found = checkpoint.path, checkpoint.description
    model.build()
    _check_settings(checkpoint, {**_facts(model, run), **settings})
    weights, slots = (
        {
            name.removeprefix(prefix): tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(prefix)
        }
        for prefix in (_WEIGHTS, _SLOTS)
    )
    saving.check_tensors(model, weights, path)
    with _reporting_damage(path):
        if slots and set(slots) != set(optimizer.slot_names):
            raise ValueError(f"it has the optimizer's slots {', '.join(sorted(slots))}")
        # Whether they are of the weights' size, the optimizer finds out itself.
        shapes = {shape for slot in slots.values() for shape in (slot.shape, (slot.size,))}
        if len(shapes) > 1:
            raise ValueError("the optimizer's slots are not flat arrays of one size")
        iterations, step = _count(found["optimizer"]["iterations"]), _count(found["step"])
        rate = found["optimizer"]["learning_rate"]
        rate = None if rate is None else float(rate)
        seeds = {
            layer.name: random.integer_seed(found["seeds"][layer.name], 64)
            for layer in _drawing(model)
        }
        epochs = [_count(epoch) for epoch in found["history"]["epoch"]]
        values = {name: list(column) for name, column in found["history"]["values"].items()}
        seed, count = found["random"]
        states = [(str(name), state) for name, state in found["callbacks"]]
    is_first = model._group is None or model._group.is_first
    if not is_first:  # the others' callbacks are not all called, so they have no state
        others = {type(c).__name__ for c in run.callbacks if c.first_process_only}
        states = [(name, state) for name, state in states if name not in others]
    callbacks = [
        callback
        for callback in run.callbacks
        if (is_first or not callback.first_process_only) and callback.get_state()
    ]
    if [name for name, _ in states] != [type(callback).__name__ for callback in callbacks]:
        raise ValueError(
            f"{path}: this training was begun with other callbacks: "
            f"{', '.join(name for name, _ in states) or 'none'} that have a state. Received: "
            f"{', '.join(type(callback).__name__ for callback in callbacks) or 'none'}"
        )
    with _reporting_damage(path):
        before = run.get_state()
        try:
            run.set_state(found["run"])
            for callback, (_, state) in zip(callbacks, states):
                callback.set_state(state)
            random.set_state(seed, count)
        except BaseException:
            run.set_state(before)
            raise

    saving.set_tensors(model, weights)
    _take_over(model, slots, iterations, step, seeds)
    if rate is not None and constant_rate(model) is not None:
        optimizer.learning_rate = rate
    history.epoch[:] = epochs
    history.history.clear()
    history.history.update(values)

    if found.get("arithmetic") != arithmetic():
        warnings.warn(
            f"{path} was written on {found.get('arithmetic')}, and training goes on on "
            f"{arithmetic()}: it rounds otherwise, so the results will not be the same bits.",
            stacklevel=2,
        )


def synchronize(model: Sequential, group: MPI) -> None:
    """Makes the state of a built model, and the stream of seeds, those of the first process."""
    optimizer = model.optimizer
    assert optimizer is not None
    state = None
    if group.is_first:
        slots = {name: backend.to_host(slot) for name, slot in optimizer.slots.items()}
        seeds = {layer.name: layer.drawn_seed for layer in _drawing(model)}
        remembered = (slots, optimizer.iterations, model._step, seeds)
        state = (model.get_weights(), remembered, random.begun_state())
    weights, remembered, stream = group.broadcast(state)
    if not group.is_first:
        model.set_weights(weights)
        _take_over(model, *remembered)
        random.set_state(*stream)


def _take_over(
    model: Sequential,
    slots: Mapping[str, np.ndarray],
    iterations: int,
    step: int,
    seeds: Mapping[str, int],
) -> None:
    """Gives a model what another one's optimizer and layers remember."""
    optimizer, device = model.optimizer, backend.current()
    assert optimizer is not None
    sizes = {name: slot.size for name, slot in slots.items()}
    if {name: slot.size for name, slot in optimizer.slots.items()} != sizes:
        optimizer.slots = {name: device.zeros(size) for name, size in sizes.items()}
        model._forget_plans()  # graphs know the old ones
    for name, slot in optimizer.slots.items():
        backend.copy(slots[name].ravel(), slot)
    optimizer.iterations, model._step = iterations, step
    if {layer.name: layer.drawn_seed for layer in _drawing(model)} != seeds:
        for layer in _drawing(model):
            layer.drawn_seed = seeds[layer.name]
        model._forget_plans()  # they know the old ones


def _facts(model: Sequential, run: Run) -> dict[str, Any]:
    """What must be the same for the position and the numbers of a checkpoint to mean the same."""
    return facts(model) | {
        "samples": run.batches.samples,
        "batch_size": run.batches.batch_size,
        "steps": run.batches.steps,
        "shuffle": run.batches.shuffled,
    }


def facts(model: Sequential) -> dict[str, Any]:
    """What makes up a compiled model, by name, but for its weights and learning rate."""
    found: dict[str, Any] = {}
    for number, layer in enumerate(model.layers):
        try:
            config = layer.get_config()
        except ValueError:  # an initializer of the user's own
            config = {"name": layer.name}
        told = [f"{k}={v!r}" for k, v in config.items() if not k.endswith("_initializer")]
        found[f"layers[{number}]"] = f"{type(layer).__name__}({', '.join(told)})"
    found |= {
        "optimizer": type(model.optimizer).__name__,
        "loss": type(model.loss).__name__,
        "metrics": model.metrics_names[1:],
    }
    assert model.optimizer is not None
    config = model.optimizer.get_config()
    if constant_rate(model) is not None:
        del config["learning_rate"]  # callbacks may change it, so it is state
    return found | {f"optimizer.{name}": value for name, value in config.items()}


def _check_settings(checkpoint: Checkpoint, now: Mapping[str, Any]) -> None:
    before, now = checkpoint.settings, json.loads(json.dumps(_encoded(dict(now), [])))
    for name in {**now, **before}:
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{checkpoint.path}: this training was begun with {name}={before.get(name)!r}. "
                f"Received: {name}={now.get(name)!r}. Go on with the same, or train anew in "
                "another folder."
            )


def arithmetic() -> str:
    """What rounding depends on."""
    device = backend.current()
    parts = [device.name, device.kernels.math_mode()]
    if device.name == "cpu":
        parts.append(backend.isa())
    return " ".join(parts)


def constant_rate(model: Sequential) -> float | None:
    """The learning rate; None if it follows a schedule, which the iterations are the state of."""
    assert model.optimizer is not None
    rate = model.optimizer._learning_rate
    return None if isinstance(rate, LearningRateSchedule) else rate


def _drawing(model: Sequential) -> list[Any]:
    """The layers that draw random numbers."""
    return [layer for layer in model.layers if hasattr(layer, "drawn_seed")]


def _count(value: Any) -> int:
    """A count from a file: below 2^63, so that going on stays within the kernels' 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"expected a count. Received: {value!r}")
    return value


class _reporting_damage:
    """Turns whatever goes wrong with data of unexpected form into a ValueError of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, saving.BAD_CONFIG):
            raise ValueError(
                f"{self._path} is damaged: {type(error).__name__}: {error}. Remove it to train "
                "anew."
            ) from error


# JSON has no numbers that are not finite, and the loss of a failed training is one.


def _encoded(value: Any, arrays: list[np.ndarray]) -> Any:
    """Plain data for JSON; float32 arrays are appended to `arrays`."""
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return {"not finite": repr(value)}
    if isinstance(value, dict):
        return {name: _encoded(part, arrays) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encoded(part, arrays) for part in value]
    return value


def _decoded(value: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"array"}:
            return tensors[f"{_ARRAYS}{value['array']}"]
        if set(value) == {"not finite"}:
            return float(value["not finite"])
        return {name: _decoded(part, tensors) for name, part in value.items()}
    return [_decoded(part, tensors) for part in value] if isinstance(value, list) else value
