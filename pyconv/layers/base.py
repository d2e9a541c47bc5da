"""What all layers share: a configuration, parameters and shape inference.

A layer holds no training state and knows no device. What is executed for it is in
:mod:`pyconv.blocks`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from pyconv import backend, initializers, mixed_precision, random

Shape = tuple[int | None, ...]

# Arguments that Keras has and we do not: the values that ask for nothing special are accepted.
_KERAS_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "activity_regularizer": (None,),
    "autocast": (None, True),
    "beta_constraint": (None,),
    "beta_regularizer": (None,),
    "bias_constraint": (None,),
    "bias_regularizer": (None,),
    "data_format": (None, "channels_last"),
    "depthwise_constraint": (None,),
    "depthwise_regularizer": (None,),
    "dtype": (None, "float32"),  # of Input; layers know more
    "gamma_constraint": (None,),
    "gamma_regularizer": (None,),
    "kernel_constraint": (None,),
    "kernel_regularizer": (None,),
    "lora_alpha": (None,),
    "lora_rank": (None,),
    "noise_shape": (None,),
    "quantization_config": (None,),
    "renorm": (False,),
    "renorm_clipping": (None,),
    "renorm_momentum": (0.99,),
    "synchronized": (False,),
    "trainable": (True,),
}


# What layers know by name, beside None.
ACTIVATIONS = ("linear", "relu", "softmax", "sigmoid", "tanh", "leaky_relu", "softplus")


class Parameter:
    """An array of a layer that training changes.

    Attributes:
        name: "kernel" or "bias"; of :class:`BatchNormalization` "gamma", "beta", "moving_mean" or
            "moving_variance".
        trainable: whether an optimizer changes it, by its gradient.
        array: the float32 array, C-contiguous, where the kernels that used it last take it from. A
            model that trains the layer lets it be a view of the one array in which it keeps all
            parameters, so fetch it anew rather than keep it. Models remember what they made from
            it: call `written` after writing into it, or use `assign`.
    """

    # Marks the last write to any parameter: what was made from some is up to date as long as this
    # is the same object.
    last_write: ClassVar[object] = object()

    def __init__(self, name: str, value: np.ndarray) -> None:
        self.name = name
        self.trainable = True
        self.array = value

    @property
    def array(self) -> Any:
        return self._array

    @array.setter
    def array(self, array: Any) -> None:
        self._array = array
        Parameter.written()

    @staticmethod
    def written() -> None:
        """To be called by whoever has written into the array of any parameter."""
        Parameter.last_write = object()

    @property
    def value(self) -> np.ndarray:
        """The array on the host, read-only (see `assign`): a view if it is NumPy's, else a copy."""
        value = backend.to_host(self.array).view()
        value.flags.writeable = False
        return value

    @value.setter
    def value(self, value: np.ndarray) -> None:
        self.array = value

    def assign(self, value: np.ndarray) -> None:
        """Overwrites the array, wherever it is, with one of the same shape."""
        backend.copy(np.ascontiguousarray(value, np.float32), self.array)
        Parameter.written()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.value, dtype) if copy or dtype else self.value

    def __repr__(self) -> str:
        return f"<Parameter {self.name}, shape={self.shape}>"


class Input:
    """Tells a :class:`~pyconv.models.Sequential` the shape of its inputs.

    Args:
        shape: shape of one sample, without the batch axis, e.g. ``(32, 32, 3)``.
        name: optional name.

    Raises:
        ValueError: if `shape` is not a tuple of positive integers.

    Example:
        >>> model = Sequential([Input((32, 32, 3)), Conv2D(8, 3), Flatten(), Dense(10)])
    """

    def __init__(self, shape: Sequence[int], name: str | None = None, **unsupported: Any) -> None:
        reject_unsupported("Input", unsupported)
        self.name = name or "input"
        self.sample_shape = sample_shape(shape, "Input", "shape")

    @property
    def shape(self) -> Shape:
        return (None, *self.sample_shape)

    def __repr__(self) -> str:
        return f"<Input shape={self.shape}>"


