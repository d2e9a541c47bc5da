from __future__ import annotations

from pyconv.cli import main

if __name__ == "__main__":
    main(prog_name="python -m pyconv")
