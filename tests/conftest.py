from __future__ import annotations

import contextlib
import importlib.util

import numpy as np
import pytest

EMULATED = {"cuda_sm80": "80", "cuda_sm75": "75"}


def thread_orders(*threads: int) -> dict[str, dict[str, str]]:
    """Settings of the emulator for other orders of CUDA threads: the reverse, and random ones, each
    on so many threads of the machine."""
    return {
        "reverse": {"PTXCPU_ORDER": "reverse"},
        **{
            f"random {seed}": {
                "PTXCPU_ORDER": "random",
                "PTXCPU_SEED": str(seed),
                "PTXCPU_STRESS": "20",
                "PTXCPU_THREADS": str(count),
            }
            for seed, count in enumerate(threads, 1)
        },
    }


def has_emulated_cuda() -> bool:
    return importlib.util.find_spec("pyconv._cuda_emulated") is not None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Imported here, not above: the reference's own tests need no extension module.
    if {"cuda_target", "isa", "target"} & set(metafunc.fixturenames):
        from on_device import device_reason

        import pyconv

        isas = pyconv.available_isas()
        if "isa" in metafunc.fixturenames:
            metafunc.parametrize("isa", isas, indirect=True)
        cuda = list(EMULATED) if has_emulated_cuda() else []
        cuda += [] if device_reason() else [pytest.param("cuda", marks=pytest.mark.gpu)]
        if "target" in metafunc.fixturenames:
            metafunc.parametrize("target", isas + cuda, indirect=True)
        if "cuda_target" in metafunc.fixturenames:
            metafunc.parametrize("cuda_target", cuda, indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest):
    """The instruction set the test runs on: in turn each that this machine has."""
    import pyconv

    before = pyconv.isa()
    pyconv.set_isa(request.param)
    yield request.param
    pyconv.set_isa(before)


@contextlib.contextmanager
def emulated_cuda(architecture: str, **settings: str):
    """The device "cuda-emulated" with code for this architecture. Every access is checked against
    the arrays of the call; settings are the emulator's (PTXCPU_*)."""
    import pyconv
    from pyconv import backend

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYCONV_EMULATED_ARCH", architecture)
        patch.setenv("PTXCPU_COMPUTE_CAPABILITY", architecture)
        patch.setenv("PTXCPU_STRICT", "1")
        for name, value in settings.items():
            patch.setenv(name, value)
        backend._backend.cache_clear()
        before = pyconv.get_device()
        pyconv.set_device("cuda-emulated")
        try:
            yield
        finally:
            pyconv.set_device(before)
            backend._backend.cache_clear()


@contextlib.contextmanager
def cuda_code(name: str):
    """CUDA code: emulated, by a key of `EMULATED`, or on the device, whose kernels take NumPy's
    arrays meanwhile."""
    if name in EMULATED:
        with emulated_cuda(EMULATED[name]):
            yield
        return
    from on_device import host_arrays

    import pyconv

    before = pyconv.get_device()
    pyconv.set_device("cuda")
    try:
        with host_arrays():
            yield
    finally:
        pyconv.set_device(before)


@pytest.fixture
def cuda_target(request: pytest.FixtureRequest):
    """CUDA code: in turn emulated, where it was built for that, and on the device, if there is
    one."""
    with cuda_code(request.param):
        yield request.param


@pytest.fixture
def target(request: pytest.FixtureRequest):
    """What the kernels run on, in turn: each instruction set, multiplying directly (Winograd's
    algorithm has tests and bounds of its own), CUDA code where it was built to be emulated, and the
    CUDA device where there is one."""
    if request.param.startswith("cuda"):
        with cuda_code(request.param):
            yield request.param
    else:
        import pyconv

        before, mode = pyconv.isa(), pyconv.get_math_mode()
        pyconv.set_isa(request.param)
        pyconv.set_math_mode("direct")
        yield request.param
        pyconv.set_isa(before)
        pyconv.set_math_mode(mode)


@pytest.fixture
def math_mode():
    """`set_math_mode`, undone after the test."""
    import pyconv

    before = pyconv.get_math_mode()
    yield pyconv.set_math_mode
    pyconv.set_math_mode(before)


@pytest.fixture
def global_policy():
    """`set_global_policy`, undone after the test."""
    from pyconv import mixed_precision

    yield mixed_precision.set_global_policy
    mixed_precision.set_global_policy("float32")


@pytest.fixture
def num_threads():
    """`set_num_threads`, undone after the test."""
    import pyconv

    before = pyconv.get_num_threads()
    yield pyconv.set_num_threads
    pyconv.set_num_threads(before)


class Guarded:
    """Arrays that lie between guard bands, at chosen misalignments.

    `like` copies an input, `empty` makes an output full of NaN (of 0xA5 bytes, if integer); `check`
    looks at the bands.
    """

    BAND = 64  # elements; a store of any vector width past either end lands in a band
    PATTERN = 0xA5

    def __init__(self) -> None:
        self._made: list[tuple[np.ndarray, int, int]] = []

    def empty(self, shape: tuple[int, ...], dtype=np.float32, offset: int = 0) -> np.ndarray:
        """`offset` elements past a 64-byte boundary."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape))
        raw = np.full((size + 2 * self.BAND + 32) * dtype.itemsize + 64, self.PATTERN, np.uint8)
        start = -raw.ctypes.data % 64 + (self.BAND + offset) * dtype.itemsize
        stop = start + size * dtype.itemsize
        self._made.append((raw, start, stop))
        array = raw[start:stop].view(dtype).reshape(shape)
        if dtype.kind == "f":
            array[...] = np.nan
        return array

    def like(self, array: np.ndarray, offset: int = 0) -> np.ndarray:
        copy = self.empty(array.shape, array.dtype, offset)
        copy[...] = array
        return copy

    def check(self) -> None:
        for raw, start, stop in self._made:
            assert (raw[:start] == self.PATTERN).all(), "wrote before an array"
            assert (raw[stop:] == self.PATTERN).all(), "wrote past an array"


@pytest.fixture
def guarded():
    return Guarded()
