"""Compile a PTX file or a .cu file and launch its kernels on NumPy arrays.

    module = Module.from_cu("kernel.cu", arch="sm_80")
    module.launch("kernel", grid=4, block=(16, 16), arguments=[array, 3, 0.5])

Arrays are passed as device pointers and changed in place. A kernel may touch the arrays it is
given, those in `buffers` and its own device variables; anything else is an error that names the
PTX line and the thread.
"""

import ctypes
import hashlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from .errors import PTXError
from .parser import Variable, parse_module
from .translate import ModuleTranslator, parameter_bytes

RUNTIME = Path(__file__).resolve().parent.parent / "runtime"
ORDERS = {"forward": 0, "reverse": 1, "random": 2}

# -ffp-contract=off: PTX says which multiplications are fused. -fwrapv: PTX integers wrap.
COMPILER_FLAGS = [
    "-std=c++17",
    "-march=native",
    "-ffp-contract=off",
    "-fwrapv",
    "-fno-strict-aliasing",
]
COMPILER_FLAGS += ["-fPIC", "-fvisibility=hidden", "-pthread", "-w"]


def cache_directory() -> Path:
    default = Path(tempfile.gettempdir()) / f"ptxcpu-{os.getuid()}"
    path = Path(os.environ.get("PTXCPU_CACHE", default))
    path.mkdir(parents=True, exist_ok=True)
    return path


class _DirectLaunch(ctypes.Structure):
    """struct DirectLaunch of runtime/direct_launch.cpp."""

    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared_bytes", ctypes.c_uint32),
        ("order", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("stress", ctypes.c_uint32),
        ("detect_races", ctypes.c_uint32),
        ("workers", ctypes.c_uint32),
        ("buffer_count", ctypes.c_uint32),
        ("parameters", ctypes.c_void_p),
        ("buffers", ctypes.c_void_p),
        ("instructions", ctypes.c_uint64),
        ("message", ctypes.c_char * 1024),
    ]


class Module:
    def __init__(self, ptx: str, name: str = "ptx", optimisation: str = "-O2", count: bool = False):
        source = parse_module(ptx)
        translator = ModuleTranslator(source, count)
        self.census = translator.census
        self.kernels = {t.function.name: t for t in translator.kernels}
        self.variables = source.variables
        self.instructions = 0  # executed by the last launch, if compiled with count=True
        self._library = _load(translator.cpp(name), name, optimisation)

    @classmethod
    def from_cu(cls, path, arch: str = "sm_80", flags=(), **options) -> "Module":
        with tempfile.TemporaryDirectory() as directory:
            ptx = Path(directory) / "kernel.ptx"
            _run(["nvcc", "-O3", "-ptx", f"-arch={arch}", *flags, "-o", str(ptx), str(path)])
            return cls(ptx.read_text(), name=Path(path).stem, **options)

    def launch(
        self,
        kernel: str,
        grid,
        block,
        arguments,
        shared: int = 0,
        order: str = "forward",
        seed: int = 0,
        stress: int = 0,
        race: bool = False,
        threads: int = 1,
        buffers=(),
    ):
        """Runs a kernel. `shared` is its dynamic shared memory in bytes.

        `order`, `seed` and `stress` (a chance in 1000 to switch threads at a shared-memory access)
        choose the interleaving of threads; `race` turns the race detector on; `threads`
        operating-system threads run whole blocks.
        """
        translator = self.kernels[self._full_name(kernel)]
        function = translator.function
        grid, block = _three(grid), _three(block)
        threads_per_block = block[0] * block[1] * block[2]
        if not 1 <= threads_per_block <= function.max_threads or block[2] > 64:
            raise PTXError(
                f"{kernel}: block of {threads_per_block} threads, limit {function.max_threads}"
            )
        if translator.shared_bytes + shared > 227 * 1024:
            raise PTXError(f"{kernel}: {translator.shared_bytes + shared} bytes of shared memory")
        if len(arguments) != len(function.parameters):
            raise PTXError(
                f"{kernel} takes {len(function.parameters)} parameters, {len(arguments)} given"
            )
        packed = bytearray(parameter_bytes(function) + 8)
        for parameter, argument in zip(function.parameters, arguments, strict=True):
            packed[parameter.offset : parameter.offset + parameter.size] = _pack(
                parameter, argument
            )
        arrays = [a for a in [*arguments, *buffers] if isinstance(a, np.ndarray)]
        ranges = np.array([[a.ctypes.data, a.ctypes.data + a.nbytes] for a in arrays], np.uint64)
        request = _DirectLaunch(
            kernel=function.name.encode(),
            grid=(ctypes.c_uint32 * 3)(*grid),
            block=(ctypes.c_uint32 * 3)(*block),
            dynamic_shared_bytes=shared,
            order=ORDERS[order],
            seed=seed,
            stress=stress,
            detect_races=int(race),
            workers=threads,
            buffer_count=len(arrays),
            parameters=ctypes.addressof((ctypes.c_char * len(packed)).from_buffer(packed)),
            buffers=ranges.ctypes.data,
        )
        failed = self._library.ptxcpu_direct_launch(ctypes.byref(request))
        self.instructions = request.instructions
        if failed:
            raise PTXError(request.message.decode(errors="replace"))

    def symbol(self, name: str, dtype, shape) -> np.ndarray:
        """A device variable as an array that shares its memory."""
        function = self._library.ptxcpu_variable
        function.restype = ctypes.c_void_p
        address = function(name.encode())
        if not address:
            raise PTXError(f"no device variable named {name}")
        memory = (ctypes.c_char * self.variables[name].size).from_address(address)
        return np.frombuffer(memory, dtype=dtype).reshape(shape)

    def _full_name(self, kernel: str) -> str:
        """Accepts the mangled name, or the plain name of a C++ kernel that is not overloaded."""
        if kernel in self.kernels:
            return kernel
        matches = [name for name in self.kernels if re.match(rf"_Z\d+{kernel}(?![a-z]\w*_)", name)]
        if len(matches) != 1:
            raise PTXError(f"{len(matches)} kernels match {kernel}: {sorted(self.kernels)}")
        return matches[0]


