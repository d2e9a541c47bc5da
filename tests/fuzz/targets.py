"""All targets by name: functions that take any bytes, and must neither crash nor raise."""

from __future__ import annotations

from collections.abc import Callable

import command_line
import file_contents
import kernel_calls
import layer_calls
import numpy as np

import pyconv

# Errors tell all arguments, and arrays would take longer to be printed than anything else does.
np.set_printoptions(threshold=4, edgeitems=1)
pyconv.set_num_threads(1)  # what is small is faster so; some targets choose by themselves

# With the share of a run's inputs: inputs of some take a hundred times as long as those of others.
TARGETS: dict[str, tuple[Callable[[bytes], None], int]] = {
    "kernels": (kernel_calls.call_kernels, 200),
    "bindings": (kernel_calls.call_bindings, 200),
    "sequences": (kernel_calls.record_sequences, 60),
    "layers": (layer_calls.run_layers, 40),
    "augmentation": (layer_calls.augment, 60),
    "models": (file_contents.load_models, 30),
    "weights": (file_contents.load_weights, 200),
    "checkpoints": (file_contents.load_checkpoints, 3),
    "hdf5": (file_contents.load_hdf5, 40),
    "hdf5-built": (file_contents.build_hdf5, 3),
    "cifar10": (file_contents.read_cifar10, 10),
    "mnist": (file_contents.read_mnist, 30),
    "images": (file_contents.read_images, 120),
    "command-line": (command_line.run_commands, 4),
}
