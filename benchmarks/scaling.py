"""Times training in several processes on this machine, and models many machines.

python benchmarks/scaling.py [--batch N] [--ranks N] [--rounds N] [--json FILE] [--plot FILE]
"""

import sys

from pyconv.bench.scaling import main

if __name__ == "__main__":
    main(sys.argv[1:])
