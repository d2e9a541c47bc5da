"""Sequential: layers one after the other, with training, evaluation and prediction."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pyconv import backend, losses, metrics, optimizers, random, saving
from pyconv import layers as layers_module
from pyconv.callbacks import Callback, CallbackList, History, Logs, ProgbarLogger, Progress
from pyconv.graphs import StepGraph, StepNumbers
from pyconv.layers import Input, Layer, Parameter
from pyconv.layers.base import Shape, assign, sample_shape, snake_case
from pyconv.plan import (
    Batch,
    FlatParameters,
    Plan,
    Rows,
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
        output = print_fn or print
        for line in (
            f'Model: "{self.name}"',
            "_" * width,
            lines[0],
            "=" * width,
            *lines[1:],
            "=" * width,
            f"Total params: {total:,}",
            f"Trainable params: {total:,}",
            "Non-trainable params: 0",
            "_" * width,
        ):
            output(line)

    # Weights

    def count_params(self) -> int:
        """Returns the number of weights."""
        self.build()
        return sum(layer.count_params() for layer in self._layers)

    def get_weights(self) -> list[np.ndarray]:
        """Returns copies of all weights, layer by layer, kernel before bias."""
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
        """
        saving.save_model(self, filepath, overwrite)

    def save_weights(self, filepath: str | os.PathLike[str], overwrite: bool = True) -> None:
        """Saves the weights alone: as Keras's `.weights.h5` by that ending, else safetensors.

        Args and errors are those of :func:`pyconv.saving.save_weights`.
        """
        saving.save_weights(self, filepath, overwrite)

    def load_weights(self, filepath: str | os.PathLike[str]) -> None:
        """Loads weights that `save_weights`, `save` or, as `.weights.h5`, Keras 3 has written.

        Args and errors are those of :func:`pyconv.saving.load_weights`.
        """
        saving.load_weights(self, filepath)

    @property
    def gradients(self) -> list[np.ndarray]:
        """The gradients of the last training step, in the order of :meth:`get_weights`.

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
        loss: str | losses.Loss | dict[str, Any] | None = None,
        metrics: Sequence[str | metrics.Metric | dict[str, Any]] | None = None,
    ) -> None:
        """Sets how the model is trained. The weights stay.

        Args:
            optimizer: a name or an object, see :mod:`pyconv.optimizers`.
            loss: a name or an object, see :mod:`pyconv.losses`.
            metrics: names or objects, see :mod:`pyconv.metrics`, e.g. ``["accuracy"]``.

        Raises:
            TypeError: if `metrics` is not a list.
            ValueError: if a name is unknown.
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
        self.optimizer, self.loss = optimizers.get(optimizer), losses.get(loss)
        self.metrics = new_metrics
        self._training_plan = self._inference_plan = None
        self._graph.discard()

    @property
    def metrics_names(self) -> list[str]:
        """The names of the values that `evaluate` returns."""
        return ["loss", *(metric.name for metric in self.metrics or ())]

    # Training, evaluation, prediction

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int = 32,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Callback | Sequence[Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: Arrays | None = None,
        shuffle: bool = True,
        initial_epoch: int = 0,
    ) -> History:
        """Trains the model.

        The values of an epoch are means over its samples, each taken with the weights of its batch.
        Numbers that are not float32 are converted batch by batch. On "cuda" the data may also be
        CuPy's, samples as float32 or uint8: they stay where they are, and batches are gathered
        there.

        Args:
            x: samples (N, ...), e.g. images (N, H, W, C).
            y: labels (N, K), one-hot or distributions.
            batch_size: samples in a step; the last batch of an epoch may be smaller.
            epochs: the number of the last epoch.
            verbose: 0 shows nothing, 1 a progress bar (in a terminal; elsewhere one line per
                epoch), 2 one line per epoch; "auto" is 1.
            callbacks: called during training, see :mod:`pyconv.callbacks`.
            validation_split: share of the samples, the last ones, that are not trained on but
                evaluated after every epoch.
            validation_data: ``(x, y)`` to evaluate after every epoch instead.
            shuffle: whether every epoch has an order of its own.
            initial_epoch: the number of epochs done before, when training is resumed.

        Returns:
            The :class:`~pyconv.callbacks.History`. After Ctrl-C as well, with ``interrupted`` set
            to True.

        Raises:
            RuntimeError: if the model is not compiled.
            TypeError: if `x` or `y` does not hold numbers.
            ValueError: if a shape or an argument does not fit.
        """
        self._require_compiled("fit")
        verbose = _verbosity(verbose)
        batch_size = _count("batch_size", batch_size, 1)
        epochs, initial_epoch = (
            _count("epochs", epochs, 0),
            _count("initial_epoch", initial_epoch, 0),
        )
        x, y = self._check_data(x, y)
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
                raise ValueError(
                    "validation_data must be a pair of arrays, (x, y). "
                    f"Received: {type(validation_data).__name__}"
                    + (f" of {len(validation_data)}" if hasattr(validation_data, "__len__") else "")
                )
            validation_data = self._check_data(*validation_data)
        elif validation_split:
            (x, y), validation_data = _split(x, y, validation_split)

        batches = _Batches(x, y, batch_size)
        validation = _Batches(*validation_data, batch_size) if validation_data else None
        self.history = history = History()
        own = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())
        # As in Keras the user's callbacks come first: what they add to the logs gets into the
        # history.
        listeners = CallbackList(
            [*own, history, *([ProgbarLogger()] if verbose else [])],
            self,
            {
                "epochs": epochs,
                "steps": len(batches),
                "samples": len(x),
                "batch_size": batch_size,
                "verbose": verbose,
            },
        )
        self.stop_training = False
        seed = random.next_seed()
        logs: Logs | None = None
        listeners.on_train_begin()
        try:
            with backend.current().running():
                for epoch in range(initial_epoch, epochs):
                    listeners.on_epoch_begin(epoch)
                    order = random.generator(seed, epoch).permutation(len(x)) if shuffle else None
                    logs = self._fit_epoch(batches.take(order), batch_size, listeners)
                    if validation is not None:
                        values = self._evaluate(validation, listeners=listeners)
                        logs.update({f"val_{name}": value for name, value in values.items()})
                    listeners.on_epoch_end(epoch, logs)
                    if self.stop_training:
                        break
        except KeyboardInterrupt:
            history.interrupted = True
        finally:
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
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int = 32,
        verbose: str | int = "auto",
        return_dict: bool = False,
        callbacks: Callback | Sequence[Callback] | None = None,
    ) -> float | list[float] | dict[str, float]:
        """Returns the loss and the metrics on data that are not trained on.

        Args:
            x, y, batch_size, verbose: as for :meth:`fit`.
            return_dict: whether to return a dict by name.
            callbacks: called with the hooks of a test, see :mod:`pyconv.callbacks`.

        Returns:
            ``[loss, metric, ...]`` (see `metrics_names`), the loss alone without metrics, or a
            dict. Means over the samples.

        Raises:
            RuntimeError: if the model is not compiled.
            TypeError, ValueError: as for :meth:`fit`.
        """
        self._require_compiled("evaluate")
        verbose = _verbosity(verbose)
        batch_size = _count("batch_size", batch_size, 1)
        x, y = self._check_data(x, y)
        batches = _Batches(x, y, batch_size)
        params = {"steps": len(batches), "samples": len(x)}
        params |= {"batch_size": batch_size, "verbose": verbose}
        listeners = CallbackList(callbacks, self, params)
        progress = Progress("Evaluation", len(x), verbose)
        try:
            with backend.current().running():
                logs = self._evaluate(batches, progress, listeners)
            progress.finish(logs)
        finally:
            progress.close()
        return _returned(logs, return_dict)

    def predict(
        self,
        x: np.ndarray,
        batch_size: int = 32,
        verbose: str | int = "auto",
        callbacks: Callback | Sequence[Callback] | None = None,
    ) -> np.ndarray:
        """Returns the outputs of the model.

        Args:
            x: samples (N, ...), e.g. images (N, H, W, C); other numbers than float32 are converted.
            batch_size: samples that are computed at a time.
            verbose: 0 shows nothing; otherwise a progress bar in a terminal if there are several
                batches.
            callbacks: called with the hooks of a prediction, see :mod:`pyconv.callbacks`.

        Returns:
            A new float32 array (N, ...); CuPy's if `x` is.

        Raises:
            TypeError: if `x` does not hold numbers.
            ValueError: if the shape of `x` does not fit.
        """
        verbose = _verbosity(verbose)
        batch_size = _count("batch_size", batch_size, 1)
        x = self._check_inputs(x)
        shape = (len(x), *(_without_batch(self.output_shape) or ()))
        device = backend.current()
        outputs = np.empty(shape, np.float32) if isinstance(x, np.ndarray) else device.empty(shape)
        progress = Progress("", len(x), int(verbose == 1 and len(x) > batch_size))
        batches = _Batches(x, None, batch_size)
        params = {"steps": len(batches), "samples": len(x)}
        params |= {"batch_size": batch_size, "verbose": verbose}
        listeners = CallbackList(callbacks, self, params)
        first = 0
        try:
            with device.running():
                listeners.on_predict_begin()
                for index, (batch, _) in enumerate(batches.take()):
                    listeners.on_predict_batch_begin(index)
                    # Asked for every batch, because a callback may have changed the weights.
                    plan = self._plan_for_inference(batches.largest)
                    given = outputs[first : first + len(batch)]
                    backend.copy(plan.forward(plan.feed(batch)), given)
                    first += len(batch)
                    listeners.on_predict_batch_end(index, {"outputs": given})
                    progress.update(len(batch), {})
                listeners.on_predict_end()
        finally:
            progress.close()
        return outputs

    def train_on_batch(
        self, x: np.ndarray, y: np.ndarray, return_dict: bool = False
    ) -> float | list[float] | dict[str, float]:
        """Makes one training step; returns the loss and the metrics of the batch before the step.

        Args and errors are those of :meth:`evaluate`. See also `gradients`.
        """
        self._require_compiled("train_on_batch")
        x, y = self._check_data(x, y)
        means = self._means()
        with backend.current().running():
            self._train_step(as_batch(x), as_float32(y), means)
        return _returned(_results(means), return_dict)

    def test_on_batch(
        self, x: np.ndarray, y: np.ndarray, return_dict: bool = False
    ) -> float | list[float] | dict[str, float]:
        """Returns the loss and the metrics of one batch.

        Args and errors are those of :meth:`evaluate`.
        """
        self._require_compiled("test_on_batch")
        x, y = self._check_data(x, y)
        with backend.current().running():
            return _returned(self._evaluate(_Batches(x, y, len(x))), return_dict)

    def predict_on_batch(self, x: np.ndarray) -> np.ndarray:
        """Returns the outputs for one batch, a new array. Errors are those of :meth:`predict`."""
        x = self._check_inputs(x)
        with backend.current().running():
            plan = self._plan_for_inference(len(x))
            outputs: np.ndarray = new_like(x, plan.forward(plan.feed(as_batch(x))))
            return outputs

    def __call__(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        """Returns the outputs for one batch, a new array; with `training`, dropout acts."""
        if not training:
            return self.predict_on_batch(x)
        return run(self._layers, self._check_inputs(x), training, None)

    def __repr__(self) -> str:
        return f"<Sequential name={self.name}, {len(self._layers)} layers>"

    # How a step flows

    def _fit_epoch(
        self,
        batches: Iterator[tuple[Batch, np.ndarray]],
        batch_size: int,
        listeners: CallbackList,
    ) -> Logs:
        means = self._means()
        for index, (x, y) in enumerate(batches):
            listeners.on_train_batch_begin(index)
            self._train_step(x, y, means, batch_size)
            listeners.on_train_batch_end(index, _results(means))
            if self.stop_training:
                break
        return _results(means)

    def _train_step(
        self, x: Batch, y: np.ndarray, means: dict[str, metrics.Mean], capacity: int = 0
    ) -> None:
        optimizer = self.optimizer
        assert optimizer is not None
        plan = self._plan_for_training(max(len(x), capacity))
        parameters, numbers = self._parameters, self._numbers
        assert parameters is not None and numbers is not None
        optimizer.prepare(parameters.weights)
        numbers.set(self._step, optimizer.iterations + 1, optimizer.learning_rate)

        # A captured step finds everything where it was.
        capture = plan.device.captures and plan.on_device
        inputs, labels = plan.feed(x, keep=capture), plan.feed_labels(y, keep=capture)

        def launch() -> tuple[np.ndarray, np.ndarray]:
            results = plan.forward_loss(inputs, labels, training=True, step=numbers.dropout_step)
            plan.backward()
            optimizer.step(
                parameters.weights, parameters.gradients, numbers.learning_rate, numbers.iteration
            )
            return results

        key = None
        if capture and (fixed := optimizer.replayed_with) is not None:
            mode = plan.device.kernels.math_mode()
            key = (len(x), plan, parameters, numbers, optimizer, mode, *fixed)
        sample_losses, predictions = self._graph.run(
            launch, plan.device, key, list(optimizer.slots.values())
        )
        Parameter.written()
        optimizer.iterations += 1
        self._step += 1
        self._add(means, sample_losses, y, predictions)

    def _evaluate(
        self,
        batches: _Batches,
        progress: Progress | None = None,
        listeners: CallbackList | None = None,
    ) -> Logs:
        means = self._means()
        listeners = listeners or CallbackList(None, self, {})
        listeners.on_test_begin()
        for index, (x, y) in enumerate(batches.take()):
            listeners.on_test_batch_begin(index)
            plan = self._plan_for_inference(batches.largest)
            sample_losses, predictions = plan.forward_loss(plan.feed(x), plan.feed_labels(y))
            self._add(means, sample_losses, y, predictions)
            listeners.on_test_batch_end(index, _results(means))
            if progress is not None:
                progress.update(len(x), _results(means))
        listeners.on_test_end(_results(means))
        return _results(means)

    def _means(self) -> dict[str, metrics.Mean]:
        return {name: metrics.Mean() for name in self.metrics_names}

    def _add(
        self,
        means: dict[str, metrics.Mean],
        sample_losses: np.ndarray,
        y: np.ndarray,
        predictions: np.ndarray,
    ) -> None:
        means["loss"].add(backend.to_host(sample_losses))
        if self.metrics:
            predictions = backend.to_host(predictions)
        for metric in self.metrics or ():
            means[metric.name].add(metric.values(y, predictions))

    def _plan_for_training(self, capacity: int) -> Plan:
        device = backend.current()
        if self._parameters is None or self._parameters.device is not device:
            # Made for another device, the rest goes with them.
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
                zip(
                    (parameter for _, parameter in self._named_parameters()),
                    self._parameters.gradient_views,
                )
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

    def _check_data(self, x: np.ndarray, y: np.ndarray) -> Arrays:
        """`x` and `y` as arrays that fit each other and the model; `y` is NumPy's."""
        x = self._check_inputs(x)
        y = check_numbers(np.asarray(y) if isinstance(y, (list, tuple)) else y)
        expected = self.output_shape
        assert expected is not None
        if len(x) != len(y) if y.ndim else True:
            raise ValueError(
                "x and y must have the same number of samples. "
                f"Received: x of shape {x.shape}, y of shape {y.shape}"
            )
        if y.shape[1:] != expected[1:]:
            last = self._layers[-1]
            hint = ""
            if math.prod(y.shape[1:]) == 1:
                hint = (
                    ". These look like class numbers; make them one-hot: "
                    f"y = pyconv.utils.to_categorical(y, {expected[-1]})"
                )
            elif len(y.shape) == len(expected) == 2:
                hint = f". For {y.shape[-1]} classes, give {last.name} {y.shape[-1]} outputs"
            raise ValueError(
                f"{last.name} ({type(last).__name__}), the last layer of {self.name}, has outputs "
                "of shape "
                f"{expected}, so y must have that shape. Received: y of shape {y.shape}{hint}"
            )
        if not isinstance(y, np.ndarray):
            # Metrics, and losses of the user's own, are computed on the host.
            with backend.current().running():
                y = backend.to_host(y)
        return x, y


class _Batches:
    """Serves arrays in batches.

    What is NumPy's is served as float32 and C-contiguous, through buffers that are reused. Samples
    that live on the device stay there and are served as rows of them.

    Args:
        x: samples.
        y: labels, NumPy's, or None.
        batch_size: size of all batches but the last.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray | None, batch_size: int) -> None:
        self._x, self._y = x, np.empty((len(x), 0), np.float32) if y is None else y
        self._batch_size = batch_size
        self.largest = min(batch_size, len(x))
        self._buffers: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return math.ceil(len(self._x) / self._batch_size)

    def take(self, order: np.ndarray | None = None) -> Iterator[tuple[Batch, np.ndarray]]:
        """Yields the batches; each lasts until the next.

        Args:
            order: the samples' indices in the order wanted; by default as they are.
        """
        on_device = None if isinstance(self._x, np.ndarray) else self._on_device(order)
        for first in range(0, len(self._x), self._batch_size):
            rows = slice(first, min(first + self._batch_size, len(self._x)))
            indices = None if order is None else order[rows]
            x: Batch
            if on_device is None:
                x = self._batch(0, self._x, rows, indices)
            elif isinstance(on_device, Rows):
                x = Rows(on_device.source, on_device.indices[rows])
            else:
                x = on_device[rows]
            yield x, self._batch(1, self._y, rows, indices)

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


def _serves(plan: Plan | None, capacity: int) -> bool:
    """Whether a plan is for the device in use and batches of this size."""
    return plan is not None and plan.device is backend.current() and plan.capacity >= capacity


def _without_batch(shape: Shape | None) -> tuple[int, ...] | None:
    return None if shape is None else tuple(size for size in shape[1:] if size is not None)


# Under another name, because compile() has an argument called metrics.
_get_metric = metrics.get


def _results(means: dict[str, metrics.Mean]) -> Logs:
    return Logs({name: mean.result() for name, mean in means.items()})


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
