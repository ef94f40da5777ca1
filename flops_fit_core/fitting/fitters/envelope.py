"""Approach 1 of Hoffmann et al. 2022 (section 3.1): the lower envelope of training curves.

Rows are points of training curves: loss against C of one model while it trains, several rows a run. At
each C the curve with the lowest loss gives N_opt, and power laws go through these points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats, Ints, Runs
from flops_fit_core.fitting.diagnostics import about_runs, no_interval, note
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.optima import optimum
from flops_fit_core.fitting.laws.power_law import fit_line, fit_saturating
from flops_fit_core.fitting.numerical_errors import guarded
from flops_fit_core.fitting.uncertainty.bootstrap import interval
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.plugins.utilities import fit_header
from flops_fit_core.records import Diagnostic, Law, LawFit, Observation, Optimum

POINTS = 1500
"""Values of C, log-spaced, at which the lowest curve is looked for, as published."""
CURVES = 20
"""Curves without which resampling them says nothing."""


@dataclass(frozen=True)
class Curves:
    """Training curves on a common grid of C."""

    ln_flops: Floats
    ln_params: Floats
    """Of each curve, ascending."""
    ln_loss: Floats
    """Shape (curves, points); infinity where a curve does not reach."""

    def envelope(self, chosen: Ints) -> tuple[Ints, Bools]:
        """The lowest of the ``chosen`` curves at each point, and where it is neither the smallest nor the
        largest model that reaches there."""
        loss = self.ln_loss[chosen]
        lowest = np.argmin(loss, axis=0)
        sizes, there = self.ln_params[chosen], np.isfinite(loss)
        smallest = np.where(there, sizes[:, None], np.inf).min(axis=0)
        largest = np.where(there, sizes[:, None], -np.inf).max(axis=0)
        inside = (sizes[lowest] > smallest + 1e-9) & (sizes[lowest] < largest - 1e-9)
        return chosen[lowest], inside


@dataclass(frozen=True)
class EnvelopeFitter(Fitter):
    """Fits Approach 1. Same observations and options, same fit."""

    level: float = 0.9
    """Of all intervals."""
    draws: int = 1000
    """Bootstrap draws of whole curves; 0 for no intervals."""
    seed: int = 0
    """Of the bootstrap."""
    name: str = "fitters/envelope"
    """Qualified name under which the fit is recorded."""

    @guarded
    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Raises FitError, saying what is missing, where fewer than three curves take turns at being lowest."""
        runs = Runs.of(observations)
        constraint = FlopsPerToken.of(runs, self.draws > 0, self.seed)
        curves, left_out = _curves(runs)
        every = np.arange(len(curves.ln_params))
        lowest, inside = curves.envelope(every)
        winners = np.unique(lowest[inside])
        if len(winners) < 3:
            raise FitError(
                f"{len(winners)} of {len(every)} training curves are ever lowest among larger and smaller models: "
                "an envelope needs three; train more sizes, and keep losses along training"
            )
        law = _laws(curves, lowest, inside, constraint)
        found = [_about_curves(len(every)), *about_runs(runs, constraint)]
        draws, failed = self._draws(curves, constraint, found)
        fitted_flops = [np.exp(curves.ln_flops[inside][end]) for end in (0, -1)]
        return LawFit(
            **fit_header(self, self.name, flops=fitted_flops, params=runs.params, draws=draws),
            law=Law(name="envelope", parameters=law),
            exponents={key: interval(law[key], draws.get(key, np.empty(0)), self.level) for key in ("a", "b")},
            objective=_misfit(curves, lowest, inside, law),
            n_runs=len(runs) - len(left_out),
            excluded={runs.ids[row]: "the only point of its training curve" for row in left_out},
            diagnostics=tuple(found),
            failed_draws=failed,
        )

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        """N_opt, D_opt and L_opt for training with C = ``flops``, with intervals from the fit's draws."""
        return optimum(fit, flops)

    def _draws(
        self, curves: Curves, constraint: FlopsPerToken, found: list[Diagnostic]
    ) -> tuple[dict[str, Floats], int]:
        """Whole curves drawn with replacement: points of one curve share its luck."""
        count = len(curves.ln_params)
        if self.draws < 1:
            return {}, 0
        if count < CURVES:
            found.append(no_interval(f"{count} training curves are too few to resample; train {CURVES}"))
            return {}, 0
        random = np.random.default_rng(self.seed)
        drawn, drawn_constraint = [], constraint.drawn(self.draws, self.seed)
        for number in range(self.draws):
            lowest, inside = curves.envelope(np.unique(random.integers(count, size=count)))
            if len(np.unique(lowest[inside])) >= 3:
                drawn.append(_laws(curves, lowest, inside, drawn_constraint.row(number)))
        failed = self.draws - len(drawn)
        if failed > 0.01 * self.draws:
            found.append(no_interval(f"{failed} of {self.draws} resamples left fewer than three lowest curves"))
            return {}, failed
        return {key: np.array([one[key] for one in drawn]) for key in drawn[0]}, failed


