"""The choice of the device, and what is said when it cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import pyconv
import reference
from cases import CONV_CASES, integers
from pyconv import backend, kernels


@pytest.fixture(autouse=True)
def device_as_it_was():
    before = pyconv.get_device()
    yield
    pyconv.set_device(before)


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=os.path.dirname(__file__),  # not where a source tree would hide what is installed
    )


def test_the_default_is_the_cpu():
    result = python("import pyconv; print(pyconv.get_device())", PYCONV_DEVICE="")
    assert result.stdout == "cpu\n", result.stderr


def test_an_unknown_device_is_refused_with_the_known_ones():
    for known in backend.DEVICES:
        with pytest.raises(ValueError, match=repr(known)):
            pyconv.set_device("tpu")
    result = python("import pyconv; pyconv.get_device()", PYCONV_DEVICE="gpu")
    assert "PYCONV_DEVICE: expected one of" in result.stderr


@pytest.mark.skipif(not backend.cuda_unavailable_reason(), reason="there is a CUDA device")
def test_without_a_device_cuda_is_refused_and_nothing_changes():
    pyconv.set_device("cpu")
    with pytest.raises(RuntimeError, match=r"The device 'cuda' cannot be used: .*\. *"):
        pyconv.set_device("cuda")
    assert pyconv.get_device() == "cpu"
    assert kernels.relu(np.ones(3, np.float32)).sum() == 3


def test_a_build_without_the_emulated_device_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyconv._cuda_emulated", None)
    monkeypatch.delenv("PYCONV_EMULATED_ARCH", raising=False)
    backend._backend.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="PYCONV_CUDA_EMULATION=ON"):
            pyconv.set_device("cuda-emulated")
    finally:
        backend._backend.cache_clear()


def test_an_array_of_another_device_is_refused_with_the_remedy():
    class OnADevice:
        def __init__(self):
            self.__cuda_array_interface__ = {"version": 3}

    pyconv.set_device("cpu")
    with pytest.raises(TypeError, match="the device is 'cpu'.*cupy.asnumpy"):
        kernels.relu(OnADevice())


def test_math_modes_of_the_cpu():
    pyconv.set_device("cpu")
    pyconv.set_math_mode("fp32")
    assert pyconv.get_math_mode() == "fp32"
    for mode in ("tf32", "FP32", ""):
        with pytest.raises(ValueError, match="'fp32'"):
            pyconv.set_math_mode(mode)


def test_info_says_what_there_is_of_cuda():
    result = python("from pyconv.cli import main; main(['info'])")
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("CUDA:"))
    if backend.cuda_module() is None:
        assert "not in this build" in line
    else:
        assert "sm_75" in line and "built with CUDA" in line


@pytest.mark.gpu
@pytest.mark.skipif(bool(backend.cuda_unavailable_reason()), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CONV_CASES, ids=lambda c: c.name)
def test_convolution_of_integers_is_exact_on_a_real_device(case):
    import cupy

    x, w = integers("x", case.x), integers("w", case.w)
    expected = reference.conv2d(x, w, **case.geometry)
    dy = integers("dy", expected.shape)
    gradients = reference.conv2d_backward(dy, x, w, **case.geometry)
    pyconv.set_device("cuda")
    on_device = [cupy.asarray(array) for array in (dy, x, w)]
    y = kernels.conv2d(*on_device[1:], **case.geometry)
    reference.assert_same(cupy.asnumpy(y), expected, str(case))
    for mine, theirs in zip(kernels.conv2d_backward(*on_device, **case.geometry), gradients):
        reference.assert_same(cupy.asnumpy(mine), theirs, str(case))
