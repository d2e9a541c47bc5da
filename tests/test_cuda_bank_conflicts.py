"""Bank conflicts of the convolution kernels, counted from their own address functions.

csrc/cuda/shared_tiles.hpp is plain C++: it is compiled for the host here. No GPU is needed, and
neither is CUDA. What is counted are wavefronts, passes over the 32 banks of 4 bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import pytest

COMPILER = shutil.which(os.environ.get("CXX", "c++"))
SOURCE = Path(__file__).parent / "cuda" / "bank_conflicts.cpp"
HEADERS = Path(__file__).parents[1] / "csrc" / "cuda"

# Every access, and the wavefronts that a warp needs: 4, for 32 lanes of 16 bytes are 512 bytes, or
# 2 where lanes share so that passes merge. Of the 4 matrices that ldmatrix reads each is 128 bytes.
# The weights and gradients of the first layer are shared by lanes 8 apart, which does not merge.
EXPECTED = {
    "gemm: store source": 4,
    "gemm: store weights": 4,
    "gemm: read source": 2,
    "gemm: read weights": 2,
    "dense: read": 4,
    "weights: store x": 4,
    "weights: store dy": 4,
    "weights: read x": 2,
    "weights: read dy": 2,
    "tf32: store patch": 4,
    "tf32: store weights": 4,
    "tf32: load matrices of patch": 4,
    "tf32: load matrices of weights": 4,
    "first: read patch": 2,
    "first: read weights": 4,
    "first weights: read patch": 2,
    "first weights: read gradient": 4,
    "first weights: store sums": 4,
}


def wavefronts(offsets: list[int], merge: bool) -> int:
    """Of an access of 16 bytes a lane, 8 lanes at a time; lanes that read the same share it. Two
    such passes are one where all lanes ^ 1, or all lanes ^ 2, read the same.

    https://forums.developer.nvidia.com/t/unexpected-shared-memory-bank-conflict/77228/2
    """
    assert len(offsets) == 32 and all(at % 4 == 0 or at == -1 for at in offsets)
    merged = merge and any(
        all(offsets[lane] == offsets[lane ^ partner] for lane in range(32)) for partner in (1, 2)
    )
    lanes = 16 if merged else 8
    total = 0
    for first in range(0, 32, lanes):
        units = set(offsets[first : first + lanes]) - {-1}
        total += max(Counter(at // 4 % 8 for at in units).values(), default=0)
    return total


@pytest.fixture(scope="module")
def most(tmp_path_factory) -> dict[str, int]:
    """The most wavefronts of a warp in each access."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("bank_conflicts") / "bank_conflicts"
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([COMPILER, *flags, "-I", HEADERS, "-o", program, SOURCE], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    found: dict[str, int] = defaultdict(int)
    for line in lines.splitlines():
        name, _, offsets = line.rpartition(":")
        lanes = [int(at) for at in offsets.split()]
        # Writes of the same place do not merge, and neither do the matrices of ldmatrix.
        count = wavefronts(lanes, merge=": read" in name)
        found[name] = max(found[name], count)
    return found


def test_the_count():
    contiguous = [4 * lane for lane in range(32)]
    assert wavefronts(contiguous, merge=True) == 4
    assert wavefronts([32 * lane for lane in range(32)], merge=True) == 32
    assert wavefronts([4 * (lane // 2) for lane in range(32)], merge=True) == 2
    assert wavefronts([4 * (lane // 2) for lane in range(32)], merge=False) == 4
    assert wavefronts([4 * (lane // 4) for lane in range(32)], merge=True) == 2
    assert wavefronts([4 * (lane % 8) for lane in range(32)], merge=True) == 4
    assert wavefronts([0] * 32, merge=True) == 2
    assert wavefronts([-1] * 32, merge=True) == 0


@pytest.mark.parametrize("name", EXPECTED)
def test_no_bank_conflicts(most, name):
    assert most[name] == EXPECTED[name]


def test_every_access_is_expected(most):
    assert {name for name in most if not name.startswith("without swizzle")} == set(EXPECTED)


def test_without_swizzle_there_are_conflicts(most):
    """The count can fail."""
    assert most["without swizzle: read source"] == 2 * EXPECTED["gemm: read source"]
    assert most["without swizzle: load matrices of patch"] > 4
