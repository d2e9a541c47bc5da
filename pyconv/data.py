"""From what `fit`, `evaluate` and `predict` are given to batches: of arrays, or made by others.

Both kinds have the same face: `steps`, `samples` and `batch_size` where they are known, `largest`,
and `take`, which passes over the batches of one epoch; of each it yields the part that `share`
says, where processes share them. Close what `take` returns
(`contextlib.closing`) unless it has run to its end: there may be a thread behind it.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import repeat
from typing import Any, TypeVar, Union

import numpy as np

from pyconv import backend, random
from pyconv.distribute import Share
from pyconv.plan import Batch, Rows, as_batch

T = TypeVar("T")
Pair = tuple[Batch, np.ndarray]
Sharing = Callable[[int], Share]
Part = tuple[Batch, np.ndarray, Union[Share, None]]  # None: the whole batch

_END: Any = object()  # what next() returns after the last batch


class ArrayBatches:
    """Serves arrays in batches.

    What is NumPy's is served as float32 and C-contiguous, through buffers that are reused. Samples
    that live on the device stay there and are served as rows of them.

    Args:
        x: samples.
        y: labels, NumPy's, or None.
        batch_size: size of all batches but the last.
        seed: where every epoch has an order of its own, the seed of these orders.
        share: from the size of a batch to the part that is served.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray | None,
        batch_size: int,
        seed: int | None = None,
        share: Sharing | None = None,
    ) -> None:
        self._x, self._y = x, np.empty((len(x), 0), np.float32) if y is None else y
        self._seed, self.shuffled = seed, seed is not None
        self._share = share
        self.batch_size = batch_size
        self.samples = len(x)
        self.steps = math.ceil(len(x) / batch_size)
        self.largest = min(batch_size, len(x))
        self.ran_out = False
        self._buffers: dict[int, np.ndarray] = {}

    def get_state(self) -> dict[str, Any]:
        """Returns what :meth:`set_state` takes to serve the same batches again, as plain data."""
        return {"seed": self._seed}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over the orders of the batches that the state is of."""
        seed = state["seed"]
        self._seed = None if seed is None else random.integer_seed(seed, 64)

    def take(self, epoch: int = 0, start: int = 0) -> Generator[Part, None, None]:
        """Yields the batches from number `start` on; each lasts until the next."""
        order = None
        if self._seed is not None:
            order = random.generator(self._seed, epoch).permutation(self.samples)
        on_device = None if isinstance(self._x, np.ndarray) else self._on_device(order)
        for first in range(start * self.batch_size, self.samples, self.batch_size):
            rows = slice(first, min(first + self.batch_size, self.samples))
            share = None
            if self._share is not None:
                share = self._share(rows.stop - first)
                rows = slice(first + share.first, first + share.first + share.samples)
            indices = None if order is None else order[rows]
            x = self._batch(0, self._x, rows, indices) if on_device is None else on_device[rows]
            yield x, self._batch(1, self._y, rows, indices), share

    def _on_device(self, order: np.ndarray | None) -> Batch:
        if order is None:
            return as_batch(self._x)
        return Rows(self._x, backend.current().to_device(order.astype(np.int64, copy=False)))

    def _batch(
        self, which: int, source: np.ndarray, rows: slice, indices: np.ndarray | None
    ) -> np.ndarray:
        if indices is None:
            batch = source[rows]
            if batch.dtype == np.float32 and batch.flags.c_contiguous and batch.flags.aligned:
                return batch
        if which not in self._buffers:
            self._buffers[which] = np.empty((self.largest, *source.shape[1:]), np.float32)
        buffer = self._buffers[which][: rows.stop - rows.start]
        if indices is None:
            buffer[...] = batch
        elif source.dtype == np.float32:
            # The indices are known to be in range; with mode="raise" NumPy would go through a copy.
            np.take(source, indices, axis=0, out=buffer, mode="clip")
        else:
            buffer[...] = source[indices]
        return buffer


class GeneratedBatches:
    """Passes on the batches that a generator or another iterable makes, prepared in advance.

    What has a length and can be indexed (a `flow`, a Keras Sequence) is asked for its batches by
    number, so that several threads may make them; its `on_epoch_end` is called, if it has one,
    after every pass. Everything else is iterated over, by one thread at a time.

    A source that changes from pass to pass may have methods `get_state`, which returns plain data,
    and `set_state`: they are asked for, and given, its state at the beginning of a pass.

    Args:
        source: the iterable.
        convert: checks a batch and makes it what :meth:`take` yields; called by the thread that
            trains.
        steps: batches of an epoch. Then the next epoch goes on where the last one ended, and an
            iterable that can start anew does so at its end. By default an epoch is one pass.
        workers: threads that prepare batches; 0: none, batches are made when they are wanted.
        max_queue_size: how many batches are prepared in advance.
        share: from the size of a batch to the part that is served.

    Attributes:
        ran_out: whether the source ended before its time, of which a warning was given.
    """

    samples: int | None = None
    batch_size: int | None = None
    shuffled: bool | None = None
    largest = 0

    def __init__(
        self,
        source: Any,
        convert: Callable[[Any], Pair],
        steps: int | None = None,
        workers: int = 1,
        max_queue_size: int = 10,
        share: Sharing | None = None,
    ) -> None:
        self._source, self._convert, self._share = source, convert, share
        self._length = len(source) if hasattr(source, "__len__") else None
        self._indexed = self._length is not None and hasattr(source, "__getitem__")
        self._workers, self._max_queue_size = workers, max_queue_size
        self._position = 0  # in the pass at hand
        self._iterator: Iterator[Any] | None = None  # over what cannot be indexed
        self._skipped = 0  # batches that it first has to pass over
        self._state_of_pass: Any = None  # the source's, when the pass began
        self.steps = self._length if steps is None else steps
        self.ran_out = False

    def get_state(self) -> dict[str, Any]:
        """Returns what :meth:`set_state` takes to go on from here, as plain data."""
        state = self._state_of_pass if self._position else self._source_state()
        return {"position": self._position, "source": state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where others were, given the same source.

        What cannot be indexed begins its pass anew, and its first batches are made once more and
        dropped.
        """
        self._position = self._skipped = int(state["position"])
        self._iterator = None
        self._state_of_pass = state["source"]
        if self._state_of_pass is not None and hasattr(self._source, "set_state"):
            self._source.set_state(self._state_of_pass)

    def _source_state(self) -> Any:
        return self._source.get_state() if hasattr(self._source, "get_state") else None

    def take(self, epoch: int = 0, start: int = 0) -> Generator[Part, None, None]:
        """Yields the batches of the next epoch, whatever its number, but for the first `start`."""
        done = start
        left = math.inf if self.steps is None else self.steps - start
        for batch in self._indexed_batches(left) if self._indexed else self._iterated_batches(left):
            x, y = self._convert(batch)
            if self._share is None:
                yield x, y, None
            else:
                share = self._share(len(x))
                yield x[share.rows], y[share.rows], share
            done += 1
        if done == 0 or (self.steps is not None and done < self.steps):
            self.ran_out = True
            wanted = "any" if self.steps is None else str(self.steps)
            warnings.warn(
                f"The data ran out after {done} batches of an epoch; expected {wanted}. An epoch "
                "without a number of steps passes over all batches, so a generator serves for one. "
                "Give it more batches, fewer epochs or steps, or a list or another iterable that "
                "can start anew.",
                stacklevel=3,
            )

    def _indexed_batches(self, left: float) -> Iterator[Any]:
        assert self._length is not None
        while self._length > 0:
            if self._position == self._length:
                self._position = 0
                if hasattr(self._source, "on_epoch_end"):
                    self._source.on_epoch_end()
            if left == 0:
                return
            if self._position == 0:
                self._state_of_pass = self._source_state()
            numbers = range(self._position, min(self._position + int(left), self._length))
            tasks = (partial(operator.getitem, self._source, number) for number in numbers)
            for batch in self._prepared(tasks, self._workers):
                self._position += 1
                left -= 1
                yield batch

    def _iterated_batches(self, left: float) -> Iterator[Any]:
        while left > 0:
            if self._iterator is None or self.steps is None:
                if not self._skipped:
                    self._state_of_pass = self._source_state()
                self._iterator = iter(self._source)
                self._position, self._skipped = self._skipped, 0
                for _ in range(self._position):
                    next(self._iterator, _END)
            task = partial(next, self._iterator, _END)
            # One thread: a generator cannot be asked by two at once.
            tasks = repeat(task) if self.steps is None else repeat(task, int(left))
            for batch in self._prepared(tasks, min(self._workers, 1)):
                if batch is _END:
                    break
                self._position += 1
                left -= 1
                yield batch
            else:
                return
            anew = self._iterator is not self._source  # a generator is its own iterator
            empty = self._position == 0
            self._iterator, self._position = None, 0
            if self.steps is None or not anew or empty:
                return

    def _prepared(self, tasks: Iterable[Callable[[], Any]], workers: int) -> Iterator[Any]:
        return prepared(tasks, workers, self._max_queue_size)


