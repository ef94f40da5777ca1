"""Average several laws by their backtests: the default fitter.

Each law is fitted with its prior twice: with equal weights of the runs, and with weights for a law that drifts
away from small scales, so that it follows the largest runs where no law fits all scales. Backtests (fit up to a
scale, predict beyond it) give each fit a weight. The answer is the weighted geometric mean of the losses, and its
draws are pooled, so intervals cover the choice of the law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats, Ints, Runs
from flops_fit_core.fitting.diagnostics import check_runs, no_interval, note
from flops_fit_core.fitting.fitters.base import BootstrapFitter
from flops_fit_core.fitting.fitters.law import explain_no_interval
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.optima import exponents
from flops_fit_core.fitting.laws.surfaces import AVERAGE, Average, LawSurface, Stack
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.fitting.surface_diagnostics import check_draws, check_surface
from flops_fit_core.fitting.uncertainty.holdout import (
    Fold,
    Forecast,
    average_forecasts,
    estimate_new_run,
    make_folds,
    predict_fold,
    root_mean_square,
    weigh_laws,
)
from flops_fit_core.fitting.uncertainty.loss_errors import describe_weights, weigh_by_errors
from flops_fit_core.fitting.uncertainty.outliers import Rejection
from flops_fit_core.fitting.uncertainty.posterior import (
    draw_posterior,
    fit_law_point,
    fit_with_prior,
    make_law_problem,
    weigh_by_drift,
)
from flops_fit_core.fitting.uncertainty.prior_share import check_prior, prior_share
from flops_fit_core.fitting.uncertainty.refits import OUTLIER, PointFit, add_noise, describe_objective
from flops_fit_core.plugins.registry.law_index import find_law
from flops_fit_core.plugins.utilities import fit_header
from flops_fit_core.records import Diagnostic, Interval, Law, LawFit, LawMember, NewRunError, Observation

DRIFTS = (0.0, 3.0)
"""Standard deviations of a law's drift per square root of ln C, relative to the noise of a run."""


@dataclass(frozen=True)
class _Member:
    """A fitted law of the average."""

    name: str
    drift: float
    point: PointFit
    weight: float = 0.0
    forecasts: tuple[Forecast, ...] = ()
    """Of the backtests."""
    error_sizes: tuple[float, ...] = ()
    """Root mean square of the errors of each backtest."""

    @property
    def surface(self) -> LawSurface:
        return self.point.fit.surface()


@dataclass(frozen=True)
class _Fitted:
    """All members with their weights, and the runs that they use."""

    used: Runs
    accepted: Bools
    """Which of all runs are used."""
    members: Sequence[_Member]
    main: PointFit
    """The law with the largest weight, fitted with equal weights of the runs."""


