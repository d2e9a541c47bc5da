"""The forward pass of a network as one call into the extension, for inference on the CPU.

Kernel by kernel, Python takes as long as the arithmetic of a single image, and the activations of
many images leave the caches between two layers. So the calls of the blocks are recorded once, and
from then on the extension makes them: some images at a time through several layers, and with the
weights already packed or transformed (csrc/cpu/sequence.hpp).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pyconv.backend import Backend
from pyconv.blocks import Block, run_blocks
from pyconv.layers import Parameter


class _Recording(NamedTuple):
    sequence: Any
    arrays: list[Any]  # that it works on, and that must live as long
    written: object  # the last write to weights that it knows of


class RecordedForward:
    """The recorded forward pass of blocks that have their buffers.

    Args:
        blocks: the blocks, at least one.
        device: the CPU.
        capacity: largest batch.
    """

    def __init__(self, blocks: Sequence[Block], device: Backend, capacity: int) -> None:
        self._blocks = blocks
        self._device = device
        self._recording: _Recording | None = None
        self._sample: np.ndarray = device.zeros(blocks[0].input_size)
        self._size = blocks[-1].output_size
        self._outputs: np.ndarray = device.zeros(capacity * self._size)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Returns the outputs for the inputs `x`; they last until the next call."""
        recording = self._recording
        if recording is None or recording.written is not Parameter.last_write:
            recording = self._recording = self._record()
        if not len(recording.sequence):  # views, and what acts in training only
            return run_blocks(self._blocks, x)
        n = len(x)
        y = self._outputs[: n * self._size].reshape(n, *self._blocks[-1].output_shape)
        recording.sequence.run(x, y)
        return y

    def _record(self) -> _Recording:
        # Always a new one: another thread may be running the old one.
        recording = _Recording(
            self._device.kernels.Sequence(),
            [parameter.array for block in self._blocks for parameter in block.parameters],
            Parameter.last_write,
        )
        recording.sequence.begin()
        try:
            run_blocks(self._blocks, self._sample.reshape(1, *self._blocks[0].input_shape))
        finally:
            recording.sequence.end()
        return recording
