"""What only emulation can show of CUDA code: thread orders, races, graphs of kernels, errors.

Executes the kernels on the CPU. The kernel tests run over the whole table of cases on this device
too (`target` in conftest.py).
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import EMULATED, emulated_cuda, has_emulated_cuda, thread_orders

import pyconv
from pyconv import backend, kernels
from pyconv.validation.cases import (
    CONV_CASES,
    DENSE_CASES,
    POOL_CASES,
    reals,
)
from pyconv.validation.reference import assert_same_bits

pytestmark = pytest.mark.skipif(
    not has_emulated_cuda(), reason="built without PYCONV_CUDA_EMULATION"
)

architectures = pytest.mark.parametrize("architecture", EMULATED.values())

ORDERS = thread_orders(2, 2, 2) | {"race detector": {"PTXCPU_RACE": "1"}}


def conv_results(case) -> list[np.ndarray]:
    x, w, b = reals("x", case.x), reals("w", case.w), reals("b", (case.filters,))
    y = kernels.conv2d(x, w, b, **case.geometry, activation=case.activation)
    options = case.geometry | {"activation": case.activation}
    results = [y, *kernels.conv2d_backward(reals("dy", y.shape), x, w, **options, y=y)]
    if min(y.shape[1:3]) >= 2:
        pooled, winner = kernels.conv2d_pool(x, w, b, **case.geometry, rate=0.25, seed=7)
        dy = reals("pooled dy", pooled.shape)
        gradients = kernels.conv2d_pool_backward(dy, winner, x, w, **case.geometry, rate=0.25)
        results += [pooled, winner, *gradients]
    return results


def pool_results(case) -> list[np.ndarray]:
    x = reals("x", case.x)
    y, argmax = kernels.max_pool2d(x, **case.geometry)
    results = [y, argmax, kernels.max_pool2d_backward(y, argmax, case.x, **case.geometry)]
    y = kernels.avg_pool2d(x, **case.geometry)
    results += [y, kernels.avg_pool2d_backward(y, case.x, **case.geometry)]
    return [*results, kernels.pad2d(x, ((1, 2), (0, 3)))]


def dense_results(case) -> list[np.ndarray]:
    x, w = reals("x", (case.batch, case.inputs)), reals("w", (case.inputs, case.units))
    y = kernels.dense(x, w, None, case.activation)
    return [y, *kernels.dense_backward(reals("dy", y.shape), x, w, case.activation, y=y)]


def batch_norm_results(shape) -> list[np.ndarray]:
    x, dy = reals("x", shape), reals("dy", shape)
    gamma, beta, mean, variance = (reals(name, shape[-1:]) ** 2 for name in "gbmv")
    results = [kernels.batch_norm(x, gamma, beta, mean, variance)]
    y, *saved = kernels.batch_norm_training(x, gamma, beta, mean, variance)
    results += [y, *saved, mean, variance]
    return [*results, *kernels.batch_norm_backward(dy, x, gamma, *saved)]


def other_results(_) -> list[np.ndarray]:
    z, dy = reals("z", (37, 45)), reals("dy", (37, 45))
    p = kernels.softmax(z)
    w, dw, *slots = (np.array(reals(name, (1003,))) for name in ("w", "dw", "s", "m", "v"))
    results = [
        p,
        kernels.softmax_backward(dy, p),
        kernels.relu(z),
        kernels.relu_backward(dy, z),
        kernels.round_bfloat16(z),
    ]
    for name in kernels.POINTWISE:
        y = kernels.activate(z, name)
        results += [y, kernels.activate_backward(dy, y, name)]
    results += [*kernels.softmax_cross_entropy(z, np.abs(dy)), kernels.dropout(z, 0.4, 3, 1)]
    slots[0] = np.abs(slots[0])
    slots[2] = np.abs(slots[2])
    kernels.sgd_step(w, dw, slots[0], 0.1, 0.9, True)
    kernels.rmsprop_step(w, dw, slots[0], 0.1)
    kernels.adam_step(w, dw, slots[1], slots[2], 3, 0.1)
    return [*results, w, *slots]


PROBLEMS = [
    *((case.name, conv_results, case) for case in CONV_CASES),
    *((case.name, pool_results, case) for case in POOL_CASES),
    *((case.name, dense_results, case) for case in DENSE_CASES),
    *((f"batch_norm_{shape}", batch_norm_results, shape) for shape in ((300, 37), (3, 5, 4, 70))),
    ("pointwise", other_results, None),
]


@pytest.mark.parametrize("mode", ["fp32", "tf32"])
@architectures
@pytest.mark.parametrize(("name", "results", "case"), PROBLEMS, ids=[p[0] for p in PROBLEMS])
def test_no_order_of_threads_changes_a_bit(name, results, case, architecture, mode):
    """Forward, reverse, seeded random with yields at shared memory, and once with the race detector
    on."""
    if mode == "tf32" and (architecture == "75" or results is not conv_results):
        pytest.skip("no other kernels than in fp32")
    with emulated_cuda(architecture):
        pyconv.set_math_mode(mode)
        try:
            expected = results(case)
            for order, settings in ORDERS.items():
                with emulated_cuda(architecture, **settings):
                    for got, want in zip(results(case), expected):
                        np.testing.assert_array_equal(
                            got.view(np.uint8), want.view(np.uint8), f"{name} {order}"
                        )
        finally:
            pyconv.set_math_mode("fp32")


def test_tf32_is_refused_without_tensor_cores_for_it():
    with emulated_cuda("75"):
        with pytest.raises(ValueError, match=r"8\.0 or later"):
            pyconv.set_math_mode("tf32")
        assert pyconv.get_math_mode() == "fp32"
    with pytest.raises(ValueError, match="'fp32'"):
        pyconv.set_math_mode("tf32")  # on the CPU


# ------------------------------------------------------------------------------- graphs and errors


@architectures
def test_a_graph_replays_with_the_values_that_stand_in_memory_then(architecture):
    with emulated_cuda(architecture):
        module = backend.current().kernels
        x, out = reals("x", (1000,)), np.empty(1000, np.float32)
        w, dw = np.array(reals("w", (1000,))), reals("dw", (1000,))
        offset, rate = np.array(0, np.uint64), np.array(0.0, np.float32)
        m, v, step = np.zeros(1000, np.float32), np.zeros(1000, np.float32), np.array(1, np.uint64)
        arrays = (x, out, w, dw, offset, rate, m, v, step)
        with registered(module, arrays):
            graph = module.Graph()
            graph.begin_capture()
            kernels.dropout(x, 0.5, 7, offset, out=out)
            kernels.adam_step(w, dw, m, v, step, rate)
            graph.end_capture()
            out[:] = np.nan
            before = w.copy()
            graph.launch()
            assert_same_bits(out, kernels.dropout(x, 0.5, 7, 0))
            assert_same_bits(w, before, "a learning rate of 0")
            offset[...], rate[...], step[...] = 3, 0.1, 2
            expected = [before.copy(), m.copy(), v.copy()]
            kernels.adam_step(expected[0], dw, *expected[1:], 2, 0.1)
            graph.launch()
            assert_same_bits(out, kernels.dropout(x, 0.5, 7, 3))
            assert_same_bits(w, expected[0])
            graph.discard()
            with pytest.raises(module.Error, match="not captured"):
                graph.launch()


class registered:
    """Keeps arrays known to the emulator between calls, as a graph's launch needs."""

    def __init__(self, module, arrays):
        import ctypes

        self._library = ctypes.CDLL(module.__file__)
        self._arrays = arrays

    def __enter__(self):
        for array in self._arrays:
            self._library.ptxcpu_register_buffer(*self._arguments(array))

    def __exit__(self, *_):
        for array in self._arrays:
            self._library.ptxcpu_unregister_buffer(self._arguments(array)[0])

    @staticmethod
    def _arguments(array):
        import ctypes

        return ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=os.path.dirname(__file__),  # not where a source tree would hide what is installed
    )


