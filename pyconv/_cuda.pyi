"""The extension module with the CUDA kernels; `pyconv.kernels` documents what they compute.

Arrays are those with `__cuda_array_interface__`, such as CuPy's, on the current device and
C-contiguous; results are written into the arrays given for them, on CuPy's current stream. Shapes,
dtypes and memory are checked: TypeError, ValueError. What fails on the device raises `Error`.

In `pyconv._cuda_emulated` and `pyconv._cuda_emulated_sm75`, the same kernels executed on the CPU,
arrays are NumPy's.
"""

from typing import Any

from numpy import float32, int64, uint8, uint64
from numpy.typing import NDArray

# Of the shapes and dtypes that NumPy's would have.
_Array = NDArray[float32]
_Rate = float | NDArray[float32]  # an array has the shape ()
_Counter = int | NDArray[uint64]  # likewise
_Pair = tuple[int, int]
_Sides = tuple[int, int, int, int]  # top, bottom, left, right

__version__: str

class Error(RuntimeError):
    """A call of CUDA's or a kernel failed; the message names it."""

class Graph:
    """Launches, captured once and replayed as one."""

    def begin_capture(self) -> None: ...  # of the current stream, which is not the default one
    def end_capture(self) -> None: ...
    def launch(self) -> None: ...  # on the current stream
    def discard(self) -> None: ...  # also ends a capture that failed

def device_count() -> int: ...  # 0 without a driver
def unavailable_reason() -> str: ...  # empty if there is a device
def toolkit_version() -> str: ...
def driver_version() -> str: ...
def architectures() -> list[str]: ...
def devices() -> list[dict[str, Any]]: ...  # name, compute_capability, multiprocessors, memory
def kernels() -> list[dict[str, Any]]: ...  # name, threads, registers, ..., occupancy
def math_mode() -> str: ...
def set_math_mode(mode: str) -> None: ...
def synchronize() -> None: ...
def conv2d(
    x: _Array,
    w: _Array,
    b: _Array | None,
    out: _Array,
    strides: _Pair,
    padding: _Sides,
    dilation_rate: _Pair,
    groups: int,
    relu: bool,
) -> None: ...
def conv2d_backward_data(
    dy: _Array,
    w: _Array,
    y: _Array | None,
    dx: _Array,
    strides: _Pair,
    padding: _Sides,
    dilation_rate: _Pair,
    groups: int,
    relu: bool,
) -> None: ...
def conv2d_backward_weights(
    dy: _Array,
    x: _Array,
    y: _Array | None,
    dw: _Array,
    db: _Array | None,
    strides: _Pair,
    padding: _Sides,
    dilation_rate: _Pair,
    groups: int,
    relu: bool,
) -> None: ...
def conv2d_backward(
    dy: _Array,
    x: _Array,
    w: _Array,
    y: _Array | None,
    dx: _Array,
    dw: _Array,
    db: _Array,
    strides: _Pair,
    padding: _Sides,
    dilation_rate: _Pair,
    groups: int,
    relu: bool,
) -> None: ...
def dense(x: _Array, w: _Array, b: _Array | None, out: _Array, relu: bool) -> None: ...
def dense_backward_data(
    dy: _Array, w: _Array, y: _Array | None, dx: _Array, relu: bool
) -> None: ...
def dense_backward_weights(
    dy: _Array, x: _Array, y: _Array | None, dw: _Array, db: _Array | None, relu: bool
) -> None: ...
def dense_backward(
    dy: _Array,
    x: _Array,
    w: _Array,
    y: _Array | None,
    dx: _Array,
    dw: _Array,
    db: _Array,
    relu: bool,
) -> None: ...
def max_pool2d(
    x: _Array,
    out: _Array,
    argmax: NDArray[Any],
    pool_size: _Pair,
    strides: _Pair,
    padding: _Sides,
) -> None: ...
def max_pool2d_backward(
    dy: _Array,
    argmax: NDArray[Any],
    dx: _Array,
    pool_size: _Pair,
    strides: _Pair,
    padding: _Sides,
) -> None: ...
def relu(x: _Array, out: _Array) -> None: ...
def relu_backward(dy: _Array, y: _Array, out: _Array) -> None: ...
def softmax(x: _Array, out: _Array) -> None: ...
def softmax_backward(dy: _Array, y: _Array, out: _Array) -> None: ...
def softmax_cross_entropy(
    logits: _Array, labels: _Array, loss: _Array, probabilities: _Array, dlogits: _Array
) -> None: ...
def dropout(x: _Array, out: _Array, rate: float, seed: int, offset: _Counter) -> None: ...
def sgd_step(
    w: _Array,
    dw: _Array,
    velocity: _Array | None,
    learning_rate: _Rate,
    momentum: float,
    nesterov: bool,
) -> None: ...
def rmsprop_step(
    w: _Array, dw: _Array, velocity: _Array, learning_rate: _Rate, rho: float, epsilon: float
) -> None: ...
def adam_step(
    w: _Array,
    dw: _Array,
    m: _Array,
    v: _Array,
    step: _Counter,
    learning_rate: _Rate,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> None: ...
def conv2d_pool(
    x: _Array,
    w: _Array,
    b: _Array | None,
    out: _Array,
    winner: NDArray[uint8],
    strides: _Pair,
    padding: _Sides,
    dilation_rate: _Pair,
    groups: int,
    rate: float,
    seed: int,
    offset: _Counter,
) -> None: ...
def conv2d_pool_backward(
    dy: _Array,
    winner: NDArray[uint8],
    x: _Array,
    w: _Array,
    dx: _Array | None,
    dw: _Array,
    db: _Array,
    strides: _Pair,
    padding: _Sides,
    dilation_rate: _Pair,
    groups: int,
    rate: float,
) -> None: ...
def gather(
    source: _Array | NDArray[uint8],
    indices: NDArray[int64],
    out: _Array,
    scale: float,
    bytes: bool,
) -> None: ...
