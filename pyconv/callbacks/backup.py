"""BackupAndRestore: training that was cut off goes on as if it had not been."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyconv import checkpoints
from pyconv.callbacks.base import Callback, check_save_freq
from pyconv.distribute import MPI
from pyconv.saving import remove_leftovers

FILE = "checkpoint.safetensors"


class BackupAndRestore(Callback):
    """Saves where training is, and goes on from there when `fit` is called again.

    Whatever ended the process that was training (a signal, a crash, the power), the same program
    run again ends with the same weights, bit for bit, as if nothing had happened. That holds for
    arrays, for an :class:`~pyconv.preprocessing.image.ImageDataGenerator`'s `flow`, and for
    whatever else makes the same batches again in a new process. Saved are the weights, the
    optimizer's state, the seeds and counters of all that is random in pyconv, the position in the
    epoch with the means so far, the history, and what other callbacks' `get_state` returns.

    The file is replaced as a whole or not at all, so there always is a good one. In the main
    thread, Ctrl-C (SIGINT) and SIGTERM take effect after the batch at hand, when that has been
    saved; a second one at once.

    Args:
        backup_dir: folder for the file, `checkpoint.safetensors`; it is made if need be. One for
            each training.
        save_freq: "epoch", or a number of batches, which are counted across epochs.
        double_checkpoint: accepted for Keras's sake; the file is never half written anyway.
        delete_checkpoint: whether the file is removed when training has come to its end.
        save_seconds: saves within an epoch as well, when so many seconds have passed since the
            last time; None: does not.
        max_share: the share of the time that saving may take, e.g. 0.01: a save at the end of an
            epoch, or for `save_seconds`, is left out if the one before took too long for that. The
            one at the end of training never is. None: no limit.
        settings: plain data by name, e.g. ``{"data": "cifar10"}``, that must be the same when
            training goes on.

    Raises:
        ValueError: if an argument is out of range. In training, if what was saved is of another
            network, data set or other settings, or is damaged.
        OSError: in training, if the file cannot be written. The one before stays.

    Example:
        >>> model.fit(x, y, epochs=100, callbacks=[BackupAndRestore("backup")])
    """

    reads_batches = False
    comes_last = True  # so that it saves what the others did, and they have seen a batch that ends

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        save_freq: str | int = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
        *,
        save_seconds: float | None = None,
        max_share: float | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if not os.fspath(backup_dir):
            raise ValueError("BackupAndRestore: backup_dir must name a folder. Received: ''")
        if save_seconds is not None and not save_seconds >= 0:
            raise ValueError(
                "BackupAndRestore: save_seconds must be at least 0. "
                f"Received: save_seconds={save_seconds!r}"
            )
        self.backup_dir = Path(backup_dir)
        self.save_freq = check_save_freq("BackupAndRestore", save_freq)
        self.delete_checkpoint = bool(delete_checkpoint)
        if max_share is not None and not 0 < max_share < 1:
            raise ValueError(
                "BackupAndRestore: max_share must be in 0 < max_share < 1. "
                f"Received: max_share={max_share!r}"
            )
        self.save_seconds, self.max_share = save_seconds, max_share
        self.settings = dict(settings or {})
        self._batches = 0
        self._saved_at = self._took = 0.0  # seconds
        self._training = self._complete = False
        self._rate: float | None = None
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def path(self) -> Path:
        """The file."""
        return self.backup_dir / FILE

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._rate = None
        found = None
        if self._writes:
            self.backup_dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path)
            found = checkpoints.read(self.path) if self.path.exists() else None
        if self._group is not None:
            found = self._group.broadcast(found)
        if found is not None:
            checkpoints.restore(found, self.model, self.settings)
            self._rate = checkpoints.constant_rate(self.model)
        run = self.model._run
        assert run is not None
        self._complete = run.epoch >= self.params["epochs"]
        self._batches, self._saved_at = 0, time.monotonic()
        self._training = True
        self._postpone_signals()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        run, optimizer = self.model._run, self.model.optimizer
        assert run is not None and optimizer is not None
        if run.batch and self._rate is not None:
            # This epoch has begun once before; a LearningRateScheduler must not act twice.
            optimizer.learning_rate = self._rate
        self._rate = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._batches += 1
        due = self.save_freq != "epoch" and self._batches % int(self.save_freq) == 0
        if self.save_seconds is not None and self._seconds_since() >= self.save_seconds:
            due = due or self._is_affordable()
        self._between_batches(due)

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._training:
            self._between_batches(False)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        is_last = epoch + 1 >= self.params["epochs"] or self.model.stop_training
        self._between_batches(self.save_freq == "epoch" and (is_last or self._is_affordable()))
        self._complete = is_last

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._training = False
        if self._complete and self.delete_checkpoint and self._writes:
            self.path.unlink(missing_ok=True)
        self._release_signals()
        if self._complete:  # else something has ended training already
            self._deliver_signal()
        self._signal = None

    @property
    def _group(self) -> MPI | None:
        """The processes that train the model together."""
        return self.model._group

    @property
    def _writes(self) -> bool:
        return self._group is None or self._group.is_first

    def _between_batches(self, due: bool) -> None:
        if self._group is not None:
            # A signal may reach one process earlier than another, or alone.
            self._signal = self._group.largest(self._signal or 0) or None
            self._group.stops_together = self._signal is not None
        if due or self._signal is not None:
            self._save()
            if self._group is not None and self._signal is not None:
                self._group.largest(0)  # the launcher ends all when one has ended
        self._deliver_signal()

    def _seconds_since(self) -> float:
        return time.monotonic() - self._saved_at

    def _is_affordable(self) -> bool:
        return self.max_share is None or self._took <= self.max_share * self._seconds_since()

    def _save(self) -> None:
        if not self._writes:
            return
        start = time.monotonic()
        try:
            checkpoints.write(self.path, self.model, self.params["epochs"], self.settings)
        except OSError as error:
            kept = "The one before is intact" if self.path.exists() else "There is none yet"
            raise OSError(
                f"the checkpoint {self.path} cannot be written: {error.strerror or error}. {kept}. "
                "Make room, or the folder writable, and train on."
            ) from error
        self._saved_at = time.monotonic()
        self._took = self._saved_at - start

    def _postpone_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only there can they be caught
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):
                self._handlers[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, _: object) -> None:
        self._signal = number
        self._release_signals()

    def _release_signals(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _deliver_signal(self) -> None:
        if self._signal is not None:
            number, self._signal = self._signal, None
            self._release_signals()  # another process may have received it
            signal.raise_signal(number)
