"""Relative numbers in sentences: a percentage, or a factor if the percentage would be hard to read."""

from __future__ import annotations

import math

LARGEST = 2.0
"""Larger ratios are printed as factors."""
SMALLEST = 0.1
"""Smaller ratios are printed as factors."""


def format_change(ratio: float, decimals: int = 1) -> str:
    """A ratio as a change with its sign: ``+4.2%``, ``-12.0%``; outside 0.1 to 2 ``a factor of 371``."""
    if math.isfinite(ratio) and SMALLEST <= ratio <= LARGEST:
        return f"{ratio - 1:+.{decimals}%}"
    return f"a factor of {_factor(ratio)}"


def format_share(share: float, decimals: int = 1) -> str:
    """A relative size, such as a root mean square error: ``4.2%``; above 200% a factor, ``12 times``."""
    return f"{share:.{decimals}%}" if abs(share) <= LARGEST else f"{_factor(share)} times"


def _factor(value: float) -> str:
    return f"{value:.3g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
