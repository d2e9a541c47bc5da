"""All targets by name: functions that take any bytes, and must neither crash nor raise."""

from __future__ import annotations

from collections.abc import Callable

import command_line
import file_contents
import kernel_calls
import layer_calls

# With the share of a run's inputs: inputs of some take a hundred times as long as those of others.
TARGETS: dict[str, tuple[Callable[[bytes], None], int]] = {
    "kernels": (kernel_calls.call_kernels, 25),
    "bindings": (kernel_calls.call_bindings, 25),
    "sequences": (kernel_calls.record_sequences, 5),
    "layers": (layer_calls.run_layers, 10),
    "augmentation": (layer_calls.augment, 5),
    "models": (file_contents.load_models, 8),
    "weights": (file_contents.load_weights, 6),
    "checkpoints": (file_contents.load_checkpoints, 1),
    "hdf5": (file_contents.load_hdf5, 3),
    "hdf5-built": (file_contents.build_hdf5, 1),
    "cifar10": (file_contents.read_cifar10, 3),
    "mnist": (file_contents.read_mnist, 3),
    "images": (file_contents.read_images, 3),
    "command-line": (command_line.run_commands, 2),
}
