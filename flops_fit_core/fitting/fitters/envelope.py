"""Approach 1 of Hoffmann et al. 2022 (section 3.1): the lower envelope of training curves.

Rows are points of training curves: loss against C during the training of one model, several rows per run. At
each C, the curve with the lowest loss gives N_opt. Power laws are fitted to these points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats, Ints, Runs
from flops_fit_core.fitting.diagnostics import check_runs, no_interval, note, report_unused_errors
from flops_fit_core.fitting.fitters.base import BootstrapFitter
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.power_law import fit_line, fit_saturating
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.fitting.uncertainty.bootstrap import interval
from flops_fit_core.plugins.utilities import fit_header
from flops_fit_core.records import Diagnostic, Law, LawFit, Observation

POINTS = 1500
"""Log-spaced values of C at which the lowest curve is determined, as published."""
MIN_CURVES = 20
"""Curves required for resampling."""


@dataclass(frozen=True)
class Curves:
    """Training curves on a common grid of C."""

    ln_flops: Floats
    ln_params: Floats
    """Of each curve, ascending."""
    ln_loss: Floats
    """Shape (curves, points); infinity outside the range of a curve."""

    def envelope(self, chosen: Ints) -> tuple[Ints, Bools]:
        """The lowest of the ``chosen`` curves at each point, and whether it is neither the smallest nor the
        largest model with a loss at that point."""
        loss = self.ln_loss[chosen]
        lowest = np.argmin(loss, axis=0)
        sizes, reached = self.ln_params[chosen], np.isfinite(loss)
        smallest = np.where(reached, sizes[:, None], np.inf).min(axis=0)
        largest = np.where(reached, sizes[:, None], -np.inf).max(axis=0)
        is_interior = (sizes[lowest] > smallest + 1e-9) & (sizes[lowest] < largest - 1e-9)
        return chosen[lowest], is_interior


@dataclass(frozen=True)
class EnvelopeFitter(BootstrapFitter):
    """Fits Approach 1. A bootstrap draw resamples complete curves."""

    name: str = "fitters/envelope"

    @convert_numerical_errors
    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Fit the law. Raises FitError, with advice, if fewer than three curves contribute to the envelope."""
        runs = Runs.of(observations)
        constraint = FlopsPerToken.of(runs, self.draws > 0, self.seed)
        curves, single_points = _join_curves(runs)
        selected = np.arange(len(curves.ln_params))
        lowest, is_interior = curves.envelope(selected)
        winners = np.unique(lowest[is_interior])
        if len(winners) < 3:
            raise FitError(
                f"{len(winners)} of {len(selected)} training curves are lowest at some C between smaller and "
                "larger models: an envelope needs three; train more sizes, and record losses along training"
            )
        law = _fit_laws(curves, lowest, is_interior, constraint)
        diagnostics = [_describe_envelope(len(selected)), *report_unused_errors(runs)]
        diagnostics += check_runs(runs, constraint)
        draws, failed = self._bootstrap(curves, constraint, diagnostics)
        fitted_flops = [np.exp(curves.ln_flops[is_interior][end]) for end in (0, -1)]
        return LawFit(
            **fit_header(self, self.name, flops=fitted_flops, params=runs.params, draws=draws),
            law=Law(name="envelope", parameters=law),
            exponents={key: interval(law[key], draws.get(key, np.empty(0)), self.level) for key in ("a", "b")},
            objective=_misfit(curves, lowest, is_interior, law),
            n_runs=len(runs) - len(single_points),
            excluded={runs.ids[row]: "the only point of its training curve" for row in single_points},
            diagnostics=tuple(diagnostics),
            failed_draws=failed,
        )

    def _bootstrap(
        self, curves: Curves, constraint: FlopsPerToken, diagnostics: list[Diagnostic]
    ) -> tuple[dict[str, Floats], int]:
        """Refit curves drawn with replacement. Whole curves, because the errors of their points are correlated."""
        count = len(curves.ln_params)
        if self.draws < 1:
            return {}, 0
        if count < MIN_CURVES:
            diagnostics.append(no_interval(f"{count} training curves are too few to resample; train {MIN_CURVES}"))
            return {}, 0
        random = np.random.default_rng(self.seed)
        drawn, drawn_constraint = [], constraint.drawn(self.draws, self.seed)
        for draw in range(self.draws):
            lowest, is_interior = curves.envelope(np.unique(random.integers(count, size=count)))
            if len(np.unique(lowest[is_interior])) >= 3:
                drawn.append(_fit_laws(curves, lowest, is_interior, drawn_constraint.row(draw)))
        failed = self.draws - len(drawn)
        if failed > 0.01 * self.draws:
            diagnostics.append(
                no_interval(f"{failed} of {self.draws} resamples left fewer than three lowest curves")
            )
            return {}, failed
        return {key: np.array([law[key] for law in drawn]) for key in drawn[0]}, failed


