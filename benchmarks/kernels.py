"""Times the kernels on networks' layers, pass by pass: `pyconv bench kernels`.

    python benchmarks/kernels.py [--network tutorial,vgg16-32] [--batch 1,256] [--threads N]

Takes that command's options; --least is its --seconds, --memory its --max-memory, --torch-python
its --peers-python, and --no-torch its --peers none.
"""

import sys

from pyconv.bench.command import bench

NAMES = {"--least": "--seconds", "--memory": "--max-memory", "--torch-python": "--peers-python"}


def arguments(given: list[str]) -> list[str]:
    """The command's, of this script's."""
    result = ["kernels"]
    for argument in given:
        name, equals, value = argument.partition("=")
        result.append(NAMES.get(name, name) + equals + value)
    return ["--peers=none" if argument == "--no-torch" else argument for argument in result]


if __name__ == "__main__":
    bench(arguments(sys.argv[1:]))
