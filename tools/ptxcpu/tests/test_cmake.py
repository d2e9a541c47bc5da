"""Two emulated libraries from the same sources in one build tree; see two_targets/."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "two_targets"


def run_ninja(directory):
    result = subprocess.run(["ninja", "-C", directory, "-j2"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, built: one test changes a header."""
    if not (shutil.which("cmake") and shutil.which("ninja")):
        pytest.skip("needs CMake and ninja")
    directory = tmp_path_factory.mktemp("two_targets")
    source, build = directory / "tests" / "two_targets", directory / "build"
    shutil.copytree(SOURCE, source)
    package = SOURCE.parent.parent
    for name in ("ptxcpu", "runtime", "cudart", "ptxcpu.cmake"):
        (directory / name).symlink_to(package / name)
    subprocess.run(
        ["cmake", "-G", "Ninja", "-S", source, "-B", build], check=True, capture_output=True
    )
    run_ninja(build)
    return source, build


def report(build, arch):
    library = ctypes.CDLL(str(build / f"libemulated{arch}.so"))
    out = (ctypes.c_int * 5)()
    assert library.report(out) == 0
    return list(out)


def test_each_target_has_its_own_architecture_headers_and_definitions(project):
    _, build = project
    assert report(build, 75) == [750, 75000 + 750, 1, len("two words"), 2]
    assert report(build, 80) == [800, 80000 + 800, 1, len("two words"), 2]


def test_runtime_is_compiled_once(project):
    _, build = project
    assert len(list(build.rglob("scheduler.cpp.o"))) == 1


def test_only_what_depends_on_a_changed_header_is_built_again(project):
    source, build = project
    assert "no work to do" in run_ninja(build)
    (source / "include_75" / "per_target.hpp").write_text("constexpr int kFromHeader = 1;\n")
    output = run_ninja(build)
    assert "first/kernel.cu for emulated75" in output
    assert "second/kernel.cu" not in output and "emulated80" not in output
    assert "no work to do" in run_ninja(build)
