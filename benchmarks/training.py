"""Times training and inference of the tutorial's network beside PyTorch, Keras and others.

    python benchmarks/training.py --peers-python PYTHON_WITH_PEERS [--batch N,...] [--threads N]

`--help` lists the rest; docs/performance.md says what is measured, and how to make the peers'
environments from benchmarks/peers*.txt. The code is in pyconv/bench.
"""

import sys

from pyconv.bench.training import main

if __name__ == "__main__":
    sys.exit(main())
