"""f(N) = C / D, training FLOPs per token of the runs: the constraint between N and D at a budget.

f is taken from the runs for every counter (6 N D, all matmuls and attention, active parameters of a mixture of
experts), so an optimum holds for the C that the runs report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats, Ints, Runs
from flops_fit_core.fitting.flops_per_token.curve import fit_curve
from flops_fit_core.fitting.flops_per_token.interpolation import KnotCurve
from flops_fit_core.fitting.flops_per_token.warnings import describe_flops_per_token
from flops_fit_core.records import LawFit

_BELOW, _ABOVE = np.log(1e3), np.log(1e5)
"""Range of the knots below and above the sizes: includes N_opt at a million times the largest budget."""
_KNOT_STEP = 0.25
"""Distance in ln N between knots. The slope of the spline is then accurate to 1e-4 on these curves."""
_NEAR_RANGE = np.log(10.0)
"""f counts as 6 N only if it is 6 N up to this far from the sizes, in ln N."""
_MIN_FAMILY_SIZES = 6
_EXACTLY_6N = 1e-4
"""C counts as 6 N D if every size agrees to this relative difference, for any number of sizes."""
_MAX_FAMILY_DIFFERENCE = 0.1
"""Largest relative difference between the runs' f and the family's."""
_SAME_SIZE = 1e-6
"""Sizes of a smaller relative difference in N are equal."""
_DRAWS = 500
_MAX_MODES, _MIN_MODE_SD = 6, 3e-4
"""Largest number of modes, and the least standard deviation of ln f along a mode."""
_MAX_EXACT_SD = 1e-3
"""The curve counts as exact if ln f near the sizes has at most this standard deviation."""


def _no_draws() -> Floats:
    return np.empty((0, 0))


@dataclass(frozen=True)
class FlopsPerToken:
    """A cubic spline in (ln N, ln f) through the knots, and straight lines with its slopes beyond them."""

    ln_params: Floats
    ln_flops: Floats
    warnings: tuple[str, ...] = ()
    """Warnings about the runs' FLOPs per token: scatter, a jump, or a change with D."""
    modes: Floats = field(default_factory=_no_draws)
    """Directions of uncertainty of the curve: deviations of ln f at the knots, shape (modes, knots)."""
    scores: Floats = field(default_factory=_no_draws)
    """Multiples of the modes in each possible curve, shape (curves, modes)."""
    is_drawn: bool = False
    """Whether this holds a curve per row of ``scores``; then ``ln_params`` arguments have a row per curve."""

    @classmethod
    def of(cls, runs: Runs, draws: bool = False, seed: int = 0) -> Self:
        """A smooth curve through the runs' sizes; with ``draws``, also its uncertainty.

        Exactly 6 N if it is 6 N to within 1%.
        """
        ln_params, ln_flops, size = _size_columns(runs)
        sizes, mean, _ = _means(ln_params, ln_flops, size)
        if float(np.max(np.abs(mean - np.log(6) - sizes))) < _EXACTLY_6N:
            six_n = cls.from_knots(())
            return replace(
                six_n,
                warnings=describe_flops_per_token(ln_params, np.log(runs.tokens), ln_flops, six_n(ln_params)),
            )
        knots = _knots(sizes[0], sizes[-1])
        curve = fit_curve(sizes, mean, knots, _DRAWS if draws else 0, seed)
        without_draws = cls(knots, curve.ln_flops)
        warnings = describe_flops_per_token(ln_params, np.log(runs.tokens), ln_flops, without_draws(ln_params))
        is_near = (knots > sizes[0] - _NEAR_RANGE) & (knots < sizes[-1] + _NEAR_RANGE)
        modes, scores = _principal_directions(curve.draws - curve.ln_flops, is_near)
        is_exact = not len(modes) or float(np.max((scores @ modes[:, is_near]).std(axis=0))) < _MAX_EXACT_SD
        deviation = np.abs(curve.ln_flops - np.log(6) - knots)[is_near]
        if is_exact and float(np.max(deviation)) < np.log(1.01):
            return replace(cls.from_knots(()), warnings=warnings)
        if is_exact:
            return replace(without_draws, warnings=warnings)
        return cls(knots, curve.ln_flops, warnings, modes, scores)

    @classmethod
    def of_family(cls, points: Sequence[tuple[float, float]], runs: Runs) -> Self | None:
        """A curve through (N, f) of many sizes of the runs' family; None if the runs' f differ from it.

        The curve is scaled by the mean ratio of the runs to it: runs may compute positions that D does not count.
        """
        x, y = np.log(np.array(points, dtype=float)).T
        sizes, mean, _ = _means(*_size_columns(runs))
        ratio = float(np.mean(mean - np.interp(sizes, x, y)))
        if (
            len(x) < _MIN_FAMILY_SIZES
            or float(np.max(np.abs(mean - np.interp(sizes, x, y) - ratio))) > _MAX_FAMILY_DIFFERENCE
        ):
            return None
        knots = _knots(sizes[0], max(sizes[-1], x[-1] - _ABOVE))
        # A size of a run that is also a point of the family counts once: equal sizes would predict each other in
        # the cross-validation of the curve, which then follows every size up to the largest run.
        is_new = np.min(np.abs(x[:, None] - sizes), axis=1) > _SAME_SIZE
        curve = fit_curve(np.concatenate([sizes, x[is_new]]), np.concatenate([mean, (y + ratio)[is_new]]), knots)
        return cls(knots, curve.ln_flops)

    @classmethod
    def from_knots(cls, knots: Sequence[tuple[float, float]]) -> Self:
        """From the (N, f) pairs in a fit; an empty sequence means f = 6 N."""
        table = np.log(np.array(knots if len(knots) else [(1.0, 6.0), (2.0, 12.0)], dtype=float))
        return cls(table[:, 0], table[:, 1])

    @classmethod
    def of_fit(cls, fit: LawFit, *, drawn: bool = False) -> Self:
        """From a fit: its curve, or with ``drawn`` a curve per draw."""
        curve = cls.from_knots(fit.flops_per_token)
        if not drawn or not fit.flops_per_token_draws:
            return curve
        modes, scores = np.array(fit.flops_per_token_modes), np.array(fit.flops_per_token_draws).T
        return replace(curve, modes=modes, scores=scores, is_drawn=True)

    def drawn(self, count: int, seed: int = 0) -> Self:
        """``count`` possible curves; the curve itself if it has no uncertainty."""
        if not len(self.modes) or not count:
            return replace(self, modes=_no_draws(), scores=_no_draws())
        rows = np.random.default_rng([seed, len(self.scores)]).integers(len(self.scores), size=count)
        return replace(self, scores=self.scores[rows], is_drawn=True)

    def row(self, number: int) -> Self:
        """A drawn curve by its row; the curve itself if it has no uncertainty."""
        if not self.is_drawn:
            return self
        ln_flops = self.ln_flops + self.scores[number] @ self.modes
        return replace(self, ln_flops=ln_flops, modes=_no_draws(), scores=_no_draws(), is_drawn=False)

    def take(self, rows: Ints) -> Self:
        """The drawn curves with these row numbers; the curve itself if it has no uncertainty."""
        return replace(self, scores=self.scores[rows]) if self.is_drawn else self

    def knots(self) -> tuple[tuple[float, float], ...]:
        """(N, f) pairs for a fit; empty if f is 6 N to within 1%."""
        if self.is_6n:
            return ()
        pairs = np.exp(np.stack([self.ln_params, self.ln_flops], axis=1))
        return tuple((float(params), float(flops)) for params, flops in pairs)

    def fields(self, drawn: Self) -> dict[str, tuple[tuple[float, ...], ...]]:
        """Fields of a LawFit that store this curve and the curves of its draws."""
        if not drawn.is_drawn:
            return {"flops_per_token": self.knots()}
        return {
            "flops_per_token": self.knots(),
            "flops_per_token_modes": tuple(tuple(row) for row in drawn.modes.tolist()),
            "flops_per_token_draws": tuple(tuple(column) for column in drawn.scores.T.tolist()),
        }

    @property
    def is_6n(self) -> bool:
        """Whether f is 6 N to within 1% at every knot, without uncertainty."""
        deviation = float(np.max(np.abs(self.ln_flops - np.log(6) - self.ln_params)))
        return not len(self.modes) and deviation < np.log(1.01)

    def __call__(self, ln_params: Floats) -> Floats:
        """Ln f at ln N, of any shape."""
        return self.evaluate(ln_params)[0]

    def slope(self, ln_params: Floats) -> Floats:
        """Derivative of ln f in ln N, of any shape."""
        return self.evaluate(ln_params)[1]

    def evaluate(self, ln_params: Floats) -> tuple[Floats, Floats]:
        """Ln f and its derivative in ln N, at ln N of any shape."""
        x = np.asarray(ln_params, dtype=float)
        value, slope = self._curve.evaluate(x)
        if not self.is_drawn:
            return value, slope
        changes, tilts = self._modes.evaluate(x)
        scores = self.scores[:, None, :]
        return value + (scores * changes).sum(axis=-1), np.maximum(slope + (scores * tilts).sum(axis=-1), 0.02)

    @cached_property
    def _curve(self) -> KnotCurve:
        return KnotCurve(self.ln_params, self.ln_flops, is_increasing=True)

    @cached_property
    def _modes(self) -> KnotCurve:
        return KnotCurve(self.ln_params, self.modes.T)


