"""Runs that lie off the profiles of all budgets by more than noise explains.

Generalised extreme studentised residuals (Rosner 1983; for regressions Paul and Fung 1991): the run with the
largest deletion residual is left out, then the next, up to a fifth of the runs. The outliers are all runs up to
the last whose deletion residual exceeds the Bonferroni bound of Student's t at its step, so that outliers do not
mask each other. The regression is then repeated without them, and the rule with it, until the set is stable.

A run must also lie off by the noise model of the other runs: under-trained runs may be noisier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats, Ints
from flops_fit_core.fitting.distributions import t_upper_quantile
from flops_fit_core.fitting.fitters.profile_law import ProfileFit, ProfileRuns, fit_profiles
from flops_fit_core.fitting.fitters.profile_noise import fit_run_noise, row_covariates
from flops_fit_core.fitting.uncertainty.outliers import (
    BETTER_CHANCE,
    MAX_REJECTED_SHARE,
    MIN_DOF,
    MIN_RUNS,
    WORSE_CHANCE,
)

MIN_SIZES_PER_BUDGET = 3
"""A budget keeps at least this many sizes."""
_ROUNDS = 5
_SMALLEST_NOISE = 1e-6
"""Relative to the loss. Smaller errors are numerical, not outliers."""


@dataclass(frozen=True)
class RobustFit:
    """The regression, the runs that it uses, and why others are left out."""

    fit: ProfileFit
    accepted: Bools
    """Shape (n,), for all runs."""
    offsets: tuple[tuple[int, float], ...] = ()
    """(row, error in the response) of each rejected run."""
    too_many: int = 0
    """Runs beyond the bound, if they are too many to reject, so that all are used; otherwise 0."""
    tried: bool = True
    """False for too few runs."""


def fit_without_outliers(runs: ProfileRuns, trunk: Ints, max_noise_runs: int) -> RobustFit:
    """Fit the profiles, and reject runs further off than noise explains. Raises FitError like ``fit_profiles``.

    ``trunk`` numbers the trajectories of the runs. With more than ``max_noise_runs``, all runs have one level of
    noise.
    """
    everything = np.ones(len(runs.y), dtype=bool)
    first = fit_profiles(runs)
    if len(runs.y) < MIN_RUNS or runs.dof - 1 < MIN_DOF:
        return RobustFit(first, everything, tried=False)
    fit, accepted = first, everything
    for _ in range(_ROUNDS):
        rejected = _find_outliers(fit, runs)
        if len(rejected) > MAX_REJECTED_SHARE * len(runs.y):
            return RobustFit(first, everything, too_many=len(rejected))
        changed = np.isin(np.arange(len(runs.y)), rejected, invert=True)
        if (changed == accepted).all():
            break
        accepted = changed
        fit = fit_profiles(runs.take(accepted), fit.theta)
    if accepted.all():
        return RobustFit(first, everything)
    confirmed = accepted | _is_explained_by_noise(fit, runs, accepted, trunk, max_noise_runs)
    if not (confirmed == accepted).all():
        fit = fit_profiles(runs.take(confirmed), fit.theta)
    errors = runs.y - runs.evaluate(fit.theta)[0]
    offsets = tuple((int(row), float(errors[row])) for row in np.flatnonzero(~confirmed))
    return RobustFit(fit, confirmed, offsets)


def _find_outliers(fit: ProfileFit, runs: ProfileRuns) -> Ints:
    """Rows of outliers about a linearised fit: at most one more than can be rejected."""
    n = len(runs.y)
    design, errors = _linearise(fit, runs)
    floor = _SMALLEST_NOISE * (1.0 if runs.is_log else float(np.mean(runs.y)))
    most = min(int(MAX_REJECTED_SHARE * n) + 1, n - design.shape[1] - MIN_DOF)
    remaining = np.arange(n)
    removed: list[int] = []
    count = 0
    while len(removed) < most:
        studentised, dof = _deletion_residuals(design[remaining], errors[remaining], floor)
        worse, better = (
            float(t_upper_quantile(chance / len(remaining), dof)) for chance in (WORSE_CHANCE, BETTER_CHANCE)
        )
        excess = np.where(studentised > 0, studentised / worse, -studentised / better)
        excess[~_can_lose(runs, remaining)] = 0
        furthest = int(np.argmax(excess))
        removed.append(int(remaining[furthest]))
        if excess[furthest] > 1:
            count = len(removed)
        remaining = np.delete(remaining, furthest)
    return np.array(removed[:count], dtype=np.intp)


def _linearise(fit: ProfileFit, runs: ProfileRuns) -> tuple[Floats, Floats]:
    """Design and errors (measured less fitted) of all runs about the fit."""
    response, jacobian = runs.evaluate(fit.theta)
    return jacobian @ fit.determined_directions(), runs.y - response


def _deletion_residuals(design: Floats, errors: Floats, floor: float) -> tuple[Floats, int]:
    """Externally studentised residuals (Cook and Weisberg 1982, section 2.2.2) and their degrees of freedom."""
    basis = np.linalg.qr(design / np.maximum(np.sqrt((design**2).sum(axis=0)), 1e-300))[0]
    residuals = errors - basis @ (basis.T @ errors)
    dof = max(len(errors) - design.shape[1] - 1, 1)
    free = np.maximum(1 - (basis**2).sum(axis=1), 1e-9)
    others = np.maximum((residuals @ residuals - residuals**2 / free) / dof, floor**2)
    studentised: Floats = residuals / np.sqrt(others * free)
    return studentised, dof


def _can_lose(runs: ProfileRuns, remaining: Ints) -> Bools:
    """Whether the budget of each remaining run keeps enough sizes without that run."""
    budget, sizes = runs.budget[remaining], np.round(runs.x[remaining], 9)
    can_lose = np.zeros(len(remaining), dtype=bool)
    for number in np.unique(budget):
        rows = np.flatnonzero(budget == number)
        values, count = np.unique(sizes[rows], return_counts=True)
        is_repeated = count[np.searchsorted(values, sizes[rows])] > 1
        can_lose[rows] = (len(values) > MIN_SIZES_PER_BUDGET) | is_repeated
    return can_lose


def _is_explained_by_noise(
    fit: ProfileFit, runs: ProfileRuns, accepted: Bools, trunk: Ints, max_noise_runs: int
) -> Bools:
    """Whether the noise model of the accepted runs explains the error of each run (False for accepted runs)."""
    explained = np.zeros(len(accepted), dtype=bool)
    used = int(accepted.sum())
    if used > max_noise_runs:
        return explained
    covariates = row_covariates(fit, runs)
    inner_trunk = np.unique(trunk[accepted], return_inverse=True)[1]
    noise = fit_run_noise(fit, covariates[accepted], inner_trunk)
    rows = np.flatnonzero(~accepted)
    sigma = noise.at(covariates[rows], np.arange(len(rows))).sigma()
    full_design, errors = _linearise(fit, runs)
    inverse = np.linalg.pinv(full_design[accepted].T @ full_design[accepted])
    leverage = np.einsum("ij,jk,ik->i", full_design[rows], inverse, full_design[rows])
    standardised = errors[rows] / np.maximum(sigma * np.sqrt(1 + leverage), 1e-300)
    worse, better = (float(t_upper_quantile(chance / used, noise.dof)) for chance in (WORSE_CHANCE, BETTER_CHANCE))
    explained[rows] = (standardised <= worse) & (standardised >= -better)
    return explained
