"""What was built and installed: size, linkage, import time; and no symbol leaks between paths."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyconv
from pyconv import _cpu

ROOT = Path(__file__).resolve().parents[1]
EXTENSION = Path(_cpu.__file__)

needs_elf = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("readelf") is None, reason="needs readelf and ELF"
)


def python(code: str, **environment: str) -> str:
    """Runs code in a new interpreter, away from the source tree."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=Path(pyconv.__file__).parents[1],
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_extension_is_small():
    sanitized = b"__asan_init" in EXTENSION.read_bytes()
    if sanitized:
        pytest.skip("a build with sanitizers is larger")
    assert EXTENSION.stat().st_size < 5_000_000


# What every Linux has that manylinux wheels are for, and what sanitizers add.
SYSTEM = r"lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|asan|ubsan|tsan)\.so\.\d+|ld-linux[\w-]*\.so\.\d+"
# GNU's or LLVM's; auditwheel bundles it under a name with a hash.
OPENMP = r"lib[gi]?omp5?(-\w+)?\.so(\.[\d.]+)?"


@needs_elf
@pytest.mark.parametrize("path", sorted(EXTENSION.parent.glob("*.so")), ids=lambda path: path.name)
def test_links_nothing_unexpected(path):
    """The C and C++ runtimes; on the CPU one OpenMP. No BLAS, no CUDA runtime, no Python."""
    dynamic = subprocess.check_output(["readelf", "-d", path], text=True)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    others = [name for name in needed if not re.fullmatch(SYSTEM, name)]
    expected = 1 if path == EXTENSION else 0
    assert len(others) == expected and all(re.fullmatch(OPENMP, name) for name in others), needed


def test_import_is_light():
    loaded = python(
        "import sys; before = set(sys.modules); import numpy; numpy_only = set(sys.modules)\n"
        "import pyconv; print(*sorted(set(sys.modules) - numpy_only))"
    ).split()
    heavy = {"pooch", "tqdm", "click", "safetensors", "matplotlib", "requests", "torch", "cupy"}
    heavy |= {"PIL", "h5py", "onnx", "onnxruntime", "tensorboard"}
    assert not heavy & {name.partition(".")[0] for name in loaded}
    assert "pyconv.validation" not in loaded and "pyconv.bench" not in loaded
    assert "pyconv._cpu" not in loaded, "the kernels are loaded at first use"


def test_import_takes_no_longer_than_it_may():
    # Processor time, so that a busy machine does not count: below 0.3 s, NumPy included.
    times = [
        float(
            python(
                "import time; start = time.process_time(); import pyconv\n"
                "print(time.process_time() - start)",
                OMP_NUM_THREADS="1",
                OPENBLAS_NUM_THREADS="1",
            )
        )
        for _ in range(3)
    ]
    assert min(times) < 0.3


def test_version_is_one():
    assert pyconv.__version__ == _cpu.__version__


@needs_elf
@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the sources")
@pytest.mark.parametrize(
    "path, flags",
    [("avx2", "-mavx2 -mfma"), ("avx512", "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma")],
)
def test_no_symbol_leaks_from_an_instruction_set(path, flags, tmp_path):
    """A shared (weak) symbol built for AVX could replace the one that everybody else calls."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or os.uname().machine != "x86_64":
        pytest.skip("needs a C++ compiler for x86-64")
    sources = re.search(r"set\(kernel_sources(.*?)\)", (ROOT / "CMakeLists.txt").read_text(), re.S)
    assert sources is not None
    for source in sources[1].split():
        # Without optimisation nothing is inlined: every inline function that is used shows.
        made = tmp_path / (Path(source).stem + ".o")
        names = [f"-DPYCONV_ISA={path}", f'-DPYCONV_SIMD_HEADER="simd_{path}.hpp"']
        subprocess.run(
            [
                compiler,
                "-O0",
                "-std=c++20",
                *flags.split(),
                *names,
                "-c",
                ROOT / source,
                "-o",
                made,
            ],
            check=True,
        )
        symbols = subprocess.check_output(["nm", "-C", "--defined-only", made], text=True)
        shared = [line for line in symbols.splitlines() if re.match(r"\S+ [uVvWw] ", line)]
        # A pointer to the C++ runtime's own function, no code.
        shared = [line for line in shared if "DW.ref.__gxx_personality_v0" not in line]
        assert [line for line in shared if f"pyconv::cpu::{path}::" not in line] == [], source
        assert re.search(rf"pyconv::cpu::{path}::", symbols)


@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-user")
def test_runs_without_avx():
    """On an emulated processor from before AVX: the portable path, and nothing else, is offered."""
    code = (
        "import numpy as np, pyconv; from pyconv import kernels\n"
        "x = np.ones((2, 5, 5, 3), 'f'); w = np.ones((3, 3, 3, 17), 'f')\n"
        "y = kernels.conv2d(x, w, padding='same', activation='relu')\n"
        "dx, dw, db = kernels.conv2d_backward(y, x, w, padding='same', activation='relu', y=y)\n"
        "print(pyconv.isa(), pyconv.available_isas(), float(y.sum()), float(dw[1, 1, 0, 0]))"
    )
    result = subprocess.run(
        ["qemu-x86_64", "-cpu", "Nehalem", os.path.realpath(sys.executable), "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(pyconv.__file__).parents[1],
        env={**os.environ, "PYTHONPATH": str(Path(pyconv.__file__).parents[1])},
    )
    if "NumPy" in result.stderr and "baseline" in result.stderr:
        pytest.skip("this NumPy needs a newer processor")
    # 2 images, 17 filters; a row of 5 sees 2, 3, 3, 3 and 2 taps a side: (13 * 13) * 3 channels.
    assert result.stdout.split() == ["portable", "['portable']", "17238.0", "1014.0"], result.stderr
