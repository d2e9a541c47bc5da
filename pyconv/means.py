"""The loss and the metrics of a pass over the data, as running means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyconv import backend
from pyconv.callbacks.base import Logs
from pyconv.metrics import Mean, Metric

if TYPE_CHECKING:
    from pyconv.distribute import MPI

_ROOM = 64  # batches whose results may wait on a device


class Means:
    """The running means of the loss and of the metrics.

    On a device the results of batches are fetched when somebody asks for the means, many at a time:
    a training step need not wait for the one before it.

    Args:
        metrics: what is measured beside the loss.
        group: the processes that share the batches. All must add theirs; the means are of all.
    """

    def __init__(self, metrics: Sequence[Metric] = (), group: MPI | None = None) -> None:
        self._group = group
        self._metrics = list(metrics)
        self._means = {name: Mean() for name in ("loss", *(metric.name for metric in metrics))}
        self._waiting: _Waiting | None = None

    def add(self, losses: Any, y: np.ndarray, predictions: Any) -> None:
        """Takes in a batch.

        Args:
            losses: of its samples, (N,), here or on the device.
            y: the labels.
            predictions: the outputs, likewise here or on the device.
        """
        if self._group is not None:
            losses = backend.to_host(losses)  # the others wait for it
        if isinstance(losses, np.ndarray):
            self._add(losses, y, backend.to_host(predictions) if self._metrics else predictions)
            return
        if not self._metrics:
            predictions = predictions[:0]
        if self._waiting is None or not self._waiting.has_room_for(losses, predictions):
            self._fetch()
            self._waiting = _Waiting(losses, predictions)
        self._waiting.add(losses, np.array(y) if self._metrics else y, predictions)

    def logs(self) -> Logs:
        """Returns the means so far by name, "loss" first; 0 if there is nothing yet."""
        self._fetch()
        return Logs({name: mean.result() for name, mean in self._means.items()})

    def get_state(self) -> dict[str, tuple[float, int]]:
        """Returns what :meth:`set_state` takes to go on from here, as plain data."""
        self._fetch()
        return {name: mean.get_state() for name, mean in self._means.items()}

    def set_state(self, state: Mapping[str, Sequence[Any]]) -> None:
        self._waiting = None
        for name, mean in self._means.items():
            mean.set_state(*state[name])

    def _fetch(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            for losses, y, predictions in waiting.fetch():
                self._add(losses, y, predictions)
            self._waiting = waiting

    def _add(self, losses: np.ndarray, y: np.ndarray, predictions: np.ndarray) -> None:
        values = [losses]
        if len(losses):  # a process may have none of a small batch
            values += [metric.values(y, predictions) for metric in self._metrics]
        else:
            values += [losses for _ in self._metrics]
        if self._group is None:
            for mean, value in zip(self._means.values(), values):
                mean.add(value)
            return
        sums = [float(value.sum(dtype=np.float64)) for value in values]
        *sums, count = self._group.sum(np.array([*sums, len(losses)]), "the sum of the losses")
        for mean, total in zip(self._means.values(), sums):
            mean.add_sum(float(total), round(count))


class _Waiting:
    """Copies of batches' results on the device, as large at most as those it is made for."""

    def __init__(self, losses: Any, predictions: Any) -> None:
        empty = backend.current().empty
        self._sizes = losses.size, predictions.size
        self._arrays = [empty((_ROOM * size,)) for size in self._sizes]
        self._batches: list[tuple[int, np.ndarray, tuple[int, ...]]] = []

    def has_room_for(self, losses: Any, predictions: Any) -> bool:
        large_enough = losses.size <= self._sizes[0] and predictions.size <= self._sizes[1]
        return large_enough and len(self._batches) < _ROOM

    def add(self, losses: Any, y: np.ndarray, predictions: Any) -> None:
        for array, size, result in zip(self._arrays, self._sizes, (losses, predictions)):
            first = len(self._batches) * size
            backend.copy(result.reshape(-1), array[first : first + result.size])
        self._batches.append((losses.size, y, predictions.shape))

    def fetch(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Returns losses, labels and predictions of the batches, and forgets these."""
        if not self._batches:
            return []
        count = len(self._batches)
        hosts = [
            backend.to_host(array[: count * size]).reshape(count, size)
            for array, size in zip(self._arrays, self._sizes)
        ]
        fetched = [
            (losses[:n], y, predictions[: int(np.prod(shape))].reshape(shape))
            for losses, predictions, (n, y, shape) in zip(*hosts, self._batches)
        ]
        self._batches = []
        return fetched