class Layer:
    """Base class of the layers.

    Args:
        input_shape: shape of one sample without the batch axis; for the first layer of a model.
        name: unique within its model; by default made from the class, e.g. ``conv2d_1``.
        dtype: "float32" or "mixed_bfloat16", or such a policy; by default the global one, see
            :mod:`pyconv.mixed_precision`.

    Attributes:
        parameters: the list of :class:`Parameter`, kernel before bias, and in Keras's order in any
            case; empty before the layer is built.
        built: whether the parameters exist.
        dtype_policy: what `dtype` said; `compute_dtype` and `variable_dtype` are its own, and
            `dtype` is the latter, "float32".
        input_shape, output_shape: with None for the batch axis; None before the layer is built.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] | None = None,
        name: str | None = None,
        dtype: str | mixed_precision.DTypePolicy | None = None,
        **unsupported: Any,
    ) -> None:
        reject_unsupported(type(self).__name__, unsupported)
        self._dtype_policy = mixed_precision.get(dtype)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"The name of a layer must be a string. Received: name={name!r}")
        self.has_automatic_name = name is None
        self.name = name or snake_case(type(self).__name__)
        self.declared_input_shape = (
            None if input_shape is None else sample_shape(input_shape, self.name, "input_shape")
        )
        self.parameters: list[Parameter] = []
        self.built = False
        self.input_shape: Shape | None = None
        self.output_shape: Shape | None = None

    @property
    def dtype_policy(self) -> mixed_precision.DTypePolicy:
        return self._dtype_policy

    @property
    def compute_dtype(self) -> str:
        return self.dtype_policy.compute_dtype

    @property
    def variable_dtype(self) -> str:
        return self.dtype_policy.variable_dtype

    dtype = variable_dtype

    @property
    def trainable(self) -> bool:
        """Whether the layer is trained: True, but for a BatchNormalization that is frozen."""
        return True

    @trainable.setter
    def trainable(self, value: bool) -> None:
        if not value:
            raise ValueError(
                f"{self.name} ({type(self).__name__}): only BatchNormalization can be frozen. "
                f"Received: trainable={value!r}"
            )

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the parameters; a layer that is built keeps them.

        Args:
            input_shape: shape with the batch axis first, e.g. ``(None, 32, 32, 3)``.

        Raises:
            ValueError: if the layer cannot take this shape.
        """
        shape = self._with_batch_axis(input_shape)
        output_shape = self.compute_output_shape(shape)
        if self.built:
            return
        self._build(shape)
        self.input_shape, self.output_shape = shape, output_shape
        self.built = True

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Shape:
        """Returns the output's shape for an input's shape, both with the batch axis first.

        Raises:
            ValueError: if the layer cannot take this shape.
        """
        shape = self._with_batch_axis(input_shape)
        return (
            shape[0],
            *self._output_shape(tuple(size for size in shape[1:] if size is not None)),
        )

    def __call__(
        self, x: np.ndarray, training: bool = False, step: int | None = None
    ) -> np.ndarray:
        """Applies the layer to an array, building it if need be.

        Args:
            x: array of numbers; the first axis is the batch.
            training: whether dropout acts, and batch normalization takes the batch's mean and
                variance and moves its averages.
            step: with dropout, equal steps give equal masks; by default every call draws a new one.

        Returns:
            A new float32 array.

        Raises:
            TypeError: if `x` is not an array of numbers.
            ValueError: if the layer cannot take the shape of `x`.
        """
        # The one place where a layer looks up to what executes it, so that a single layer can be
        # tried out.
        from pyconv.plan import run

        return run([self], x, training, step)

    def count_params(self) -> int:
        """Returns the number of weights.

        Raises:
            ValueError: if the layer is not built.
        """
        self._require_built("count_params")
        return sum(parameter.size for parameter in self.parameters)

    def get_weights(self) -> list[np.ndarray]:
        """Returns copies of the parameters, in the order of `parameters`."""
        return [parameter.value.copy() for parameter in self.parameters]

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Copies `weights` (in the order of :meth:`get_weights`) into the parameters.

        Raises:
            ValueError: if their number or a shape is wrong, or if the layer is not built. Nothing
                is changed then.
        """
        self._require_built("set_weights")
        assign([(self.name, parameter) for parameter in self.parameters], weights, self.name)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as values that JSON can hold."""
        config: dict[str, Any] = {"name": self.name}
        if self.dtype_policy.name != "float32":
            config["dtype"] = self.dtype_policy.name
        if self.declared_input_shape is not None:
            config["input_shape"] = list(self.declared_input_shape)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Layer:
        """Creates a layer from what :meth:`get_config` returned (without the weights)."""
        return cls(**{"dtype": "float32", **config})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name}, built={self.built}>"

    # What a kind of layer defines. Sample shapes are without the batch axis.

    def _build(self, input_shape: Shape) -> None:
        """Creates the parameters, if the layer has any."""

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an output sample; raises ValueError through :meth:`_shape_error`."""
        raise NotImplementedError(f"{type(self).__name__} must define _output_shape(shape)")

    # Helpers of the kinds of layers.

    def _add_parameters(
        self,
        kernel: tuple[int, ...],
        kernel_initializer: initializers.Initializer,
        bias_initializer: initializers.Initializer | None,
        bias: int | None = None,
    ) -> None:
        """A kernel of this shape, and a bias of that size, by default of the kernel's last axis."""
        rng = random.generator(random.next_seed())
        self._add_parameter("kernel", kernel, kernel_initializer, rng)
        if bias_initializer is not None:
            self._add_parameter("bias", (bias or kernel[-1],), bias_initializer, rng)

    def _add_parameter(
        self,
        name: str,
        shape: tuple[int, ...],
        initializer: initializers.Initializer,
        rng: np.random.Generator,
    ) -> None:
        value = np.ascontiguousarray(initializer(shape, rng), np.float32)
        if value.shape != shape:
            raise ValueError(
                f"{self.name}: the initializer of the {name} must return an array of shape "
                f"{shape}. "
                f"Received: {value.shape}"
            )
        self.parameters.append(Parameter(name, value))

    def _with_batch_axis(self, input_shape: Sequence[int | None]) -> Shape:
        try:
            shape = tuple(None if size is None else operator.index(size) for size in input_shape)
        except TypeError:
            raise ValueError(
                f"{self.name}: input_shape must be a tuple of integers with the batch axis first, "
                f"e.g. (None, 32, 32, 3). Received: {input_shape!r}"
            ) from None
        if len(shape) < 2 or None in shape[1:]:
            raise ValueError(
                f"{self.name}: all sizes but that of the batch must be known, e.g. (None, 32, 32, "
                "3). "
                f"Received: input_shape={shape}"
            )
        return shape

    def _require_built(self, method: str) -> None:
        if not self.built:
            raise ValueError(
                f"{self.name}: {method}() needs a built layer. Call it on an array, call "
                "build(input_shape), "
                "or put it into a model whose input shape is known."
            )

    def _shape_error(self, expected: str, shape: tuple[int, ...], fix: str = "") -> ValueError:
        return ValueError(
            f"{self.name} ({type(self).__name__}): expected {expected}. "
            f"Received: input shape {(None, *shape)}" + (f". {fix}" if fix else "")
        )


