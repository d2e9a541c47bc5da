"""The forward pass of a network as one call into the extension, for inference on the CPU.

Kernel by kernel, Python takes as long as the arithmetic of a single image, and the activations of
many images leave the caches between two layers. So the calls of the blocks are recorded once, and
from then on the extension makes them: some images at a time through several layers, and with the
weights already packed or transformed (csrc/cpu/sequence.hpp).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from pyconv.backend import Backend
from pyconv.blocks import Block, run_blocks
from pyconv.layers import Parameter

_FLOAT32 = np.dtype(np.float32)


class _Recording(NamedTuple):
    sequence: Any
    arrays: list[Any]  # that it works on, and that must live as long
    written: object  # the last write to weights that it knows of


def _is_current(recording: _Recording | None) -> TypeGuard[_Recording]:
    return recording is not None and recording.written is Parameter.last_write


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
        self._input_shape = tuple(blocks[0].input_shape)
        self._output_shape = tuple(blocks[-1].output_shape)
        self._size = blocks[-1].output_size
        self._outputs: np.ndarray = device.zeros(capacity * self._size)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Returns the outputs for the inputs `x`; they last until the next call."""
        recording = self._recording
        if not _is_current(recording):
            recording = self._recording = self._record()
        if not len(recording.sequence):  # views, and what acts in training only
            return run_blocks(self._blocks, x)
        n = len(x)
        y = self._outputs[: n * self._size].reshape(n, *self._output_shape)
        recording.sequence.run(x, y)
        return y

    def outputs(self, x: Any) -> np.ndarray | None:
        """The outputs for the inputs `x`, a new array; None if that takes more than the kernels.

        Everything before the kernels would take Python as long as one of the layers takes for one
        image, so this asks only whether nothing needs to be done.
        """
        recording = self._recording
        if (
            type(x) is not np.ndarray
            or x.dtype is not _FLOAT32
            or x.shape[1:] != self._input_shape
            or not len(x)
            or not _is_current(recording)
            or not len(recording.sequence)
        ):
            return None
        flags = x.flags
        if not (flags.c_contiguous and flags.aligned):
            return None
        y: np.ndarray = np.empty((len(x), *self._output_shape), np.float32)
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
            run_blocks(self._blocks, self._sample.reshape(1, *self._input_shape))
        finally:
            recording.sequence.end()
        return recording
