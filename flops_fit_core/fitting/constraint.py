"""f(N) = C / D, the runs' own training FLOPs per token: what ties N and D together at a budget.

Whatever the counter (6 N D, every matmul and attention, active parameters of a mixture of experts), f is
read off the runs, so an optimum holds for the C that they report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from scipy.interpolate import PchipInterpolator

from flops_fit_core.fitting.data import Floats, Ints, Runs

_KNOTS = 48
_END = np.log(4.0)


@dataclass(frozen=True)
class FlopsPerToken:
    """Monotone cubic in (ln N, ln f) between the knots; beyond them a straight line whose slope is that of
    the knots within a factor 4 of N of that end."""

    ln_params: Floats
    ln_flops: Floats
    spread: float = 0.0
    """Largest relative difference between two runs of one N: 0 where f is a function of N."""

    @classmethod
    def of(cls, runs: Runs) -> Self:
        """From the runs; sizes are merged where there are more than 48 of them."""
        ln_params = np.round(np.log(runs.params), 9).astype(np.float64)
        ln_flops: Floats = np.log(runs.flops / runs.tokens)
        knots, mean, group = _means(ln_params, ln_flops, np.unique(ln_params, return_inverse=True)[1])
        spread = float(np.max(np.abs(ln_flops - mean[group])))
        if len(knots) > _KNOTS:
            order = np.arange(len(knots)) * _KNOTS // len(knots)
            knots, mean, _ = _means(knots, mean, order)
        return cls(knots, mean, 0.0 if spread < 1e-9 else 2 * float(np.expm1(spread)))

    @classmethod
    def from_knots(cls, knots: Sequence[tuple[float, float]]) -> Self:
        """From (N, f) pairs as a fit keeps them; none means f = 6 N."""
        table = np.log(np.array(knots if len(knots) else [(1.0, 6.0), (2.0, 12.0)], dtype=float))
        return cls(table[:, 0], table[:, 1])

    def knots(self) -> tuple[tuple[float, float], ...]:
        """As a fit keeps them: none where f is 6 N to within 1%."""
        if self.is_6n:
            return ()
        pairs = np.exp(np.stack([self.ln_params, self.ln_flops], axis=1))
        return tuple((float(params), float(flops)) for params, flops in pairs)

    @property
    def is_6n(self) -> bool:
        """Whether f is 6 N to within 1% at every size."""
        return bool(np.max(np.abs(self.ln_flops - np.log(6) - self.ln_params)) < np.log(1.01))

    def __call__(self, ln_params: Floats) -> Floats:
        """Ln f at ln N, of any shape."""
        return self._evaluate(ln_params)[0]

    def slope(self, ln_params: Floats) -> Floats:
        """Derivative of ln f in ln N, of any shape."""
        return self._evaluate(ln_params)[1]

    def _evaluate(self, ln_params: Floats) -> tuple[Floats, Floats]:
        x = np.asarray(ln_params, dtype=float)
        if len(self.ln_params) == 1:
            return x - self.ln_params[0] + self.ln_flops[0], np.ones_like(x)
        first, last = self.ln_params[0], self.ln_params[-1]
        left, right = self._end_slopes
        inside = np.clip(x, first, last)
        value, slope = self._inside(inside)
        value = value + left * np.minimum(x - first, 0) + right * np.maximum(x - last, 0)
        return value, np.where(x < first, left, np.where(x > last, right, slope))

    def _inside(self, x: Floats) -> tuple[Floats, Floats]:
        if len(self.ln_params) == 2:
            slope = (self.ln_flops[1] - self.ln_flops[0]) / (self.ln_params[1] - self.ln_params[0])
            return self.ln_flops[0] + slope * (x - self.ln_params[0]), np.full_like(x, slope)
        return np.asarray(self._curve(x)), np.asarray(self._curve(x, 1))

    @cached_property
    def _curve(self) -> PchipInterpolator:
        return PchipInterpolator(self.ln_params, self.ln_flops)

    @cached_property
    def _end_slopes(self) -> tuple[float, float]:
        out = []
        for end, near in ((0, slice(0, 2)), (-1, slice(-2, None))):
            close = np.abs(self.ln_params - self.ln_params[end]) <= _END
            close[near] = True
            x, y = self.ln_params[close], self.ln_flops[close]
            x = x - x.mean()
            out.append(float(x @ y / (x @ x)))
        return out[0], out[1]


def _means(x: Floats, y: Floats, group: Ints) -> tuple[Floats, Floats, Ints]:
    count = np.bincount(group)
    return np.bincount(group, x) / count, np.bincount(group, y) / count, group
