import functools
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ptxcpu import Module, PTXError  # noqa: F401

KERNELS = Path(__file__).parent / "kernels"

# Ways to run a kernel: each must give the same result, and each exposes other mistakes.
SCHEDULES = {
    "forward": {},
    "reverse": {"order": "reverse"},
    "random": {"order": "random", "seed": 3, "stress": 50},
    "race": {"race": True},
    "two workers": {"threads": 2},
}


def pytest_collection_modifyitems(items):
    if shutil.which("nvcc"):
        return
    for item in items:
        item.add_marker(pytest.mark.skip(reason="nvcc is needed to make PTX"))


@functools.cache
def compile_kernel(name: str, arch: str = "sm_80", flags: tuple = ()) -> Module:
    return Module.from_cu(KERNELS / f"{name}.cu", arch=arch, flags=flags)


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def normal(rng):
    """Arrays of standard normal float32 values."""
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)
