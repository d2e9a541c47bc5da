"""Training steps and forward passes as CUDA graphs: launched kernel by kernel, then captured, then
replayed.

A graph holds addresses and numbers for good. So what changes between steps lies in one small array
that the kernels read (:class:`StepNumbers`), a graph keeps alive whatever it was captured with, and
it serves as long as its key is the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from pyconv import backend
from pyconv.backend import Backend
from pyconv.kernels import Counter, Rate

Result = TypeVar("Result")


class StepNumbers:
    """What changes from one training step to the next.

    Args:
        device: where the numbers will be read. On the CPU they are Python's, elsewhere arrays of
            one number, always the same.

    Attributes:
        dropout_step: number of the training step, which selects dropout's masks.
        iteration: number of the optimizer's step, from 1.
        learning_rate: the optimizer's.
    """

    dropout_step: Counter
    iteration: Counter
    learning_rate: Rate

    def __init__(self, device: Backend) -> None:
        self.device = device
        self._arrays: Any = None
        if device.name == "cpu":
            return
        self._host = np.zeros(3, np.uint64)
        self._arrays = device.zeros(3, np.uint64)
        self.dropout_step = self._arrays[0:1].reshape(())
        self.iteration = self._arrays[1:2].reshape(())
        self.learning_rate = self._arrays[2:3].view(np.float32)[0:1].reshape(())

    def set(self, dropout_step: int, iteration: int, learning_rate: float) -> None:
        """Sets the numbers for what is launched from now on."""
        if self._arrays is None:
            self.dropout_step, self.iteration = dropout_step, iteration
            self.learning_rate = learning_rate
            return
        self._host[:2] = dropout_step, iteration
        self._host[2:].view(np.float32)[0] = learning_rate
        backend.copy(self._host, self._arrays)


class StepGraph:
    """The graph of a training step, or a forward pass: the last one that was worth capturing."""

    def __init__(self) -> None:
        self._failed = False
        self.discard()

    def discard(self) -> None:
        """Forgets the graph, and with it the memory that it works on."""
        self._graph: Any = None
        self._key: object = None
        self._last_key: object = None
        self._alive: object = None
        self._result: Any = None

    def run(
        self, launch: Callable[[], Result], device: Backend, key: object, arrays: object
    ) -> Result:
        """Makes a step, or a forward pass: replays the graph, or launches kernel by kernel.

        The first of several steps with one key is launched, so that whatever happens only once
        has happened; the second is captured; those after it are replayed. A single step of another
        key, such as the smaller last batch of an epoch, leaves the graph as it is.

        Args:
            launch: makes the step, by nothing but kernels on `device`.
            device: where they run.
            key: all that the step depends on; None if it cannot be captured.
            arrays: what must live as long as the graph, beside what `launch` refers to.

        Returns:
            What `launch` returns; for a replayed step, what it returned when captured.
        """
        repeated, self._last_key = key is not None and key == self._last_key, key
        if key is not None and key == self._key:
            self._graph.launch()
            result: Result = self._result
            return result
        if repeated and not self._failed and self._capture(launch, device, key, arrays):
            self._graph.launch()
            result = self._result
            return result
        return launch()

    def _capture(
        self, launch: Callable[[], Any], device: Backend, key: object, arrays: object
    ) -> bool:
        self.discard()
        graph = device.kernels.Graph()
        try:
            graph.begin_capture()
            result = launch()
            graph.end_capture()
        except BaseException as error:
            graph.discard()
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            self._failed = True
            warnings.warn(
                f"A step is not captured as a CUDA graph: {error}. It runs kernel by kernel, which "
                "is slower. PYCONV_CUDA_GRAPH=0 does not try.",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        self._graph, self._key, self._result = graph, key, result
        self._alive = launch, arrays
        return True