def _curves(runs: Runs) -> tuple[Curves, Ints]:
    """Rows joined to curves by trunk, or by N where no trunk has two rows; and the rows that stand alone."""
    names, trunk = np.unique(runs.trunks, return_inverse=True)
    if len(names) == len(runs):
        trunk = np.unique(np.round(np.log(runs.params), 9), return_inverse=True)[1]
    members = [np.flatnonzero(trunk == one) for one in np.unique(trunk)]
    alone = np.array([rows[0] for rows in members if len(rows) < 2], dtype=np.intp)
    members = [rows[np.argsort(runs.flops[rows], kind="stable")] for rows in members if len(rows) > 1]
    if len(members) < 3:
        raise FitError(
            f"{len(members)} training curves: an envelope needs three or more, each with its loss at several C; "
            "give one row for each point, with a column trajectory that names its run"
        )
    members.sort(key=lambda rows: float(runs.params[rows[0]]))
    starts, ends = (sorted(float(runs.flops[rows[at]]) for rows in members) for at in (0, -1))
    # Where at least three curves have begun and three still go on.
    grid = np.linspace(np.log(starts[2]), np.log(ends[-3]), POINTS)
    if grid[0] >= grid[-1]:
        raise FitError("no three training curves overlap in C: an envelope needs curves that cross")
    losses = [
        np.interp(grid, np.log(runs.flops[rows]), np.log(runs.loss[rows]), left=np.inf, right=np.inf)
        for rows in members
    ]
    sizes = np.array([np.log(runs.params[rows[0]]) for rows in members])
    return Curves(grid, sizes, np.stack(losses)), alone


def _laws(curves: Curves, lowest: Ints, inside: Bools, constraint: FlopsPerToken) -> dict[str, float]:
    x, ln_params = curves.ln_flops[inside], curves.ln_params[lowest[inside]]
    weights = np.ones_like(x)
    ln_kn, a = fit_line(x, ln_params, weights)
    ln_kd, b = fit_line(x, x - constraint(ln_params), weights)
    loss = np.exp(curves.ln_loss[lowest, np.arange(len(lowest))])[inside]
    thin = np.linspace(0, len(x) - 1, min(60, len(x))).astype(int)
    saturating = fit_saturating(x[thin], loss[None, thin])
    found = (ln_kn, a, ln_kd, b, saturating.e[0], saturating.ln_k[0], saturating.gamma[0])
    names = ("ln_kN", "a", "ln_kD", "b", "E", "ln_kL", "gamma")
    return {name: float(value) for name, value in zip(names, found, strict=True)}


def _misfit(curves: Curves, lowest: Ints, inside: Bools, law: dict[str, float]) -> float:
    line = law["ln_kN"] + law["a"] * curves.ln_flops[inside]
    return float(np.sum((curves.ln_params[lowest[inside]] - line) ** 2))


def _about_curves(count: int) -> Diagnostic:
    return note(
        "envelope",
        f"least squares of ln N on ln C along the lowest of {count} training curves; before its learning rate has "
        "decayed, a curve lies above what a run of that length would reach, which bends the envelope",
    )
