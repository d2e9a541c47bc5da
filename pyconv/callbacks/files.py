"""Callbacks that write files: models, tables of values, TensorBoard's events."""

from __future__ import annotations

import csv
import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from pyconv.callbacks.base import Callback, Logs, check_save_freq
from pyconv.callbacks.control import Monitor
from pyconv.extras import extra
from pyconv.saving import KERAS_ENDINGS, atomic_write


class ModelCheckpoint(Callback):
    """Saves the model, or its weights, after epochs or after a number of batches.

    A file is replaced as a whole or not at all. Folders are made.

    Args:
        filepath: file to write; ``{epoch}`` (from 1), ``{batch}`` (from 1, if `save_freq` is a
            number) and names of values are filled in, as in ``"{epoch:02d}-{val_loss:.2f}"``. A
            model is a safetensors file; weights are Keras's format if it ends in `.weights.h5`,
            else safetensors.
        monitor: name of the value that `save_best_only` looks at.
        verbose: 1 says what is saved.
        save_best_only: whether only what is better than all before is saved.
        save_weights_only: whether the weights are saved instead of the model.
        mode: "min", "max", or "auto", which decides by the name.
        save_freq: "epoch", or a number of batches, which are counted across epochs.
        initial_value_threshold: the value that the first one must improve on; None for none.

    Attributes:
        best: the best value so far. It is kept for the next `fit`.

    Raises:
        ValueError: if an argument is out of range, or `filepath` ends in `.keras`, or in `.h5` but
            not in `.weights.h5` with `save_weights_only`.
        KeyError: in training, if `filepath` has a name that the logs lack.

    Example:
        >>> ModelCheckpoint("{epoch:02d}-{val_loss:.2f}.safetensors", save_best_only=True)
    """

    first_process_only = True
    state_names = number_names = ("best", "_batches")

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        self.filepath = os.fspath(filepath)
        allowed = self.filepath.endswith(".weights.h5") and save_weights_only
        if self.filepath.endswith(KERAS_ENDINGS) and not allowed:
            raise ValueError(
                "ModelCheckpoint: filepath must end in .safetensors, or with "
                "save_weights_only=True in .weights.h5; Keras's whole models are not supported. "
                f"Received: filepath={self.filepath!r}"
            )
        # What is never compared need not tell what is better.
        self._monitor = Monitor("ModelCheckpoint", monitor, mode if save_best_only else "min")
        self.monitor, self.verbose = monitor, verbose
        self.save_freq = check_save_freq("ModelCheckpoint", save_freq)
        self.save_best_only, self.save_weights_only = save_best_only, save_weights_only
        self.best = initial_value_threshold
        self._batches = self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    @property
    def reads_batches(self) -> bool:
        return self.save_freq != "epoch"

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.save_freq == "epoch":
            return
        self._batches += 1
        if self._batches >= int(self.save_freq):
            self._batches = 0
            self._save(self._epoch, {"batch": batch + 1}, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.save_freq == "epoch":
            self._save(epoch, {}, logs)

    def _save(self, epoch: int, numbers: dict[str, int], logs: dict[str, Any] | None) -> None:
        if self.save_best_only and (value := self._monitor.value(logs)) is not None:
            before = "none" if self.best is None else f"{self.best:.5f}"
            if not self._monitor.improves(value, self.best):
                if self.verbose:
                    print(f"Epoch {epoch + 1}: {self.monitor} did not improve from {before}")
                return
            if self.verbose:
                print(f"Epoch {epoch + 1}: {self.monitor} improved from {before} to {value:.5f}")
            self.best = value
        fields = Logs({**numbers, **(logs or {}), "epoch": epoch + 1})
        try:
            path = Path(self.filepath.format_map(fields))
        except KeyError as error:
            raise KeyError(
                f"ModelCheckpoint: filepath={self.filepath!r} asks for {error}, which there is "
                f"not. Known: {', '.join(fields)}"
            ) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.verbose:
            print(f"Epoch {epoch + 1}: saving to {path}")
        if self.save_weights_only:
            self.model.save_weights(path)
        else:
            self.model.save(path)


class CSVLogger(Callback):
    """Writes the values of every epoch to a table.

    The columns are "epoch" (from 0) and the names of the first epoch's values in alphabetical
    order; if there is no validation then, columns for it follow, in which "NA" stands. The file is
    replaced after every epoch, as a whole or not at all.

    Args:
        filename: file to write.
        separator: what stands between the values of a line.
        append: whether lines are added to a file that is there, without a second header.

    Raises:
        TypeError: if `separator` is not one character.
        OSError: in training, if the file cannot be read or written.
    """

    first_process_only = True

    def __init__(
        self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False
    ) -> None:
        if not isinstance(separator, str) or len(separator) != 1:
            raise TypeError(
                f"CSVLogger: separator must be one character. Received: separator={separator!r}"
            )
        self.filename, self.separator, self.append = os.fspath(filename), separator, append
        self._text = io.StringIO()
        self._names: list[str] | None = None

    def get_state(self) -> dict[str, Any]:
        return {"text": self._text.getvalue(), "names": self._names}

    def set_state(self, state: dict[str, Any]) -> None:
        text, names = state["text"], state["names"]
        if names is not None and not isinstance(names, list):
            raise ValueError(f"CSVLogger: the columns must be a list. Received: {names!r}")
        for value in (text, *(names or ())):
            if not isinstance(value, str):
                raise ValueError(f"CSVLogger: the state must be text. Received: {value!r}")
        atomic_write(self.filename, text.encode())
        self._text = io.StringIO(newline="")
        self._text.write(text)
        self._names = names

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        before = ""
        if self.append and os.path.exists(self.filename):
            before = Path(self.filename).read_text()
            if before and not before.endswith("\n"):
                before += "\n"
        self._text = io.StringIO(newline="")
        self._text.write(before)
        self._names = None
        # Said now rather than after the first epoch, if it cannot be written.
        atomic_write(self.filename, before.encode())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        writer = csv.writer(self._text, delimiter=self.separator, lineterminator="\n")
        if self._names is None:
            self._names = sorted(logs)
            if not any(name.startswith("val_") for name in self._names):
                self._names += [f"val_{name}" for name in self._names]
            if not self._text.getvalue():
                writer.writerow(["epoch", *self._names])
        writer.writerow([epoch, *(_cell(logs.get(name, "NA")) for name in self._names)])
        atomic_write(self.filename, self._text.getvalue().encode())


class TensorBoard(Callback):
    """Writes events that TensorBoard shows, with tensorboard's own writer.

    Training is in `log_dir`/train, validation in `log_dir`/validation: scalars `epoch_loss` and so
    on, `epoch_learning_rate`, `evaluation_loss_vs_iterations`; see also the arguments.

    Args:
        log_dir: folder to write to.
        histogram_freq: every so many epochs histograms of the weights are written; 0 for none.
        write_steps_per_second: whether `epoch_steps_per_second` is written.
        update_freq: "epoch", "batch" or a number: every so many batches `batch_loss` and so on are
            written.
        unsupported: `write_graph`, `write_images`, `profile_batch`, `embeddings_freq` and
            `embeddings_metadata` of Keras must be False, 0 or None.

    Raises:
        ImportError: when training begins, if tensorboard is not installed.
        TypeError, ValueError: if an argument is unknown, out of range or not supported.
    """

    first_process_only = True
    state_names = number_names = ("_batches",)

    def __init__(
        self,
        log_dir: str | os.PathLike[str] = "logs",
        histogram_freq: int = 0,
        *,
        write_steps_per_second: bool = False,
        update_freq: str | int = "epoch",
        **unsupported: Any,
    ) -> None:
        for name, value in unsupported.items():
            if name not in (
                "write_graph",
                "write_images",
                "profile_batch",
                "embeddings_freq",
                "embeddings_metadata",
            ):
                raise TypeError(f"TensorBoard has no argument {name!r}. Received: {name}={value!r}")
            if value:
                raise ValueError(
                    f"TensorBoard does not support {name}; leave it out. Received: {name}={value!r}"
                )
        number = 1 if update_freq == "batch" else update_freq
        if number != "epoch" and (isinstance(number, (str, bool)) or number < 1):
            raise ValueError(
                "TensorBoard: update_freq must be 'epoch', 'batch' or a positive number. "
                f"Received: update_freq={update_freq!r}"
            )
        self.log_dir, self.histogram_freq = os.fspath(log_dir), histogram_freq
        self.update_freq, self.write_steps_per_second = number, write_steps_per_second
        self._writers: dict[str, Any] = {}
        self._batches = self._batches_of_epoch = 0
        self._start = 0.0
        self._training = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        _event_writer()
        self._batches = 0
        self._training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._training = False
        self._close()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._start, self._batches_of_epoch = time.perf_counter(), 0

    @property
    def reads_batches(self) -> bool:
        return self.update_freq != "epoch"

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._batches_of_epoch += 1
        if self.update_freq != "epoch" and self._batches % int(self.update_freq) == 0:
            for name, value in (logs or {}).items():
                self._scalar("train", f"batch_{name}", value, self._batches)
        self._batches += 1

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.model.optimizer is not None:
            for name, value in (logs or {}).items():
                tag = f"evaluation_{name}_vs_iterations"
                self._scalar("validation", tag, value, self.model.optimizer.iterations)
        if not self._training:
            self._close()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        values = dict(logs or {})
        if self.model.optimizer is not None:
            values["learning_rate"] = self.model.optimizer.learning_rate
        if self.write_steps_per_second:
            elapsed = max(time.perf_counter() - self._start, 1e-9)
            values["steps_per_second"] = self._batches_of_epoch / elapsed
        for name, value in values.items():
            which = "validation" if name.startswith("val_") else "train"
            self._scalar(which, f"epoch_{name.removeprefix('val_')}", value, epoch)
        if self.histogram_freq and epoch % self.histogram_freq == 0:
            self._histograms(epoch)
        for writer in self._writers.values():
            writer.flush()

    def _scalar(self, which: str, tag: str, value: Any, step: int) -> None:
        if isinstance(value, (int, float, np.number)):
            from tensorboard.plugins.scalar import summary_v2

            self._write(which, summary_v2.scalar_pb(tag, float(value)), step)

    def _histograms(self, step: int) -> None:
        from tensorboard.plugins.histogram import summary_v2

        for layer in self.model.layers:
            for parameter in layer.parameters:
                tag = f"{layer.name}/{parameter.name}/histogram"
                self._write("train", summary_v2.histogram_pb(tag, parameter.value), step)

    def _write(self, which: str, summary: Any, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        if which not in self._writers:
            self._writers[which] = _event_writer()(os.path.join(self.log_dir, which))
        self._writers[which].add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


def _event_writer() -> Any:
    with extra("tensorboard", "the callback TensorBoard needs tensorboard"):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    return EventFileWriter


def _cell(value: Any) -> Any:
    """A value as it stands in a table; a list is one cell."""
    if isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value):
        return f"[{', '.join(map(str, value))}]"
    return value
