"""Blocked backtests: fit the runs up to a scale, predict the runs beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Bools, Floats, Runs
from flops_fit_core.fitting.solvers.objectives import LeastSquares
from flops_fit_core.fitting.solvers.surface_fit import check_spread
from flops_fit_core.fitting.uncertainty.noise import NoiseModel
from flops_fit_core.fitting.uncertainty.posterior import fit_with_prior, make_law_problem, weigh_by_drift
from flops_fit_core.plugins.protocols import LossLaw
from flops_fit_core.records import NewRunError

_SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the runs that the backtests fit."""
_MIN_RUNS = 8
_MIN_DISTANCE = 0.05
"""Mean ln (C / largest fitted C) below which a backtest cannot show drift."""
_DECAY = 0.5
"""Each backtest counts half as much as the next one, which is closer to the prediction that matters."""


@dataclass(frozen=True)
class Fold:
    """Rows of the runs that a backtest fits, and of those that it predicts."""

    fitted: Bools
    held_out: Bools
    distance: Floats
    """ln (C / largest fitted C) of the held-out runs, at least 0."""
    noise: Floats
    """Noise of the held-out runs relative to the most precise run."""


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


def predict_fold(law: LossLaw, runs: Runs, fold: Fold, drift: float, prior: bool = True) -> Floats:
    """Predicted minus measured ``ln L`` (or L, for a law of the loss) of the held-out runs."""
    fitted, held_out = (runs.take(np.flatnonzero(rows)) for rows in (fold.fitted, fold.held_out))
    problem = make_law_problem(law, fitted)
    trunk = np.unique(fitted.trunks, return_inverse=True)[1]
    problem = weigh_by_drift(problem, fitted.flops, trunk, drift)
    theta = fit_with_prior(problem).theta if prior else problem.search(LeastSquares()).theta[0]
    loss = problem.coordinates.loss(theta[None], held_out.inputs_of(law))[0]
    if law.response == "loss":
        difference: Floats = loss - held_out.loss
        return difference
    errors: Floats = np.log(loss / held_out.loss)
    return errors


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
    folds: Sequence[Fold], errors: Sequence[Floats], runs: Runs, noise: NoiseModel
) -> NewRunError:
    """The error of one further run, from the noise of the runs and the errors of the backtests.

    Within a backtest, errors share a drift that grows with the square root of the log distance, as a random walk:
    e = b sqrt(d) + noise with b ~ N(0, drift^2). Each backtest gives one estimate of b, weighted by its
    distance and by :func:`fold_weights`. Backtests overlap, so two count as one degree of freedom. Held-out runs
    count by 1 / (relative noise)^2.
    """
    sigma = noise.sigma()
    level = float(np.sqrt(np.mean(sigma[runs.flops >= np.quantile(runs.flops, 0.75)] ** 2)))
    tests = [
        (weight, fold.distance, error, fold.noise**-2)
        for weight, fold, error in zip(fold_weights(len(folds)), folds, errors, strict=True)
        if float(fold.distance.mean()) > _MIN_DISTANCE
    ]
    if not tests:
        return NewRunError(sigma=level, sigma_dof=float(noise.dof), drift=0.0, drift_dof=0.0)
    weights = np.array([weight * distance.mean() for weight, distance, _, _ in tests])
    lengths = np.array([(distance * precision).sum() for _, distance, _, precision in tests])
    products = [float((error * precision) @ np.sqrt(distance)) for _, distance, error, precision in tests]
    slopes, variances = np.array(products) / lengths, level**2 / lengths
    square = float(weights @ np.maximum(slopes**2 - variances, 0.0) / weights.sum())
    dof = max(1.0, float(weights.sum() ** 2 / (weights @ weights)) / 2)
    return NewRunError(sigma=level, sigma_dof=float(noise.dof), drift=float(np.sqrt(square)), drift_dof=dof)
