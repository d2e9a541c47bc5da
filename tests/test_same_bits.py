"""A training ends in the same bits whatever the machine does meanwhile.

Threads, affinity, other processes, and with emulated CUDA the order of threads. Single kernels are
in test_threads.py and test_cuda_emulation.py; these are whole trainings, in processes of their own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys

import pytest
from conftest import EMULATED, has_emulated_cuda, thread_orders
from trainings import run

import pyconv

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="affinity masks are Linux's"
)


@functools.cache
def alone(isa: str) -> str:
    """The hash of a training on one thread."""
    (found,) = run("import trainings; print(trainings.training())", **on(isa, 1))
    return found


def on(isa: str, threads: int | None) -> dict[str, str | None]:
    return {
        "PYCONV_DEVICE": "cpu",
        "PYCONV_FORCE_ISA": isa,
        "PYCONV_NUM_THREADS": None if threads is None else str(threads),
    }


@contextlib.contextmanager
def busy_processes(count: int):
    """So many processes beside the tests that never sleep."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads(isa, threads):
    code = "import pyconv, trainings; print(pyconv.get_num_threads(), trainings.training())"
    assert run(code, **on(isa, threads)) == [str(threads), alone(isa)]


@needs_affinity
@pytest.mark.parametrize("threads", [None, 3])
@pytest.mark.parametrize("which", [0, -1])
def test_affinity(isa, threads, which):
    """On one core, the first or the last one; by default as many threads as it leaves."""
    core = sorted(os.sched_getaffinity(0))[which]
    code = (
        f"import os; os.sched_setaffinity(0, [{core}]); import pyconv, trainings\n"
        "print(pyconv.get_num_threads(), trainings.training())"
    )
    settings = on(isa, threads) | {"OMP_NUM_THREADS": None}
    assert run(code, **settings) == [str(threads or 1), alone(isa)]


@needs_affinity
def test_affinity_that_changes_meanwhile(isa):
    code = (
        "import os, trainings; from pyconv.callbacks import LambdaCallback\n"
        "cores = sorted(os.sched_getaffinity(0))\n"
        "def move(batch, logs): os.sched_setaffinity(0, [cores[batch % len(cores)]])\n"
        "print(trainings.training(callbacks=[LambdaCallback(on_train_batch_begin=move)]))"
    )
    assert run(code, **on(isa, 3)) == [alone(isa)]


def test_twenty_trainings_beside_busy_processes():
    isa = pyconv.available_isas()[0]
    code = (
        "import pyconv, trainings\n"
        "for number in range(20):\n"
        "    pyconv.set_num_threads((1, 2, 3, 7)[number % 4])\n"
        "    print(trainings.training())"
    )
    with busy_processes(2 * (os.cpu_count() or 1)):
        assert run(code, timeout=600, **on(isa, None)) == [alone(isa)] * 20


ORDERS = thread_orders(1, 2, 3)


@functools.cache
def emulated(architecture: str, order: str | None, mode: str) -> list[str]:
    return run(
        "import trainings; print(trainings.training(epochs=1))",
        timeout=600,
        PYCONV_DEVICE="cuda-emulated",
        PYCONV_EMULATED_ARCH=architecture,
        PTXCPU_COMPUTE_CAPABILITY=architecture,
        PYCONV_MATH_MODE=mode,
        TRAININGS_SIZE="8",
        **(ORDERS[order] if order else {}),
    )


@pytest.mark.skipif(not has_emulated_cuda(), reason="built without PYCONV_CUDA_EMULATION")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("architecture", "mode"),
    [(architecture, "fp32") for architecture in EMULATED.values()] + [("80", "tf32")],
)
def test_orders_of_cuda_threads(architecture, mode, order):
    assert emulated(architecture, order, mode) == emulated(architecture, None, mode)
