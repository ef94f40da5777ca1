"""Weights of runs whose losses have standard errors, such as forecasts of unfinished runs.

The error of run i about a law has the variance tau^2 + s_i^2: differences between runs, which the fit estimates,
and the standard error of the loss. tau has the largest restricted likelihood (Patterson and Thompson 1971):
precise runs determine it, and understated standard errors hardly move it. A run has weight 1 / (tau^2 + s_i^2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize_scalar

from flops_fit_core.fitting.data import Floats, Runs
from flops_fit_core.fitting.diagnostics import note
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.uncertainty.posterior import make_law_problem
from flops_fit_core.fitting.uncertainty.refits import Criterion, fit_point
from flops_fit_core.plugins.protocols import LossLaw
from flops_fit_core.records import Diagnostic

_ROUNDS = 3
"""The weights follow from residuals, which follow from the weights."""
_GRID = 40
_LEAST_TAU = 1e-5
"""The smallest tau: losses are written with four or five digits."""


def weigh_by_errors(runs: Runs, laws: Sequence[LossLaw], objective: Criterion = "robust") -> Runs:
    """The runs with their relative noise, from the standard errors of their losses.

    Of several laws, the law that needs the smallest tau decides. Rows of a trajectory share the mean of their
    variances. Runs without standard errors are returned unchanged.
    """
    if not runs.loss_se.any():
        return runs
    errors = runs.loss_se / runs.loss if laws[0].response == "log-loss" else runs.loss_se
    trunk = np.unique(runs.trunks, return_inverse=True)[1]
    variances = (np.bincount(trunk, errors**2) / np.bincount(trunk))[trunk]
    for _ in range(_ROUNDS):
        tau = min(_estimate_tau(runs, law, variances, objective) for law in laws)
        deviations = np.sqrt(tau**2 + variances)
        runs = replace(runs, noise=deviations / deviations.min())
    return runs


def describe_weights(runs: Runs) -> list[Diagnostic]:
    """Describe the weights of runs with standard errors; empty without."""
    if not runs.loss_se.any():
        return []
    count = int(np.count_nonzero(runs.loss_se))
    least = float(runs.noise.max() ** -2)
    return [
        note(
            "loss-errors",
            f"{count} of {len(runs)} losses have a standard error: runs are weighted by 1 / variance, and the "
            f"least precise run has {least:.2g} times the weight of the most precise",
        )
    ]


def solve_tau(residuals: Floats, jacobian: Floats, variances: Floats) -> float:
    """The standard deviation tau of differences between runs, at least 1e-5.

    ``residuals`` (n,) and ``jacobian`` (n, p) are those of a fit, ``variances`` (n,) the squared standard errors.
    """
    if len(residuals) <= jacobian.shape[1]:
        return _LEAST_TAU
    basis = np.linalg.qr(jacobian)[0]

    def misfit(ln_tau: float) -> float:
        """-2 ln(restricted likelihood), with the residuals of the linear fit with these weights."""
        precision = 1 / (np.exp(2 * ln_tau) + variances)
        weighted = basis * precision[:, None]
        information = basis.T @ weighted
        moved = weighted.T @ residuals
        square = residuals**2 @ precision - moved @ np.linalg.solve(information, moved)
        return float(square + np.linalg.slogdet(information)[1] - np.log(precision).sum())

    largest = max(10 * float(np.max(np.abs(residuals))), 10 * _LEAST_TAU)
    grid = np.linspace(np.log(_LEAST_TAU), np.log(largest), _GRID)
    best = int(np.argmin([misfit(ln_tau) for ln_tau in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    return float(np.exp(minimize_scalar(misfit, bounds=bounds, method="bounded").x))


def _estimate_tau(runs: Runs, law: LossLaw, variances: Floats, objective: Criterion) -> float:
    point = fit_point(make_law_problem(law, runs), runs, FlopsPerToken.of(runs), objective)
    fit, accepted = point.fit, point.rejection.accepted
    noise = runs.noise[accepted]
    return solve_tau(fit.residuals * noise, fit.jacobian[:, fit.free] * noise[:, None], variances[accepted])
