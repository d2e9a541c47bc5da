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
