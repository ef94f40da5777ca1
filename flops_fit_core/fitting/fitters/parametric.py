"""Approach 3 of Hoffmann et al. 2022: L = E + A / N^alpha + B / D^beta, fitted to ln L."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Floats, Runs
from flops_fit_core.fitting.diagnostics import about_runs, no_interval
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.chinchilla import linearise, make_problem
from flops_fit_core.fitting.laws.forms import SURFACES
from flops_fit_core.fitting.laws.optima import exponents, optimum
from flops_fit_core.fitting.numerical_errors import guarded
from flops_fit_core.fitting.solvers.newton import Problem
from flops_fit_core.fitting.surface_diagnostics import about_draws, about_surface, swapped_roles
from flops_fit_core.fitting.uncertainty.refits import (
    OUTLIER,
    Criterion,
    PointFit,
    about_objective,
    at_bound,
    draw_cases,
    draw_residuals,
    few_trajectories,
    fit_point,
    natural,
)
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.plugins.utilities import fit_header
from flops_fit_core.records import Diagnostic, Law, LawFit, Observation, Optimum

Resampling = Literal["residuals", "cases"]


@dataclass(frozen=True)
class ParametricFitter(Fitter):
    """Fits Approach 3. Same observations and options, same fit."""

    level: float = 0.9
    """Of all intervals."""
    draws: int = 1000
    """Bootstrap draws; 0 for no intervals."""
    seed: int = 0
    """Of the bootstrap."""
    objective: Criterion = "robust"
    """``robust``: least squares on ln L without gross outliers, which are named. ``huber``: delta 1e-3."""
    bootstrap: Resampling = "residuals"
    """``cases`` draws runs (trunks where runs share one) with replacement, as published."""
    name: str = "fitters/parametric"
    """Qualified name under which the fit is recorded."""

    @guarded
    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Raises FitError, saying what is missing, for fewer than 6 runs or runs that do not vary."""
        runs = Runs.of(observations)
        if len(runs) < 6:
            raise FitError(f"{len(runs)} runs cannot fit a law of five parameters: train 6 or more, better 15")
        problem = make_problem(np.log(runs.params), np.log(runs.tokens), np.log(runs.loss))
        if float(np.ptp(problem.y)) < 1e-12:
            raise FitError("all runs have one loss: there is nothing to fit")
        constraint = FlopsPerToken.of(runs)
        point = fit_point(problem, runs, constraint, self.objective)
        fit, kept = point.fit, point.rejection.kept
        used = runs.take(np.flatnonzero(kept))
        constraint = FlopsPerToken.of(used, self.draws > 0, self.seed)
        found = [about_objective(self.objective, point), *about_runs(used, constraint)]
        residuals = linearise(problem, fit.theta)[0]
        found += about_surface(fit, used, runs, point.rejection, residuals, constraint, point.noise)
        law = natural(fit.theta[None], runs)
        draws, failed, more = self._uncertainty(point, problem, used)
        drawn, drawn_constraint = natural(draws, runs), constraint.drawn(len(draws), self.seed)
        return LawFit(
            **fit_header(self, self.name, flops=used.flops, params=used.params, draws=drawn),
            law=Law(name="parametric", parameters={key: float(values[0]) for key, values in law.items()}),
            exponents=exponents(
                SURFACES["parametric"], law, drawn, (constraint, drawn_constraint), used.flops, self.level
            ),
            objective=fit.value if self.objective == "huber" else 2 * fit.value,
            n_runs=len(used),
            excluded={runs.ids[row]: OUTLIER for row in np.flatnonzero(~kept)},
            diagnostics=(*found, *more),
            failed_draws=failed,
            **constraint.fields(drawn_constraint),
        )

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        """N_opt, D_opt and L_opt for training with C = ``flops``, with intervals from the fit's draws."""
        return optimum(fit, flops)

    def _uncertainty(self, point: PointFit, problem: Problem, used: Runs) -> tuple[Floats, int, list[Diagnostic]]:
        """Draws of theta, how many failed, and what to say about them."""
        nothing, fit = np.empty((0, 5)), point.fit
        if self.draws < 1:
            return nothing, 0, []
        dof = len(used) - int(fit.free.sum())
        if dof < 1 or point.noise is None:
            return nothing, 0, [no_interval("there are as many parameters as runs; train more runs")]
        if not fit.determined:
            return nothing, 0, [no_interval(_ALIKE)]
        if at_bound(fit.theta[None])[0]:
            return nothing, 0, [no_interval(_VANISHED)]
        if reason := swapped_roles(fit, used) or few_trajectories(point.noise, used):
            return nothing, 0, [no_interval(reason)]
        random = np.random.default_rng(self.seed)
        if self.bootstrap == "cases":
            solved = draw_cases(point, used, self.objective, self.draws, random)
        else:
            solved = draw_residuals(point, problem, self.objective, self.draws, random)
        usable = solved.converged & ~at_bound(solved.theta)
        if self.bootstrap == "cases":
            failed = int(self.draws - usable.sum())
            if failed > 0.01 * self.draws:
                return nothing, failed, [no_interval(_FAILED.format(failed, self.draws))]
            return solved.theta[usable], failed, []
        if usable.mean() < _HALF:
            return nothing, 0, [no_interval(_STUCK.format(int(self.draws - usable.sum()), self.draws))]
        # Other refits at a bound stay: without them a study's interval rests on its lucky draws, and a rule that
        # withdraws it for their number keeps the lucky studies.
        return solved.theta, 0, about_draws(len(used), dof, int(self.draws - usable.sum()), self.draws)


_HALF = 0.5
"""Share of refits inside their bounds below which the interval would be of the bounds."""
_STUCK = (
    "{} of {} bootstrap refits ended with a term that vanishes or an exponent out of bounds: the ends of an "
    "interval would be the bounds; widen the range of N and of D / N"
)
_ALIKE = "some parameters cannot be told apart; widen the range of N and of D / N"
_VANISHED = "a term of the law vanishes or an exponent is out of bounds; widen the range of N and of D / N"
_FAILED = (
    "{} of {} bootstrap refits ended with a term that vanishes or an exponent out of bounds: these runs do not "
    "determine all five parameters; widen the range of N and of D / N"
)
