"""Fit one law of the loss, by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Floats, Runs, median_inputs
from flops_fit_core.fitting.diagnostics import check_runs, no_interval
from flops_fit_core.fitting.fitters.base import BootstrapFitter
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.optima import exponents
from flops_fit_core.fitting.laws.surfaces import LawSurface
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.fitting.solvers.law_problem import LawProblem
from flops_fit_core.fitting.surface_diagnostics import check_draws, check_surface, explain_swapped_runs
from flops_fit_core.fitting.uncertainty.holdout import estimate_new_run, make_folds, predict_fold
from flops_fit_core.fitting.uncertainty.loss_errors import describe_weights, weigh_by_errors
from flops_fit_core.fitting.uncertainty.posterior import draw_posterior, fit_law_point, is_usable, make_law_problem
from flops_fit_core.fitting.uncertainty.prior_share import check_prior, prior_share
from flops_fit_core.fitting.uncertainty.refits import (
    OUTLIER,
    Criterion,
    PointFit,
    describe_objective,
    explain_few_trajectories,
)
from flops_fit_core.plugins.registry.law_index import find_law
from flops_fit_core.plugins.utilities import fit_header
from flops_fit_core.records import Diagnostic, Interval, Law, LawFit, NewRunError, Observation


@dataclass(frozen=True)
class LawFitter(BootstrapFitter):
    """Fits a law by least squares on ln L with the law's prior, without gross outliers."""

    law: str = ""
    """Name of the law. The default is no law: a fit records the options that differ from their defaults."""
    objective: Criterion = "robust"
    prior: bool = True
    """Whether to use the prior that the law declares for its exponents. Huber loss has no prior."""

    @convert_numerical_errors
    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Fit the law. Raises FitError, with advice, for too few runs, missing inputs or runs that do not vary."""
        law = find_law(self.law)
        runs = weigh_by_errors(Runs.of(observations, signed_loss=law.response == "loss"), [law], self.objective)
        problem = make_law_problem(law, runs)
        has_optimum = {"params", "tokens"} <= set(law.inputs)
        constraint = FlopsPerToken.of(runs)
        point = fit_law_point(problem, runs, constraint, self.objective, self.prior)
        fit, accepted = point.fit, point.rejection.accepted
        used = runs.take(np.flatnonzero(accepted))
        constraint = FlopsPerToken.of(used, self.draws > 0, self.seed)
        residuals = problem.residuals(fit.theta[None])[0] * runs.noise
        diagnostics = [describe_objective(self.objective, point), *describe_weights(used)]
        diagnostics += check_runs(used, constraint)
        diagnostics += check_surface(fit, used, runs, point.rejection, residuals, constraint, point.noise)
        if has_optimum and point.noise is not None:
            diagnostics += check_prior(prior_share(fit, constraint, used.flops, median_inputs(law, used)))
        theta, failed, more_diagnostics = self._draw(point, used)
        assert isinstance(fit.problem, LawProblem)
        drawn = fit.problem.values(theta)
        drawn_constraint = constraint.drawn(len(theta), self.seed)
        intervals: dict[str, Interval] = {}
        if has_optimum:
            inputs = median_inputs(law, used)
            stack = LawSurface(law, drawn, inputs) if len(theta) else None
            intervals = exponents(
                fit.surface(inputs), stack, (constraint, drawn_constraint), used.flops, self.level
            )
        return LawFit(
            **fit_header(self, self.name or "fitters/law", flops=used.flops, params=used.params, draws=drawn),
            law=Law(name=self.law, parameters=fit.parameters),
            exponents=intervals,
            objective=2 * fit.value,
            n_runs=len(used),
            excluded={runs.ids[row]: OUTLIER for row in np.flatnonzero(~accepted)},
            diagnostics=(*diagnostics, *more_diagnostics),
            new_run=self._estimate_new_run(point, used),
            failed_draws=failed,
            **constraint.fields(drawn_constraint),
        )

    def _draw(self, point: PointFit, used: Runs) -> tuple[Floats, int, list[Diagnostic]]:
        """Draws of theta, the number of draws on a bound, and diagnostics."""
        fit = point.fit
        no_draws = np.empty((0, fit.problem.size))
        if self.draws < 1:
            return no_draws, 0, []
        if reason := explain_no_interval(point, used):
            return no_draws, 0, [no_interval(reason)]
        solved = draw_posterior(point, self.draws, np.random.default_rng(self.seed))
        assert isinstance(fit.problem, LawProblem)
        at_bound = int(self.draws - is_usable(fit.problem, solved.theta).sum())
        return solved.theta, 0, check_draws(len(used), len(used) - fit.problem.size, at_bound, self.draws)

    def _estimate_new_run(self, point: PointFit, used: Runs) -> NewRunError | None:
        law = point.fit.problem.law
        if point.noise is None or law.response != "log-loss":
            return None
        folds = make_folds(used, point.fit.problem.size + 2)
        forecasts = [predict_fold(law, used, fold, 0.0, self.prior) for fold in folds]
        return estimate_new_run(folds, forecasts, used, point.fit.residuals, point.fit.leverage)


def explain_no_interval(point: PointFit, used: Runs) -> str:
    """Explain why the runs give no interval; empty if they give one."""
    if point.noise is None or len(used) <= point.fit.problem.size:
        return "there are no more runs than parameters; train more runs"
    if not point.fit.determined:
        return "some parameters cannot be separated; widen the range of N and of D / N"
    if {"params", "tokens"} <= set(point.fit.problem.law.inputs) and (reason := explain_swapped_runs(used)):
        return reason
    return explain_few_trajectories(point.noise, used)
