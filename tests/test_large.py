"""Arrays of more than 2^31 elements, whose indices 32 bits do not hold.

Run with PYCONV_LARGE=1 only. What is read alone is zeros that take no memory, but for the numbers
that matter, at the end; what is written takes 8.6 GB, in place.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from pyconv import kernels
from pyconv.validation import reference

pytestmark = pytest.mark.skipif(
    os.environ.get("PYCONV_LARGE") != "1", reason="large arrays: set PYCONV_LARGE=1"
)

# 2^31 + 2^22 pixels.
H, W = 2**16, 2**15 + 64


def image(c=1):
    """An image of zeros but for its last pixels."""
    x = np.zeros((1, H, W // c, c), np.float32)
    assert x.size > 2**31
    x[0, -4:, -4:] = np.arange(1, 1 + 16 * c, dtype=np.float32).reshape(4, 4, c)
    return x


@pytest.fixture
def memory():
    """Skips what there is no memory for."""
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    if available < 11 << 20:  # KiB
        pytest.skip("less than 11 GiB of memory")


def test_gather(isa):
    source = np.zeros((2**21 + 2, 1024), np.uint8)
    source[-1] = 7
    rows = kernels.gather(source, np.array([0, len(source) - 1]), 0.5)
    assert (rows[0] == 0).all() and (rows[1] == 3.5).all()


def test_pad2d(isa):
    """Negative padding: the last pixels alone are left."""
    x = image()
    cropped = kernels.pad2d(x, ((4 - H, 0), (4 - W, 0)))
    np.testing.assert_array_equal(cropped, x[:, -4:, -4:])


def test_max_and_average_pooling(isa):
    x = image()
    # A pool as wide as the image and four rows high, the last of which is the last of the image.
    y, argmax = kernels.max_pool2d(x, (4, W), (4, W))
    assert y.shape == (1, H // 4, 1, 1)
    assert y[0, -1, 0, 0] == 16 and argmax[0, -1, 0, 0] == 4 * W - 1
    assert (y[0, :-1] == 0).all()
    y = kernels.avg_pool2d(x, (4, W), (4, W))
    assert y[0, -1, 0, 0] == np.float32(136 / (4 * W)) and (y[0, :-1] == 0).all()


def test_conv2d(isa):
    """Windows of two columns; the last one ends with the image."""
    x = image()
    stride = (4, W - 4)
    w = np.arange(16, dtype=np.float32).reshape(4, 4, 1, 1)
    y = kernels.conv2d(x, w, strides=stride)
    assert y.shape == (1, H // 4, 2, 1)
    corner = x[:, -4:, -4:]
    expected = reference.conv2d(corner, w)
    assert y[0, -1, -1, 0] == expected.item() and np.count_nonzero(y) == 1
    dy = np.zeros_like(y)
    dy[0, -1, -1] = 2
    dw, db = kernels.conv2d_backward_weights(dy, x, w.shape, strides=stride)
    np.testing.assert_array_equal(dw, 2 * corner.reshape(w.shape))
    assert db == 2


def test_depthwise(isa):
    x = image(2)
    w = np.arange(32, dtype=np.float32).reshape(4, 4, 1, 2)
    y = kernels.conv2d(x, w, strides=(4, W // 2 - 4), groups=2)
    corner = np.ascontiguousarray(x[:, -4:, -4:])
    np.testing.assert_array_equal(y[:, -1:, -1:], kernels.conv2d(corner, w, groups=2))
    assert np.count_nonzero(y) == 2


def test_dense(isa):
    x = np.zeros((2**21 + 3, 1024), np.float32)
    x[-1] = np.arange(1024) % 8
    w = np.ones((1024, 1), np.float32)
    y = kernels.dense(x, w)
    assert y[-1] == x[-1].sum() and np.count_nonzero(y) == 1
    dw, _ = kernels.dense_backward_weights(np.ones_like(y), x)
    np.testing.assert_array_equal(dw[:, 0], x[-1])


def test_warp_affine():
    x = np.zeros((2**21 + 3, 32, 32, 1), np.float32)
    x[-1] = np.arange(1024).reshape(32, 32, 1)
    same = np.array([[[1.0, 0, 0], [0, 1, 0]]])
    y = kernels.warp_affine(x, same, np.array([len(x) - 1]))
    np.testing.assert_array_equal(y[0], x[-1])


def test_element_by_element(isa, memory):
    x = np.zeros(2**31 + 16, np.float32)
    x[-4:] = [-1, 2, -3, 4]
    assert kernels.relu(x, out=x) is x
    assert x[-4:].tolist() == [0, 2, 0, 4] and np.count_nonzero(x[-1000:]) == 2
    kernels.dropout(x, 0.0, 1, out=x)
    assert x[-4:].tolist() == [0, 2, 0, 4]
    kernels.activate(x, "tanh", out=x)
    assert x[-1] == np.float32(np.tanh(4.0)) and x[0] == 0
    rows = x.reshape(-1, 16)
    kernels.softmax(rows, out=rows)
    np.testing.assert_allclose(rows[0], 1 / 16, rtol=1e-6)
    assert rows[-1].argmax() == 15


def test_indices_of_more_than_32_bits_are_refused_where_they_do_not_fit():
    """A window's position is an int32, so a window has less than 2^31."""
    x = image()
    with pytest.raises(ValueError, match="at most 2147483647 positions"):
        kernels.max_pool2d(x, (H, W))
    with pytest.raises(ValueError, match="at most 2147483647 positions"):
        kernels.avg_pool2d(x, (H, W))