Batches = Union[ArrayBatches, GeneratedBatches]


def prepared(
    tasks: Iterable[Callable[[], T]], workers: int, max_queue_size: int
) -> Generator[T, None, None]:
    """Yields what the tasks return, in their order, while other threads are ahead with the next.

    An exception of a task is raised when its turn has come. However this ends, tasks that have not
    begun are dropped, those that have are waited for, and then the threads are gone.

    Args:
        tasks: functions; begun in their order, so that one thread runs them one after the other.
        workers: number of threads; 0 calls each task when it is wanted.
        max_queue_size: number of tasks that are begun, or done, in advance.
    """
    if workers == 0:
        for task in tasks:
            yield task()
        return
    with ThreadPoolExecutor(workers, "pyconv-batches") as threads:
        queue: deque[Future[T]] = deque()
        try:
            for task in tasks:
                queue.append(threads.submit(task))
                if len(queue) > max_queue_size:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            for future in queue:
                future.cancel()


def makes_batches(x: Any, y: Any = None) -> bool:
    """Whether `x` is something that makes batches rather than the samples themselves."""
    if isinstance(x, (np.ndarray, str, bytes, dict)):
        return False
    if any(hasattr(x, n) for n in ("__array__", "__dlpack__", "__cuda_array_interface__")):
        return False
    if isinstance(x, (list, tuple)):
        # A list of numbers is samples, a list of pairs with no labels beside it is batches.
        return y is None and bool(x) and all(isinstance(batch, tuple) for batch in x)
    return hasattr(x, "__iter__") or (hasattr(x, "__getitem__") and hasattr(x, "__len__"))


