"""f(N) = C / D, the runs' own training FLOPs per token: what ties N and D together at a budget.

Whatever the counter (6 N D, every matmul and attention, active parameters of a mixture of experts), f is
read off the runs, so an optimum holds for the C that they report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
from scipy.interpolate import PchipInterpolator

from flops_fit_core.fitting.data import Bools, Floats, Ints, Runs
from flops_fit_core.fitting.flops_per_token.curve import fit_curve
from flops_fit_core.fitting.flops_per_token.warnings import describe_flops_per_token
from flops_fit_core.records import LawFit

_END = np.log(4.0)
_BELOW, _ABOVE = np.log(1e3), np.log(1e5)
"""How far the knots reach below and above the sizes: N_opt of a million times the largest budget is among them."""
_STEP = 0.25
"""In ln N between knots. On curves of this kind the cubic's slope is then right to 1e-4."""
_NEAR = np.log(10.0)
"""Within this of the sizes f must be 6 N, if it is to be taken for that."""
_FEW_SIZES = 6
_EXACTLY_6N = 1e-4
"""Relative difference at every size up to which C was counted as 6 N D, however few the sizes."""
_OTHER = 0.1
"""Largest relative difference between the runs' f and the family's."""
_DRAWS = 500
_MODES, _LEAST = 6, 3e-4
"""Directions of the draws that are kept, and the least standard deviation of ln f along one."""
_SURE = 1e-3
"""Standard deviation of ln f near the sizes up to which the curve is taken as known."""


def _nothing() -> Floats:
    return np.empty((0, 0))


@dataclass(frozen=True)
class FlopsPerToken:
    """Monotone cubic in (ln N, ln f) between the knots; beyond them a straight line whose slope is that of
    the knots within a factor 4 of N of that end."""

    ln_params: Floats
    ln_flops: Floats
    warnings: tuple[str, ...] = ()
    """What a reader must know of the runs' FLOPs per token: scatter, a jump, a change with D."""
    modes: Floats = field(default_factory=_nothing)
    """Directions in which the curve is uncertain: ln f at the knots less the curve's, shape (modes, knots)."""
    scores: Floats = field(default_factory=_nothing)
    """Multiples of the modes in each possible curve, shape (curves, modes)."""
    is_drawn: bool = False
    """Whether this is one curve per row of ``scores``, and ``ln_params`` has a row for each."""

    @classmethod
    def of(cls, runs: Runs, draws: bool = False, seed: int = 0) -> Self:
        """A smooth curve through the runs' sizes; with ``draws``, how uncertain it is.

        Exactly 6 N where it is that to within 1%.
        """
        every, ln_flops, size = _rounded(runs)
        sizes, mean, _ = _means(every, ln_flops, size)
        if float(np.max(np.abs(mean - np.log(6) - sizes))) < _EXACTLY_6N:
            exact = cls.from_knots(())
            return replace(
                exact, warnings=describe_flops_per_token(every, np.log(runs.tokens), ln_flops, exact(every))
            )
        knots = _knots(sizes[0], sizes[-1])
        curve = fit_curve(sizes, mean, knots, _DRAWS if draws else 0, seed)
        plain = cls(knots, curve.ln_flops)
        warnings = describe_flops_per_token(every, np.log(runs.tokens), ln_flops, plain(every))
        near = (knots > sizes[0] - _NEAR) & (knots < sizes[-1] + _NEAR)
        modes, scores = _directions(curve.draws - curve.ln_flops, near)
        is_sure = not len(modes) or float(np.max((scores @ modes[:, near]).std(axis=0))) < _SURE
        off = np.abs(curve.ln_flops - np.log(6) - knots)[near]
        if is_sure and float(np.max(off)) < np.log(1.01):
            return replace(cls.from_knots(()), warnings=warnings)
        if is_sure:
            return replace(plain, warnings=warnings)
        return cls(knots, curve.ln_flops, warnings, modes, scores)

    @classmethod
    def of_family(cls, points: Sequence[tuple[float, float]], runs: Runs) -> Self | None:
        """A curve through (N, f) of many sizes of the runs' family; None where the runs' f are others.

        It is moved by the runs' mean ratio to it: they may compute positions that are no tokens of D.
        """
        x, y = np.log(np.array(points, dtype=float)).T
        sizes, mean, _ = _means(*_rounded(runs))
        ratio = float(np.mean(mean - np.interp(sizes, x, y)))
        if len(x) < _FEW_SIZES or float(np.max(np.abs(mean - np.interp(sizes, x, y) - ratio))) > _OTHER:
            return None
        knots = _knots(sizes[0], max(sizes[-1], x[-1] - _ABOVE))
        curve = fit_curve(np.concatenate([sizes, x]), np.concatenate([mean, y + ratio]), knots)
        return cls(knots, curve.ln_flops)

    @classmethod
    def from_knots(cls, knots: Sequence[tuple[float, float]]) -> Self:
        """From (N, f) pairs as a fit keeps them; none means f = 6 N."""
        table = np.log(np.array(knots if len(knots) else [(1.0, 6.0), (2.0, 12.0)], dtype=float))
        return cls(table[:, 0], table[:, 1])

    @classmethod
    def of_fit(cls, fit: LawFit, *, drawn: bool = False) -> Self:
        """As a fit keeps it: the curve, or with ``drawn`` the curve of each of its draws."""
        curve = cls.from_knots(fit.flops_per_token)
        if not drawn or not fit.flops_per_token_draws:
            return curve
        modes, scores = np.array(fit.flops_per_token_modes), np.array(fit.flops_per_token_draws).T
        return replace(curve, modes=modes, scores=scores, is_drawn=True)

    def drawn(self, count: int, seed: int = 0) -> Self:
        """``count`` possible curves; this one where it is known."""
        if not len(self.modes) or not count:
            return replace(self, modes=_nothing(), scores=_nothing())
        rows = np.random.default_rng([seed, len(self.scores)]).integers(len(self.scores), size=count)
        return replace(self, scores=self.scores[rows], is_drawn=True)

    def row(self, number: int) -> Self:
        """One of the drawn curves; this one where it is known."""
        if not self.is_drawn:
            return self
        ln_flops = self.ln_flops + self.scores[number] @ self.modes
        return replace(self, ln_flops=ln_flops, modes=_nothing(), scores=_nothing(), is_drawn=False)

    def knots(self) -> tuple[tuple[float, float], ...]:
        """As a fit keeps them: none where f is 6 N to within 1%."""
        if self.is_6n:
            return ()
        pairs = np.exp(np.stack([self.ln_params, self.ln_flops], axis=1))
        return tuple((float(params), float(flops)) for params, flops in pairs)

    def fields(self, drawn: Self) -> dict[str, tuple[tuple[float, ...], ...]]:
        """Fields of a LawFit that keep this curve and those of its draws."""
        if not drawn.is_drawn:
            return {"flops_per_token": self.knots()}
        return {
            "flops_per_token": self.knots(),
            "flops_per_token_modes": tuple(tuple(row) for row in drawn.modes.tolist()),
            "flops_per_token_draws": tuple(tuple(column) for column in drawn.scores.T.tolist()),
        }

    @property
    def is_6n(self) -> bool:
        """Whether f is known to be 6 N to within 1% at every knot."""
        off = float(np.max(np.abs(self.ln_flops - np.log(6) - self.ln_params)))
        return not len(self.modes) and off < np.log(1.01)

    def __call__(self, ln_params: Floats) -> Floats:
        """Ln f at ln N, of any shape."""
        return self._evaluate(ln_params)[0]

    def slope(self, ln_params: Floats) -> Floats:
        """Derivative of ln f in ln N, of any shape."""
        return self._evaluate(ln_params)[1]

    def _evaluate(self, ln_params: Floats) -> tuple[Floats, Floats]:
        x = np.asarray(ln_params, dtype=float)
        value, slope = _along(self._curve, x)
        for mode, score in zip(self._mode_curves, self.scores.T, strict=False) if self.is_drawn else ():
            change, tilt = _along(mode, x)
            value, slope = value + score[:, None] * change, slope + score[:, None] * tilt
        return value, np.maximum(slope, 0.02) if self.is_drawn else slope

    @cached_property
    def _curve(self) -> _Curve:
        return _Curve(self.ln_params, self.ln_flops)

    @cached_property
    def _mode_curves(self) -> list[_Curve]:
        return [_Curve(self.ln_params, mode) for mode in self.modes]


