"""In one process with PyTorch and scikit-learn, each with an OpenMP of its own.

Where they are installed beside pyconv: pip install torch scikit-learn threadpoolctl
"""

from __future__ import annotations

import importlib.util
import re
import subprocess

import pytest
from trainings import run

from pyconv import _cpu

OTHERS = ("torch", "sklearn", "threadpoolctl")

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, OTHERS)), reason=f"needs {', '.join(OTHERS)}"
)

ORDERS = {
    "pyconv first": "import pyconv, trainings; pyconv.isa(); others()",
    "pyconv last": "others(); import pyconv, trainings; pyconv.isa()",
}

BEGIN = """
import os, threading
def others():
    global torch, threadpoolctl, KMeans
    import torch, threadpoolctl
    from sklearn.cluster import KMeans
def openmp():
    return [lib for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "openmp"]
def work():
    torch.nn.functional.conv2d(torch.ones(8, 16, 32, 32), torch.ones(16, 16, 3, 3))
    KMeans(3, n_init=1).fit(torch.rand(1000, 8).numpy())
"""


def beside(order: str, code: str) -> list[str]:
    variables = {"PYCONV_DEVICE": "cpu", "PYCONV_NUM_THREADS": None, "OMP_NUM_THREADS": "2"}
    return run(BEGIN + ORDERS[order] + "\n" + code, timeout=300, **variables)


@pytest.mark.parametrize("order", ORDERS)
def test_threadpoolctl_sees_and_limits_it(order):
    """Under the name that it is linked by. That may be another's who has brought it: PyTorch's is
    of the same name in some wheels, and then it is theirs or ours that both use."""
    dynamic = subprocess.check_output(["readelf", "-d", _cpu.__file__], text=True)
    (name,) = re.findall(r"\(NEEDED\).*\[(lib\w*omp[^]]*)\]", dynamic)
    code = f"NAME = {name!r}"
    code += """
work()
trainings.training()
paths = [lib["filepath"] for lib in openmp()]
assert len(set(paths)) == len(paths), paths
assert [os.path.basename(path).startswith(NAME) for path in paths].count(True) == 1, paths
print(pyconv.get_num_threads())
with threadpoolctl.threadpool_limits(1):
    print(pyconv.get_num_threads())
    pyconv.set_num_threads(2)
    print(pyconv.get_num_threads(), trainings.training())
print(pyconv.get_num_threads(), trainings.training())
"""
    words = beside(order, code)
    assert words[:3] == ["2", "1", "1"]
    assert words[4] == "2" and words[3] == words[5]


@pytest.mark.parametrize("order", ORDERS)
def test_the_same_bits_beside_them(order):
    code = """
expected = trainings.training()
end = threading.Event()
def busy():
    while not end.is_set():
        work()
thread = threading.Thread(target=busy)
thread.start()
answers = {trainings.training() for _ in range(5)}
end.set()
thread.join()
print(expected, *answers)
"""
    expected, *answers = beside(order, code)
    assert answers == [expected]
