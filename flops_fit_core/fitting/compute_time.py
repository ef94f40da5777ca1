"""Training FLOPs from devices and time."""

from __future__ import annotations

import math

from flops_fit_core.errors import FitError


def training_flops(device_hours: float, peak_flops: float, utilisation: float) -> float:
    """C that ``device_hours`` can train at ``utilisation`` (MFU, 0 to 1) of ``peak_flops`` (FLOP/s).

    The inverse of :func:`training_cost`. Raises FitError for numbers that are not positive, and for a utilisation
    above 1.
    """
    if not (0 < device_hours < math.inf and 0 < peak_flops < math.inf and 0 < utilisation <= 1):
        raise FitError("device_hours and peak_flops must be positive, and utilisation between 0 and 1")
    return device_hours * 3600 * peak_flops * utilisation
