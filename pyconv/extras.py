"""What is installed with one of the extras only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str, need: str) -> Iterator[None]:
    """Within it, what the extra of this name installs is imported.

    Args:
        name: of the extra in pyproject.toml.
        need: who needs what, for the error.

    Raises:
        ImportError: if it is not installed; says how to.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{need}. Install it with: pip install 'pyconv[{name}]'") from error
