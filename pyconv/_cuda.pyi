"""The extension module with the CUDA kernels; `pyconv.kernels` documents what they compute.

Arrays are those with `__cuda_array_interface__`, such as CuPy's, on the current device and
C-contiguous; results are written into the arrays given for them, on CuPy's current stream. Shapes,
dtypes and memory are checked: TypeError, ValueError. What fails on the device raises `Error`.

In `pyconv._cuda_emulated` and `pyconv._cuda_emulated_sm75`, the same kernels executed on the CPU,
arrays are NumPy's.
"""

from typing import Any

# The kernels, with the CPU's signatures; arrays have the shapes and dtypes that NumPy's would have.
from pyconv._cpu import activate as activate
from pyconv._cpu import activate_backward as activate_backward
from pyconv._cpu import adam_step as adam_step
from pyconv._cpu import avg_pool2d as avg_pool2d
from pyconv._cpu import avg_pool2d_backward as avg_pool2d_backward
from pyconv._cpu import batch_norm as batch_norm
from pyconv._cpu import batch_norm_backward as batch_norm_backward
from pyconv._cpu import batch_norm_training as batch_norm_training
from pyconv._cpu import conv2d as conv2d
from pyconv._cpu import conv2d_backward as conv2d_backward
from pyconv._cpu import conv2d_backward_data as conv2d_backward_data
from pyconv._cpu import conv2d_backward_weights as conv2d_backward_weights
from pyconv._cpu import conv2d_pool as conv2d_pool
from pyconv._cpu import conv2d_pool_backward as conv2d_pool_backward
from pyconv._cpu import dense as dense
from pyconv._cpu import dense_backward as dense_backward
from pyconv._cpu import dense_backward_data as dense_backward_data
from pyconv._cpu import dense_backward_weights as dense_backward_weights
from pyconv._cpu import dropout as dropout
from pyconv._cpu import gather as gather
from pyconv._cpu import max_pool2d as max_pool2d
from pyconv._cpu import max_pool2d_backward as max_pool2d_backward
from pyconv._cpu import pad2d as pad2d
from pyconv._cpu import relu as relu
from pyconv._cpu import relu_backward as relu_backward
from pyconv._cpu import rmsprop_step as rmsprop_step
from pyconv._cpu import round_bfloat16 as round_bfloat16
from pyconv._cpu import sgd_step as sgd_step
from pyconv._cpu import softmax as softmax
from pyconv._cpu import softmax_backward as softmax_backward
from pyconv._cpu import softmax_cross_entropy as softmax_cross_entropy

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