def test_a_device_error_names_the_kernel():
    """In a process of its own, as the error stays."""
    code = (
        "import os, numpy as np\n"
        "from pyconv import kernels, backend\n"
        "import pyconv; pyconv.set_device('cuda-emulated')\n"
        "os.environ['PTXCPU_ORDER'] = 'sideways'\n"
        "try: kernels.relu(np.ones(5, np.float32))\n"
        "except backend.current().kernels.Error as error:\n"
        "    print(isinstance(error, RuntimeError), error)"
    )
    result = python(code)
    assert result.stdout.startswith("True relu: cudaErrorInvalidValue"), result


def test_kernels_are_listed():
    with emulated_cuda("80"):
        listed = backend.current().kernels.kernels()
        names = [kernel["name"] for kernel in listed]
        assert len(set(names)) == len(names)
        assert {"relu", "conv2d_gemm 128x64", "conv2d_tf32 + pool x64"} <= set(names)
        assert all(0 < kernel["occupancy"] <= 1 for kernel in listed)


def test_what_is_not_this_devices_is_refused():
    with emulated_cuda("80"), pytest.raises(TypeError, match="NumPy array"):
        kernels.relu([1.0])
    result = python(
        "import pyconv; pyconv.backend.current()",
        PYCONV_DEVICE="cuda-emulated",
        PYCONV_EMULATED_ARCH="90",
    )
    assert "expected 75 or 80" in result.stderr
