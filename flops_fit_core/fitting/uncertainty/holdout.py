"""Blocked backtests: fit the runs up to a scale, predict the runs beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats, Runs
from flops_fit_core.fitting.solvers.objectives import LeastSquares
from flops_fit_core.fitting.solvers.surface_fit import SurfaceFit, build_fit, check_spread
from flops_fit_core.fitting.uncertainty.posterior import (
    fit_with_prior,
    make_law_problem,
    variance_of,
    weigh_by_drift,
)
from flops_fit_core.plugins.protocols import LossLaw
from flops_fit_core.records import NewRunError

_SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the runs that the backtests fit."""
_MIN_RUNS = 8
_MIN_DISTANCE = 0.05
"""Mean ln (C / largest fitted C) below which a backtest cannot show drift."""
_DECAY = 0.5
"""Each backtest counts half as much as the next one, which is closer to the prediction that matters."""
_TOP_SHARE, _MIN_TOP_RUNS = 0.25, 10
"""The noise of a new run is that of the largest quarter of the runs, and of at least this many runs."""


@dataclass(frozen=True)
class Fold:
    """Rows of the runs that a backtest fits, and of those that it predicts."""

    fitted: Bools
    held_out: Bools
    distance: Floats
    """ln (C / largest fitted C) of the held-out runs, at least 0."""
    noise: Floats
    """Noise of the held-out runs relative to the most precise run."""


@dataclass(frozen=True)
class Forecast:
    """A backtest's prediction of its held-out runs."""

    errors: Floats
    """Predicted minus measured ``ln L`` (or L, for a law of the loss)."""
    variance: Floats
    """Variance of the prediction, from the uncertainty of the law's parameters in the backtest's fit."""


def make_folds(runs: Runs, min_runs: int) -> list[Fold]:
    """Backtests from small to large fitted scales; all rows of a trajectory are on the same side.

    A backtest fits ``min_runs`` runs or more, with three or more values of N and of D.
    """
    trunk = np.unique(runs.trunks, return_inverse=True)[1]
    scale = np.zeros(int(trunk.max()) + 1)
    np.maximum.at(scale, trunk, runs.flops)
    scale = scale[trunk]
    folds: list[Fold] = []
    for share in _SHARES:
        fitted = scale <= np.quantile(scale, share) * (1 + 1e-9)
        if fitted.all() or fitted.sum() < max(min_runs, _MIN_RUNS):
            continue
        if folds and np.array_equal(folds[-1].fitted, fitted):
            continue
        try:
            check_spread(np.log(runs.params[fitted]), np.log(runs.tokens[fitted]))
        except FitError:
            continue
        distance = np.log(runs.flops[~fitted] / runs.flops[fitted].max())
        folds.append(Fold(fitted, ~fitted, np.maximum(distance, 0.0), runs.noise[~fitted]))
    return folds


def predict_fold(law: LossLaw, runs: Runs, fold: Fold, drift: float, prior: bool = True) -> Forecast:
    """Fit the law to the fold's fitted runs, and predict its held-out runs."""
    fitted, held_out = (runs.take(np.flatnonzero(rows)) for rows in (fold.fitted, fold.held_out))
    problem = make_law_problem(law, fitted)
    trunk = np.unique(fitted.trunks, return_inverse=True)[1]
    problem = weigh_by_drift(problem, fitted.flops, trunk, drift)
    fit = fit_with_prior(problem) if prior else build_fit(problem, problem.search(LeastSquares()))
    y = np.log(held_out.loss) if law.response == "log-loss" else held_out.loss
    target = replace(problem, inputs=held_out.inputs_of(law), y=y, weights=None, noise=None)
    slopes = target.jacobian(fit.theta[None])[0][fit.free].T
    variance = np.einsum("ij,jk,ik->i", slopes, _covariance(fit), slopes)
    return Forecast(-target.residuals(fit.theta[None])[0], np.nan_to_num(variance))


def _covariance(fit: SurfaceFit) -> Floats:
    """Covariance of the free parameters for noise of equal variance in all runs, whatever their weights."""
    free = fit.free
    slopes, stiffness = fit.jacobian[:, free], np.diag(fit.problem.prior_precision[free])
    weights = np.ones(len(slopes)) if fit.problem.weights is None else fit.problem.weights
    noise = float(fit.residuals @ fit.residuals) / max(len(slopes) - slopes.shape[1], 1)
    inverse = np.linalg.pinv((slopes.T * weights) @ slopes + stiffness, hermitian=True)
    middle = noise * (slopes.T * weights**2) @ slopes + variance_of(fit) * stiffness
    covariance: Floats = inverse @ middle @ inverse
    return covariance


