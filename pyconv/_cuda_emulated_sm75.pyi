"""What nvcc makes of the CUDA kernels for sm_75, executed on the CPU: for tests."""

from pyconv._cuda import *  # noqa: F403
from pyconv._cuda import __version__ as __version__
