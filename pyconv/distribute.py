"""Data-parallel training: the same model in several processes, each with a share of every batch.

The processes are MPI's ranks, started by its own launcher:

    mpiexec -n 4 python tutorial.py

A step, on every rank: forward and backward pass of its share; the sum of all gradients, bucket by
bucket, while the backward pass goes on with the layers before; the optimizer's step, which is the
same everywhere, so that weights are never sent. The gradient of a share is that of its losses' sum
divided by the size of the whole batch, so adding up is all that there is to do. Source: PyTorch's
DistributedDataParallel describes buckets and overlap, S. Li et al., VLDB 13 (2020).

MPI comes with `pip install 'pyconv[mpi]'`, or with mpi4py built for the cluster's own.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyconv import backend
from pyconv.layers.base import Parameter

if TYPE_CHECKING:
    from pyconv.plan import FlatParameters

__all__ = ["MPI", "detect", "rank", "size"]

# What launchers tell their processes: the number of a process, and how many there are.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI, Cray; Slurm with --mpi=pmi2
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),  # Slurm with --mpi=pmix
)
_FAILED, _WAITING, _LEAVING = 1, 2, 3  # tags of notices
_GRACE = 3.0  # seconds that a rank that ends waits for the others to have printed why
_SPIN = 0.001  # seconds of waiting before a rank leaves its core to others


class Share(NamedTuple):
    """The part of a batch that this process computes.

    Attributes:
        first: number of its first sample in the batch.
        samples: how many it has; it may be 0.
        whole: how many the batch has.
    """

    first: int
    samples: int
    whole: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.samples)


def rank() -> int:
    """The number of this process among those that MPI's launcher started; 0 without a launcher.

    Asks neither MPI nor mpi4py, so a script may print where it is 0.
    """
    return _launched()[0]


def size() -> int:
    """How many processes MPI's launcher started; 1 without a launcher."""
    return _launched()[1]


def _launched() -> tuple[int, int]:
    for names in _LAUNCHERS:
        with contextlib.suppress(KeyError, ValueError):
            return int(os.environ[names[0]]), int(os.environ[names[1]])
    return 0, 1


def detect() -> MPI | None:
    """What `compile` uses by default: all processes of the launcher, None without one.

    Raises:
        ImportError: if there are several processes, but no mpi4py or no MPI.
    """
    if size() == 1 or os.environ.get("PYCONV_DISTRIBUTE", "1") == "0":
        return None
    return _world()


@functools.cache
def _world() -> MPI:
    return MPI()