def _join_curves(runs: Runs) -> tuple[Curves, Ints]:
    """Join rows to curves by trunk, or by N if no trunk has two rows; also return rows without a curve."""
    names, trunk = np.unique(runs.trunks, return_inverse=True)
    if len(names) == len(runs):
        trunk = np.unique(np.round(np.log(runs.params), 9), return_inverse=True)[1]
    curves = [np.flatnonzero(trunk == number) for number in np.unique(trunk)]
    single_points = np.array([rows[0] for rows in curves if len(rows) < 2], dtype=np.intp)
    curves = [rows[np.argsort(runs.flops[rows], kind="stable")] for rows in curves if len(rows) > 1]
    if len(curves) < 3:
        raise FitError(
            f"{len(curves)} training curves: an envelope needs three or more, each with its loss at several C; "
            "give one row per point, and name its run in a column trajectory"
        )
    curves.sort(key=lambda rows: float(runs.params[rows[0]]))
    starts, ends = (sorted(float(runs.flops[rows[end]]) for rows in curves) for end in (0, -1))
    # From the third start to the third-last end, at least three curves overlap.
    grid = np.linspace(np.log(starts[2]), np.log(ends[-3]), POINTS)
    if grid[0] >= grid[-1]:
        raise FitError("no three training curves overlap in C: an envelope needs curves that cross")
    losses = [
        np.interp(grid, np.log(runs.flops[rows]), np.log(runs.loss[rows]), left=np.inf, right=np.inf)
        for rows in curves
    ]
    sizes = np.array([np.log(runs.params[rows[0]]) for rows in curves])
    return Curves(grid, sizes, np.stack(losses)), single_points


def _fit_laws(curves: Curves, lowest: Ints, is_interior: Bools, constraint: FlopsPerToken) -> dict[str, float]:
    x, ln_params = curves.ln_flops[is_interior], curves.ln_params[lowest[is_interior]]
    weights = np.ones_like(x)
    ln_kn, a = fit_line(x, ln_params, weights)
    ln_kd, b = fit_line(x, x - constraint(ln_params), weights)
    loss = np.exp(curves.ln_loss[lowest, np.arange(len(lowest))])[is_interior]
    sample = np.linspace(0, len(x) - 1, min(60, len(x))).astype(int)
    saturating = fit_saturating(x[sample], loss[None, sample])
    estimates = (ln_kn, a, ln_kd, b, saturating.e[0], saturating.ln_k[0], saturating.gamma[0])
    names = ("ln_kN", "a", "ln_kD", "b", "E", "ln_kL", "gamma")
    return {name: float(value) for name, value in zip(names, estimates, strict=True)}


def _misfit(curves: Curves, lowest: Ints, is_interior: Bools, law: dict[str, float]) -> float:
    line = law["ln_kN"] + law["a"] * curves.ln_flops[is_interior]
    return float(np.sum((curves.ln_params[lowest[is_interior]] - line) ** 2))


def _describe_envelope(count: int) -> Diagnostic:
    return note(
        "envelope",
        f"least squares of ln N on ln C along the lowest of {count} training curves; before its learning rate has "
        "decayed, a curve lies above the final loss of a run of that length, which bends the envelope",
    )