def _principal_directions(deviations: Floats, is_near: Bools) -> tuple[Floats, Floats]:
    """Principal directions of the deviations (curves, knots), and the scores of each curve.

    Knots near the sizes get more weight: far from the sizes curves differ more, and differences matter less.
    """
    if not len(deviations) or float(np.max(np.abs(deviations))) < _MIN_MODE_SD:
        return _no_draws(), _no_draws()
    weighted = deviations * np.where(is_near, 1.0, 0.03)
    variance, axes = np.linalg.eigh(weighted.T @ weighted / len(weighted))
    largest = slice(-1, -1 - min(_MAX_MODES, int(np.sum(variance > _MIN_MODE_SD**2))), -1)
    scores = weighted @ axes[:, largest] / np.sqrt(variance[largest])
    # Scores have a standard deviation of 1.
    return scores.T @ deviations / len(deviations), scores


def _size_columns(runs: Runs) -> tuple[Floats, Floats, Ints]:
    """Ln N, ln f, and the size number of each run."""
    ln_params = np.round(np.log(runs.params), 9).astype(np.float64)
    return ln_params, np.log(runs.flops / runs.tokens), np.unique(ln_params, return_inverse=True)[1]


def _knots(smallest: float, largest: float) -> Floats:
    count = int(np.ceil((largest - smallest + _BELOW + _ABOVE) / _KNOT_STEP))
    return np.linspace(smallest - _BELOW, largest + _ABOVE, count)


def _means(x: Floats, y: Floats, group: Ints) -> tuple[Floats, Floats, Ints]:
    count = np.bincount(group)
    return np.bincount(group, x) / count, np.bincount(group, y) / count, group
