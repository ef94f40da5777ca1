"""Formats numbers for all tables, figures and sentences."""

from __future__ import annotations

import math
from collections.abc import Callable

from flops_fit_core.records import Interval

_UNITS = ("", "K", "M", "B", "T")
NONE = "–"


def count(value: float | None) -> str:
    """Parameters or tokens in three digits: ``950``, ``12.3K``, ``1.23B``, ``4.5e18``."""
    if value is None or not math.isfinite(value):
        return NONE
    if abs(value) < 1000 and value == round(value):
        return str(round(value))
    for power, unit in enumerate(_UNITS):
        digits = _three_digits(value / 1000.0**power)
        if float(digits) < 1000:
            return digits + unit
    return scientific(value)


def scientific(value: float | None) -> str:
    """FLOPs in up to three digits: ``4.5e18``, ``1e21``, ``2.5e-3``."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def loss(value: float | None) -> str:
    """Nats per token in four decimals: ``2.3456``."""
    return NONE if value is None else f"{value:.4f}"


def ratio(value: float | None) -> str:
    """Tokens per parameter, and other numbers near 1 to 1000: ``20.3``, ``0.52``, ``1.2e4``."""
    if value is None or not math.isfinite(value):
        return NONE
    return _three_digits(value) if abs(value) < 9999.5 else scientific(value)


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
    return f"{_three_digits(size / 1000.0**power) if power else round(size)} {units[power]}"


def span(
    low: float | None, high: float | None, show: Callable[[float], str] = count, separator: str = " to "
) -> str:
    """The two ends of an interval, ``1.1B to 1.4B``; a dash if an end is missing."""
    return NONE if low is None or high is None else f"{show(low)}{separator}{show(high)}"


def exponent(interval: Interval) -> str:
    """A scaling exponent in three decimals with its interval: ``0.513 (0.480 to 0.543)``."""
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _three_digits(value: float) -> str:
    """Three significant digits without an exponent, trailing zeros kept: ``1.20``, ``12.0``, ``999``."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.2e}")))))
    return f"{value:.{digits}f}"
