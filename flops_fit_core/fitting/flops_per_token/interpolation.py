"""A curve in ln N through knots: ln f, or a deviation of ln f.

Equally spaced knots sample a smooth curve. A natural cubic spline through them has a continuous slope and
curvature, and straight ends continue both, so optima move smoothly with the budget. Other knots are sizes, from
fits of an earlier version: they keep a monotone cubic, and ends with the slope of the sizes within a factor of 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flops_fit_core.fitting.data import Floats

if TYPE_CHECKING:
    from scipy.interpolate import CubicSpline, PchipInterpolator

_END_RANGE = np.log(4.0)
_MIN_SPLINE_KNOTS = 8
_MAX_SPLINE_STEP = 0.3
"""Largest distance in ln N between knots of a spline."""


class KnotCurve:
    """A function of ln N through knots, with straight ends.

    Args:
        x: Ln N of the knots, shape (knots,).
        y: Values there, shape (knots,), or (knots, m) for m functions.
        is_increasing: Take a monotone cubic if the spline of a single function falls anywhere.
    """

    def __init__(self, x: Floats, y: Floats, *, is_increasing: bool = False) -> None:
        from scipy.interpolate import CubicSpline, PchipInterpolator  # slow to import

        self.x = x
        self.inside: CubicSpline | PchipInterpolator | None = None
        if _is_sampled(x):
            self.inside = CubicSpline(x, y, bc_type="natural")
            if is_increasing and np.min(self.inside(np.linspace(x[0], x[-1], 4 * len(x)), 1)) <= 0:
                self.inside = PchipInterpolator(x, y)
            self.ends = self.inside(x[0], 1), self.inside(x[-1], 1)
        elif len(x) > 2:
            self.inside = PchipInterpolator(x, y)
            self.ends = _end_slope(x, y, 0), _end_slope(x, y, -1)
        else:
            straight = np.ones_like(y[0])
            self.ends = (straight,) * 2 if len(x) == 1 else (_end_slope(x, y, 0), _end_slope(x, y, -1))
        self.first_value = y[0]
        self._is_single = y.ndim == 1

    def evaluate(self, x: Floats) -> tuple[Floats, Floats]:
        """Value and slope at ln N = ``x``: the shape of ``x``, with a last dimension of m for m functions."""
        first, last = self.x[0], self.x[-1]
        left, right = self.ends
        value, slope = self._evaluate_inside(np.clip(x, first, last))
        x = x if self._is_single else x[..., None]
        value = value + left * np.minimum(x - first, 0) + right * np.maximum(x - last, 0)
        return value, np.where(x < first, left, np.where(x > last, right, slope))

    def _evaluate_inside(self, x: Floats) -> tuple[Floats, Floats]:
        if self.inside is not None:
            return np.asarray(self.inside(x)), np.asarray(self.inside(x, 1))
        slope = self.ends[0]
        x = x if self._is_single else x[..., None]
        value = self.first_value + slope * (x - self.x[0])
        return value, np.broadcast_to(slope, value.shape)


def _is_sampled(x: Floats) -> bool:
    """Whether knots are equally spaced samples of a smooth curve."""
    if len(x) < _MIN_SPLINE_KNOTS:
        return False
    steps = np.diff(x)
    return bool(steps.max() < _MAX_SPLINE_STEP and np.ptp(steps) < 1e-6 * steps.max())


def _end_slope(x: Floats, y: Floats, end: int) -> Floats:
    is_close = np.abs(x - x[end]) <= _END_RANGE
    is_close[slice(0, 2) if end == 0 else slice(-2, None)] = True
    offset = x[is_close] - x[is_close].mean()
    slope: Floats = np.tensordot(offset, y[is_close], axes=1) / (offset @ offset)
    return slope