class _Curve:
    """A function of ln N through knots, with straight ends."""

    def __init__(self, x: Floats, y: Floats) -> None:
        self.x, self.y = x, y
        self.inside = PchipInterpolator(x, y) if len(x) > 2 else None
        self.ends = (1.0, 1.0) if len(x) == 1 else tuple(_end_slope(x, y, end) for end in (0, -1))

    def evaluate(self, x: Floats) -> tuple[Floats, Floats]:
        """Value and slope between the first and the last knot."""
        if self.inside is not None:
            return np.asarray(self.inside(x)), np.asarray(self.inside(x, 1))
        slope = self.ends[0]
        return self.y[0] + slope * (x - self.x[0]), np.full_like(x, slope)


def _along(curve: _Curve, x: Floats) -> tuple[Floats, Floats]:
    first, last = curve.x[0], curve.x[-1]
    left, right = curve.ends
    value, slope = curve.evaluate(np.clip(x, first, last))
    value = value + left * np.minimum(x - first, 0) + right * np.maximum(x - last, 0)
    return value, np.where(x < first, left, np.where(x > last, right, slope))


def _end_slope(x: Floats, y: Floats, end: int) -> float:
    close = np.abs(x - x[end]) <= _END
    close[slice(0, 2) if end == 0 else slice(-2, None)] = True
    away = x[close] - x[close].mean()
    return float(away @ y[close] / (away @ away))


def _directions(deviations: Floats, near: Bools) -> tuple[Floats, Floats]:
    """The few directions that hold the deviations (curves, knots), and each curve's multiples of them.

    Knots ``near`` the sizes count more: far from them the curves differ by more, and it matters less.
    """
    if not len(deviations) or float(np.max(np.abs(deviations))) < _LEAST:
        return _nothing(), _nothing()
    weighted = deviations * np.where(near, 1.0, 0.03)
    variance, axes = np.linalg.eigh(weighted.T @ weighted / len(weighted))
    few = slice(-1, -1 - min(_MODES, int(np.sum(variance > _LEAST**2))), -1)
    scores = weighted @ axes[:, few] / np.sqrt(variance[few])
    # One unit of a score is one standard deviation.
    return scores.T @ deviations / len(deviations), scores


def _rounded(runs: Runs) -> tuple[Floats, Floats, Ints]:
    """Ln N, ln f, and the number of each run's size."""
    ln_params = np.round(np.log(runs.params), 9).astype(np.float64)
    return ln_params, np.log(runs.flops / runs.tokens), np.unique(ln_params, return_inverse=True)[1]


def _knots(smallest: float, largest: float) -> Floats:
    count = int(np.ceil((largest - smallest + _BELOW + _ABOVE) / _STEP))
    return np.linspace(smallest - _BELOW, largest + _ABOVE, count)


def _means(x: Floats, y: Floats, group: Ints) -> tuple[Floats, Floats, Ints]:
    count = np.bincount(group)
    return np.bincount(group, x) / count, np.bincount(group, y) / count, group
