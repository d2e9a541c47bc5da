"""The path that is asked for is the path that runs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

import pyconv
from pyconv import kernels

NAMES = ("avx512", "avx2", "portable")


def rounds_products(channels: int) -> bool:
    """Whether conv2d rounds each product before it adds it.

    a = 1 + 2^-12, so a^2 = 1 + 2^-11 + 2^-24, which float32 rounds to 1 + 2^-11. Over channels of
    +a and -a in turn the rounded products cancel, in any order; a fused multiply-add leaves the
    2^-24 it did not round away.
    """
    a = np.float32(1 + 2**-12)
    x = np.full((1, 4, 4, channels), a)
    w = np.full((1, 1, channels, 32), a)
    w[:, :, 1::2] = -a
    y = kernels.conv2d(x, w)
    assert np.abs(y).max() < 1e-3
    return not y.any()


def child(code: str, name: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYCONV_FORCE_ISA": name},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=os.path.dirname(__file__),  # not where a source tree would hide what is installed
    )


def test_available_isas():
    available = pyconv.available_isas()
    assert list(available) == [name for name in NAMES if name in available]
    assert "portable" in available
    if "PYCONV_FORCE_ISA" not in os.environ:
        assert pyconv.isa() == available[0], "the best path is the default"


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="elsewhere the baseline may fuse"
)
def test_set_isa_switches_the_arithmetic(isa):
    assert pyconv.isa() == isa
    for channels in (2, 6, 16):
        assert rounds_products(channels) == (isa == "portable")


@pytest.mark.parametrize("name", NAMES)
def test_forced_isa_runs(name):
    code = "import pyconv, test_isa; print(pyconv.isa(), test_isa.rounds_products(6))"
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); {code}"
    result = child(code, name)
    if name not in pyconv.available_isas():
        assert result.returncode == 1
        message = result.stderr.splitlines()[-1]
        assert all(known in message for known in (name, *pyconv.available_isas())), message
        return
    assert result.returncode == 0, result.stderr
    reported, rounds = result.stdout.split()
    assert reported == name
    if platform.machine().lower() in ("x86_64", "amd64"):
        assert (rounds == "True") == (name == "portable")


@pytest.mark.parametrize("name", ["avx9", "AVX2", "avx2 ", "0"])
def test_unknown_isa_raises(name):
    result = child("import pyconv; print(pyconv.isa())", name)
    assert result.returncode == 1, f"accepted: {result.stdout}"
    message = result.stderr.splitlines()[-1]
    assert all(known in message for known in pyconv.available_isas()), message
    assert name in message
    before = pyconv.isa()
    with pytest.raises(ValueError, match="portable"):
        pyconv.set_isa(name)
    assert pyconv.isa() == before


def test_set_isa_refuses_what_is_no_name():
    for name in (None, 2):
        with pytest.raises((TypeError, ValueError)):
            pyconv.set_isa(name)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in pyconv.available_isas()])
def test_unsupported_isa_raises(name):
    with pytest.raises(ValueError, match="portable"):
        pyconv.set_isa(name)


@pytest.mark.parametrize("threads", [1, 2])
def test_denormals_count_as_zeros(isa, threads, request):
    before = pyconv.get_num_threads()
    request.addfinalizer(lambda: pyconv.set_num_threads(before))
    pyconv.set_num_threads(threads)
    tiny = np.float32(1e-40)
    x, w = np.full((64, 256), tiny), np.ones((256, 64), np.float32)
    assert (kernels.dense(x, w) == 0).all()  # read
    small = np.full((64, 256), np.float32(1e-20))
    assert (kernels.dense(small, small.T.copy()) == 0).all()  # computed
    # Here they are what they were.
    assert tiny * np.float32(1) == tiny and np.float32(1e-20) * np.float32(1e-20) > 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors cannot trap")
def test_nothing_is_trapped(isa):
    """Not even where the program has asked for SIGFPE, which would end it."""
    program = f"""
import ctypes, numpy as np, pyconv
from pyconv import kernels
pyconv.set_isa({isa!r})
x = np.array([[np.nan, np.inf, -np.inf, 3e38, 1e-45, 0.0, -3e38, 1.0]] * 64, np.float32)
w = np.full((8, 8), 3e38, np.float32)
out, loss = np.empty_like(x), np.empty(64, np.float32)
more = np.empty_like(x), np.empty_like(x)
libm = ctypes.CDLL("libm.so.6")
libm.feenableexcept(0x1d)
kernels.dense(x, w, out=out)
kernels.relu(x, out=out)
kernels.activate(x, "tanh", out=out)
kernels.softmax_cross_entropy(x, x, loss=loss, probabilities=more[0], dlogits=more[1])
libm.fedisableexcept(0x1d)
print("alive")
"""
    # Not where the sources would be found instead of what is installed.
    here = os.path.dirname(__file__)
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=here, capture_output=True, text=True
    )
    assert result.stdout == "alive\n", result.stderr
