"""Builds the extension with CMake, calls it with NumPy arrays, and plants bugs."""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pybind11 = pytest.importorskip("pybind11")
HERE = Path(__file__).resolve().parent

pytestmark = pytest.mark.skipif(
    not (shutil.which("nvcc") and shutil.which("cmake")), reason="needs nvcc, CMake"
)

SCHEDULES = [
    {},
    {"PTXCPU_ORDER": "reverse"},
    {"PTXCPU_ORDER": "random", "PTXCPU_SEED": "7", "PTXCPU_STRESS": "50"},
    {"PTXCPU_RACE": "1"},
    {"PTXCPU_THREADS": "2"},
]


def build(directory: Path, *options: str) -> Path:
    configure = ["cmake", "-S", HERE, "-B", directory, "-DCMAKE_BUILD_TYPE=Release", *options]
    configure += [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", directory, "-j2"], check=True, capture_output=True)
    return next(directory.glob("emulated*.so"))


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="session")
def emulated(library):
    specification = importlib.util.spec_from_file_location("emulated", library)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Runtime:
    """The exported functions of the emulated CUDA runtime."""

    def __init__(self, library):
        self._library = ctypes.CDLL(str(library))
        self._library.ptxcpu_last_error_message.restype = ctypes.c_char_p
        self._registered = []

    def register(self, *arrays):
        for array in arrays:
            pointer = ctypes.c_void_p(array.ctypes.data)
            self._library.ptxcpu_register_buffer(pointer, ctypes.c_size_t(array.nbytes))
            self._registered.append(pointer)

    def message(self) -> str:
        return self._library.ptxcpu_last_error_message().decode()

    def reset(self):
        self._library.ptxcpu_reset_error()
        while self._registered:
            self._library.ptxcpu_unregister_buffer(self._registered.pop())


@pytest.fixture
def runtime(library, emulated):
    runtime = Runtime(library)
    runtime.reset()
    yield runtime
    runtime.reset()


@pytest.fixture(params=SCHEDULES, ids=lambda schedule: ",".join(schedule.values()) or "default")
def schedule(request, monkeypatch):
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def normal():
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def gemm_operands(normal):
    return normal(128, 96), normal(96, 128), np.zeros((128, 128), np.float32)


def test_transpose(emulated, runtime, schedule, normal):
    x, y = normal(200, 300), np.zeros((300, 200), np.float32)
    emulated.transpose(x, y, scale=2)
    np.testing.assert_array_equal(y, 2 * x.T)


def test_gemm(emulated, runtime, schedule, normal):
    a, b, c = gemm_operands(normal)
    emulated.gemm(a, b, c)
    np.testing.assert_allclose(c, a @ b, atol=0.05)


def test_strict_mode_wants_registered_buffers(emulated, runtime, normal, monkeypatch):
    monkeypatch.setenv("PTXCPU_STRICT", "1")
    a, b, c = gemm_operands(normal)
    runtime.register(a, b, c)
    emulated.gemm(a, b, c)
    np.testing.assert_allclose(c, a @ b, atol=0.05)
    with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
        emulated.gemm(a, b, c.copy())
    assert "out of bounds" in runtime.message()


def test_missing_barrier_gives_wrong_results(emulated, runtime, normal):
    x, y = normal(200, 300), np.zeros((300, 200), np.float32)
    emulated.transpose(x, y, bug=emulated.Bug.MISSING_BARRIER)
    assert np.isnan(y).any()  # shared memory that was not written yet


@pytest.mark.parametrize("kernel", ["transpose", "gemm"])
def test_missing_barrier_is_a_race(kernel, emulated, runtime, normal, monkeypatch):
    monkeypatch.setenv("PTXCPU_RACE", "1")
    operands = (
        gemm_operands(normal) if kernel == "gemm" else (normal(9, 9), np.zeros((9, 9), np.float32))
    )
    with pytest.raises(RuntimeError, match="cudaErrorLaunchFailure"):
        getattr(emulated, kernel)(*operands, bug=emulated.Bug.MISSING_BARRIER)
    assert f"::{kernel}_kernel<" in runtime.message()
    assert "shared memory race" in runtime.message()


