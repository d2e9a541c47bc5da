"""The number of threads changes no bit: work is split by its shape, never by the thread count."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import pyconv
from pyconv import kernels
from pyconv.validation.cases import reals

# Large enough for every path to be shared among threads; batches that 2, 3 and 7 do not divide.
CONVS = {
    "3to32_same": ((5, 32, 32, 3), (3, 3, 3, 32), {"padding": "same"}),
    "32to32": ((5, 30, 32, 32), (3, 3, 32, 32), {}),
    "64to64_small": ((11, 6, 6, 64), (3, 3, 64, 64), {"padding": "same"}),
    "one_image": ((1, 40, 24, 17), (3, 3, 17, 40), {"padding": "same"}),
    "pointwise": ((5, 16, 16, 48), (1, 1, 48, 64), {}),
    "stride2": ((5, 31, 32, 16), (5, 5, 16, 33), {"strides": 2, "padding": "same"}),
    "groups": ((5, 20, 20, 32), (3, 3, 8, 64), {"groups": 4}),
    "depthwise": ((5, 20, 20, 32), (3, 3, 1, 32), {"groups": 32, "padding": "same"}),
    "depthwise_few_rows": ((1, 3, 20, 400), (3, 3, 1, 400), {"groups": 400, "padding": "same"}),
    "depthwise_stride2": ((5, 31, 32, 33), (3, 3, 1, 33), {"groups": 33, "strides": 2}),
    "dilated": ((3, 20, 20, 16), (3, 3, 16, 16), {"dilation_rate": 2}),
}


def run_conv(name):
    x_shape, w_shape, geometry = CONVS[name]
    x, w, b = reals("x", x_shape), reals("w", w_shape), reals("b", w_shape[3:])
    y = kernels.conv2d(x, w, b, **geometry, activation="relu")
    dy = reals("dy", y.shape)
    return [y, *kernels.conv2d_backward(dy, x, w, **geometry, activation="relu", y=y)]


def run_pool(geometry):
    x = reals("x", (5, 40, 40, 33))
    y, argmax = kernels.max_pool2d(x, **geometry)
    dy = reals("dy", y.shape)
    return [y, argmax, kernels.max_pool2d_backward(dy, argmax, x.shape, **geometry)]


def run_average(shape, geometry):
    x = reals("x", shape)
    y = kernels.avg_pool2d(x, **geometry)
    return [y, kernels.avg_pool2d_backward(reals("dy", y.shape), shape, **geometry)]


def run_pad():
    y = kernels.pad2d(reals("x", (5, 20, 30, 17)), 2)
    return [y, kernels.pad2d_backward(y, 1)]


def run_dense(batch):
    x, w, b = reals("x", (batch, 256)), reals("w", (256, 512)), reals("b", (512,))
    y = kernels.dense(x, w, b, "relu")
    return [y, *kernels.dense_backward(reals("dy", y.shape), x, w, "relu", y=y)]


def run_pointwise():
    x, dy = reals("x", (1003, 257)), reals("dy", (1003, 257))
    y = kernels.softmax(x)
    results = [kernels.round_bfloat16(x)]
    results += [kernels.relu(x), kernels.relu_backward(dy, x), y, kernels.softmax_backward(dy, y)]
    results += kernels.softmax_cross_entropy(x, np.abs(dy))
    for name in kernels.POINTWISE:
        y = kernels.activate(x, name)
        results += [y, kernels.activate_backward(dy, y, name)]
    results += [kernels.dropout(x, 0.3, 1, 2), kernels.dropout_backward(dy, 0.3, 1, 2)]
    return results


def run_batch_norm(shape):
    x, dy = reals("x", shape), reals("dy", shape)
    gamma, beta, *moving = (reals(name, shape[-1:]) ** 2 for name in ("g", "b", "m", "v"))
    y, mean, inverse = kernels.batch_norm_training(x, gamma, beta, *moving)
    gradients = kernels.batch_norm_backward(dy, x, gamma, mean, inverse)
    return [y, mean, inverse, *moving, *gradients, kernels.batch_norm(x, gamma, beta, *moving)]


def run_optimizers():
    g = reals("g", (1003, 257))
    results = []
    for step, slots, tail in (
        (kernels.sgd_step, 1, (0.1, 0.9, True)),
        (kernels.rmsprop_step, 1, (0.1,)),
        (kernels.adam_step, 2, (1, 0.1)),
    ):
        arrays = [reals(f"slot{i}", g.shape) ** 2 for i in range(slots + 1)]
        step(arrays[0], g, *arrays[1:], *tail)
        results += arrays
    return results


RUNS = {
    **{f"conv2d_{name}": (run_conv, name) for name in CONVS},
    "max_pool2d": (run_pool, {}),
    "max_pool2d_overlapping": (run_pool, {"pool_size": 3, "strides": 2, "padding": "same"}),
    "avg_pool2d": (run_average, (5, 40, 40, 33), {}),
    "avg_pool2d_overlapping": (
        run_average,
        (5, 40, 40, 33),
        {"pool_size": 3, "strides": 2, "padding": "same"},
    ),
    "avg_pool2d_of_an_image": (run_average, (1, 40, 40, 133), {"pool_size": 40}),
    "pad2d": (run_pad,),
    "dense": (run_dense, 67),
    "dense_of_one": (run_dense, 1),
    "dense_of_many": (run_dense, 301),
    "pointwise": (run_pointwise,),
    "batch_norm": (run_batch_norm, (5, 40, 40, 33)),
    "batch_norm_wide": (run_batch_norm, (301, 1030)),
    "batch_norm_narrow": (run_batch_norm, (7001, 3)),
    "optimizers": (run_optimizers,),
}


@pytest.mark.parametrize("run", RUNS)
def test_threads_change_no_bit(isa, num_threads, run):
    function, *arguments = RUNS[run]
    num_threads(1)
    expected = [array.tobytes() for array in function(*arguments)]
    for count in (2, 3, 7):
        num_threads(count)
        got = [array.tobytes() for array in function(*arguments)]
        for index, (a, b) in enumerate(zip(got, expected)):
            assert a == b, f"{run}: result {index} differs between 1 and {count} threads"


def test_set_num_threads(num_threads):
    for count in (1, 3):
        num_threads(count)
        assert pyconv.get_num_threads() == count
    for bad in (0, -1, 2**40):
        with pytest.raises(ValueError):
            num_threads(bad)
    for bad in ("2", 1.5, None):
        with pytest.raises(TypeError):
            num_threads(bad)
    assert pyconv.get_num_threads() == 3


def test_callers_own_threads(num_threads):
    """Several Python threads in the kernels at once: the GIL is released there."""
    from concurrent.futures import ThreadPoolExecutor

    num_threads(2)
    expected = [array.tobytes() for array in run_conv("32to32")]
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(run_conv, ["32to32"] * 8):
            assert [array.tobytes() for array in result] == expected


@pytest.mark.parametrize("setting", [None, "7"])
def test_loading_leaves_the_environment_as_it_is(setting, tmp_path):
    """OpenMP reads how long idle threads spin when it is loaded; nobody else is to see that."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY",)}
    environment.pop("GOMP_SPINCOUNT", None)
    if setting is not None:
        environment["GOMP_SPINCOUNT"] = setting
    script = "import os, pyconv; pyconv.isa(); print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=tmp_path,  # not the sources, which have no extension
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(setting)
