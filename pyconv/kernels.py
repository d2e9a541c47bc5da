"""The kernels as pure functions over arrays: what layers are made of, to benchmark and validate.

They run on the device in use (`pyconv.set_device`), on whose arrays they work: NumPy's on "cpu" and
"cuda-emulated", CuPy's on "cuda", there on CuPy's current stream. Arrays are float32 and
C-contiguous. Activations are NHWC: (batch, height, width, channels);
convolution weights are HWIO: (kernel height, kernel width, input channels / groups, filters).
Nothing is converted or copied: a wrong dtype raises `TypeError`, a wrong shape, order or alignment
`ValueError`. What has `__dlpack__`, such as PyTorch's and JAX's arrays, is taken as an array of the
same memory. An empty batch is legal, an empty output is not.

Keyword arguments named after results (`out`, `dx`, `dw`, ...) take arrays to write them to, which
must not overlap with the inputs; without them, new arrays are returned. Gradients are overwritten,
not accumulated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from pyconv import backend
from pyconv.floats import as_float

__all__ = [
    "POINTWISE",
    "activate",
    "activate_backward",
    "adam_step",
    "argmax_dtype",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_training",
    "conv2d",
    "conv2d_backward",
    "conv2d_backward_data",
    "conv2d_backward_weights",
    "conv2d_pool",
    "conv2d_pool_backward",
    "conv2d_pool_backward_through",
    "dense",
    "dense_backward",
    "dense_backward_data",
    "dense_backward_weights",
    "dropout",
    "dropout_backward",
    "gather",
    "max_pool2d",
    "max_pool2d_backward",
    "pad2d",
    "pad2d_backward",
    "relu",
    "relu_backward",
    "rmsprop_step",
    "round_bfloat16",
    "sgd_step",
    "softmax",
    "softmax_backward",
    "softmax_cross_entropy",
    "warp_affine",
    "window_output_size",
]

Array = NDArray[np.float32]
Pair = Union[int, tuple[int, int]]
Padding = Union[str, int, tuple[int, int], tuple[tuple[int, int], tuple[int, int]]]
Activation = Union[str, None]
Counter = Union[int, NDArray[np.uint64]]
Rate = Union[float, NDArray[np.float32]]


# --------------------------------------------------------------------------------------------------
# Windows: the arithmetic that convolution and pooling share


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _pair(value: Any, name: str) -> tuple[int, int]:
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value  # what layers pass, again and again
    values = (value, value) if _is_integer(value) else value
    if (
        not isinstance(values, (tuple, list))
        or len(values) != 2
        or not all(map(_is_integer, values))
    ):
        raise ValueError(f"{name}: expected an integer or a pair of integers. Received: {value!r}.")
    return int(values[0]), int(values[1])


def window_pads(
    padding: Any, size: tuple[int, int], window: tuple[int, int], strides: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Returns the padding (top, bottom, left, right) for windows of this extent."""
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0, 0, 0
        if padding == "same":
            # As TensorFlow: outputs of ceil(size / stride), the odd row at the bottom and right.
            pads = []
            for n, k, s in zip(size, window, strides):
                total = max((-(-n // s) - 1) * s + k - n, 0) if s > 0 else 0
                pads += [total // 2, total - total // 2]
            return pads[0], pads[1], pads[2], pads[3]
        raise ValueError(
            f"padding: expected 'valid', 'same', an integer, a pair or two pairs of integers. "
            f"Received: {padding!r}."
        )
    if isinstance(padding, (tuple, list)) and any(isinstance(p, (tuple, list)) for p in padding):
        if len(padding) != 2:
            raise ValueError(
                f"padding: expected ((top, bottom), (left, right)). Received: {padding!r}."
            )
        return (*_pair(padding[0], "padding"), *_pair(padding[1], "padding"))
    vertical, horizontal = _pair(padding, "padding")
    return vertical, vertical, horizontal, horizontal


def window_extent(kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    return (kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1


def window_output_size(
    size: tuple[int, int],
    window: Pair,
    strides: Pair = 1,
    padding: Padding = "valid",
    dilation_rate: Pair = 1,
) -> tuple[int, int]:
    """Computes the output height and width of a convolution or pooling.

    Along each axis it is floor((size + padding - extent) / stride) + 1, where the window extends
    over (window - 1) * dilation + 1 elements.

    Args:
        size: input height and width.
        window: height and width of the kernel or pool.
        strides: steps between windows.
        padding: as for `conv2d`.
        dilation_rate: steps between the taps of a window.

    Returns:
        The pair (height, width); below 1 where the window does not fit.
    """
    strides = _pair(strides, "strides")
    extent = window_extent(_pair(window, "window"), _pair(dilation_rate, "dilation_rate"))
    for value in strides:
        if value < 1:
            raise ValueError(f"strides: expected at least 1. Received: {strides}.")
    top, bottom, left, right = window_pads(padding, size, extent, strides)
    return (
        (size[0] + top + bottom - extent[0]) // strides[0] + 1,
        (size[1] + left + right - extent[1]) // strides[1] + 1,
    )


def _shape(array: Any, name: str, rank: int) -> tuple[int, ...]:
    """The shape of an array that an output is allocated from; the binding checks the rest."""
    backend.current().require_array(array, name)
    if array.ndim != rank:
        raise ValueError(f"{name}: expected {rank} axes. Received shape: {array.shape}.")
    return array.shape


def _empty(shape: Any, dtype: Any = np.float32) -> NDArray[Any]:
    # Impossible sizes are the binding's to report: it says what is wrong with them.
    empty: NDArray[Any] = backend.current().empty([max(int(size), 0) for size in shape], dtype)
    return empty


def _call(operation: str, *arguments: Any) -> None:
    """Runs a kernel of the device in use."""
    device = backend.current()
    try:
        getattr(device.kernels, operation)(*arguments)
    except TypeError as error:
        # The binding knows its own arrays only.
        advice = next(filter(None, map(device.advice, arguments)), None)
        if advice is None:
            raise
        raise TypeError(f"{error} {advice}") from None


def _relu(activation: Any) -> bool:
    if activation is None or activation == "relu":
        return activation == "relu"
    raise ValueError(f"activation: expected None or 'relu'. Received: {activation!r}.")


_Function = Callable[..., tuple[Any, ...]]


def _remembered(shapes: int) -> Callable[[_Function], _Function]:
    """Keeps a function's results for plain arguments: a small kernel runs in its time.

    What equals a plain argument but is none, such as True, must be looked at each time; but not the
    first `shapes` arguments, which are shapes of arrays.
    """

    def decorate(function: _Function) -> _Function:
        kept = functools.lru_cache(maxsize=1024, typed=True)(function)

        @functools.wraps(function)
        def call(*arguments: Any) -> tuple[Any, ...]:
            for value in arguments[shapes:]:
                kind = type(value)
                if kind not in _PLAIN and (kind is not tuple or set(map(type, value)) != _INTEGERS):
                    return function(*arguments)
            return kept(*arguments)

        return call

    return decorate


_INTEGERS = {int}
_PLAIN = {int, str, type(None)}


@_remembered(shapes=2)
def _conv2d_geometry(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    strides: Any,
    padding: Any,
    dilation_rate: Any,
    groups: Any,
    activation: Any,
) -> tuple[Any, ...]:
    """What the binding's convolutions take behind their arrays."""
    strides, dilation = _pair(strides, "strides"), _pair(dilation_rate, "dilation_rate")
    extent = window_extent((w_shape[0], w_shape[1]), dilation)
    pads = window_pads(padding, (x_shape[1], x_shape[2]), extent, strides)
    if not _is_integer(groups):
        raise ValueError(f"groups: expected an integer. Received: {groups!r}.")
    return strides, pads, dilation, int(groups), _relu(activation)


def _four(shape: Any, name: str) -> tuple[int, int, int, int]:
    of_array = type(shape) is tuple and len(shape) == 4 and set(map(type, shape)) == _INTEGERS
    if not of_array and (
        not isinstance(shape, (tuple, list))
        or len(shape) != 4
        or not all(_is_integer(size) for size in shape)
    ):
        raise ValueError(f"{name}: expected four integers. Received: {shape!r}.")
    return shape[0], shape[1], shape[2], shape[3]


# --------------------------------------------------------------------------------------------------
# Convolution


def conv2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    strides: Pair = 1,
    padding: Padding = "valid",
    dilation_rate: Pair = 1,
    groups: int = 1,
    activation: Activation = None,
    *,
    out: Array | None = None,
    bfloat16: bool = False,
) -> Array:
    """2-D convolution (cross-correlation), with bias and ReLU fused in.

    y[n, i, j, f] = b[f] + sum over r, s, c of
        x[n, i * stride - top + r * dilation, j * stride - left + s * dilation, c] * w[r, s, c, f]

    where x outside the image counts as zero, and c and f run within one group. The output has
    floor((size + padding - extent) / stride) + 1 rows and columns: the tutorial's
    M = (N - F + 2P) / S + 1. (V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep
    learning", arXiv:1603.07285.)

    Args:
        x: input (n, h, w, channels).
        w: kernel (kh, kw, channels / groups, filters).
        b: bias (filters,), or None.
        strides: one integer for both axes or a pair.
        padding: "valid" (none), "same" (as TensorFlow: ceil(size / stride) outputs, the odd row and
            column of padding at the bottom and right), an integer for all sides, (vertical,
            horizontal), or ((top, bottom), (left, right)).
        dilation_rate: one integer for both axes or a pair.
        groups: parts that channels and filters are divided into, each connected to its own.
        activation: None or "relu".
        out: array for the result.
        bfloat16: whether x and w are numbers of bfloat16, as `round_bfloat16` makes them. Then a
            processor with AVX512-BF16 may multiply them in pairs, to the same results. With other
            numbers in them the result is undefined.

    Returns:
        y (n, oh, ow, filters).

    Raises:
        TypeError: if an array is not of the device, or not float32.
        ValueError: if a shape, order or parameter does not fit.
    """
    x_shape, w_shape = _shape(x, "x", 4), _shape(w, "w", 4)
    geometry = _conv2d_geometry(
        x_shape, w_shape, strides, padding, dilation_rate, groups, activation
    )
    if out is None:
        out = _empty(_conv2d_output(x_shape, w_shape, geometry))
    _call("conv2d", x, w, b, out, *geometry, bfloat16)
    return out


@functools.lru_cache(maxsize=1024)
def _conv2d_output(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], geometry: tuple[Any, ...]
) -> tuple[int, ...]:
    strides, pads, dilation = geometry[:3]
    if min(*strides, *dilation) < 1 or min(pads) < 0:
        return x_shape[0], 0, 0, w_shape[3]  # the binding says which one it is
    sides = ((pads[0], pads[1]), (pads[2], pads[3]))
    size = window_output_size(
        (x_shape[1], x_shape[2]), (w_shape[0], w_shape[1]), strides, sides, dilation
    )
    if min(size) < 1:
        return x_shape[0], 0, 0, w_shape[3]
    return x_shape[0], *size, w_shape[3]


def conv2d_backward_data(
    dy: Array,
    w: Array,
    x_shape: tuple[int, int, int, int],
    strides: Pair = 1,
    padding: Padding = "valid",
    dilation_rate: Pair = 1,
    groups: int = 1,
    activation: Activation = None,
    *,
    y: Array | None = None,
    out: Array | None = None,
    bfloat16: bool = False,
) -> Array:
    """The gradient of `conv2d` with respect to x: the transposed convolution of dy with w.

    Args:
        dy: gradient of the output (n, oh, ow, filters).
        w: kernel (kh, kw, channels / groups, filters).
        x_shape: shape of the input, (n, h, w, channels).
        strides, padding, dilation_rate, groups, activation: as in the forward pass.
        y: the forward pass's output; needed, and read, with activation="relu" only.
        out: array for the result.
        bfloat16: whether dy and w are numbers of bfloat16, as for `conv2d`.

    Returns:
        dx (n, h, w, channels).

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    x_shape, w_shape = _four(x_shape, "x_shape"), _shape(w, "w", 4)
    geometry = _conv2d_geometry(
        x_shape, w_shape, strides, padding, dilation_rate, groups, activation
    )
    if out is None:
        out = _empty(x_shape)
    elif backend.current().is_array(out) and out.shape != tuple(x_shape):
        raise ValueError(f"out: expected shape {tuple(x_shape)}. Received: {out.shape}.")
    _call("conv2d_backward_data", dy, w, y, out, *geometry, bfloat16)
    return out


def conv2d_backward_weights(
    dy: Array,
    x: Array,
    w_shape: tuple[int, int, int, int],
    strides: Pair = 1,
    padding: Padding = "valid",
    dilation_rate: Pair = 1,
    groups: int = 1,
    activation: Activation = None,
    *,
    y: Array | None = None,
    dw: Array | None = None,
    db: Array | None = None,
) -> tuple[Array, Array]:
    """The gradients of `conv2d` with respect to w and b.

    Args:
        dy: gradient of the output (n, oh, ow, filters).
        x: input (n, h, w, channels).
        w_shape: shape of the kernel, (kh, kw, channels / groups, filters).
        strides, padding, dilation_rate, groups, activation: as in the forward pass.
        y: the forward pass's output; needed, and read, with activation="relu" only.
        dw, db: arrays for the results.

    Returns:
        dw (kh, kw, channels / groups, filters) and db (filters,).

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    x_shape, w_shape = _shape(x, "x", 4), _four(w_shape, "w_shape")
    geometry = _conv2d_geometry(
        x_shape, w_shape, strides, padding, dilation_rate, groups, activation
    )
    if dw is None:
        dw = _empty(w_shape)
    elif backend.current().is_array(dw) and dw.shape != tuple(w_shape):
        raise ValueError(f"dw: expected shape {tuple(w_shape)}. Received: {dw.shape}.")
    if db is None:
        db = _empty(w_shape[3:])
    _call("conv2d_backward_weights", dy, x, y, dw, db, *geometry)
    return dw, db


def conv2d_backward(
    dy: Array,
    x: Array,
    w: Array,
    strides: Pair = 1,
    padding: Padding = "valid",
    dilation_rate: Pair = 1,
    groups: int = 1,
    activation: Activation = None,
    *,
    y: Array | None = None,
    dx: Array | None = None,
    dw: Array | None = None,
    db: Array | None = None,
    bfloat16: bool = False,
) -> tuple[Array, Array, Array]:
    """All gradients of `conv2d`: `conv2d_backward_data` and `conv2d_backward_weights` in one call.

    Args:
        dy: gradient of the output (n, oh, ow, filters).
        x: input (n, h, w, channels).
        w: kernel (kh, kw, channels / groups, filters).
        strides, padding, dilation_rate, groups, activation: as in the forward pass.
        y: the forward pass's output; needed, and read, with activation="relu" only.
        dx, dw, db: arrays for the results.
        bfloat16: whether dy and w are numbers of bfloat16, as for `conv2d`.

    Returns:
        dx, dw and db, of the shapes of x, w and the bias.

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    x_shape, w_shape = _shape(x, "x", 4), _shape(w, "w", 4)
    geometry = _conv2d_geometry(
        x_shape, w_shape, strides, padding, dilation_rate, groups, activation
    )
    dx = _empty(x_shape) if dx is None else dx
    dw = _empty(w_shape) if dw is None else dw
    db = _empty(w_shape[3:]) if db is None else db
    _call("conv2d_backward", dy, x, w, y, dx, dw, db, *geometry, bfloat16)
    return dx, dw, db


# --------------------------------------------------------------------------------------------------
# Pooling


def argmax_dtype(pool_size: tuple[int, int]) -> type[np.generic]:
    """The dtype of `max_pool2d`'s argmax: uint8 while a window has at most 256 positions."""
    return np.uint8 if pool_size[0] * pool_size[1] <= 256 else np.int32


@_remembered(shapes=1)
def _pool_geometry(
    x_shape: tuple[int, ...], pool_size: Any, strides: Any, padding: Any
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
    pool = _pair(pool_size, "pool_size")
    strides = pool if strides is None else _pair(strides, "strides")
    return pool, strides, window_pads(padding, (x_shape[1], x_shape[2]), pool, strides)


def max_pool2d(
    x: Array,
    pool_size: Pair = 2,
    strides: Pair | None = None,
    padding: Padding = "valid",
    *,
    out: Array | None = None,
    argmax: NDArray[Any] | None = None,
) -> tuple[Array, NDArray[Any]]:
    """2-D max pooling, which also says where each maximum stood.

    The first maximum wins ties, a NaN wins over every number, padding never wins.

    Args:
        x: input (n, h, w, channels).
        pool_size: one integer for both axes or a pair.
        strides: the same; None for pool_size.
        padding: as for `conv2d`, below the pool size on every side.
        out, argmax: arrays for the results.

    Returns:
        y (n, oh, ow, channels), and argmax of the same shape: the maximum's position in its window,
        row * pool width + column, as uint8 (int32 for windows of more than 256 positions).

    Raises:
        TypeError: if an array is not of the device, or not of the dtype it should have.
        ValueError: if a shape, order or parameter does not fit.
    """
    x_shape = _shape(x, "x", 4)
    pool, steps, pads = _pool_geometry(x_shape, pool_size, strides, padding)
    if out is None or argmax is None:
        shape = _conv2d_output(x_shape, (*pool, 1, x_shape[3]), (steps, pads, (1, 1)))
        out = _empty(shape) if out is None else out
        argmax = _empty(shape, argmax_dtype(pool)) if argmax is None else argmax
    _call("max_pool2d", x, out, argmax, pool, steps, pads)
    return out, argmax


def max_pool2d_backward(
    dy: Array,
    argmax: NDArray[Any],
    x_shape: tuple[int, int, int, int],
    pool_size: Pair = 2,
    strides: Pair | None = None,
    padding: Padding = "valid",
    *,
    out: Array | None = None,
) -> Array:
    """The gradient of `max_pool2d`: dy goes to where the maximum stood; where windows overlap it
    adds up.

    Args:
        dy: gradient of the output (n, oh, ow, channels).
        argmax: as `max_pool2d` returned it.
        x_shape: shape of the input, (n, h, w, channels).
        pool_size, strides, padding: as in the forward pass.
        out: array for the result.

    Returns:
        dx (n, h, w, channels).

    Raises:
        TypeError, ValueError: as `max_pool2d`.
    """
    x_shape = _four(x_shape, "x_shape")
    pool, steps, pads = _pool_geometry(x_shape, pool_size, strides, padding)
    if out is None:
        out = _empty(x_shape)
    elif backend.current().is_array(out) and out.shape != tuple(x_shape):
        raise ValueError(f"out: expected shape {tuple(x_shape)}. Received: {out.shape}.")
    _call("max_pool2d_backward", dy, argmax, out, pool, steps, pads)
    return out


def avg_pool2d(
    x: Array,
    pool_size: Pair = 2,
    strides: Pair | None = None,
    padding: Padding = "valid",
    *,
    out: Array | None = None,
) -> Array:
    """2-D average pooling: the mean of those pixels of a window that lie in the image.

    Padding counts neither in the sum nor in the number that divides it. A window's rows are summed
    one by one, then added up: of r x c pixels the sum is off by at most (r + c) 2^-24 times the sum
    of their absolute values, to first order.

    Args:
        x: input (n, h, w, channels).
        pool_size: one integer for both axes or a pair; (h, w) averages whole images.
        strides: the same; None for pool_size.
        padding: as for `conv2d`, below the pool size on every side.
        out: array for the result.

    Returns:
        y (n, oh, ow, channels).

    Raises:
        TypeError, ValueError: as `max_pool2d`.
    """
    x_shape = _shape(x, "x", 4)
    pool, steps, pads = _pool_geometry(x_shape, pool_size, strides, padding)
    if out is None:
        out = _empty(_conv2d_output(x_shape, (*pool, 1, x_shape[3]), (steps, pads, (1, 1))))
    _call("avg_pool2d", x, out, pool, steps, pads)
    return out


def avg_pool2d_backward(
    dy: Array,
    x_shape: tuple[int, int, int, int],
    pool_size: Pair = 2,
    strides: Pair | None = None,
    padding: Padding = "valid",
    *,
    out: Array | None = None,
) -> Array:
    """The gradient of `avg_pool2d`: every pixel gets its share of dy from all windows around it.

    Args:
        dy: gradient of the output (n, oh, ow, channels).
        x_shape: shape of the input, (n, h, w, channels).
        pool_size, strides, padding: as in the forward pass.
        out: array for the result.

    Returns:
        dx (n, h, w, channels).

    Raises:
        TypeError, ValueError: as `max_pool2d`.
    """
    x_shape = _four(x_shape, "x_shape")
    pool, steps, pads = _pool_geometry(x_shape, pool_size, strides, padding)
    if out is None:
        out = _empty(x_shape)
    elif backend.current().is_array(out) and out.shape != tuple(x_shape):
        raise ValueError(f"out: expected shape {tuple(x_shape)}. Received: {out.shape}.")
    _call("avg_pool2d_backward", dy, out, pool, steps, pads)
    return out


# --------------------------------------------------------------------------------------------------
# Padding


def pad2d(x: Array, padding: Padding = 1, *, out: Array | None = None) -> Array:
    """Rows and columns of zeros around images; negative padding leaves out what lies there.

    Args:
        x: input (n, h, w, channels).
        padding: an integer for all sides, (vertical, horizontal), or ((top, bottom), (left,
            right)).
        out: array for the result.

    Returns:
        y (n, top + h + bottom, left + w + right, channels).

    Raises:
        TypeError, ValueError: as `conv2d`; ValueError if nothing remains of the image.
    """
    x_shape, pads = _shape(x, "x", 4), _sides(padding)
    if out is None:
        n, h, w, channels = x_shape
        out = _empty((n, pads[0] + h + pads[1], pads[2] + w + pads[3], channels))
    _call("pad2d", x, out, pads)
    return out


def pad2d_backward(dy: Array, padding: Padding = 1, *, out: Array | None = None) -> Array:
    """The gradient of `pad2d`: dy without the padding.

    Args:
        dy: gradient of the output (n, top + h + bottom, left + w + right, channels).
        padding: as in the forward pass.
        out: array for the result.

    Returns:
        dx (n, h, w, channels).

    Raises:
        TypeError, ValueError: as `pad2d`.
    """
    top, bottom, left, right = _sides(padding)
    return pad2d(dy, ((-top, -bottom), (-left, -right)), out=out)


def _sides(padding: Any) -> tuple[int, int, int, int]:
    if isinstance(padding, str):
        raise ValueError(
            f"padding: expected an integer, a pair or two pairs of integers. Received: {padding!r}."
        )
    return window_pads(padding, (0, 0), (0, 0), (1, 1))


# --------------------------------------------------------------------------------------------------
# Convolution with ReLU, 2x2 max pooling and dropout behind it


def conv2d_pool(
    x: Array,
    w: Array,
    b: Array | None = None,
    strides: Pair = 1,
    padding: Padding = "valid",
    dilation_rate: Pair = 1,
    groups: int = 1,
    rate: float = 0.0,
    seed: int = 0,
    offset: Counter = 0,
    first: int = 0,
    *,
    out: Array | None = None,
    winner: NDArray[np.uint8] | None = None,
    bfloat16: bool = False,
) -> tuple[Array, NDArray[np.uint8]]:
    """`conv2d` with ReLU, `max_pool2d` of 2x2 windows and `dropout`, in one kernel.

    Only pooled values are written, with a byte each that is all the backward pass needs.

    Args:
        x, w, b, strides, padding, dilation_rate, groups: as for `conv2d`.
        rate, seed, offset, first: as for `dropout`, whose elements are those of the pooled output.
        out, winner: arrays for the results.
        bfloat16: whether x and w are numbers of bfloat16, as for `conv2d`.

    Returns:
        y (n, oh // 2, ow // 2, filters), and winner of the same shape, uint8: the position of the
        window's maximum, 2 * row + column, or 4 where no gradient passes: the maximum is not
        positive, or was dropped.

    Raises:
        TypeError, ValueError: as those functions; ValueError if the convolution's output is smaller
            than one window.
    """
    x_shape, w_shape = _shape(x, "x", 4), _shape(w, "w", 4)
    *geometry, _ = _conv2d_geometry(x_shape, w_shape, strides, padding, dilation_rate, groups, None)
    dropping = _dropout_arguments(rate, seed, offset, first)
    n, oh, ow, filters = _conv2d_output(x_shape, w_shape, tuple(geometry))
    shape = (n, oh // 2, ow // 2, filters)
    out = _empty(shape) if out is None else out
    winner = _empty(shape, np.uint8) if winner is None else winner
    _call("conv2d_pool", x, w, b, out, winner, *geometry, *dropping, bfloat16)
    return out, winner


def conv2d_pool_backward(
    dy: Array,
    winner: NDArray[np.uint8],
    x: Array,
    w: Array,
    strides: Pair = 1,
    padding: Padding = "valid",
    dilation_rate: Pair = 1,
    groups: int = 1,
    rate: float = 0.0,
    *,
    need_dx: bool = True,
    dx: Array | None = None,
    dw: Array | None = None,
    db: Array | None = None,
) -> tuple[Array | None, Array, Array]:
    """All gradients of `conv2d_pool`, from the pooled gradient: the dense one is never written.

    Args:
        dy: gradient of the output (n, oh // 2, ow // 2, filters).
        winner: as `conv2d_pool` returned it.
        x: input (n, h, w, channels).
        w: kernel (kh, kw, channels / groups, filters).
        strides, padding, dilation_rate, groups, rate: as in the forward pass.
        need_dx: whether dx is wanted; without, None is returned for it.
        dx, dw, db: arrays for the results.

    Returns:
        dx, dw and db, of the shapes of x, w and the bias.

    Raises:
        TypeError, ValueError: as `conv2d_pool`.
    """
    x_shape, w_shape = _shape(x, "x", 4), _shape(w, "w", 4)
    *geometry, _ = _conv2d_geometry(x_shape, w_shape, strides, padding, dilation_rate, groups, None)
    rate, *_ = _dropout_arguments(rate, 0, 0, 0)
    if dx is None and need_dx:
        dx = _empty(x_shape)
    dw = _empty(w_shape) if dw is None else dw
    db = _empty(w_shape[3:]) if db is None else db
    _call("conv2d_pool_backward", dy, winner, x, w, dx, dw, db, *geometry, rate)
    return dx, dw, db


def conv2d_pool_backward_through(
    dy: Array,
    winner: NDArray[np.uint8],
    w: Array,
    y: Array,
    x: Array,
    first_w_shape: tuple[int, int, int, int],
    strides: Pair = 1,
    padding: Padding = "valid",
    dilation_rate: Pair = 1,
    groups: int = 1,
    rate: float = 0.0,
    first_strides: Pair = 1,
    first_padding: Padding = "valid",
    first_dilation_rate: Pair = 1,
    first_groups: int = 1,
    first_activation: Activation = None,
    *,
    dw: Array | None = None,
    db: Array | None = None,
) -> tuple[Array, Array]:
    """The gradients of a `conv2d` with respect to its w and b, through the `conv2d_pool` behind it.

    Up to rounding what `conv2d_pool_backward` and then `conv2d_backward_weights` compute, but the
    gradient between the two layers is never written out: some images at a time, it stays in a
    cache. For the beginning of a network, where nobody else needs it. On the CPU only.

    Args:
        dy: gradient of the second layer's pooled output (n, oh // 2, ow // 2, filters).
        winner: as `conv2d_pool` returned it.
        w: kernel of the second layer.
        y: output of the first layer, which is the second's input (n, h, w, channels).
        x: input of the first layer.
        first_w_shape: shape of the first layer's kernel.
        strides, padding, dilation_rate, groups, rate: of the second layer.
        first_strides, first_padding, first_dilation_rate, first_groups, first_activation: of the
            first layer.
        dw, db: arrays for the results.

    Returns:
        dw of `first_w_shape` and db (channels,), of the first layer.

    Raises:
        NotImplementedError: if the device is not the CPU.
        TypeError, ValueError: as `conv2d_pool`.
    """
    first_w_shape = _four(first_w_shape, "first_w_shape")
    first = _conv2d_geometry(
        _shape(x, "x", 4),
        first_w_shape,
        first_strides,
        first_padding,
        first_dilation_rate,
        first_groups,
        first_activation,
    )
    *second, _ = _conv2d_geometry(
        _shape(y, "y", 4), _shape(w, "w", 4), strides, padding, dilation_rate, groups, None
    )
    rate, *_ = _dropout_arguments(rate, 0, 0, 0)
    if dw is None:
        dw = _empty(first_w_shape)
    elif backend.current().is_array(dw) and dw.shape != tuple(first_w_shape):
        raise ValueError(f"dw: expected shape {tuple(first_w_shape)}. Received: {dw.shape}.")
    db = _empty(first_w_shape[3:]) if db is None else db
    _call("conv2d_pool_backward_through", dy, winner, w, y, x, dw, db, *second, rate, *first)
    return dw, db


# --------------------------------------------------------------------------------------------------
# Dense layer


def dense(
    x: Array,
    w: Array,
    b: Array | None = None,
    activation: Activation = None,
    *,
    out: Array | None = None,
    bfloat16: bool = False,
) -> Array:
    """Dense layer: y = x w + b, with ReLU fused in.

    Args:
        x: input (n, inputs).
        w: kernel (inputs, units).
        b: bias (units,), or None.
        activation: None or "relu".
        out: array for the result.
        bfloat16: whether x and w are numbers of bfloat16, as `round_bfloat16` makes them. Then a
            processor with AVX512-BF16 may multiply them in pairs, to the same results. With other
            numbers in them the result is undefined.

    Returns:
        y (n, units).

    Raises:
        TypeError: if an array is not of the device, or not float32.
        ValueError: if a shape, order or parameter does not fit.
    """
    if out is None:
        out = _empty((_shape(x, "x", 2)[0], _shape(w, "w", 2)[1]))
    _call("dense", x, w, b, out, _relu(activation), bfloat16)
    return out


def dense_backward_data(
    dy: Array,
    w: Array,
    activation: Activation = None,
    *,
    y: Array | None = None,
    out: Array | None = None,
    bfloat16: bool = False,
) -> Array:
    """The gradient of `dense` with respect to x: dx = dy w^T.

    Args:
        dy: gradient of the output (n, units).
        w: kernel (inputs, units).
        activation: as in the forward pass.
        y: the forward pass's output; needed, and read, with activation="relu" only.
        out: array for the result.
        bfloat16: whether dy and w are numbers of bfloat16, as for `dense`.

    Returns:
        dx (n, inputs).

    Raises:
        TypeError, ValueError: as `dense`.
    """
    if out is None:
        out = _empty((_shape(dy, "dy", 2)[0], _shape(w, "w", 2)[0]))
    _call("dense_backward_data", dy, w, y, out, _relu(activation), bfloat16)
    return out


def dense_backward_weights(
    dy: Array,
    x: Array,
    activation: Activation = None,
    *,
    y: Array | None = None,
    dw: Array | None = None,
    db: Array | None = None,
) -> tuple[Array, Array]:
    """The gradients of `dense` with respect to w and b: dw = x^T dy, db = the sum of dy's rows.

    Args:
        dy: gradient of the output (n, units).
        x: input (n, inputs).
        activation: as in the forward pass.
        y: the forward pass's output; needed, and read, with activation="relu" only.
        dw, db: arrays for the results.

    Returns:
        dw (inputs, units) and db (units,).

    Raises:
        TypeError, ValueError: as `dense`.
    """
    units = _shape(dy, "dy", 2)[1]
    dw = _empty((_shape(x, "x", 2)[1], units)) if dw is None else dw
    db = _empty((units,)) if db is None else db
    _call("dense_backward_weights", dy, x, y, dw, db, _relu(activation))
    return dw, db


def dense_backward(
    dy: Array,
    x: Array,
    w: Array,
    activation: Activation = None,
    *,
    y: Array | None = None,
    dx: Array | None = None,
    dw: Array | None = None,
    db: Array | None = None,
    bfloat16: bool = False,
) -> tuple[Array, Array, Array]:
    """All gradients of `dense`: `dense_backward_data` and `dense_backward_weights` in one call.

    Args:
        dy: gradient of the output (n, units).
        x: input (n, inputs).
        w: kernel (inputs, units).
        activation: as in the forward pass.
        y: the forward pass's output; needed, and read, with activation="relu" only.
        dx, dw, db: arrays for the results.
        bfloat16: whether dy and w are numbers of bfloat16, as for `dense`.

    Returns:
        dx (n, inputs), dw (inputs, units) and db (units,).

    Raises:
        TypeError, ValueError: as `dense`.
    """
    x_shape, w_shape = _shape(x, "x", 2), _shape(w, "w", 2)
    dx = _empty(x_shape) if dx is None else dx
    dw = _empty(w_shape) if dw is None else dw
    db = _empty(w_shape[1:]) if db is None else db
    _call("dense_backward", dy, x, w, y, dx, dw, db, _relu(activation), bfloat16)
    return dx, dw, db


# --------------------------------------------------------------------------------------------------
# Element by element, and rows of classes


def _like(array: Any, name: str) -> Array:
    backend.current().require_array(array, name)
    return _empty(array.shape)


def relu(x: Array, *, out: Array | None = None) -> Array:
    """max(x, 0), element by element; NaN stays NaN.

    Args:
        x: array of any shape.
        out: array for the result; may be x.

    Returns:
        y, of x's shape.

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    out = _like(x, "x") if out is None else out
    _call("relu", x, out)
    return out


def relu_backward(dy: Array, y: Array, *, out: Array | None = None) -> Array:
    """The gradient of `relu`: dy where the output y is positive, else 0.

    Args:
        dy: gradient of the output, any shape.
        y: the output (or the input: they have the same sign), of the same shape.
        out: array for the result; may be dy.

    Returns:
        dx, of dy's shape.

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    out = _like(dy, "dy") if out is None else out
    _call("relu_backward", dy, y, out)
    return out


def round_bfloat16(x: Array, *, out: Array | None = None) -> Array:
    """The nearest numbers of bfloat16 (8 bits of exponent, 7 of the mantissa), still as float32.

    Of two that are equally near, the one whose last bit is 0. What rounds to beyond the largest
    one, 3.39e38, becomes infinite; NaN stays NaN.

    Args:
        x: array of any shape.
        out: array for the result; may be x.

    Returns:
        y, of x's shape.

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    out = _like(x, "x") if out is None else out
    _call("round_bfloat16", x, out)
    return out


# What `activate` knows by name.
POINTWISE = ("sigmoid", "tanh", "leaky_relu", "softplus")


def activate(
    x: Array, name: str, negative_slope: float = 0.2, *, out: Array | None = None
) -> Array:
    """An activation, element by element; NaN stays NaN.

    "sigmoid": 1 / (1 + exp(-x)); "tanh"; "leaky_relu": x where x > 0, else negative_slope * x;
    "softplus": log(1 + exp(x)). Without overflow for any x, and exact to a few units in the last
    place.

    Args:
        x: array of any shape.
        name: one of the above.
        negative_slope: of "leaky_relu", at least 0.
        out: array for the result; may be x.

    Returns:
        y, of x's shape.

    Raises:
        TypeError, ValueError: as `conv2d`; ValueError if there is no such name, or the slope is out
            of range.
    """
    out = _like(x, "x") if out is None else out
    _call("activate", x, out, name, negative_slope)
    return out


def activate_backward(
    dy: Array, y: Array, name: str, negative_slope: float = 0.2, *, out: Array | None = None
) -> Array:
    """The gradient of `activate`, from its output.

    dy times y (1 - y), (1 - y) (1 + y), 1 or the slope by the sign of y, and 1 - exp(-y).

    Args:
        dy: gradient of the output, any shape.
        y: the output, of the same shape.
        name, negative_slope: as in the forward pass.
        out: array for the result; may be dy or y.

    Returns:
        dx, of dy's shape.

    Raises:
        TypeError, ValueError: as `activate`.
    """
    out = _like(dy, "dy") if out is None else out
    _call("activate_backward", dy, y, out, name, negative_slope)
    return out


def softmax(x: Array, *, out: Array | None = None) -> Array:
    """exp(x) / sum(exp(x)) over the last axis, without overflow for any finite x.

    Args:
        x: input (n, classes).
        out: array for the result; may be x.

    Returns:
        y (n, classes).

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    out = _like(x, "x") if out is None else out
    _call("softmax", x, out)
    return out


def softmax_backward(dy: Array, y: Array, *, out: Array | None = None) -> Array:
    """The gradient of `softmax`: y * (dy - sum(dy * y)).

    Args:
        dy: gradient of the output (n, classes).
        y: the output (n, classes).
        out: array for the result; may be dy.

    Returns:
        dx (n, classes).

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    out = _like(dy, "dy") if out is None else out
    _call("softmax_backward", dy, y, out)
    return out


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    loss: Array | None = None,
    probabilities: Array | None = None,
    dlogits: Array | None = None,
    batch: int | None = None,
) -> tuple[Array, Array, Array]:
    """Softmax, categorical cross-entropy and the gradient of its mean, in one pass.

    loss[n] = sum_k labels[n, k] * (log sum_j exp(logits[n, j]) - logits[n, k]), stable for any
    finite logits. (C. Bishop, "Pattern Recognition and Machine Learning", section 4.3.4.)

    Args:
        logits: (n, classes).
        labels: (n, classes), a distribution a row: one-hot or soft.
        loss, probabilities, dlogits: arrays for the results.
        batch: the number of rows over which the mean is taken: n by default, more where the rows
            are part of a larger batch.

    Returns:
        loss (n,), one value a row; probabilities (n, classes), the softmax; dlogits (n, classes),
        the gradient of the mean loss: (softmax * sum(labels) - labels) / batch.

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    shape = _shape(logits, "logits", 2)
    loss = _empty(shape[:1]) if loss is None else loss
    probabilities = _empty(shape) if probabilities is None else probabilities
    dlogits = _empty(shape) if dlogits is None else dlogits
    batch = shape[0] if batch is None else batch
    if not _is_integer(batch):
        raise ValueError(f"batch: expected a positive integer. Received: {batch!r}.")
    _call("softmax_cross_entropy", logits, labels, loss, probabilities, dlogits, int(batch))
    return loss, probabilities, dlogits


def dropout(
    x: Array,
    rate: float,
    seed: int,
    offset: Counter = 0,
    first: int = 0,
    *,
    out: Array | None = None,
) -> Array:
    """Sets a fraction of the elements to zero and scales the others by 1 / (1 - rate).

    Element i is kept where word i % 4 of Philox4x32-10 with key `seed` and counter
    ((first + i) // 4, offset) is at least rate * 2^32. So the same arguments drop the same
    elements, on any device and any number of threads. (N. Srivastava et al., JMLR 15 (2014);
    J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11.)

    Args:
        x: array of any shape.
        rate: fraction to drop, from 0 to below 1.
        seed: key, from 0 to 2^64 - 1.
        offset: high half of the counter, from 0 to 2^64 - 1: a new one for every step. It may be an
            array of one uint64 on the device, which the kernel reads when it runs.
        first: where x is part of a larger array, the number of its first element there, a multiple
            of 4: the elements dropped are those that would be, were it dropped as a whole.
        out: array for the result; may be x.

    Returns:
        y, of x's shape.

    Raises:
        TypeError, ValueError: as `conv2d`; ValueError if rate, seed, offset or first is out of
            range.
    """
    arguments = _dropout_arguments(rate, seed, offset, first)
    out = _like(x, "x") if out is None else out
    _call("dropout", x, out, *arguments)
    return out


def _dropout_arguments(
    rate: Any, seed: Any, offset: Any, first: Any
) -> tuple[float, int, Any, int]:
    values = {"seed": seed, "first": first}
    if not backend.current().is_array(offset):
        values["offset"] = offset
    for name, value in values.items():
        if not isinstance(value, (int, np.integer)) or not 0 <= value < 2**64:
            raise ValueError(
                f"{name}: expected an integer from 0 to 2^64 - 1. Received: {value!r}."
            )
    if not isinstance(rate, (int, float, np.number)):
        raise ValueError(f"rate: expected a number from 0 to below 1. Received: {rate!r}.")
    return as_float(rate), int(seed), int(offset) if "offset" in values else offset, int(first)


def dropout_backward(
    dy: Array,
    rate: float,
    seed: int,
    offset: Counter = 0,
    first: int = 0,
    *,
    out: Array | None = None,
) -> Array:
    """The gradient of `dropout`: the same function of dy, with the same other arguments."""
    return dropout(dy, rate, seed, offset, first, out=out)


# --------------------------------------------------------------------------------------------------
# Batch normalization


def _channels(x: Any) -> tuple[int, ...]:
    backend.current().require_array(x, "x")
    return tuple(x.shape[-1:])


def batch_norm(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    mean: Array,
    variance: Array,
    epsilon: float = 1e-3,
    *,
    out: Array | None = None,
) -> Array:
    """Batch normalization with a mean and a variance that are given, as in inference.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, channel by channel.
    (S. Ioffe, C. Szegedy, "Batch normalization", arXiv:1502.03167.)

    Args:
        x: input (n, ..., channels).
        gamma, beta: (channels,); None for 1 and 0.
        mean, variance: (channels,).
        epsilon: see above, at least 0.
        out: array for the result; may be x.

    Returns:
        y, of x's shape.

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    out = _like(x, "x") if out is None else out
    _call("batch_norm", x, gamma, beta, mean, variance, out, epsilon)
    return out


def batch_norm_training(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    moving_mean: Array,
    moving_variance: Array,
    momentum: float = 0.99,
    epsilon: float = 1e-3,
    *,
    out: Array | None = None,
    mean: Array | None = None,
    inverse: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Batch normalization with the mean and the variance of the batch, as in training.

    They are taken over all axes but the last; the variance is the mean of (x - mean)^2, also where
    the moving averages are updated, in place, as Keras does:
    moving = momentum * moving + (1 - momentum) * that of the batch.

    Args:
        x: input (n, ..., channels), n at least 1.
        gamma, beta: (channels,); None for 1 and 0.
        moving_mean, moving_variance: (channels,), overwritten.
        momentum: from 0 to 1.
        epsilon: as for `batch_norm`.
        out, mean, inverse: arrays for the results; out may be x.

    Returns:
        y, of x's shape; the batch's mean (channels,) and 1 / sqrt(variance + epsilon) (channels,),
        which the backward pass needs.

    Raises:
        TypeError, ValueError: as `conv2d`; ValueError if the batch is empty.
    """
    channels = _channels(x)
    out = _empty(x.shape) if out is None else out
    mean = _empty(channels) if mean is None else mean
    inverse = _empty(channels) if inverse is None else inverse
    _call(
        "batch_norm_training",
        *(x, gamma, beta, moving_mean, moving_variance, out, mean, inverse, momentum, epsilon),
    )
    return out, mean, inverse


def batch_norm_backward(
    dy: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    inverse: Array,
    *,
    dx: Array | None = None,
    dgamma: Array | None = None,
    dbeta: Array | None = None,
) -> tuple[Array, Array, Array]:
    """All gradients of `batch_norm_training`.

    With xh = (x - mean) * inverse and sums over all axes but the last: dbeta = sum dy,
    dgamma = sum dy * xh, dx = gamma * inverse * (dy - (dbeta + xh * dgamma) / rows).

    Args:
        dy: gradient of the output, of x's shape.
        x: input (n, ..., channels).
        gamma: (channels,); None for 1.
        mean, inverse: (channels,), of the forward pass.
        dx, dgamma, dbeta: arrays for the results; dx may be dy.

    Returns:
        dx, of x's shape, dgamma (channels,) and dbeta (channels,).

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    channels = _channels(x)
    dx = _empty(x.shape) if dx is None else dx
    dgamma = _empty(channels) if dgamma is None else dgamma
    dbeta = _empty(channels) if dbeta is None else dbeta
    _call("batch_norm_backward", dy, x, gamma, mean, inverse, dx, dgamma, dbeta)
    return dx, dgamma, dbeta


# --------------------------------------------------------------------------------------------------
# Rows of a data set


def gather(
    source: NDArray[Any],
    indices: NDArray[np.int64],
    scale: float = 1.0,
    *,
    out: Array | None = None,
) -> Array:
    """Rows of an array as float32: out[i] = scale * source[indices[i]].

    What a shuffled batch is made of where the data set lives on the device, as bytes for instance.

    Args:
        source: (rows, ...), float32 or uint8.
        indices: (n,), int64; those outside are clipped to the first and last row.
        scale: factor.
        out: array for the result.

    Returns:
        out (n, ...).

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    device = backend.current()
    device.require_array(source, "source")
    device.require_array(indices, "indices")
    source = device.adopt(source)
    if source.dtype not in (np.uint8, np.float32):
        raise TypeError(f"source: expected float32 or uint8. Received: {source.dtype}.")
    if source.ndim < 1 or indices.ndim != 1:
        raise ValueError(
            "expected a source with at least one axis and indices with one. "
            f"Received shapes: {source.shape} and {indices.shape}."
        )
    shape = (*indices.shape, *source.shape[1:])
    out = _empty(shape) if out is None else out
    if device.name != "cpu":
        _call("gather", source, indices, out, as_float(scale), source.dtype == np.uint8)
        return out
    if not len(source):
        raise ValueError(f"source: expected at least one row. Received shape: {source.shape}.")
    if indices.dtype != np.int64:
        raise TypeError(f"indices: expected int64. Received: {indices.dtype}.")
    device.require_array(out, "out")
    if out.dtype != np.float32:
        raise TypeError(f"out: expected float32. Received: {out.dtype}.")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}. Received: {out.shape}.")
    out[...] = source[np.clip(indices, 0, len(source) - 1)]
    out *= np.float32(as_float(scale))
    return out


# --------------------------------------------------------------------------------------------------
# Augmentation


def warp_affine(
    x: Array,
    matrices: NDArray[np.float64],
    indices: NDArray[np.int64] | None = None,
    fill_mode: str = "nearest",
    cval: float = 0.0,
    *,
    threads: int | None = None,
    out: Array | None = None,
) -> Array:
    """Warps images by affine maps, one each, with linear interpolation.

    out[i, row, column] = x[indices[i], r, c], where (r, c) = matrices[i] @ (row, column, 1): a
    matrix says where the pixels of the result come from, as for scipy.ndimage.affine_transform.
    Always on the CPU, with NumPy's arrays, whatever the device. Maps of whole pixels to whole
    pixels copy bits.

    Args:
        x: images (m, height, width, channels), float32.
        matrices: (n, 2, 3), float64, in units of pixels.
        indices: (n,), int64: which image goes where; by default all as they are, n = m.
        fill_mode: what stands outside an image, as scipy.ndimage means it: "nearest"
            (aaa|abcd|ddd), "constant" (cval), "reflect" (cba|abcd|dcb) or "wrap" (bcd|abcd|bcd).
        cval: value outside with "constant".
        threads: how many to use at most; by default as many as the other kernels.
        out: array for the result.

    Returns:
        out (n, height, width, channels).

    Raises:
        TypeError, ValueError: as `conv2d`, and if an index is out of range or a matrix not finite.
    """
    host = backend.cpu()
    if not isinstance(x, np.ndarray):
        raise TypeError(f"x: expected a NumPy array. Received: {type(x).__name__}.")
    if x.ndim != 4:
        raise ValueError(f"x: expected 4 axes. Received shape: {x.shape}.")
    if indices is None:
        indices = np.arange(len(x))
    if out is None:
        out = np.empty((*np.shape(indices), *x.shape[1:]), np.float32)
    threads = host.num_threads() if threads is None else threads
    host.warp_affine(x, indices, matrices, out, fill_mode, cval, threads)
    return out


# --------------------------------------------------------------------------------------------------
# Optimizers


def sgd_step(
    w: Array,
    dw: Array,
    velocity: Array | None,
    learning_rate: Rate,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> None:
    """One step of gradient descent, in place, as Keras defines it.

    velocity = momentum * velocity - learning_rate * dw; w += velocity, or with Nesterov's momentum
    w += momentum * velocity - learning_rate * dw. Without velocity: w -= learning_rate * dw.

    Args:
        w: parameters of any shape, overwritten.
        dw: their gradient.
        velocity: overwritten; None where momentum is 0.
        learning_rate, momentum, nesterov: see above. The learning rate may be an array of one
            float32 on the device, which the kernel reads when it runs.

    Raises:
        TypeError, ValueError: as `conv2d`; ValueError if momentum comes without a velocity.
    """
    _call("sgd_step", w, dw, velocity, learning_rate, momentum, nesterov)


def rmsprop_step(
    w: Array,
    dw: Array,
    velocity: Array,
    learning_rate: Rate,
    rho: float = 0.9,
    epsilon: float = 1e-7,
) -> None:
    """One step of RMSprop, in place, as Keras defines it.

    velocity = rho * velocity + (1 - rho) * dw^2, then
    w -= learning_rate * dw / sqrt(velocity + epsilon).
    (T. Tieleman, G. Hinton, "Neural Networks for Machine Learning", lecture 6.5, 2012.)

    Args:
        w: parameters of any shape, overwritten.
        dw: their gradient.
        velocity: running mean of the squared gradient, overwritten; zero before the first step.
        learning_rate, rho, epsilon: see above; the learning rate as in `sgd_step`.

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    _call("rmsprop_step", w, dw, velocity, learning_rate, rho, epsilon)


def adam_step(
    w: Array,
    dw: Array,
    m: Array,
    v: Array,
    step: Counter,
    learning_rate: Rate,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
) -> None:
    """One step of Adam, in place, as Keras defines it.

    m += (dw - m) * (1 - beta_1), v += (dw^2 - v) * (1 - beta_2), then
    w -= alpha * m / (sqrt(v) + epsilon), where
    alpha = learning_rate * sqrt(1 - beta_2^step) / (1 - beta_1^step).
    (D. Kingma, J. Ba, arXiv:1412.6980, the order of operations at the end of section 2.)

    Args:
        w: parameters of any shape, overwritten.
        dw: their gradient.
        m, v: running means of the gradient and its square, overwritten; zero before the first step.
        step: counts from 1; it may be an array of one uint64 on the device.
        learning_rate, beta_1, beta_2, epsilon: see above; the learning rate as in `sgd_step`.

    Raises:
        TypeError, ValueError: as `conv2d`; ValueError if step is below 1.
    """
    _call("adam_step", w, dw, m, v, step, learning_rate, beta_1, beta_2, epsilon)


# --------------------------------------------------------------------------------------------------
# Arrays of other libraries


def _sharing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which then takes what can be shared by DLPack wherever it takes arrays."""

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        try:
            return function(*arguments, **keywords)
        except TypeError:
            # Only now, so that it costs nothing where the arrays are the device's: a function
            # raises before it computes.
            given = (*arguments, *keywords.values())
            pairs = [(value, backend.shared(value)) for value in given]
            pairs = [(value, array) for value, array in pairs if array is not value]
            if not pairs:
                raise
        arrays = {id(value): array for value, array in pairs}
        try:
            results = function(
                *(arrays.get(id(value), value) for value in arguments),
                **{name: arrays.get(id(value), value) for name, value in keywords.items()},
            )
        except (TypeError, ValueError) as error:
            kinds = sorted({type(value).__name__ for value, _ in pairs})
            raise type(error)(f"{error} (Taken as an array: {', '.join(kinds)}.)") from None
        # Whoever gives something to write to gets it back.
        values = {id(array): value for value, array in pairs}
        if isinstance(results, tuple):
            return tuple(values.get(id(result), result) for result in results)
        return values.get(id(results), results)

    return call


for _name in __all__:
    if callable(globals()[_name]):
        globals()[_name] = _sharing(globals()[_name])