def samples_and_labels(batch: Any) -> tuple[Any, Any]:
    """The two parts of a batch that training and evaluation need.

    Raises:
        ValueError: if it has other parts.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return as_array(batch[0]), as_array(batch[1])
    if isinstance(batch, (tuple, list)) and len(batch) == 3:
        raise ValueError(
            "Expected batches (x, y). Received: one of three parts, as with sample weights, which "
            "are not supported. Leave them out, e.g. flow(x, y) without sample_weight"
        )
    received = type(batch).__name__
    if isinstance(batch, (tuple, list)):
        received += f" of {len(batch)}"
    raise ValueError(
        f"Expected batches (x, y), samples and labels. Received: {received}. "
        "Make them a pair, e.g. flow(x, y)"
    )


def samples_alone(batch: Any) -> Any:
    """The samples of a batch, which may have labels beside them, (x, y)."""
    if isinstance(batch, tuple):
        if not batch:
            raise ValueError("Expected batches x or (x, y). Received: an empty tuple")
        batch = batch[0]
    return as_array(batch)


def as_array(value: Any) -> Any:
    """What other libraries' tensors hold as an array; arrays as they are."""
    value = backend.shared(value)
    if isinstance(value, np.ndarray) or hasattr(value, "__cuda_array_interface__"):
        return value
    return np.asarray(value) if hasattr(value, "__array__") else value