@dataclass(frozen=True)
class AverageFitter(BootstrapFitter):
    """Fits several laws and averages them."""

    laws: tuple[str, ...] = ("chinchilla", "tied", "skaling")
    """Names of laws of N and D. A law with too many parameters for the runs is left out."""
    name: str = "fitters/average"

    @convert_numerical_errors
    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Fit and weigh the laws. Raises FitError, with advice, for too few runs or runs that do not vary."""
        runs = Runs.of(observations)
        names, left_out = self._supported(runs)
        runs = weigh_by_errors(runs, [find_law(name) for name in names])
        fitted = _fit_members(names, runs)
        used, members = fitted.used, fitted.members
        constraint = FlopsPerToken.of(used, self.draws > 0, self.seed)
        drawn, reason = self._draw(fitted)
        stack = Stack(surfaces) if (surfaces := [surface for surface in drawn if surface is not None]) else None
        drawn_constraint = constraint.drawn(0 if stack is None else stack.rows, self.seed)
        average = Average([member.surface for member in members], [member.weight for member in members])
        residuals = (np.log(used.loss) - np.log(average.loss(*_rows(used))[0])) / used.noise
        return LawFit(
            **fit_header(self, self.name, flops=used.flops, params=used.params),
            law=Law(name=AVERAGE, parameters={}),
            members=tuple(
                _record(member, surface, constraint, used.flops, self.level)
                for member, surface in zip(members, drawn, strict=True)
            ),
            exponents=exponents(average, stack, (constraint, drawn_constraint), used.flops, self.level),
            objective=float(residuals @ residuals),
            n_runs=len(used),
            excluded={runs.ids[row]: OUTLIER for row in np.flatnonzero(~fitted.accepted)},
            diagnostics=(_describe(members, left_out), *self._check(fitted, runs, constraint, reason)),
            new_run=_estimate(fitted, residuals),
            **constraint.fields(drawn_constraint),
        )

    def _draw(self, fitted: _Fitted) -> tuple[list[LawSurface | None], str]:
        """Draws of each member, in proportion to its weight; and the reason if the runs give no interval."""
        reason = explain_no_interval(fitted.main, fitted.used) if self.draws else ""
        counts = _share(0 if reason else self.draws, fitted.members)
        random = np.random.default_rng(self.seed)
        drawn = [
            _draw_member(member, int(count), random) for member, count in zip(fitted.members, counts, strict=True)
        ]
        return drawn, reason

    def _check(self, fitted: _Fitted, runs: Runs, constraint: FlopsPerToken, reason: str) -> list[Diagnostic]:
        """Diagnostics of the main law with equal weights, and of the draws."""
        used, point = fitted.used, fitted.main
        diagnostics = [describe_objective("robust", point), *describe_weights(used), *check_runs(used, constraint)]
        diagnostics += check_surface(
            point.fit, used, runs, Rejection(fitted.accepted), _residuals(point, runs), constraint, point.noise
        )
        if reason:
            return [*diagnostics, no_interval(reason)]
        diagnostics += check_prior(_prior_share(fitted, constraint))
        dof = len(used) - point.fit.problem.size
        return diagnostics + (check_draws(len(used), dof, 0, self.draws) if self.draws else [])

    def _supported(self, runs: Runs) -> tuple[list[str], list[str]]:
        """Names of the laws with fewer parameters than runs, and of the others."""
        for name in self.laws:
            if further := set(find_law(name).inputs) - {"params", "tokens"}:
                raise FitError(
                    f"law {name!r} also depends on {', '.join(sorted(further))}: fit it with --law {name}"
                )
        sizes = {name: len(find_law(name).parameters) for name in self.laws}
        names = [name for name in self.laws if len(runs) > sizes[name] + 1]
        if not names:
            least = min(sizes.values())
            raise FitError(
                f"{len(runs)} runs cannot fit a law of {least} parameters: train {least + 2} or more, "
                "preferably 15"
            )
        return names, [name for name in self.laws if name not in names]


def _prior_share(fitted: _Fitted, constraint: FlopsPerToken) -> float | None:
    """The mean share of the priors in the precision of a, over the laws that do not fix a."""
    shares = [
        (member.weight, share)
        for member in fitted.members
        if (share := prior_share(member.point.fit, constraint, fitted.used.flops)) is not None
    ]
    total = sum(weight for weight, _ in shares)
    return sum(weight * share for weight, share in shares) / total if total else None


def _describe(members: Sequence[_Member], left_out: Sequence[str]) -> Diagnostic:
    count = len(members[0].forecasts)
    basis = f"{count} backtests" if count else "equal weights, because the runs allow no backtest"
    text = f"weighted mean of {', '.join(dict.fromkeys(member.name for member in members))}, by {basis}"
    if left_out:
        text += f"; too few runs for {', '.join(left_out)}"
    return note("laws", text)


def _fit_members(names: Sequence[str], runs: Runs) -> _Fitted:
    """Fit and weigh the laws. A run is left out if it is an outlier of every law."""
    trunk = np.unique(runs.trunks, return_inverse=True)[1]
    constraint = FlopsPerToken.of(runs)
    points = {
        name: fit_law_point(make_law_problem(find_law(name), runs), runs, constraint, "robust") for name in names
    }
    accepted = np.logical_or.reduce([point.rejection.accepted for point in points.values()])
    used = runs.take(np.flatnonzero(accepted))
    constraint = FlopsPerToken.of(used)
    members = _weigh(
        [
            _fit_member(name, drift, points[name], runs, trunk, accepted, constraint)
            for name in names
            for drift in DRIFTS
        ],
        used,
    )
    best = max(members, key=lambda member: member.weight)
    main = next(member.point for member in members if member.name == best.name and not member.drift)
    return _Fitted(used, accepted, members, main)


def _fit_member(
    name: str,
    drift: float,
    point: PointFit,
    runs: Runs,
    trunk: Ints,
    accepted: Bools,
    constraint: FlopsPerToken,
) -> _Member:
    """The law weighted for this drift, fitted to the accepted runs."""
    if not drift and np.array_equal(point.rejection.accepted, accepted):
        return _Member(name, drift, point)
    problem = make_law_problem(find_law(name), runs)
    if point.rho:
        problem = problem.with_correlation(trunk, point.rho)
    problem = weigh_by_drift(problem.select(accepted, point.rho), runs.flops[accepted], trunk[accepted], drift)
    fit = fit_with_prior(problem)
    return _Member(
        name, drift, replace(add_noise(fit, Rejection(accepted), runs, trunk, constraint), rho=point.rho)
    )


def _weigh(members: Sequence[_Member], used: Runs) -> list[_Member]:
    """The members with their weights and backtest errors."""
    folds = _folds(members, used)
    forecasts = [
        tuple(predict_fold(find_law(member.name), used, fold, member.drift) for fold in folds)
        for member in members
    ]
    noise = [fold.noise for fold in folds]
    errors = [[forecast.errors for forecast in backtests] for backtests in forecasts]
    sizes = [tuple(map(root_mean_square, law_errors, noise)) for law_errors in errors]
    weights = weigh_laws(errors, noise)
    return [
        replace(member, weight=float(weight), forecasts=backtests, error_sizes=size)
        for member, weight, backtests, size in zip(members, weights, forecasts, sizes, strict=True)
    ]


def _estimate(fitted: _Fitted, residuals: Floats) -> NewRunError | None:
    """The error of a new run, from the backtests and the residuals of the average."""
    members, used = fitted.members, fitted.used
    if fitted.main.noise is None:
        return None
    weights = [member.weight for member in members]
    folds = _folds(members, used)
    forecasts = [
        average_forecasts([member.forecasts[number] for member in members], weights)
        for number in range(len(folds))
    ]
    leverage = np.array(weights) @ np.array([member.point.fit.leverage for member in members])
    return estimate_new_run(folds, forecasts, used, residuals, leverage)


def _folds(members: Sequence[_Member], used: Runs) -> list[Fold]:
    return make_folds(used, max(member.point.fit.problem.size for member in members) + 2)


def _share(draws: int, members: Sequence[_Member]) -> Ints:
    """Numbers of draws in proportion to the weights; they sum to ``draws``."""
    ends = np.round(np.cumsum([member.weight for member in members]) * draws).astype(int)
    ends[-1] = draws
    return np.diff(ends, prepend=0)


def _draw_member(member: _Member, count: int, random: np.random.Generator) -> LawSurface | None:
    if not count:
        return None
    problem = member.point.fit.problem
    return LawSurface(problem.law, problem.values(draw_posterior(member.point, count, random).theta))


def _record(
    member: _Member, drawn: LawSurface | None, constraint: FlopsPerToken, flops: Floats, level: float
) -> LawMember:
    values: dict[str, Interval] = exponents(member.surface, None, (constraint, constraint), flops, level)
    return LawMember(
        law=Law(name=member.name, parameters=member.point.fit.parameters),
        drift=member.drift,
        weight=member.weight,
        errors=member.error_sizes,
        exponents=values,
        draws={} if drawn is None else {key: tuple(column.tolist()) for key, column in drawn.values.items()},
    )


def _rows(runs: Runs) -> tuple[Floats, Floats]:
    return np.log(runs.params)[None], np.log(runs.tokens)[None]


def _residuals(point: PointFit, runs: Runs) -> Floats:
    """Residuals of ln L of all runs."""
    residuals: Floats = np.log(runs.loss / point.fit.surface().loss(*_rows(runs))[0])
    return residuals