def _three(extent) -> tuple[int, int, int]:
    extent = tuple(int(n) for n in np.atleast_1d(extent))
    return (*extent, 1, 1)[:3]


def _pack(parameter: Variable, argument) -> bytes:
    """The bytes of a kernel argument; the PTX type of the parameter decides the conversion."""
    if isinstance(argument, np.ndarray):
        if not argument.flags.c_contiguous or parameter.size != 8:
            raise PTXError(f"{parameter.name}: needs a contiguous array for a pointer parameter")
        return struct.pack("<Q", argument.ctypes.data)
    if argument is None:
        return bytes(8)
    if isinstance(argument, bytes | bytearray):
        if len(argument) != parameter.size:
            raise PTXError(
                f"{parameter.name}: {len(argument)} bytes given, {parameter.size} needed"
            )
        return bytes(argument)
    is_real = isinstance(argument, float | np.floating)
    if parameter.type == "f32" or (is_real and parameter.size == 4):
        return struct.pack("<f", argument)
    if parameter.type == "f64" or is_real:
        return struct.pack("<d", argument)
    bits = 8 * parameter.size
    return (int(argument) & ((1 << bits) - 1)).to_bytes(parameter.size, "little")


def _run(command: list[str]):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise PTXError(f"{command[0]} failed: {result.stderr[:3000]}")


def _load(cpp: str, name: str, optimisation: str) -> ctypes.CDLL:
    """Compiles the translated source, unless the cache has it, and loads it."""
    headers = "".join(path.read_text() for path in sorted(RUNTIME.glob("*.?pp")))
    key = hashlib.sha256((cpp + optimisation + headers).encode()).hexdigest()[:16]
    library = cache_directory() / f"{name}_{key}.so"
    if not library.exists():
        runtime = _runtime_objects(headers)
        source = library.with_suffix(".cpp")
        source.write_text(cpp)
        temporary = library.with_suffix(f".{os.getpid()}.tmp")
        command = ["g++", optimisation, *COMPILER_FLAGS, f"-I{RUNTIME}", "-shared", str(source)]
        _run([*command, *map(str, runtime), "-o", str(temporary)])
        temporary.rename(library)
    return ctypes.CDLL(str(library), mode=os.RTLD_LOCAL | os.RTLD_NOW)


def _runtime_objects(headers: str) -> list[Path]:
    """Object files of the runtime, compiled once."""
    key = hashlib.sha256((headers + " ".join(COMPILER_FLAGS)).encode()).hexdigest()[:16]
    directory = cache_directory() / f"runtime_{key}"
    sources = sorted(RUNTIME.glob("*.cpp"))
    if not directory.exists():
        temporary = Path(tempfile.mkdtemp(dir=cache_directory()))
        for source in sources:
            output = temporary / f"{source.stem}.o"
            _run(["g++", "-O2", *COMPILER_FLAGS, "-c", str(source), "-o", str(output)])
        try:
            temporary.rename(directory)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)
    return [directory / f"{source.stem}.o" for source in sources]