class MPI:
    """The processes that train a model together.

    Args:
        comm: a communicator of mpi4py's; by default all processes.
        bucket_bytes: gradients are sent when there are so many of them.
        timeout: seconds after which the others, who are waited for, count as hanging. The default
            is that of the environment variable PYCONV_MPI_TIMEOUT, or 30. It must exceed what only
            the first rank does in between, such as writing a model to a slow disk.
        cuda_aware: on "cuda", whether MPI takes arrays that lie on the device; otherwise they go
            through the host. By default what PYCONV_CUDA_AWARE_MPI says, or False.

    Attributes:
        rank: number of this process, from 0; the first one prints and writes.
        size: how many there are.
        stops_together: whether all ranks are about to be interrupted, and know it.

    Raises:
        ImportError: without mpi4py, or without an MPI.
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        comm: Any = None,
        bucket_bytes: int = 256 * 1024,
        timeout: float | None = None,
        cuda_aware: bool | None = None,
    ) -> None:
        if bucket_bytes < 1:
            raise ValueError(f"bucket_bytes must be at least 1. Received: {bucket_bytes!r}")
        if timeout is None:
            timeout = float(os.environ.get("PYCONV_MPI_TIMEOUT", "30"))
        if not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds. Received: {timeout!r}")
        if cuda_aware is None:
            cuda_aware = os.environ.get("PYCONV_CUDA_AWARE_MPI", "0") == "1"
        self._mpi = _import_mpi()
        comm = self._mpi.COMM_WORLD if comm is None else comm
        # Of its own, so that nothing is mistaken for the user's messages.
        self._comm, self._notices = comm.Dup(), comm.Dup()
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.bucket_bytes, self.timeout, self.cuda_aware = bucket_bytes, timeout, cuda_aware
        self.stops_together = False
        self._failed = self._told = False
        self._sent: list[Any] = []  # notices on their way
        self._use_own_cores()
        atexit.register(self._leave)
        self._hook = sys.excepthook
        sys.excepthook = self._uncaught

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def share(self, whole: int, multiple: int = 1) -> Share:
        """Returns this process's part of a batch: consecutive samples, as many as the others have.

        Args:
            whole: how many samples the batch has.
            multiple: parts begin at multiples of it.
        """
        units = -(-whole // multiple)
        first, end = (
            min(units * r // self.size * multiple, whole) for r in (self.rank, self.rank + 1)
        )
        return Share(first, end - first, whole)

    def largest_share(self, whole: int, multiple: int = 1) -> int:
        """The most samples that a process has of a batch of up to `whole`."""
        units = -(-whole // multiple)
        return min(-(-units // self.size) * multiple, whole)

    # What is the same on all ranks

    def broadcast(self, value: Any) -> Any:
        """Returns the first rank's value, plain data or arrays."""
        if self.is_first:
            data = self._packed(value)
            length = np.array([data.size], np.int64)
        else:
            length = np.zeros(1, np.int64)
        request = self._comm.Ibcast(length, root=0)
        self._wait([request], "a broadcast")
        if not self.is_first:
            data = np.empty(int(length[0]), np.uint8)
        self._wait([self._comm.Ibcast(data, root=0)], "a broadcast")
        return self._mpi.pickle.loads(data.tobytes())

    def sum(self, values: np.ndarray, what: str) -> np.ndarray:
        """Returns the sum over the ranks of small float64 arrays of the same shape."""
        total = np.ascontiguousarray(values, np.float64)
        self._wait([self._comm.Iallreduce(self._mpi.IN_PLACE, total)], what)
        return total

    def largest(self, value: int) -> int:
        """Returns the largest of the ranks' values."""
        found = np.array([value], np.int64)
        request = self._comm.Iallreduce(self._mpi.IN_PLACE, found, self._mpi.MAX)
        self._wait([request], "an agreement")
        return int(found[0])

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Sees to it that all ranks know the same facts.

        Raises:
            ValueError: on every rank, with the first fact that differs, and where.
        """
        told = {name: repr(value) for name, value in facts.items()}
        everybody = self._gather(told)
        for name in {name: None for known in everybody for name in known}:
            values = [known.get(name, "nothing of that name") for known in everybody]
            others = [r for r, value in enumerate(values) if value != values[0]]
            if others:
                ranks = ", ".join(map(str, others[:8])) + (", ..." if len(others) > 8 else "")
                raise ValueError(
                    f"All ranks must train the same model on the same data. {name} is {values[0]} "
                    f"on rank 0, but {values[others[0]]} on rank {ranks}"
                )

    def _gather(self, value: Any) -> list[Any]:
        data = self._packed(value)
        sizes = np.empty(self.size, np.int64)
        self._wait([self._comm.Iallgather(np.array([data.size], np.int64), sizes)], "a comparison")
        parts = np.empty(int(sizes.sum()), np.uint8)
        request = self._comm.Iallgatherv(data, [parts, sizes.tolist()])
        self._wait([request], "a comparison")
        ends = np.cumsum(sizes)
        return [
            self._mpi.pickle.loads(parts[end - length : end].tobytes())
            for end, length in zip(ends.tolist(), sizes.tolist())
        ]

    def _packed(self, value: Any) -> np.ndarray:
        return np.frombuffer(self._mpi.pickle.dumps(value), np.uint8).copy()

    # The gradients

    def exchange(self, parameters: FlatParameters) -> Exchange:
        """Begins to add up the gradients of a step."""
        return Exchange(self, parameters)

    # Waiting, and what is done about those who do not come

    def _wait(self, requests: list[Any], what: str) -> None:
        """Waits for MPI; raises RuntimeError if a rank has failed, or does not come."""
        start = time.monotonic()
        turns = 0
        while not self._mpi.Request.Testall(requests):
            turns += 1
            if turns % 64:
                continue
            self._read_notices()
            waited = time.monotonic() - start
            if waited > self.timeout:
                self._report_missing(what, waited)
            if waited > _SPIN:
                time.sleep(50e-6)

    def _received(self, tag: int) -> Iterator[tuple[int, str]]:
        """The notices that have come: of whom, and what."""
        status = self._mpi.Status()
        while self._notices.iprobe(self._mpi.ANY_SOURCE, tag, status):
            yield status.source, self._notices.recv(None, status.source, tag)

    def _read_notices(self) -> None:
        for source, message in self._received(_FAILED):
            self._told = self._failed = True
            raise RuntimeError(f"Training ends because rank {source} failed: {message}")

    def _without_answer(self, tag: int, seconds: float) -> set[int]:
        """Tells the others something, and returns those who have not told the same by then."""
        self._tell(tag, "")
        others = set(range(self.size)) - {self.rank}
        end = time.monotonic() + seconds
        while others and time.monotonic() < end:
            others -= {source for source, _ in self._received(tag)}
            self._mpi.Request.Testall(self._sent)
            time.sleep(0.01)
        return others

    def _report_missing(self, what: str, waited: float) -> None:
        missing = sorted(self._without_answer(_WAITING, min(1.0, self.timeout)))
        text = f"Rank {self.rank} has waited {waited:.0f} s for the others in {what}. "
        if missing:
            text += (
                f"Missing: rank {', '.join(map(str, missing))}. It hangs, has ended, or does "
                "something else. If it is only slow, raise PYCONV_MPI_TIMEOUT"
            )
        else:
            text += "None is missing, so MPI itself does not get on"
        raise RuntimeError(text)

    @contextlib.contextmanager
    def guarding(self) -> Iterator[None]:
        """Tells the others if what happens within fails, as they would wait for this rank."""
        try:
            yield
        except BaseException as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        self._failed = True
        if not self._told:
            self._told = True
            self._tell(_FAILED, f"{type(error).__name__}: {error}")

    def _tell(self, tag: int, message: str) -> None:
        for other in range(self.size):
            if other != self.rank:
                self._sent.append(self._notices.isend(message, other, tag))

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        self._fail(error)
        self._hook(kind, error, trace)

    def _leave(self) -> None:
        """At the end of the process: a job that failed ends here, on all ranks.

        MPI would wait for those who wait for this rank. All are given the time to print.
        """
        if not self._failed or self._mpi.Is_finalized():
            return
        sys.stdout.flush()
        sys.stderr.flush()
        self._without_answer(_LEAVING, _GRACE)
        self._comm.Abort(1)

    def _use_own_cores(self) -> None:
        """Shares the processors that this process may use with the ranks that may use them, too."""
        if {"OMP_NUM_THREADS", "PYCONV_NUM_THREADS"} & os.environ.keys():
            return
        node = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        mine = frozenset(_processors())
        sharing = sum(1 for others in node.allgather(mine) if others & mine)
        node.Free()
        threads = min(backend.get_num_threads(), max(1, len(mine) // sharing))
        backend.set_num_threads(threads)


class Exchange:
    """The sum of the ranks' gradients, of one step.

    Gradients lie one after the other in the order of the layers and are made in the opposite one:
    what is ready is the end of the array, from some element on.
    """

    def __init__(self, group: MPI, parameters: FlatParameters) -> None:
        self._group, self._parameters = group, parameters
        device = parameters.device
        self._staged = not (device.on_host or group.cuda_aware)
        self._buffer = None if self._staged else parameters.gradients
        self._end = parameters.gradients.size
        self._requests: list[Any] = []

    @property
    def ready(self) -> Callable[[Parameter], None] | None:
        """To be called, in the backward pass, with the first parameter whose gradient is made.

        None where the pass is not computed call by call.
        """
        return self._ready if self._parameters.device.on_host else None

    def _ready(self, parameter: Parameter) -> None:
        first = self._parameters.offset(parameter)
        if (self._end - first) * 4 >= self._group.bucket_bytes:
            self._send(first)
        elif self._requests:
            self._group._mpi.Request.Testall(self._requests)  # or nothing would get on

    def finish(self) -> None:
        """Waits until the gradients are the sums over all ranks."""
        gradients, group = self._parameters.gradients, self._group
        if self._staged:
            self._buffer = np.ascontiguousarray(backend.to_host(gradients))
        elif not self._parameters.device.on_host:
            self._parameters.device.stream.synchronize()
        if self._end > 0:
            self._send(0)
        group._wait(self._requests, "the sum of the gradients")
        if self._staged:
            backend.copy(self._buffer, gradients)

    def _send(self, first: int) -> None:
        assert self._buffer is not None
        part = self._buffer[first : self._end]
        self._end = first
        self._requests.append(self._group._comm.Iallreduce(self._group._mpi.IN_PLACE, part))


def alignment(sample_sizes: Sequence[int]) -> int:
    """The multiple of samples at which a share begins: dropout draws numbers for four elements.

    Args:
        sample_sizes: elements of a sample in each dropout.
    """
    return math.lcm(*(4 // math.gcd(4, elements) for elements in sample_sizes))


def digest(x: Any, y: np.ndarray | None) -> str:
    """A short text that differs, in all likelihood, between data sets.

    Of labels all count, of samples up to 4,096 in equal distances.
    """
    found = hashlib.blake2b(digest_size=8)
    rows = x[:: max(1, len(x) // 4096)]
    for part in (rows, y):
        if part is not None:
            host = backend.to_host(part)
            found.update(f"{host.dtype.str}{host.shape}".encode())
            found.update(np.ascontiguousarray(host).data)
    return found.hexdigest()


def _processors() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _import_mpi() -> Any:
    try:
        from mpi4py import MPI as mpi
    except ImportError as error:
        raise ImportError(
            f"Training in several processes needs mpi4py ({error}). Install it with: pip install "
            "'pyconv[mpi]'. To train in each process for itself, set PYCONV_DISTRIBUTE=0"
        ) from error
    except RuntimeError as error:  # mpi4py is there, MPI is not
        raise ImportError(f"mpi4py found no MPI: {error}") from error
    return mpi