def test_out_of_bounds(emulated, runtime, normal):
    x, y = normal(200, 300), np.zeros((300, 200), np.float32)
    runtime.register(x, y)
    with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
        emulated.transpose(x, y, bug=emulated.Bug.OUT_OF_BOUNDS)
    assert "ld.global.nc.f32 of 4 bytes" in runtime.message()
    assert "nearest buffer" in runtime.message()


def test_faults_are_sticky(emulated, runtime, normal):
    x, y = normal(200, 300), np.zeros((300, 200), np.float32)
    runtime.register(x, y)
    with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
        emulated.transpose(x, y, bug=emulated.Bug.OUT_OF_BOUNDS)
    with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
        emulated.transpose(x, y)
    runtime.reset()
    emulated.transpose(x, y)
    np.testing.assert_array_equal(y, x.T)


def test_missing_wait_gives_wrong_results(emulated, runtime, normal):
    a, b, c = gemm_operands(normal)
    emulated.gemm(a, b, c, bug=emulated.Bug.MISSING_WAIT)
    assert np.isnan(c).any()  # the copies had not arrived


def test_missing_wait_is_a_race(emulated, runtime, normal, monkeypatch):
    monkeypatch.setenv("PTXCPU_RACE", "1")
    with pytest.raises(RuntimeError, match="cudaErrorLaunchFailure"):
        emulated.gemm(*gemm_operands(normal), bug=emulated.Bug.MISSING_WAIT)
    assert "cp.async" in runtime.message()


def test_too_much_shared_memory(emulated, runtime, normal):
    """A kernel that has never raised its limit: as in CUDA, the attribute stays with the kernel."""
    x, y = normal(20, 30), np.zeros((30, 20), np.float32)
    with pytest.raises(RuntimeError, match="cudaErrorInvalidValue"):
        emulated.transpose(x, y, raise_limit=False, bug=emulated.Bug.NEVER_RAISED)
    assert "66048 bytes of dynamic" in runtime.message()
    emulated.transpose(x, y)  # not sticky
    np.testing.assert_array_equal(y, x.T)


def test_more_shared_memory_than_the_device_has(emulated, runtime, normal, monkeypatch):
    monkeypatch.setenv("PTXCPU_COMPUTE_CAPABILITY", "75")  # 64 KiB
    x, y = normal(20, 30), np.zeros((30, 20), np.float32)
    with pytest.raises(RuntimeError, match="cudaErrorInvalidValue"):
        emulated.transpose(x, y)
    assert "the device has 65536 per block" in runtime.message()


def test_setting_that_makes_no_sense(emulated, runtime, normal, monkeypatch):
    monkeypatch.setenv("PTXCPU_ORDER", "sideways")
    with pytest.raises(RuntimeError, match="cudaErrorInvalidValue"):
        emulated.gemm(*gemm_operands(normal))
    assert "PTXCPU_ORDER=sideways" in runtime.message()


SANITIZED_RUN = """
import importlib.util
import sys
import numpy as np
specification = importlib.util.spec_from_file_location("emulated", sys.argv[1])
emulated = importlib.util.module_from_spec(specification)
specification.loader.exec_module(emulated)
x = np.ones((200, 300), np.float32)
y = np.zeros((300, 200), np.float32)
emulated.transpose(x, y, bug=getattr(emulated.Bug, sys.argv[2]))
a, b = np.ones((64, 32), np.float32), np.ones((32, 64), np.float32)
c = np.zeros((64, 64), np.float32)
emulated.gemm(a, b, c)
print("correct" if (y == 1).all() and (c == 32).all() else "wrong")
"""


@pytest.fixture(scope="session")
def sanitized_library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sanitized"), "-DPTXCPU_SANITIZE=address,undefined")


@pytest.mark.parametrize(
    "bug, found", [("NONE", "correct"), ("OUT_OF_BOUNDS", "heap-buffer-overflow")]
)
def test_sanitizers(bug, found, sanitized_library):
    """AddressSanitizer knows the bounds of NumPy arrays that nobody registered."""
    asan = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True
    ).stdout.strip()
    environment = os.environ | {
        "LD_PRELOAD": asan,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
    }
    command = [sys.executable, "-c", SANITIZED_RUN, str(sanitized_library), bug]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found in result.stdout + result.stderr
