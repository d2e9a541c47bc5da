"""Numbers of any size."""

from __future__ import annotations

import math
from typing import Any


def as_float(number: Any) -> float:
    """The number as a float; an integer that no float is as large as gives infinity."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
