"""What the machine itself can do: multiply-adds in registers, and copies through memory."""

from __future__ import annotations

import concurrent.futures
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .operations import GRAPH, seconds_of_replay

SMALLEST = 64 * 2**20  # bytes of an array that is copied, at least
LARGEST = 2**30
CACHES = 4  # so many times the last-level cache

# Multiply-adds that a multiprocessor does in a cycle, in float32 by compute capability (CUDA C++
# Programming Guide, "Arithmetic Instructions"), of lanes that do one each; others have 128.
LANES = {"70": 64, "75": 64, "80": 64}
# The same on tensor cores with factors rounded to TF32, no sparsity: by NVIDIA's data sheets, from
# A100 (156 TFLOP/s of 108 multiprocessors at 1.41 GHz), GeForce RTX 3090 (35.6 of 82 at 1.7), RTX
# 4090 (82.6 of 128 at 2.52) and H100 SXM (495 of 132 at 1.83).
TF32_LANES = {"80": 512, "86": 128, "89": 128, "90": 1024}

MEANING = {
    "cpu": {
        "flops": "independent float32 multiply-adds in registers, all threads",
        "bytes": "bytes read and written by a copy of arrays several times as large as the "
        "last-level cache, all threads",
    },
    "cuda": {
        "flops": "2 * float32 lanes * multiprocessors * the clock's maximum, by the data sheet",
        "bytes": "bytes read and written by copies within the device's memory",
        "tensor_flops": "the same product for TF32 on tensor cores, by the data sheet",
    },
}


def measure(threads: int, device: str, seconds: float = 0.02) -> dict[str, float | None]:
    """Operations and bytes a second that bound what a kernel can reach.

    Args:
        threads: how many take part, on the CPU.
        device: "cpu" or "cuda"; must be pyconv's current one.
        seconds: how long each is measured, at least.

    Returns:
        "flops" and "bytes", and "tensor_flops", None where there are no tensor cores. See
        `MEANING`.
    """
    from pyconv import backend

    current = backend.current()
    if device == "cpu":
        copy = _host_copy(threads, array_size())
        return {
            "flops": float(backend.cpu().measure_peak(seconds)),
            "bytes": copy(seconds),
            "tensor_flops": None,
        }
    cuda = current.xp.cuda
    properties = cuda.Device()
    attributes, capability = properties.attributes, properties.compute_capability
    cycles = attributes["MultiProcessorCount"] * attributes["ClockRate"] * 1e3
    return {**by_data_sheet(capability, cycles), "bytes": _device_copy(current, seconds)}


def by_data_sheet(capability: str, cycles: float) -> dict[str, float | None]:
    """The operations a second of a GPU.

    Args:
        capability: compute capability without its dot, as "90".
        cycles: multiprocessors * clock in Hz.
    """
    tensor = TF32_LANES.get(capability)
    return {
        "flops": 2 * LANES.get(capability, 128) * cycles,
        "tensor_flops": None if tensor is None else 2 * tensor * cycles,
    }


def cache_size() -> int:
    """Bytes of the first processor's last-level cache; 0 if that is unknown."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 2**10, "M": 2**20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes)


def array_size() -> int:
    """Bytes of each of the two arrays of a copy."""
    return min(LARGEST, max(SMALLEST, CACHES * cache_size()))


@functools.lru_cache(1)
def _host_copy(threads: int, size: int) -> Callable[[float], float]:
    source = np.ones(size // 4, np.float32)
    parts = list(
        zip(np.array_split(np.zeros_like(source), threads), np.array_split(source, threads))
    )
    pool = concurrent.futures.ThreadPoolExecutor(threads)

    def once() -> float:
        start = time.perf_counter()
        list(pool.map(lambda part: np.copyto(*part), parts))  # without the interpreter's lock
        return time.perf_counter() - start

    once()

    def bandwidth(seconds: float) -> float:
        times: list[float] = []
        while len(times) < 3 or sum(times) < seconds:
            times.append(once())
        return 2 * source.nbytes / statistics.median(times)

    return bandwidth


def _device_copy(device: Any, seconds: float) -> float:
    cuda = device.xp.cuda
    size = 2**28
    source, destination = (device.zeros(size // 4) for _ in range(2))

    def copies() -> None:
        for _ in range(GRAPH):
            destination.data.copy_from_device_async(source.data, size, device.stream)

    with device.running():
        copies()
        time_of_one = seconds_of_replay(copies, cuda.Event, cuda.get_elapsed_time, seconds)
    return 2 * size / time_of_one
