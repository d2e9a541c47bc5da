"""Memory and open files of a long training: `python tests/machines/long_run.py [OPTIONS]`.

Runs `pyconv train` with these options (by default 100 epochs of 2,000 drawn shapes) and prints what
the process holds after each tenth epoch. The exit status is 1 if after the last epoch it is over
1 % more memory than after the tenth, or another number of files.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OPTIONS = ["--data", "shapes", "--epochs", "100", "--limit", "2000"]


def held_by(pid: int) -> tuple[int, int]:
    """Bytes of resident memory, and open files, without one that is open for a moment."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    files = []
    for _ in range(5):
        files.append(len(os.listdir(f"/proc/{pid}/fd")))
        time.sleep(0.02)
    return pages * os.sysconf("SC_PAGE_SIZE"), min(files)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pyconv", "train", *(sys.argv[1:] or OPTIONS)]
        process = subprocess.Popen(
            [*command, "--output", folder],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        held: dict[int, tuple[int, int]] = {}
        for line in process.stdout:
            epoch = re.match(r"Epoch (\d+)/\d+", line)
            if epoch is None or int(epoch[1]) % 10:
                continue
            held[int(epoch[1])] = now = held_by(process.pid)
            print(f"epoch {epoch[1]}: {now[0] / 2**20:.2f} MiB, {now[1]} files", flush=True)
        if process.wait() != 0:
            return process.returncode
    first, last = held[min(held)], held[max(held)]
    print(f"memory: {last[0] / first[0] - 1:+.2%}; files: {last[1] - first[1]:+d}")
    return int(last[0] > 1.01 * first[0] or first[1] != last[1])


if __name__ == "__main__":
    sys.exit(main())
