"""Whether CUDA 12 takes the kernels, as far as its packages on PyPI can tell.

They have ptxas and the headers, not the compiler: the PTX that a newer nvcc makes is given the
version of CUDA 12.9 and assembled by that one's ptxas, and what the host compiler compiles is
compiled with its headers. What nvcc 12 itself would make of the CUDA sources is not tested.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
PTX_VERSION = "8.8"  # of CUDA 12.9
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


def folder(name: str) -> Path | None:
    """nvidia/NAME of the installed packages."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(root) / name).is_dir():
            return Path(root) / name
    return None


TOOLS, RUNTIME = folder("cuda_nvcc"), folder("cuda_runtime")
needs_tools = pytest.mark.skipif(
    TOOLS is None or not (TOOLS / "bin" / "ptxas").exists(),
    reason="no nvidia-cuda-nvcc-cu12: pip install 'pyconv[test-cuda]'",
)


@needs_tools
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ["75", "80", "86", "89", "90", "100", "120"])
def test_ptx(architecture, tmp_path):
    """Without warnings, and nothing spilled."""
    assert TOOLS is not None
    flags = ["-std=c++17", "-O3", f"-arch=compute_{architecture}", "-ptx"]
    for source in sorted((CSRC / "cuda").glob("*.cu")):
        ptx, cubin = tmp_path / f"{source.stem}.ptx", tmp_path / f"{source.stem}.cubin"
        subprocess.run(["nvcc", *flags, "-o", ptx, source], check=True)
        lines = ptx.read_text().splitlines(keepends=True)
        version = next(i for i, line in enumerate(lines) if line.startswith(".version "))
        lines[version] = f".version {PTX_VERSION}\n"
        ptx.write_text("".join(lines))
        command = [TOOLS / "bin" / "ptxas", "-Werror", "--warn-on-spills"]
        command += [f"-arch=sm_{architecture}", "-o", cubin, ptx]
        assembled = subprocess.run(command, capture_output=True, text=True)
        assert assembled.returncode == 0, f"{source.name}: {assembled.stderr}"


@needs_tools
@pytest.mark.skipif(RUNTIME is None, reason="no nvidia-cuda-runtime-cu12")
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("source", ["runtime.cpp", "operations.cpp"])
def test_host_code(source):
    assert TOOLS is not None and RUNTIME is not None
    command = [COMPILER, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    for headers in (RUNTIME, TOOLS):
        command += ["-isystem", headers / "include"]
    subprocess.run([*command, CSRC / "cuda" / source], check=True)
