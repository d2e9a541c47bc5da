"""Sequential: layers one after the other, with training, evaluation and prediction."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pyconv import backend, checkpoints, distribute, losses, metrics, optimizers, random, saving
from pyconv import layers as layers_module
from pyconv.callbacks import Callback, CallbackList, History, Logs, ProgbarLogger, Progress
from pyconv.checkpoints import Run
from pyconv.data import (
    ArrayBatches,
    Batches,
    GeneratedBatches,
    Pair,
    Part,
    Sharing,
    makes_batches,
    samples_alone,
    samples_and_labels,
)
from pyconv.graphs import StepGraph, StepNumbers
from pyconv.layers import Input, Layer, Parameter
from pyconv.layers.base import Shape, assign, sample_shape, snake_case
from pyconv.means import Means
from pyconv.names import missing
from pyconv.plan import (
    Batch,
    FlatParameters,
    Plan,
    as_batch,
    as_float32,
    check_numbers,
    new_like,
    place,
    run,
)
from pyconv.saving import load_model

__all__ = ["Sequential", "load_model"]

Arrays = tuple[np.ndarray, np.ndarray]


class Sequential:
    """A network whose layers follow one another.

    Args:
        layers: the layers; the first element may be an :class:`~pyconv.layers.Input`, or the first
            layer may have an `input_shape`. Otherwise the shape is taken from the first data.
        name: name of the model.

    Attributes:
        layers: the layers, without the Input.
        optimizer, loss, metrics: what `compile` set; None before.
        history: the History of the last `fit`; None before.
        stop_training: a callback sets it to True to stop `fit` after the current batch.

    Example:
        >>> model = Sequential([
        ...     Conv2D(32, (3, 3), activation="relu", input_shape=(32, 32, 3)),
        ...     MaxPooling2D((2, 2)),
        ...     Flatten(),
        ...     Dense(10, activation="softmax"),
        ... ])
        >>> model.compile("rmsprop", "categorical_crossentropy", metrics=["accuracy"])
        >>> model.fit(x_train, y_train, batch_size=256, epochs=10, validation_data=(x_test, y_test))
    """

    def __init__(
        self, layers: Sequence[Layer | Input] | None = None, name: str | None = None
    ) -> None:
        self.name = name or "sequential"
        self.optimizer: optimizers.Optimizer | None = None
        self.loss: losses.Loss | None = None
        self.metrics: list[metrics.Metric] | None = None
        self.history: History | None = None
        self.stop_training = False
        self._layers: list[Layer] = []
        self._sample_shape: tuple[int, ...] | None = None
        self._connected = False  # all layers are built and fit each other
        self._parameters: FlatParameters | None = None
        self._training_plan: Plan | None = None
        self._inference_plan: Plan | None = None
        self._placed_at: object = None  # the last write when the plan's device had all parameters
        self._graph = StepGraph()
        self._numbers: StepNumbers | None = None
        self._step = 0  # of training; selects dropout's masks
        self._run: Run | None = None  # where `fit` is, while it runs
        self._group: distribute.MPI | None = None  # the processes that train the model together
        self._agreed = False  # they have made sure that it is the same everywhere
        for layer in layers or ():
            self.add(layer)

    # Structure

    def add(self, layer: Layer | Input) -> None:
        """Appends a layer; builds it if the shape of its inputs is known.

        Raises:
            TypeError: if `layer` is not a layer.
            ValueError: if its name is taken, or if it cannot take the outputs of the layer before
                it.
        """
        if isinstance(layer, Input):
            if self._layers or self._sample_shape:
                raise ValueError(
                    f"{self.name}: an Input must be the first element of a model. "
                    f"Received: {layer!r} after "
                    f"{[known.name for known in self._layers] or 'another Input'}"
                )
            self._sample_shape = layer.sample_shape
            return
        if not isinstance(layer, Layer):
            raise TypeError(
                f"{self.name}: expected a layer, e.g. Dense(10). Received: {layer!r}"
                + (
                    ". Add the layers of that model one by one."
                    if isinstance(layer, Sequential)
                    else ""
                )
            )
        name = self._unique_name(layer)
        declared = None if self._layers else layer.declared_input_shape
        if self._sample_shape is not None and declared not in (None, self._sample_shape):
            raise ValueError(
                f"{self.name}: the Input and the input_shape of {name} must be the same. "
                f"Received: {self._sample_shape} and {declared}"
            )
        # Known from here on, also if the layer has been built before, e.g. in another model.
        if self._sample_shape is None and not self._layers:
            self._sample_shape = declared or _without_batch(layer.input_shape)
        layer.name, layer.has_automatic_name = name, False
        if self.output_shape is not None:
            layer.build(self.output_shape)
        self._layers.append(layer)
        self._forget_plans()

    def pop(self) -> Layer:
        """Removes the last layer and returns it.

        Raises:
            ValueError: if there is none.
        """
        if not self._layers:
            raise ValueError(f"{self.name}: there is no layer to remove.")
        self._forget_plans()
        return self._layers.pop()

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """Creates the weights.

        Args:
            input_shape: shape with the batch axis first, e.g. ``(None, 32, 32, 3)``; needed if the
                model has neither an Input nor an `input_shape` on its first layer.

        Raises:
            ValueError: if a layer cannot take its inputs, or if the shape differs from the one
                known.
        """
        if input_shape is not None:
            given = sample_shape(input_shape[1:], self.name, "input_shape[1:]")
            if self._sample_shape not in (None, given):
                raise ValueError(
                    f"{self.name}: the model has the input shape {self.input_shape}; make a new "
                    "model for "
                    f"another one. Received: input_shape={tuple(input_shape)}"
                )
            self._sample_shape = given
        if self._sample_shape is None:
            raise ValueError(
                f"{self.name}: the shape of the inputs is not known yet. Give the first layer an "
                "input_shape, "
                "e.g. Conv2D(32, 3, input_shape=(32, 32, 3)), or call build((None, 32, 32, 3))."
            )
        if self._connected:
            return
        shape: Shape = (None, *self._sample_shape)
        for layer in self._layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        self._connected = True

    @property
    def layers(self) -> list[Layer]:
        return list(self._layers)

    @property
    def built(self) -> bool:
        return self._sample_shape is not None and all(layer.built for layer in self._layers)

    @property
    def input_shape(self) -> Shape | None:
        return None if self._sample_shape is None else (None, *self._sample_shape)

    @property
    def output_shape(self) -> Shape | None:
        if self._sample_shape is None:
            return None
        shape: Shape = (None, *self._sample_shape)
        for layer in self._layers:
            shape = layer.compute_output_shape(shape)
        return shape

    def get_layer(self, name: str | None = None, index: int | None = None) -> Layer:
        """Returns a layer by its name or its index.

        Raises:
            ValueError: if there is no such layer, or unless exactly one of `name` and `index` is
                given.
        """
        names = [layer.name for layer in self._layers]
        if (name is None) == (index is None):
            raise ValueError(
                f"get_layer() expects a name or an index. Received: name={name!r}, index={index!r}"
            )
        if index is not None:
            if not -len(names) <= index < len(names):
                raise ValueError(
                    f"{self.name}: there are {len(names)} layers. Received: index={index!r}"
                )
            return self._layers[index]
        if name not in names:
            raise ValueError(
                f"{self.name}: there is no such layer. Known: {', '.join(names)}. Received: "
                f"name={name!r}"
            )
        return self._layers[names.index(name)]

    def summary(self, print_fn: Callable[[str], Any] | None = None) -> None:
        """Prints the layers, the shapes of their outputs and the numbers of their weights.

        Args:
            print_fn: called with every line; by default `print`.

        Raises:
            ValueError: if the shape of the inputs is not known yet.
        """
        self.build()
        rows = [("Layer (type)", "Output Shape", "Param #")]
        shape = self.input_shape
        for layer in self._layers:
            assert shape is not None
            shape = layer.compute_output_shape(shape)
            rows.append(
                (f"{layer.name} ({type(layer).__name__})", str(shape), f"{layer.count_params():,}")
            )
        first, second, third = (max(len(row[column]) for row in rows) for column in range(3))
        first, second = first + 4, second + 4
        first += max(0, 65 - first - second - third) // 2
        width = max(65, first + second + third)
        third = width - first - second
        lines = [f"{a:<{first}}{b:<{second}}{c:>{third}}" for a, b, c in rows]
        total = self.count_params()
        trained = sum(p.size for _, p in self._named_parameters() if p.trainable)
        output = print_fn or (print if distribute.rank() == 0 else _ignore)
        for line in (
            f'Model: "{self.name}"',
            "_" * width,
            lines[0],
            "=" * width,
            *lines[1:],
            "=" * width,
            f"Total params: {total:,}",
            f"Trainable params: {trained:,}",
            f"Non-trainable params: {total - trained:,}",
            "_" * width,
        ):
            output(line)

    # Weights

    def count_params(self) -> int:
        """Returns the number of weights."""
        self.build()
        return sum(layer.count_params() for layer in self._layers)

    def get_weights(self) -> list[np.ndarray]:
        """Returns copies of all weights, layer by layer, each in the order of its parameters."""
        self.build()
        return [parameter.value.copy() for _, parameter in self._named_parameters()]

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Copies `weights` (in the order of :meth:`get_weights`) into the model.

        Raises:
            ValueError: if their number or a shape is wrong. Nothing is changed then.
        """
        self.build()
        assign(self._named_parameters(), weights, self.name)

    def save(self, filepath: str | os.PathLike[str], overwrite: bool = True) -> None:
        """Saves layers, weights and how the model is compiled; `load_model` reads it.

        Args:
            filepath: file to write, by custom ending in `.safetensors`.
            overwrite: whether a file that is there is replaced.

        Raises:
            FileExistsError: if it is there and `overwrite` is False.
            OSError, ValueError: as for :func:`pyconv.saving.save_model`.

        Of processes that train the model together the first one writes.
        """
        if self._group is None or self._group.is_first:
            saving.save_model(self, filepath, overwrite)

    def save_weights(self, filepath: str | os.PathLike[str], overwrite: bool = True) -> None:
        """Saves the weights alone: as Keras's `.weights.h5` by that ending, else safetensors.

        Args and errors are those of :func:`pyconv.saving.save_weights`. Of processes that train the
        model together the first one writes.
        """
        if self._group is None or self._group.is_first:
            saving.save_weights(self, filepath, overwrite)

    def load_weights(self, filepath: str | os.PathLike[str]) -> None:
        """Loads weights that `save_weights`, `save` or, as `.weights.h5`, Keras 3 has written.

        Args and errors are those of :func:`pyconv.saving.load_weights`.
        """
        saving.load_weights(self, filepath)

    @property
    def gradients(self) -> list[np.ndarray]:
        """The gradients of the last training step, in the order of :meth:`get_weights`.

        Of what is trained, without moving averages.
        No copies on the CPU; copies of what lies on another device.

        Raises:
            RuntimeError: before the first training step.
        """
        if self._parameters is None:
            raise RuntimeError(
                f"{self.name}: there are no gradients before the first training step."
            )
        return [backend.to_host(view) for view in self._parameters.gradient_views]

    # Configuration

    def get_config(self) -> dict[str, Any]:
        """Returns what :meth:`from_config` takes, as values that JSON can hold; no weights."""
        return {
            "name": self.name,
            "build_input_shape": None if self.input_shape is None else list(self.input_shape),
            "layers": [layers_module.serialize(layer) for layer in self._layers],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Sequential:
        """Creates a model, with new weights, from what :meth:`get_config` returned."""
        model = cls(name=config["name"])
        if config["build_input_shape"] is not None:
            model.add(Input(config["build_input_shape"][1:]))
        for description in config["layers"]:
            model.add(layers_module.deserialize(description))
        return model

    def get_compile_config(self) -> dict[str, Any] | None:
        """Returns what :meth:`compile_from_config` takes; None if the model is not compiled."""
        if self.optimizer is None or self.loss is None or self.metrics is None:
            return None
        return {
            "optimizer": optimizers.serialize(self.optimizer),
            "loss": losses.serialize(self.loss),
            "metrics": [metrics.serialize(metric) for metric in self.metrics],
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model with what :meth:`get_compile_config` returned."""
        self.compile(**config)

    def compile(
        self,
        optimizer: str | optimizers.Optimizer | dict[str, Any] = "rmsprop",
        loss: str | type[losses.Loss] | losses.Loss | dict[str, Any] | None = None,
        metrics: Sequence[str | type[metrics.Metric] | metrics.Metric | dict[str, Any]]
        | None = None,
        distribute: distribute.MPI | str | bool | None = "auto",
    ) -> None:
        """Sets how the model is trained. The weights stay.

        Args:
            optimizer: a name or an object, see :mod:`pyconv.optimizers`.
            loss: a name or an object, see :mod:`pyconv.losses`.
            metrics: names or objects, see :mod:`pyconv.metrics`, e.g. ``["accuracy"]``, which is
                the categorical, sparse categorical or binary accuracy by the shapes of labels and
                outputs.
            distribute: the processes that train the model together, a
                :class:`pyconv.distribute.MPI`; "auto": those that MPI's launcher started, if there
                are several; None: each trains for itself. All call `fit`, `evaluate` and
                `train_on_batch` alike.

        Raises:
            ImportError: if there are several processes, but no mpi4py.
            TypeError: if `metrics` is not a list.
            ValueError: if a name is unknown, or one of Keras's that is not supported.
        """
        if metrics is not None and not isinstance(metrics, (list, tuple)):
            raise TypeError(f"metrics must be a list, e.g. ['accuracy']. Received: {metrics!r}")
        if loss is None:
            raise ValueError(
                "compile() needs a loss, e.g. loss='categorical_crossentropy'. Received: None"
            )
        new_metrics = [_get_metric(metric) for metric in metrics or ()]
        names = [metric.name for metric in new_metrics]
        if len({*names, "loss"}) <= len(names):
            raise ValueError(
                f"The metrics must have names of their own, other than 'loss'. Received: {names}"
            )
        group = _get_group(distribute)
        self.optimizer, self.loss = optimizers.get(optimizer), losses.get(loss)
        self.metrics, self._group, self._agreed = new_metrics, group, False
        self._training_plan = self._inference_plan = None
        self._graph.discard()

    @property
    def metrics_names(self) -> list[str]:
        """The names of the values that `evaluate` returns."""
        return ["loss", *(metric.name for metric in self.metrics or ())]

    # Training, evaluation, prediction

    def fit(
        self,
        x: Any,
        y: np.ndarray | None = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Callback | Sequence[Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        workers: int = 1,
        max_queue_size: int = 10,
        use_multiprocessing: bool = False,
    ) -> History:
        """Trains the model.

        The values of an epoch are means over its samples, each taken with the weights of its batch.
        Numbers that are not float32 are converted batch by batch. On "cuda" the data may also be
        CuPy's, samples as float32 or uint8: they stay where they are, and batches are gathered
        there.

        Instead of `x` and `y` there may be something that makes batches ``(x, y)``, which may
        differ in size: a generator, the `flow` of an
        :class:`~pyconv.preprocessing.image.ImageDataGenerator`, or any other iterable or indexable
        object. They are prepared by other threads while the model is trained, so each must be an
        array of its own. An epoch is one pass, of all batches if there is a `len`, else to the end;
        what never ends needs `steps_per_epoch`. If the data run out before the last epoch,
        training stops with a warning.

        Args:
            x: samples (N, ...), e.g. images (N, H, W, C), or what makes batches.
            y: labels as the loss takes them, e.g. (N, K), one-hot or distributions, for
                categorical_crossentropy, and class numbers, (N,) or (N, 1), for
                sparse_categorical_crossentropy; None if `x` makes batches.
            batch_size: samples in a step, 32 by default; the last batch of an epoch may be smaller.
                Not for what makes batches.
            epochs: the number of the last epoch.
            verbose: 0 shows nothing, 1 a progress bar (in a terminal; elsewhere one line per
                epoch), 2 one line per epoch; "auto" is 1.
            callbacks: called during training, see :mod:`pyconv.callbacks`.
            validation_split: share of the samples, the last ones, that are not trained on but
                evaluated after every epoch. Not for what makes batches.
            validation_data: ``(x, y)``, or what makes batches, to evaluate after every epoch
                instead.
            shuffle: whether every epoch has an order of its own; what makes batches decides that
                itself.
            initial_epoch: the number of epochs done before, when training is resumed; see also
                :class:`~pyconv.callbacks.BackupAndRestore`.
            steps_per_epoch: batches of an epoch, only for what makes them. The next epoch goes on
                where the last one ended.
            validation_steps: likewise, batches of an evaluation of `validation_data`.
            workers: threads that prepare batches in advance; several only help with what can be
                indexed. 0: batches are made between the steps.
            max_queue_size: how many batches are prepared in advance.
            use_multiprocessing: accepted for Keras's sake; threads are used in any case.

        Returns:
            The :class:`~pyconv.callbacks.History`. After Ctrl-C as well, with ``interrupted`` set
            to True.

        Raises:
            RuntimeError: if the model is not compiled.
            TypeError: if `x` or `y` does not hold numbers.
            ValueError: if a shape or an argument does not fit.
            Exception: what preparing a batch raised.
        """
        self._require_compiled("fit")
        verbose = _verbosity(verbose)
        epochs, initial_epoch = (
            _count("epochs", epochs, 0),
            _count("initial_epoch", initial_epoch, 0),
        )
        batch_size, queue = _batching(batch_size, workers, max_queue_size)
        x, y = self._arrays_or_batches(x, y)
        if validation_data is not None:
            validation_data = self._validation_data(validation_data)
        elif validation_split:
            if y is None:
                raise ValueError(
                    "validation_split divides arrays; give validation_data beside what makes "
                    f"batches. Received: validation_split={validation_split!r}"
                )
            (x, y), validation_data = _split(x, y, validation_split)

        with self._guarded():
            self._agree(
                *(x, y, validation_data),
                epochs=epochs,
                initial_epoch=initial_epoch,
                batch_size=batch_size,
            )
            return self._fit(
                *(x, y, batch_size, epochs, verbose, callbacks, validation_data, shuffle),
                *(initial_epoch, steps_per_epoch, validation_steps, queue),
            )

    def _fit(
        self,
        x: Any,
        y: np.ndarray | None,
        batch_size: int | None,
        epochs: int,
        verbose: int,
        callbacks: Callback | Sequence[Callback] | None,
        validation_data: Any,
        shuffle: bool,
        initial_epoch: int,
        steps_per_epoch: int | None,
        validation_steps: int | None,
        queue: tuple[int, int],
    ) -> History:
        """:meth:`fit`, with checked arguments."""
        seed = random.next_seed()
        batches = self._batches(
            x,
            y,
            batch_size,
            "steps_per_epoch",
            steps_per_epoch,
            queue,
            seed if shuffle else None,
        )
        validation = None
        if validation_data is not None:
            size = None if validation_data[1] is None else batch_size or _batch_size(x)
            validation = self._batches(
                validation_data[0],
                validation_data[1],
                size,
                "validation_steps",
                validation_steps,
                queue,
            )
        elif validation_steps is not None:
            _only_for_batches("validation_steps", validation_steps)
        self.history = history = History()
        # As in Keras the user's callbacks come first: what they add to the logs gets into the
        # history.
        own = [history, *([ProgbarLogger()] if verbose else [])]
        listeners = self._listeners(callbacks, batches, verbose, own, epochs=epochs)
        self.stop_training = False
        logs: Logs | None = None
        callbacks = listeners.callbacks
        self._run = run = Run(batches, validation, callbacks, self._means(), initial_epoch)
        listeners.on_train_begin()  # may change where the run is
        try:
            with backend.current().running():
                while run.epoch < epochs:
                    epoch = run.epoch
                    listeners.on_epoch_begin(epoch)
                    with contextlib.closing(batches.take(epoch, run.batch)) as taken:
                        of_epoch = self._fit_epoch(taken, run, listeners)
                    if of_epoch is None:  # the data had run out
                        break
                    logs = of_epoch
                    if validation is not None:
                        values = self._evaluate(validation, listeners=listeners)
                        logs.update({f"val_{name}": value for name, value in values.items()})
                    run.begin_epoch(epoch + 1, self._means())
                    listeners.on_epoch_end(epoch, logs)
                    if self.stop_training or batches.ran_out:
                        break
        except KeyboardInterrupt:
            if self._group is not None and not self._group.stops_together:
                raise  # the others wait
            history.interrupted = True
        finally:
            self._run = None
            listeners.on_train_end(logs if history.epoch else None)
        if history.interrupted and verbose:
            print(
                f"Training was interrupted after {len(history.epoch)} complete epochs; "
                "the model keeps the weights of its last step.",
                flush=True,
            )
        return history

    def evaluate(
        self,
        x: Any,
        y: np.ndarray | None = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        *,
        steps: int | None = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        return_dict: bool = False,
        workers: int = 1,
        max_queue_size: int = 10,
        use_multiprocessing: bool = False,
    ) -> float | list[float] | dict[str, float]:
        """Returns the loss and the metrics on data that are not trained on.

        Args:
            x, y, batch_size, verbose: as for :meth:`fit`.
            return_dict: whether to return a dict by name.
            callbacks: called with the hooks of a test, see :mod:`pyconv.callbacks`.
            steps: number of batches, only where `x` makes them; by default one pass.
            workers, max_queue_size, use_multiprocessing: as for :meth:`fit`.

        Returns:
            ``[loss, metric, ...]`` (see `metrics_names`), the loss alone without metrics, or a
            dict. Means over the samples.

        Raises:
            RuntimeError: if the model is not compiled.
            TypeError, ValueError: as for :meth:`fit`.
        """
        self._require_compiled("evaluate")
        verbose = _verbosity(verbose)
        batch_size, queue = _batching(batch_size, workers, max_queue_size)
        x, y = self._arrays_or_batches(x, y)
        batches = self._batches(x, y, batch_size, "steps", steps, queue)
        listeners = self._listeners(callbacks, batches, verbose)
        if self._group is not None and not self._group.is_first:
            verbose = 0
        progress = Progress("Evaluation", batches.samples, batches.steps, verbose)
        try:
            with self._guarded(), backend.current().running():
                self._agree(x, y, None, batch_size=batch_size)
                logs = self._evaluate(batches, progress, listeners)
            progress.finish(logs)
        finally:
            progress.close()
        return _returned(logs, return_dict)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        workers: int = 1,
        max_queue_size: int = 10,
        use_multiprocessing: bool = False,
    ) -> np.ndarray:
        """Returns the outputs of the model.

        Args:
            x: samples (N, ...), e.g. images (N, H, W, C); other numbers than float32 are converted.
                Or what makes batches ``x`` or ``(x, y)``, as for :meth:`fit`.
            batch_size: samples that are computed at a time, 32 by default; not for what makes
                batches.
            verbose: 0 shows nothing; otherwise a progress bar in a terminal if there are several
                batches.
            callbacks: called with the hooks of a prediction, see :mod:`pyconv.callbacks`.
            steps, workers, max_queue_size, use_multiprocessing: as for :meth:`evaluate`.

        Returns:
            A new float32 array (N, ...); CuPy's if `x` is an array of CuPy's.

        Raises:
            TypeError: if `x` does not hold numbers.
            ValueError: if the shape of `x` does not fit.
        """
        verbose = _verbosity(verbose)
        batch_size, queue = _batching(batch_size, workers, max_queue_size)
        if makes_batches(x) and not isinstance(x, (list, tuple)):
            return self._predict_generated(x, batch_size, verbose, callbacks, steps, queue)
        _only_for_batches("steps", steps)
        x = self._check_inputs(x)
        batches = ArrayBatches(x, None, batch_size or 32)
        shape = (len(x), *(_without_batch(self.output_shape) or ()))
        device = backend.current()
        outputs = np.empty(shape, np.float32) if isinstance(x, np.ndarray) else device.empty(shape)
        progress = Progress(
            "", len(x), batches.steps, int(verbose == 1 and len(x) > batches.batch_size)
        )
        first = 0

        def keep(y: Any) -> Any:
            nonlocal first
            given = outputs[first : first + len(y)]
            backend.copy(y, given)
            first += len(y)
            return given

        self._predict(batches, self._listeners(callbacks, batches, verbose), progress, keep)
        return outputs

    def fit_generator(
        self,
        generator: Any,
        steps_per_epoch: int | None = None,
        epochs: int = 1,
        verbose: str | int = 1,
        callbacks: Callback | Sequence[Callback] | None = None,
        validation_data: Any = None,
        validation_steps: int | None = None,
        max_queue_size: int = 10,
        workers: int = 1,
        use_multiprocessing: bool = False,
        shuffle: bool = True,
        initial_epoch: int = 0,
    ) -> History:
        """:meth:`fit` on what makes batches, under its old name."""
        return self.fit(
            _generator(generator),
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_data=validation_data,
            shuffle=shuffle,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            workers=workers,
            max_queue_size=max_queue_size,
            use_multiprocessing=use_multiprocessing,
        )

    def evaluate_generator(
        self,
        generator: Any,
        steps: int | None = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        max_queue_size: int = 10,
        workers: int = 1,
        use_multiprocessing: bool = False,
        verbose: str | int = 0,
    ) -> float | list[float] | dict[str, float]:
        """:meth:`evaluate` on what makes batches, under its old name."""
        return self.evaluate(
            _generator(generator),
            verbose=verbose,
            callbacks=callbacks,
            steps=steps,
            workers=workers,
            max_queue_size=max_queue_size,
            use_multiprocessing=use_multiprocessing,
        )

    def predict_generator(
        self,
        generator: Any,
        steps: int | None = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        max_queue_size: int = 10,
        workers: int = 1,
        use_multiprocessing: bool = False,
        verbose: str | int = 0,
    ) -> np.ndarray:
        """:meth:`predict` on what makes batches, under its old name."""
        return self.predict(
            _generator(generator),
            verbose=verbose,
            callbacks=callbacks,
            steps=steps,
            workers=workers,
            max_queue_size=max_queue_size,
            use_multiprocessing=use_multiprocessing,
        )

    def train_on_batch(
        self, x: np.ndarray, y: np.ndarray, return_dict: bool = False
    ) -> float | list[float] | dict[str, float]:
        """Makes one training step; returns the loss and the metrics of the batch before the step.

        Args and errors are those of :meth:`evaluate`. See also `gradients`.
        """
        self._require_compiled("train_on_batch")
        x, y = self._check_data(x, y)
        means = self._means()
        with self._guarded(), backend.current().running():
            if not self._agreed:
                self._agree(x, y, None)
            batches = ArrayBatches(x, y, len(x), share=self._share)
            for batch, labels, share in batches.take():
                self._train_step(batch, labels, means, share)
        return _returned(means.logs(), return_dict)

    def test_on_batch(
        self, x: np.ndarray, y: np.ndarray, return_dict: bool = False
    ) -> float | list[float] | dict[str, float]:
        """Returns the loss and the metrics of one batch.

        Args and errors are those of :meth:`evaluate`.
        """
        self._require_compiled("test_on_batch")
        x, y = self._check_data(x, y)
        with backend.current().running():
            batches = ArrayBatches(x, y, len(x), share=self._share)
            return _returned(self._evaluate(batches), return_dict)

    def predict_on_batch(self, x: np.ndarray) -> np.ndarray:
        """Returns the outputs for one batch, a new array. Errors are those of :meth:`predict`."""
        if self._inference_plan is not None:
            recorded = self._inference_plan.recorded_outputs(x)
            if recorded is not None:
                return recorded
        x = self._check_inputs(x)
        with backend.current().running():
            plan = self._plan_for_inference(len(x))
            outputs: np.ndarray = new_like(x, plan.forward(plan.feed(as_batch(x))))
            return outputs

    def __call__(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        """Returns the outputs for one batch, a new array; with `training`, as a step has them."""
        if not training:
            return self.predict_on_batch(x)
        return run(self._layers, self._check_inputs(x), training, None)

    def __repr__(self) -> str:
        return f"<Sequential name={self.name}, {len(self._layers)} layers>"

    # How a step flows

    def _batches(
        self,
        x: Any,
        y: np.ndarray | None,
        batch_size: int | None,
        steps_name: str,
        steps: int | None,
        queue: tuple[int, int],
        seed: int | None = None,
    ) -> Batches:
        """The batches of checked arrays, or of what makes some; `queue` is workers and size."""
        if y is not None:
            _only_for_batches(steps_name, steps)
            return ArrayBatches(x, y, 32 if batch_size is None else batch_size, seed, self._share)
        return self._generated(
            x, self._check_batch, batch_size, steps_name, steps, queue, self._share
        )

    def _generated(
        self,
        x: Any,
        convert: Callable[[Any], Pair],
        batch_size: int | None,
        steps_name: str,
        steps: int | None,
        queue: tuple[int, int],
        share: Sharing | None = None,
    ) -> GeneratedBatches:
        if batch_size is not None:
            raise ValueError(
                "batch_size is for arrays; what makes batches decides on their size. "
                f"Received: batch_size={batch_size} with {type(x).__name__}"
            )
        if steps is not None:
            steps = _count(steps_name, steps, 1)
        return GeneratedBatches(x, convert, steps, *queue, share=share)

    def _listeners(
        self,
        callbacks: Callback | Sequence[Callback] | None,
        batches: Batches,
        verbose: int,
        own: Sequence[Callback] = (),
        **params: Any,
    ) -> CallbackList:
        """The user's callbacks, and behind them our own."""
        params |= {
            "steps": batches.steps,
            "samples": batches.samples,
            "batch_size": batches.batch_size,
            "verbose": verbose,
        }
        speaks = self._group is None or self._group.is_first
        return CallbackList(callbacks, self, params, own, speaks)

    def _means(self) -> Means:
        return Means(self.metrics or (), self._group)

    def _fit_epoch(self, batches: Iterator[Part], run: Run, listeners: CallbackList) -> Logs | None:
        """The values of the epoch; None if there was no batch."""
        capacity = run.batches.batch_size or 0
        if self._group is not None:
            capacity = self._group.largest_share(capacity, self._multiple)
        for x, y, share in batches:
            listeners.on_train_batch_begin(run.batch)
            self._train_step(x, y, run.means, share, capacity)
            run.batch += 1
            logs = run.means.logs() if listeners.read_train_batches else Logs()
            listeners.on_train_batch_end(run.batch - 1, logs)
            if self.stop_training:
                break
        return run.means.logs() if run.batch else None

    def _train_step(
        self,
        x: Batch,
        y: np.ndarray,
        means: Means,
        share: distribute.Share | None = None,
        capacity: int = 0,
    ) -> None:
        optimizer, group = self.optimizer, self._group
        assert optimizer is not None
        plan = self._plan_for_training(max(len(x), capacity))
        parameters, numbers = self._parameters, self._numbers
        assert parameters is not None and numbers is not None
        optimizer.prepare(parameters.weights)
        numbers.set(self._step, optimizer.iterations + 1, optimizer.learning_rate)

        # A captured step finds everything where it was.
        capture = plan.device.captures and plan.on_device
        inputs, labels = plan.feed(x, keep=capture), plan.feed_labels(y, keep=capture)
        exchange = None
        if group is not None and share is not None:
            plan.take_part(share)
            exchange = group.exchange(parameters)

        def differentiate() -> tuple[np.ndarray, np.ndarray]:
            results = plan.forward_loss(inputs, labels, training=True, step=numbers.dropout_step)
            plan.backward(None if exchange is None else exchange.ready)
            return results

        def update() -> None:
            optimizer.step(
                parameters.weights, parameters.gradients, numbers.learning_rate, numbers.iteration
            )

        def launch() -> tuple[np.ndarray, np.ndarray]:
            results = differentiate()
            if exchange is None:
                update()
            return results

        key = None
        if capture and (fixed := optimizer.replayed_with) is not None:
            mode = plan.device.kernels.math_mode()
            key = (len(x), share, plan, parameters, numbers, optimizer, mode, *fixed)
        sample_losses, predictions = self._graph.run(
            launch, plan.device, key, list(optimizer.slots.values())
        )
        if exchange is not None:
            exchange.finish()
            update()
            self._average_statistics(share)
        Parameter.written()
        optimizer.iterations += 1
        self._step += 1
        means.add(sample_losses, y, predictions)

    def _average_statistics(self, share: distribute.Share | None) -> None:
        """Makes batch normalization's moving averages those of the whole batch.

        As in Keras, a process normalizes by the statistics of its own samples.
        """
        moving = [
            parameter
            for layer in self._layers
            if isinstance(layer, layers_module.BatchNormalization) and layer.trainable
            for parameter in layer.parameters[-2:]
        ]
        if not moving:
            return
        assert self._group is not None and share is not None
        values = np.concatenate([parameter.value.ravel() for parameter in moving])
        weighted = (
            values * (share.samples / share.whole) if share.samples else np.zeros_like(values)
        )
        values = self._group.sum(weighted, "the mean of the moving averages")
        first = 0
        for parameter in moving:
            parameter.assign(values[first : first + parameter.size].reshape(parameter.shape))
            first += parameter.size

    # What processes share

    @property
    def _share(self) -> Sharing | None:
        """From the size of a batch to this process's part; None if it has no others."""
        if self._group is None:
            return None
        return partial(self._group.share, multiple=self._multiple)

    @property
    def _multiple(self) -> int:
        """At which multiples of samples the parts of a batch begin."""
        shape, sizes = self.input_shape, []
        for layer in self._layers:
            assert shape is not None
            shape = layer.compute_output_shape(shape)
            if isinstance(layer, layers_module.Dropout):
                sizes.append(math.prod(size for size in shape if size is not None))
        return distribute.alignment(sizes)

    def _guarded(self) -> contextlib.AbstractContextManager[None]:
        """Within it, an exception reaches the other processes, too."""
        return contextlib.nullcontext() if self._group is None else self._group.guarding()

    def _agree(self, x: Any, y: np.ndarray | None, validation_data: Any, **arguments: Any) -> None:
        """Sees to it that all processes have the same model, data and arguments."""
        self._agreed = True
        if self._group is None:
            return
        if not self.built:
            raise ValueError(
                f"{self.name}: processes that train together must know the shape of the inputs. "
                "Give the model an Input, or call build() first."
            )
        facts = dict(arguments) | {"the arithmetic": checkpoints.arithmetic()}
        facts |= checkpoints.facts(self)
        if y is not None:
            facts |= {"the shape of x": x.shape, "the data": distribute.digest(x, y)}
        elif hasattr(x, "__len__"):
            facts["the number of batches"] = len(x)
        if isinstance(validation_data, tuple) and validation_data[1] is not None:
            facts["the validation data"] = distribute.digest(*validation_data)
        self._group.require_same(facts)
        checkpoints.synchronize(self, self._group)

    def _evaluate(
        self,
        batches: Batches,
        progress: Progress | None = None,
        listeners: CallbackList | None = None,
    ) -> Logs:
        means = self._means()
        listeners = listeners or CallbackList(None, self, {})
        listeners.on_test_begin()
        index = -1
        with contextlib.closing(batches.take()) as taken:
            for index, (x, y, share) in enumerate(taken):
                listeners.on_test_batch_begin(index)
                plan = self._plan_for_inference(max(batches.largest, len(x)))
                sample_losses, predictions = plan.forward_loss(plan.feed(x), plan.feed_labels(y))
                means.add(sample_losses, y, predictions)
                logs = means.logs() if listeners.read_test_batches else Logs()
                listeners.on_test_batch_end(index, logs)
                if progress is not None:
                    size = len(x) if share is None else share.whole
                    progress.update(size, means.logs() if progress.is_due else {})
        if index < 0:
            raise ValueError("There is nothing to evaluate: there was no batch.")
        listeners.on_test_end(means.logs())
        return means.logs()

    def _predict(
        self,
        batches: Batches,
        listeners: CallbackList,
        progress: Progress,
        keep: Callable[[Any], Any],
    ) -> None:
        """Computes the outputs of all batches; `keep` stores them, and returns what it stored."""
        try:
            with (
                backend.current().running(),
                contextlib.closing(batches.take()) as taken,
            ):
                listeners.on_predict_begin()
                for index, (batch, _, _) in enumerate(taken):
                    listeners.on_predict_batch_begin(index)
                    # Asked for every batch, because a callback may have changed the weights.
                    plan = self._plan_for_inference(max(batches.largest, len(batch)))
                    kept = keep(plan.forward(plan.feed(batch)))
                    listeners.on_predict_batch_end(index, {"outputs": kept})
                    progress.update(len(batch), {})
                listeners.on_predict_end()
        finally:
            progress.close()

    def _predict_generated(
        self,
        x: Any,
        batch_size: int | None,
        verbose: int,
        callbacks: Callback | Sequence[Callback] | None,
        steps: int | None,
        queue: tuple[int, int],
    ) -> np.ndarray:
        nothing = np.empty((0, 0), np.float32)

        def convert(batch: Any) -> Pair:
            return as_batch(self._check_inputs(samples_alone(batch))), nothing

        batches = self._generated(x, convert, batch_size, "steps", steps, queue)
        progress = Progress("", None, batches.steps, int(verbose == 1 and batches.steps != 1))
        outputs: list[np.ndarray] = []

        def keep(y: Any) -> np.ndarray:
            outputs.append(backend.to_host(y).copy())
            return outputs[-1]

        self._predict(batches, self._listeners(callbacks, batches, verbose), progress, keep)
        if not outputs:
            raise ValueError("There is nothing to predict: there was no batch.")
        return np.concatenate(outputs)

    def _plan_for_training(self, capacity: int) -> Plan:
        device = backend.current()
        trained = [parameter for _, parameter in self._named_parameters() if parameter.trainable]
        if (
            self._parameters is None
            or self._parameters.device is not device
            or self._parameters.trained != trained  # a layer was frozen, or is no longer
        ):
            # The rest goes with them.
            self._training_plan = self._parameters = None
            self._graph.discard()
            self._numbers = StepNumbers(device)
            self._parameters = FlatParameters(
                [parameter for _, parameter in self._named_parameters()]
            )
            if not self._parameters.weights.size:
                raise ValueError(
                    f"{self.name}: the model has no weights to train. Add a Dense or Conv2D."
                )
        self._parameters.claim()
        if not _serves(self._training_plan, capacity):
            assert self._sample_shape is not None
            # The old buffers go first, so that both need not fit into memory.
            self._training_plan = None
            self._graph.discard()
            gradients: dict[Parameter, np.ndarray] = dict(
                zip(self._parameters.trained, self._parameters.gradient_views)
            )
            self._training_plan = Plan(
                self._layers,
                self._sample_shape,
                capacity,
                training=True,
                gradients=gradients,
                loss=self.loss,
            )
        assert self._training_plan is not None
        return self._training_plan

    def _plan_for_inference(self, capacity: int) -> Plan:
        if not _serves(self._inference_plan, capacity):
            assert self._sample_shape is not None
            self._inference_plan = self._placed_at = None
            self._inference_plan = Plan(
                self._layers, self._sample_shape, capacity, loss=self.loss, repeated=True
            )
        assert self._inference_plan is not None
        if self._placed_at is not Parameter.last_write:
            place((parameter for _, parameter in self._named_parameters()), backend.current())
            self._placed_at = Parameter.last_write
        return self._inference_plan

    def _forget_plans(self) -> None:
        self._connected = False
        self._training_plan = self._inference_plan = None
        self._parameters = None
        self._graph.discard()

    # Checks

    def _named_parameters(self) -> list[tuple[str, Parameter]]:
        return [(layer.name, parameter) for layer in self._layers for parameter in layer.parameters]

    def _unique_name(self, layer: Layer) -> str:
        """The name under which the layer joins the model."""
        taken = {known.name for known in self._layers}
        if any(known is layer for known in self._layers) or (
            layer.name in taken and not layer.has_automatic_name
        ):
            raise ValueError(
                f"{self.name}: every layer must have a name of its own and can be added only once. "
                f"Received: a second layer {layer.name!r}. Give it another: "
                f"{type(layer).__name__}(..., name='...')"
            )
        if layer.name not in taken:
            return layer.name
        stem = snake_case(type(layer).__name__)
        return next(
            name for number in range(1, len(taken) + 1) if (name := f"{stem}_{number}") not in taken
        )

    def _require_compiled(self, method: str) -> None:
        if self.optimizer is None:
            raise RuntimeError(
                f"{self.name}: {method}() needs a compiled model. Call compile(optimizer, loss, "
                "metrics) first, "
                "e.g. model.compile('rmsprop', 'categorical_crossentropy', metrics=['accuracy'])."
            )

    def _check_inputs(self, x: np.ndarray) -> np.ndarray:
        """`x` as an array of the model's input shape; builds the model if it is the first one."""
        if isinstance(x, (list, tuple)):
            x = np.asarray(x)
        x = check_numbers(x)
        if not self._layers:
            raise ValueError(
                f"{self.name}: the model has no layers. Add some: model.add(Dense(10))."
            )
        if x.ndim < 2:
            raise ValueError(
                f"{self.name}: expected samples on the first axis of an array with at least 2 "
                "axes. "
                f"Received: x of shape {x.shape}"
            )
        if self._sample_shape is None:
            self.build(x.shape)
        self.build()
        expected = self._sample_shape
        assert expected is not None
        if x.shape[1:] != expected:
            first = self._layers[0]
            raise ValueError(
                f"{first.name} ({type(first).__name__}), the first layer of {self.name}, expected "
                "x of shape "
                f"{(None, *expected)}. Received: x of shape "
                f"{x.shape}{_shape_hint(x.shape, expected)}"
            )
        if not len(x):
            raise ValueError(f"{self.name}: there are no samples. Received: x of shape {x.shape}")
        return x

    def _check_batch(self, batch: Any) -> Pair:
        """A batch that somebody made, as a training step takes it."""
        x, y = self._check_data(*samples_and_labels(batch))
        return as_batch(x), as_float32(y)

    def _arrays_or_batches(self, x: Any, y: Any) -> tuple[Any, np.ndarray | None]:
        """Checked arrays, or what makes batches and None."""
        if not makes_batches(x, y):
            return self._check_data(x, y)
        if y is not None:
            raise ValueError(
                "Labels are part of the batches where x makes some; leave y out. "
                f"Received: x of type {type(x).__name__} and y of type {type(y).__name__}"
            )
        return x, None

    def _validation_data(self, given: Any) -> tuple[Any, np.ndarray | None]:
        """Checked arrays, or what makes batches and None."""
        if makes_batches(given) and not isinstance(given, tuple):
            return given, None
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise ValueError(
                "validation_data must be a pair of arrays, (x, y), or what makes batches. "
                f"Received: {type(given).__name__}"
                + (f" of {len(given)}" if hasattr(given, "__len__") else "")
            )
        return self._check_data(*given)

    def _check_data(self, x: Any, y: Any) -> Arrays:
        """`x` and `y` as arrays that fit each other and the model; `y` is NumPy's."""
        x = self._check_inputs(x)
        y = check_numbers(np.asarray(y) if isinstance(y, (list, tuple)) else y)
        if len(x) != len(y) if y.ndim else True:
            raise ValueError(
                "x and y must have the same number of samples. "
                f"Received: x of shape {x.shape}, y of shape {y.shape}"
            )
        if not isinstance(y, np.ndarray):
            # Metrics, and losses of the user's own, are computed on the host.
            with backend.current().running():
                y = backend.to_host(y)
        assert self.loss is not None
        expected = self.output_shape
        output_shape = _without_batch(expected) or ()
        try:
            y = self.loss.check_labels(y, output_shape)
            for metric in self.metrics or ():
                metric.check_labels(y, output_shape)
        except ValueError as error:
            last = self._layers[-1]
            raise ValueError(
                f"{last.name} ({type(last).__name__}), the last layer of {self.name}, has outputs "
                f"of shape {expected}; {error}"
            ) from error
        return x, y


def _serves(plan: Plan | None, capacity: int) -> bool:
    """Whether a plan is for the device in use and batches of this size."""
    return plan is not None and plan.device is backend.current() and plan.capacity >= capacity


def _without_batch(shape: Shape | None) -> tuple[int, ...] | None:
    return None if shape is None else tuple(size for size in shape[1:] if size is not None)


# Under another name, because compile() has arguments called metrics and distribute.
_get_metric = metrics.get
_detect, _MPI = distribute.detect, distribute.MPI


def _get_group(given: Any) -> distribute.MPI | None:
    if given == "auto":
        return _detect()
    if given is None or given is False or isinstance(given, _MPI):
        return given or None
    raise ValueError(
        "distribute must be 'auto', None or a pyconv.distribute.MPI. "
        f"Received: distribute={given!r}"
    )


def _ignore(line: str) -> None:
    pass


def _returned(logs: Logs, return_dict: bool) -> float | list[float] | dict[str, float]:
    """The values as `evaluate` and its relatives return them."""
    if return_dict:
        return logs
    values = list(logs.values())
    return values if len(values) > 1 else values[0]


def _split(x: np.ndarray, y: np.ndarray, share: float) -> tuple[Arrays, Arrays]:
    """Training and validation data, the latter from the end."""
    if not 0 < share < 1:
        raise ValueError(f"validation_split must be in 0 <= share < 1. Received: {share!r}")
    first = math.floor(len(x) * (1 - share))
    if not 0 < first < len(x):
        raise ValueError(
            "validation_split leaves no samples for training or for validation. "
            f"Received: validation_split={share!r} with {len(x)} samples"
        )
    return (x[:first], y[:first]), (x[first:], y[first:])


def _verbosity(verbose: str | int) -> int:
    if verbose == "auto":
        return 1
    if verbose in (0, 1, 2):
        return int(verbose)
    raise ValueError(f"verbose must be 'auto', 0, 1 or 2. Received: verbose={verbose!r}")


def _count(argument: str, value: int, smallest: int) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= smallest:
        return int(value)
    raise ValueError(
        f"{argument} must be an integer of at least {smallest}. Received: {argument}={value!r}"
    )


def _batching(
    batch_size: int | None, workers: int, max_queue_size: int
) -> tuple[int | None, tuple[int, int]]:
    """Checked arguments: the size of the batches, and how they are prepared in advance."""
    if batch_size is not None:
        batch_size = _count("batch_size", batch_size, 1)
    queue = (_count("workers", workers, 0), _count("max_queue_size", max_queue_size, 1))
    return batch_size, queue


def _batch_size(x: Any) -> int | None:
    """The size that something with batches, such as a `flow`, says they have."""
    size = getattr(x, "batch_size", None)
    return size if isinstance(size, int) and size > 0 else None


def _only_for_batches(argument: str, value: int | None) -> None:
    if value is not None:
        raise ValueError(
            f"{argument} is for generators and other iterables of batches; arrays have a "
            f"batch_size. Received: {argument}={value!r} with arrays"
        )


def _generator(given: Any) -> Any:
    if makes_batches(given):
        return given
    raise TypeError(
        "Expected something that makes batches, e.g. ImageDataGenerator().flow(x, y). "
        f"Received: {type(given).__name__}. For arrays there are fit(), evaluate() and predict()"
    )


def _shape_hint(received: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """What to do about samples of the wrong shape, where that can be guessed."""
    if received == expected:
        return ". For a single sample add the batch axis: x[np.newaxis]"
    if (*received[1:], 1) == expected:
        return ". Add the axis of the channels: x[..., np.newaxis]"
    if len(expected) == 3 and (*received[2:], received[1]) == expected:
        return ". Move the channels to the last axis: np.moveaxis(x, 1, -1)"
    if math.prod(received[1:]) == math.prod(expected):
        return f". The number of values is right: x.reshape(-1, {', '.join(map(str, expected))})"
    return ""


if not TYPE_CHECKING:  # a type checker shall report what there is not

    def __getattr__(name: str) -> Any:
        raise missing(__name__, name, __all__)
