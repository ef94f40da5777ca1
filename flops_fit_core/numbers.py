"""Formats numbers for all tables, figures, messages and records."""

from __future__ import annotations

import math
from collections.abc import Callable

_UNITS = ("", "K", "M", "B", "T")
NONE = "–"


def count(value: float | None, digits: int = 3) -> str:
    """Parameters or tokens in three significant digits: ``950``, ``12.3K``, ``1.23B``, ``4.5e18``."""
    if value is None or not math.isfinite(value):
        return NONE
    if abs(value) < 1000 and value == round(value):
        value = float(f"{value:.{digits - 1}e}") if digits < 3 else value
        return str(round(value))
    for power, unit in enumerate(_UNITS):
        text = _significant(value / 1000.0**power, digits)
        if float(text) < 1000:
            return text + unit
    return scientific(value, digits)


def scientific(value: float | None, digits: int = 3) -> str:
    """FLOPs in up to three digits: ``4.5e18``, ``1e21``, ``2.5e-3``."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def loss(value: float | None, decimals: int = 4) -> str:
    """Nats per token in four decimals: ``2.3456``."""
    return NONE if value is None else f"{value:.{decimals}f}"


def ratio(value: float | None, digits: int = 3) -> str:
    """Tokens per parameter, and other numbers near 1 to 1000: ``20.3``, ``0.52``, ``1.2e4``."""
    if value is None or not math.isfinite(value):
        return NONE
    return _significant(value, digits) if abs(value) < 9999.5 else scientific(value, digits)


def excess(value: float) -> str:
    """A factor minus 1: ``4.2%``, ``87%``; the factor itself if it is above 2, ``370 times``."""
    if value > 1:
        return f"{ratio(1 + value)} times"
    return f"{value:.1%}" if abs(value) < 0.1 else f"{value:.0%}"


def deviation(value: float) -> str:
    """A relative error with its sign: ``+2.19%``, ``-12%``; above a factor of 2 the factor, ``5.3 times``."""
    if value > 1:
        return f"{ratio(1 + value)} times"
    return f"{value:+.2%}" if abs(value) < 0.1 else f"{value:+.0%}"


def change(value: float, decimals: int = 1) -> str:
    """A ratio as a change with its sign: ``+4.2%``, ``-12.0%``; outside 0.1 to 2 ``a factor of 371``."""
    if math.isfinite(value) and 0.1 <= value <= 2:
        return f"{value - 1:+.{decimals}%}"
    return f"a factor of {_plain(value)}"


def share(value: float, decimals: int = 1) -> str:
    """A relative size, such as a root mean square error: ``4.2%``; above 200% a factor, ``12 times``."""
    return f"{value:.{decimals}%}" if abs(value) <= 2 else f"{_plain(value)} times"


def short_share(value: float) -> str:
    """:func:`share` in two digits: ``0.31%``, ``4.2%``, ``120%``."""
    return f"{float(f'{100 * value:.2g}'):g}%" if abs(value) <= 2 else share(value)


def duration(seconds: float | None) -> str:
    """``0.4 s``, ``42 s``, ``3 min 20 s``, ``5 h 12 min``, ``3 d 4 h``."""
    if seconds is None:
        return NONE
    total = round(seconds)
    if total < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{total} s"
    parts = [(total // 86400, "d"), (total // 3600 % 24, "h"), (total // 60 % 60, "min"), (total % 60, "s")]
    first = next(place for place, (value, _) in enumerate(parts) if value)
    return " ".join(f"{value} {unit}" for value, unit in parts[first : first + 2] if value)


def disk(size: float) -> str:
    """Memory or disk space: ``950 B``, ``12.3 MB``, ``1.23 TB``."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, next((k for k in range(len(units)) if size < 999.5 * 1000.0**k), len(units) - 1))
    return f"{_significant(size / 1000.0**power) if power else round(size)} {units[power]}"


def span(
    low: float | None, high: float | None, show: Callable[[float], str] = count, separator: str = " to "
) -> str:
    """The two ends of an interval, ``1.1B to 1.4B``; a dash if an end is missing."""
    return NONE if low is None or high is None else f"{show(low)}{separator}{show(high)}"


def _significant(value: float, digits: int = 3) -> str:
    """Significant digits without an exponent, trailing zeros kept: ``1.20``, ``12.0``, ``999``."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value if digits >= 3 else rounded:.{decimals}f}"  # 1234 keeps its digits


def _plain(value: float) -> str:
    """Three digits at most: ``12``, ``371``, ``1.2e5``."""
    return f"{value:.3g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