def image_channels(layer: Layer, shape: tuple[int, ...]) -> int:
    """The channels of an image of this shape, (H, W, C)."""
    if len(shape) != 3:
        fix = "Give the missing axis, e.g. x.reshape(-1, 28, 28, 1)" if len(shape) < 3 else ""
        raise layer._shape_error("images of shape (None, height, width, channels)", shape, fix)
    return shape[2]


def window_positions(
    layer: Layer,
    shape: tuple[int, ...],
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: str,
) -> tuple[int, int]:
    """Rows and columns of the output of a window that slides over an image (H, W, C)."""
    if padding == "same":
        return -(-shape[0] // strides[0]), -(-shape[1] // strides[1])
    if shape[0] < window[0] or shape[1] < window[1]:
        raise layer._shape_error(
            f"images of at least {window[0]}x{window[1]} pixels, the size of the window",
            shape,
            "Make the window smaller, use padding='same', or pool less before this layer",
        )
    return (shape[0] - window[0]) // strides[0] + 1, (shape[1] - window[1]) // strides[1] + 1


def assign(
    parameters: Sequence[tuple[str, Parameter]], weights: Sequence[np.ndarray], owner: str
) -> None:
    """Copies arrays into (layer name, parameter) pairs: all or, if one does not fit, none."""
    if isinstance(weights, np.ndarray) or not hasattr(weights, "__len__"):
        raise TypeError(
            f"{owner}: set_weights() expects a list of arrays. Received: {type(weights).__name__}"
        )
    if len(weights) != len(parameters):
        raise ValueError(
            f"{owner}: set_weights() expects {len(parameters)} arrays of shapes "
            f"{[parameter.shape for _, parameter in parameters]}. "
            f"Received: {len(weights)} arrays of shapes {[np.shape(weight) for weight in weights]}"
        )
    arrays = [np.asarray(weight, np.float32) for weight in weights]
    for (layer, parameter), array in zip(parameters, arrays):
        if array.shape != parameter.shape:
            raise ValueError(
                f"{owner}: the {parameter.name} of layer {layer} has the shape {parameter.shape}. "
                f"Received: an array of shape {array.shape}"
            )
    for (_, parameter), array in zip(parameters, arrays):
        parameter.assign(array)


def pair(value: int | Sequence[int], argument: str, owner: str) -> tuple[int, int]:
    """One positive integer, or a pair of them, as a pair."""
    values = (value, value) if not isinstance(value, (tuple, list)) else tuple(value)
    try:
        height, width = (operator.index(size) for size in values)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise ValueError(
            f"{owner}: {argument} must be a positive integer or a pair of them. Received: "
            f"{argument}={value!r}"
        )
    return height, width


def positive(value: int, argument: str, owner: str) -> int:
    """A positive integer."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(
            f"{owner}: {argument} must be a positive integer. Received: {argument}={value!r}"
        )
    return number


def one_of(value: str | None, argument: str, known: Sequence[str], owner: str) -> str:
    """`value`, lower-cased, if it is one of the known names."""
    name = value.lower() if isinstance(value, str) else value
    if name not in known:
        raise ValueError(
            f"{owner}: {argument} must be one of {', '.join(known)}. Received: {argument}={value!r}"
        )
    return str(name)


def activation_name(value: str | None, owner: str) -> str:
    """The name of an activation; None means "linear"."""
    return "linear" if value is None else one_of(value, "activation", ACTIVATIONS, owner)


def sample_shape(shape: Sequence[Any], owner: str, argument: str) -> tuple[int, ...]:
    """A shape without the batch axis: a non-empty tuple of positive integers."""
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(
            f"{owner}: {argument} must be a tuple of positive integers without the batch axis, "
            f"e.g. (32, 32, 3) for images or (784,) for vectors. Received: {argument}={shape!r}"
        )
    return sizes


def snake_case(name: str) -> str:
    """The class name as the stem of layer names: MaxPooling2D -> max_pooling2d."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def flat_size(shape: Sequence[int]) -> int:
    """Number of elements of an array of this shape."""
    return math.prod(shape)


def reject_unsupported(owner: str, arguments: dict[str, Any]) -> None:
    """Raises for arguments that are unknown, or known from Keras but not supported."""
    for argument, value in arguments.items():
        if argument not in _KERAS_ARGUMENTS:
            raise TypeError(f"{owner} has no argument {argument!r}. Received: {argument}={value!r}")
        neutral = _KERAS_ARGUMENTS[argument]
        if not any(value is known or value == known for known in neutral):
            raise ValueError(
                f"{owner} does not support {argument} other than "
                f"{' or '.join(map(repr, neutral))}; "
                f"leave it out. Received: {argument}={value!r}"
            )
