"""Approach 3 of Hoffmann et al. 2022: L = E + A / N^alpha + B / D^beta, fitted to ln L."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Floats, Runs
from flops_fit_core.fitting.diagnostics import check_runs, no_interval, report_unused_errors
from flops_fit_core.fitting.fitters.base import BootstrapFitter
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.optima import exponents
from flops_fit_core.fitting.laws.surfaces import LawSurface
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.fitting.solvers.newton import ChinchillaProblem
from flops_fit_core.fitting.solvers.surface_fit import make_problem
from flops_fit_core.fitting.surface_diagnostics import check_draws, check_surface, explain_swapped_roles
from flops_fit_core.fitting.uncertainty.holdout import estimate_new_run, make_folds, predict_fold
from flops_fit_core.fitting.uncertainty.refits import (
    OUTLIER,
    Criterion,
    PointFit,
    at_bound,
    describe_objective,
    draw_cases,
    draw_residuals,
    explain_few_trajectories,
    fit_point,
)
from flops_fit_core.plugins.utilities import fit_header
from flops_fit_core.records import Diagnostic, Law, LawFit, NewRunError, Observation

Resampling = Literal["residuals", "cases"]


@dataclass(frozen=True)
class ParametricFitter(BootstrapFitter):
    """Fits Approach 3."""

    objective: Criterion = "robust"
    """``robust``: least squares on ln L without gross outliers, named in a diagnostic. ``huber``: delta 1e-3."""
    bootstrap: Resampling = "residuals"
    """``cases`` draws runs, or trunks that runs share, with replacement, as published."""
    name: str = "fitters/parametric"

    @convert_numerical_errors
    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Fit the law. Raises FitError, with advice, for fewer than 6 runs or runs that do not vary."""
        runs = Runs.of(observations)
        if len(runs) < 6:
            raise FitError(f"{len(runs)} runs cannot fit a law of five parameters: train 6 or more, preferably 15")
        problem = make_problem(np.log(runs.params), np.log(runs.tokens), np.log(runs.loss))
        if float(np.ptp(problem.y)) < 1e-12:
            raise FitError("all runs have the same loss, so no law can be fitted: check the column of losses")
        constraint = FlopsPerToken.of(runs)
        point = fit_point(problem, runs, constraint, self.objective)
        fit, accepted = point.fit, point.rejection.accepted
        used = runs.take(np.flatnonzero(accepted))
        constraint = FlopsPerToken.of(used, self.draws > 0, self.seed)
        diagnostics = [describe_objective(self.objective, point), *report_unused_errors(used)]
        diagnostics += check_runs(used, constraint)
        residuals = problem.residuals(fit.theta[None])[0]
        diagnostics += check_surface(fit, used, runs, point.rejection, residuals, constraint, point.noise)
        draws, failed, more_diagnostics = self._bootstrap(point, problem, used)
        drawn, drawn_constraint = problem.values(draws), constraint.drawn(len(draws), self.seed)
        stack = LawSurface(problem.law, drawn) if len(draws) else None
        return LawFit(
            **fit_header(self, self.name, flops=used.flops, params=used.params, draws=drawn),
            law=Law(name="chinchilla", parameters=fit.parameters),
            exponents=exponents(fit.surface(), stack, (constraint, drawn_constraint), used.flops, self.level),
            objective=fit.value if self.objective == "huber" else 2 * fit.value,
            n_runs=len(used),
            excluded={runs.ids[row]: OUTLIER for row in np.flatnonzero(~accepted)},
            diagnostics=(*diagnostics, *more_diagnostics),
            new_run=self._estimate_new_run(point, used),
            failed_draws=failed,
            **constraint.fields(drawn_constraint),
        )

    def _estimate_new_run(self, point: PointFit, used: Runs) -> NewRunError | None:
        """The error of one further run; None for Huber loss, which backtests do not use."""
        if point.noise is None or self.objective == "huber":
            return None
        law = point.fit.problem.law
        folds = make_folds(used, point.fit.problem.size + 2)
        forecasts = [predict_fold(law, used, fold, 0.0, prior=False) for fold in folds]
        return estimate_new_run(folds, forecasts, used, point.fit.residuals, point.fit.leverage)

    def _bootstrap(
        self, point: PointFit, problem: ChinchillaProblem, used: Runs
    ) -> tuple[Floats, int, list[Diagnostic]]:
        """Draws of theta, the number of failed draws, and diagnostics."""
        no_draws, fit = np.empty((0, 5)), point.fit
        if self.draws < 1:
            return no_draws, 0, []
        dof = len(used) - int(fit.free.sum())
        if dof < 1 or point.noise is None:
            return no_draws, 0, [no_interval("there are no more runs than parameters; train more runs")]
        if not fit.determined:
            return no_draws, 0, [no_interval(_UNDETERMINED)]
        if at_bound(fit.theta[None])[0]:
            return no_draws, 0, [no_interval(_POINT_AT_BOUND)]
        if reason := explain_swapped_roles(fit, used) or explain_few_trajectories(point.noise, used):
            return no_draws, 0, [no_interval(reason)]
        random = np.random.default_rng(self.seed)
        if self.bootstrap == "cases":
            solved = draw_cases(point, used, self.objective, self.draws, random)
        else:
            solved = draw_residuals(point, problem, self.objective, self.draws, random)
        usable = solved.converged & ~at_bound(solved.theta)
        if self.bootstrap == "cases":
            failed = int(self.draws - usable.sum())
            if failed > 0.01 * self.draws:
                return no_draws, failed, [no_interval(_CASES_AT_BOUND.format(failed, self.draws))]
            return solved.theta[usable], failed, []
        if usable.mean() < _MIN_USABLE_SHARE:
            return (
                no_draws,
                0,
                [no_interval(_TOO_MANY_AT_BOUND.format(int(self.draws - usable.sum()), self.draws))],
            )
        # Refits at a bound stay. Dropping them would condition the interval on favourable draws, and withdrawing
        # the interval because of their number would select favourable studies.
        return solved.theta, 0, check_draws(len(used), dof, int(self.draws - usable.sum()), self.draws)


_MIN_USABLE_SHARE = 0.5
"""Below this share of refits inside the bounds, the interval would only reflect the bounds."""
_TOO_MANY_AT_BOUND = (
    "{} of {} bootstrap refits ended with a term that vanishes or an exponent out of bounds, so the ends of an "
    "interval would be the bounds; widen the range of N and of D / N"
)
_UNDETERMINED = "some parameters cannot be separated; widen the range of N and of D / N"
_POINT_AT_BOUND = "a term of the law vanishes or an exponent is out of bounds; widen the range of N and of D / N"
_CASES_AT_BOUND = (
    "{} of {} bootstrap refits ended with a term that vanishes or an exponent out of bounds: these runs do not "
    "determine all five parameters; widen the range of N and of D / N"
)
