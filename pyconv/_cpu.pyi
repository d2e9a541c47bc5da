"""The extension module; `pyconv.kernels` documents what its functions compute.

Arrays are NumPy's, C-contiguous; results are written into the arrays given for them. Shapes, dtypes
and memory are checked: TypeError, ValueError. What the CPU has no kernel for raises
NotImplementedError: conv2d_pool, conv2d_pool_backward, gather.
"""

from typing import Any

from numpy import float32, float64, int64, uint8, uint64
from numpy.typing import NDArray

_Array = NDArray[float32]
_Rate = float | NDArray[float32]  # an array has the shape ()
_Counter = int | NDArray[uint64]  # likewise
_Pair = tuple[int, int]
_Sides = tuple[int, int, int, int]  # top, bottom, left, right

__version__: str

def isa() -> str: ...
def vector_lanes() -> int: ...
def available_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def granted_cpus(root: str = "") -> int: ...
def math_mode() -> str: ...
def set_math_mode(mode: str) -> None: ...
def pair_mode() -> str: ...
def set_pair_mode(mode: str) -> None: ...
def warp_affine(
    x: _Array,
    indices: NDArray[int64],
    matrices: NDArray[float64],
    out: _Array,
    fill_mode: str,
    cval: float,
    threads: int,
) -> None: ...
def measure_peak(seconds: float = 0.2) -> float: ...
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
    bfloat16: bool = False,
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
    bfloat16: bool = False,
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
    bfloat16: bool = False,
) -> None: ...
def dense(
    x: _Array, w: _Array, b: _Array | None, out: _Array, relu: bool, bfloat16: bool = False
) -> None: ...
def dense_backward_data(
    dy: _Array, w: _Array, y: _Array | None, dx: _Array, relu: bool, bfloat16: bool = False
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
    bfloat16: bool = False,
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
def avg_pool2d(
    x: _Array, out: _Array, pool_size: _Pair, strides: _Pair, padding: _Sides
) -> None: ...
def avg_pool2d_backward(
    dy: _Array, dx: _Array, pool_size: _Pair, strides: _Pair, padding: _Sides
) -> None: ...
def pad2d(x: _Array, out: _Array, padding: _Sides) -> None: ...
def relu(x: _Array, out: _Array) -> None: ...
def round_bfloat16(x: _Array, out: _Array) -> None: ...
def relu_backward(dy: _Array, y: _Array, out: _Array) -> None: ...
def activate(x: _Array, out: _Array, name: str, negative_slope: float) -> None: ...
def activate_backward(
    dy: _Array, y: _Array, out: _Array, name: str, negative_slope: float
) -> None: ...
def batch_norm(
    x: _Array,
    gamma: _Array | None,
    beta: _Array | None,
    mean: _Array,
    variance: _Array,
    out: _Array,
    epsilon: float,
) -> None: ...
def batch_norm_training(
    x: _Array,
    gamma: _Array | None,
    beta: _Array | None,
    moving_mean: _Array,
    moving_variance: _Array,
    out: _Array,
    mean: _Array,
    inverse: _Array,
    momentum: float,
    epsilon: float,
) -> None: ...
def batch_norm_backward(
    dy: _Array,
    x: _Array,
    gamma: _Array | None,
    mean: _Array,
    inverse: _Array,
    dx: _Array,
    dgamma: _Array,
    dbeta: _Array,
) -> None: ...
def softmax(x: _Array, out: _Array) -> None: ...
def softmax_backward(dy: _Array, y: _Array, out: _Array) -> None: ...
def softmax_cross_entropy(
    logits: _Array,
    labels: _Array,
    loss: _Array,
    probabilities: _Array,
    dlogits: _Array,
    batch: int,
) -> None: ...
def dropout(
    x: _Array, out: _Array, rate: float, seed: int, offset: _Counter, first: int
) -> None: ...
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
    first: int,
    bfloat16: bool = False,
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
