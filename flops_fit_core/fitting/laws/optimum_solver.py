"""Optima of one fit at many budgets, for curves and tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.optima import Point, descent, describe_optimum, minimise, optimum
from flops_fit_core.fitting.laws.root import find_roots
from flops_fit_core.fitting.laws.surfaces import Surface, drawn_surface, has_surface, point_surface
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.records import LawFit, Optimum

_MARGIN = 2.0
"""Half the width in ln N of the interval in which a minimum is sought."""
_TOLERANCE = 1e-8
_BLOCK = 40
"""Budgets that are solved at the same time: arrays of (draws, budgets) then fit into a processor's cache."""


class OptimumSolver:
    """Optima as by :func:`~flops_fit_core.fitting.optimum`, several times as fast for many budgets.

    ``optimum`` scans all sizes for each budget. The solver scans for one budget, seeks the minima of the others
    near known minima, and scans again for a budget without a minimum there. Both agree to 1e-6 in ln N, unless the
    loss is flat along the curve or has several minima.

    Args:
        fit: A fit of any law. For a law of the optimum only, ``optimum`` itself is fast.
    """

    def __init__(self, fit: LawFit) -> None:
        self.fit = fit
        self._is_checked = False
        self._rows = [_Rows(point_surface(fit), FlopsPerToken.of_fit(fit))] if has_surface(fit) else []
        drawn = drawn_surface(fit) if self._rows else None
        if drawn is not None:
            self._rows.append(_Rows(drawn, FlopsPerToken.of_fit(fit, drawn=True)))

    def __call__(self, flops: float) -> Optimum:
        """The optimum at a budget. Raises FitError."""
        return self.many([flops])[0]

    @convert_numerical_errors
    def many(
        self, flops: Sequence[float], inference_tokens: Sequence[float] = (), *, new_run: bool = True
    ) -> list[Optimum]:
        """The optimum at each budget, in any order. Raises FitError.

        Args:
            flops: Budgets.
            inference_tokens: Tokens of inference that each budget pays for, too; none by default.
            new_run: Whether to compute the interval of a new run, which takes longer than the optimum.
        """
        serving = list(inference_tokens) or [0.0] * len(flops)
        if not self._rows:
            return [optimum(self.fit, c, tokens) for c, tokens in zip(flops, serving, strict=True)]
        optima: list[Optimum] = []
        for first in range(0, len(flops), _BLOCK):
            block = slice(first, first + _BLOCK)
            budgets, served = np.array(flops[block], dtype=float), np.array(serving[block], dtype=float)
            optima += self._solve(budgets, served, new_run)
        return optima

    def _solve(self, flops: Floats, serving: Floats, new_run: bool) -> list[Optimum]:
        is_valid = np.isfinite(flops) & (flops > 0) & np.isfinite(serving) & (serving >= 0)
        for column in [*np.flatnonzero(~is_valid), *([] if self._is_checked else [0])]:
            optimum(self.fit, float(flops[column]), float(serving[column]))  # raises for a wrong argument or fit
        self._is_checked = True
        point, *drawn = (rows.solve(flops, serving) for rows in self._rows)
        no_draws = (np.empty(0),) * 3
        return [
            describe_optimum(
                self.fit,
                float(flops[column]),
                float(serving[column]),
                _column(point, column),
                _column(drawn[0], column) if drawn else no_draws,
                new_run=new_run,
            )
            for column in range(len(flops))
        ]


def _column(point: Point, column: int) -> Point:
    ln_params, ln_tokens, ln_loss = (part[:, column] for part in point)
    return ln_params, ln_tokens, ln_loss


class _Rows:
    """The law or its draws, a row each, with their minima at the previous budgets. Arrays are (rows, budgets)."""

    def __init__(self, surface: Surface, constraint: FlopsPerToken) -> None:
        self.surface = surface
        self.constraint = constraint
        self._ln_flops: Floats = np.empty(0)
        self._ln_params: Floats = np.empty((surface.rows, 0))

    def solve(self, flops: Floats, serving: Floats) -> Point:
        """Ln of N, D and L at the minimum of each row and budget."""
        if not len(self._ln_flops):
            first = minimise(self.surface, self.constraint, float(flops[0]))
            self._remember(np.log(flops[:1]), first[0][:, None])
        ln_params, is_solved = self._refine(self._guess(flops), flops, serving)
        for column in np.flatnonzero(~is_solved.all(axis=0)):
            rows = np.flatnonzero(~is_solved[:, column])
            rest = self.surface.take(rows), self.constraint.take(rows)
            ln_params[rows, column] = minimise(*rest, float(flops[column]), float(serving[column]))[0]
        if not serving.any():
            self._remember(np.log(flops), ln_params)
        ln_tokens = descent(self.constraint, ln_params, flops, serving)[0]
        return ln_params, ln_tokens, np.log(self.surface.loss(ln_params, ln_tokens))

    def _remember(self, ln_flops: Floats, ln_params: Floats) -> None:
        order = np.argsort(ln_flops)
        self._ln_flops, self._ln_params = ln_flops[order], ln_params[:, order]

    def _guess(self, flops: Floats) -> Floats:
        """Ln N at the nearest known budget, moved by half the distance in ln C: laws have exponents near 1/2."""
        ln_flops = np.log(flops)
        nearest = np.argmin(np.abs(self._ln_flops[:, None] - ln_flops), axis=0)
        guess: Floats = self._ln_params[:, nearest] + (ln_flops - self._ln_flops[nearest]) / 2
        return guess

    def _refine(self, guess: Floats, flops: Floats, serving: Floats) -> tuple[Floats, Bools]:
        """Minima around a guess, and which of them have converged."""
        distance = np.abs(np.log(flops)[:, None] - self._ln_flops).min(axis=1)
        margin = _MARGIN + distance / 2 + np.log1p(serving / flops * 6 * np.exp(guess.mean(axis=0)))
        left, right = guess - margin, guess + _MARGIN + distance / 2
        right = np.minimum(right, self._largest(right, flops, serving))
        return find_roots(lambda x: self._balance(x, flops, serving), left, right, _TOLERANCE)

    def _balance(self, ln_params: Floats, flops: Floats, serving: Floats) -> Floats:
        """See :meth:`~flops_fit_core.fitting.laws.surfaces.Surface.balance`."""
        return self.surface.balance(ln_params, *descent(self.constraint, ln_params, flops, serving))

    def _largest(self, ln_params: Floats, flops: Floats, serving: Floats) -> Floats:
        """The largest ln N, at most ``ln_params``, that leaves tokens to train on."""
        if not serving.any():
            return ln_params
        target = np.log(flops) - np.log(np.maximum(serving, 1.0) / 3)
        low, high = ln_params - 60.0, ln_params
        for _ in range(50):
            middle = (low + high) / 2
            above = self.constraint(middle) > target
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        return low - 1e-9