def average_forecasts(forecasts: Sequence[Forecast], weights: Sequence[float]) -> Forecast:
    """The forecast of the weighted mean of laws; its variance includes the differences between the laws."""
    share = np.array(weights)
    errors = np.array([forecast.errors for forecast in forecasts])
    variance = np.array([forecast.variance for forecast in forecasts])
    mean = share @ errors
    return Forecast(mean, share @ (variance + (errors - mean) ** 2))


def fold_weights(count: int) -> Floats:
    """Weight of each backtest, from small to large fitted scales; their sum is the number of backtests."""
    weights = _DECAY ** np.arange(count)[::-1].astype(float)
    result: Floats = weights * count / max(weights.sum(), 1e-300)
    return result


def weigh_laws(errors: Sequence[Sequence[Floats]], noise: Sequence[Floats] | None = None) -> Floats:
    """Weights of laws from their errors in each backtest, ``errors[law][backtest]``.

    ``noise`` is the relative noise of the held-out runs of each backtest; by default 1.

    Each backtest counts as one observation of a Gaussian error with the law's own standard deviation, its root
    mean square error, so its likelihood is proportional to 1 / error. Without backtests, all weights are equal.
    """
    count = len(errors[0])
    if not count:
        return np.full(len(errors), 1 / len(errors))
    noise = [np.ones_like(fold) for fold in errors[0]] if noise is None else noise
    size = np.array([list(map(root_mean_square, folds, noise)) for folds in errors])
    log_weight = -np.log(np.maximum(size, 1e-9)) @ fold_weights(count)
    weights = np.exp(log_weight - np.max(log_weight))
    result: Floats = weights / weights.sum()
    return result


def root_mean_square(errors: Floats, noise: Floats) -> float:
    """Root mean square, with weights 1 / ``noise``^2; infinity if an error is not finite."""
    size = float(np.sqrt(np.average(errors**2, weights=noise**-2)))
    return size if np.isfinite(size) else np.inf


def estimate_new_run(
    folds: Sequence[Fold], forecasts: Sequence[Forecast], runs: Runs, residuals: Floats, leverage: Floats
) -> NewRunError:
    """The error of one further run, from the residuals of the largest runs and the errors of the backtests.

    A held-out run at the log distance d has an error of variance sigma^2 + v + drift^2 d^2: noise, the uncertainty
    v of the law's parameters in this backtest, and a bend of the law, which the parameters do not explain. Each
    backtest gives one estimate of drift^2, weighted by its mean d^2 and by :func:`fold_weights`. Held-out runs
    count by 1 / (relative noise)^2.

    ``residuals`` and ``leverage`` (n,) belong to the law that predicts the new run. Residuals are divided by the
    relative noise of their run, so sigma is the noise of the most precise run.
    """
    flops = np.sort(runs.flops)
    is_top = runs.flops >= min(np.quantile(flops, 1 - _TOP_SHARE), flops[-min(_MIN_TOP_RUNS, len(flops))])
    sigma_dof = float(np.sum(1 - np.minimum(leverage[is_top], 0.99)))
    square = float(np.sum(residuals[is_top] ** 2)) / sigma_dof
    estimates, weights = [], []
    for weight, fold, forecast in zip(fold_weights(len(folds)), folds, forecasts, strict=True):
        if float(fold.distance.mean()) > _MIN_DISTANCE:
            precision = fold.noise**-2
            unexplained = float(precision @ (forecast.errors**2 - forecast.variance)) - square * len(precision)
            estimates.append(max(unexplained, 0.0) / float(precision @ fold.distance**2))
            weights.append(weight * float(np.average(fold.distance**2, weights=precision)))
    if not weights:
        return NewRunError(sigma=float(np.sqrt(square)), sigma_dof=sigma_dof, drift_rate=0.0, drift_dof=0.0)
    share = np.array(weights) / np.sum(weights)
    drift = float(np.sqrt(share @ np.array(estimates)))
    return NewRunError(
        sigma=float(np.sqrt(square)), sigma_dof=sigma_dof, drift_rate=drift, drift_dof=1 / float(share @ share)
    )
