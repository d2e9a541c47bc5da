"""Times training and inference of the tutorial's network: `pyconv bench training inference`.

    python benchmarks/training.py --peers-python PYTHON_WITH_PEERS [--batch N,...] [--threads N]

Takes that command's options, and --tasks training,inference for its arguments.
"""

import sys

from pyconv.bench.command import bench
from pyconv.bench.contestants import TASKS


def arguments(given: list[str]) -> list[str]:
    """The command's, of this script's."""
    result = list(given)
    for index, argument in enumerate(given):
        if argument == "--tasks" and index + 1 < len(given):
            result[index : index + 2] = given[index + 1].split(",")
            return result
        if argument.startswith("--tasks="):
            result[index : index + 1] = argument.partition("=")[2].split(",")
            return result
    return result if {"--memory", "--sweep"} & set(given) else [*TASKS, *result]


if __name__ == "__main__":
    bench(arguments(sys.argv[1:]))
