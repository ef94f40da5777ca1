"""Least squares that leaves out gross outliers and nothing else.

A reweighted estimator with a hard rejection rule (Gervini and Yohai 2002). Residuals from a Huber fit give a scale
that a tenth of bad runs cannot move. Runs beyond the bound for the largest of n Gaussian residuals are rejected,
least squares is fitted to the rest, and both steps repeat until the set is stable. The deletion residual of a run
has Student's t distribution with the degrees of freedom of the accepted runs (Cook and Weisberg 1982, section
2.2.2); it is compared with the Bonferroni bound. On clean runs nothing is rejected (97 times in 100), so the
result is least squares. Each rejected run is named.

For rows of a trajectory, residuals minus a fraction of their trajectory's mean are tested. These are independent
under the noise model's correlation (Fuller and Battese 1973).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats, Ints
from flops_fit_core.fitting.distributions import normal_quantile, t_upper_quantile
from flops_fit_core.fitting.solvers.objectives import Huber, LeastSquares
from flops_fit_core.fitting.solvers.problem import Problem, Solved
from flops_fit_core.fitting.solvers.surface_fit import SurfaceFit, fit_surface
from flops_fit_core.fitting.uncertainty.noise import STEP_MEAN

MIN_RUNS = 10
"""With fewer runs, outliers cannot be detected."""
MIN_DOF = 4
"""Degrees of freedom that the accepted runs must leave."""
WORSE_CHANCE, BETTER_CHANCE = 0.02, 0.002
"""Chance of rejecting any run of a study with Gaussian noise, for a loss above or below the law.
A mistuned run can only lie above."""
MAX_REJECTED_SHARE = 0.2
"""Above this share of rejected runs, the law is considered wrong instead of the runs."""
_SCREEN = 0.9
"""Clean draws are tested in full if their largest deletion residual exceeds this share of the bound."""


@dataclass(frozen=True)
class Rejection:
    """The runs that the fit uses, and the outcome of the test for outliers."""

    accepted: Bools
    """Shape (n,)."""
    too_many: int = 0
    """Runs beyond the bound, if they are too many to reject, so that all are used; otherwise 0."""
    tried: bool = True
    """False for too few runs."""


def robust_fit(problem: Problem, rho: float = 0.0, pattern: Floats | None = None) -> tuple[SurfaceFit, Rejection]:
    """The fit, and the runs it uses: all runs if there are too few runs or too many outliers.

    ``rho`` is the correlation within the trajectories of ``problem``, if it has any; ``pattern`` is the noise of
    every run (n,) by the noise model, if available.
    """
    all_runs = np.ones(len(problem.y), dtype=bool)
    if len(problem.y) < MIN_RUNS:
        return fit_surface(problem, LeastSquares()), Rejection(all_runs, tried=False)
    first = fit_surface(problem.independent, Huber())
    accepted, too_many, _ = _reject_outliers(problem, first.theta[None], rho, pattern)
    if accepted[0].all():
        return fit_surface(problem, LeastSquares()), Rejection(all_runs, int(too_many[0]))
    return fit_surface(problem.select(accepted[0], rho), LeastSquares()), Rejection(accepted[0])


def robust_refits(
    problem: Problem, solved: Solved, rho: float, pattern: Floats, leverage: Floats, is_clean: bool
) -> Solved:
    """Refits of draws with the same rule: ``solved`` are their least-squares fits, with runs of ``leverage`` (n,).

    Of clean draws, only those with least-squares residuals near the bound are tested, starting from least squares:
    they contain no outliers that mask each other.
    """
    n = problem.y.shape[-1]
    if n < MIN_RUNS:
        return solved
    rows = np.arange(len(solved.theta))
    if is_clean:
        rows = np.flatnonzero(_find_suspicious(problem, solved, rho, leverage))
    if not len(rows):
        return solved
    suspicious = problem.rows(rows)
    start = solved.theta[rows]
    if not is_clean:
        start = suspicious.independent.solve(start, Huber(), steps=30, tolerance=1e-6).theta
    accepted, _, refitted = _reject_outliers(suspicious, start, rho, pattern, least_squares=is_clean)
    changed = ~accepted.all(axis=1)
    theta = solved.theta.copy()
    theta[rows[changed]] = refitted[changed]
    return replace(solved, theta=theta)


_LEAST = LeastSquares()


def _reject_outliers(
    problem: Problem, theta: Floats, rho: float, pattern: Floats | None, least_squares: bool = False
) -> tuple[Bools, Ints, Floats]:
    """Reject outliers, starting from the Huber or least-squares fits ``theta``.

    Returns the accepted runs (fits, n); the number of runs beyond the bound, if they are too many, so that all are
    accepted; and the least-squares fits to the accepted runs of fits with rejections.
    """
    n, fits = problem.y.shape[-1], len(theta)
    all_runs = np.ones((fits, n), dtype=bool)
    min_accepted = max(problem.size + MIN_DOF, (1 - MAX_REJECTED_SHARE) * n)
    y = np.broadcast_to(problem.y, (fits, n))
    problem = problem.changed(y=y)
    residuals = _remove_shared_error(problem, problem.residuals(theta), all_runs, rho)
    scale = _robust_scale(residuals, problem.is_undertrained(theta), problem.size)
    is_exact = scale.min(axis=1) <= 0
    safe_scale = np.where(is_exact[:, None], 1.0, scale)
    scales = [np.ones_like(safe_scale), safe_scale / safe_scale.max(axis=1, keepdims=True)]
    if pattern is not None and pattern.min() > 0:
        scales.append(np.broadcast_to(pattern / pattern.max(), safe_scale.shape))
    if least_squares:
        accepted = _accept_runs(problem, theta, all_runs, rho, scales)
    else:
        accepted = _is_within(residuals / safe_scale, *_rejection_bounds(n, np.full(fits, n), problem.size))
    accepted |= is_exact[:, None]
    theta, used = theta.copy(), accepted.copy()
    # Fits without rejections by least squares need no iteration.
    is_done = is_exact | (least_squares & accepted.all(axis=1))
    live = np.flatnonzero(~is_done & (accepted.sum(axis=1) >= min_accepted))
    for _ in range(5):
        if not len(live):
            break
        used[live] = accepted[live]
        part = _mask_runs(problem.rows(live), used[live], rho)
        theta[live] = part.solve(theta[live], _LEAST, steps=30, tolerance=1e-11).theta
        accepted[live] = _accept_runs(part, theta[live], used[live], rho, [each[live] for each in scales])
        live = live[(used[live] != accepted[live]).any(axis=1) & (accepted[live].sum(axis=1) >= min_accepted)]
    is_enough = accepted.sum(axis=1) >= min_accepted
    too_many = np.where(is_enough, 0, n - accepted.sum(axis=1))
    return np.where(is_enough[:, None], used, True), too_many, theta


def _accept_runs(problem: Problem, theta: Floats, used: Bools, rho: float, scales: list[Floats]) -> Bools:
    """Runs within the bound, for noise proportional to any of ``scales``: constant, a level per side of the
    optimum, or the pattern of the noise model."""
    bounds = _rejection_bounds(used.shape[1], used.sum(axis=1), problem.size)
    is_within: Bools = np.logical_or.reduce(
        [_is_within(residuals, *bounds) for residuals in _deletion_residuals(problem, theta, used, rho, scales)]
    )
    return is_within


def _mask_runs(problem: Problem, accepted: Bools, rho: float) -> Problem:
    """The same problems, with weights 1 for accepted runs and 0 for rejected runs."""
    weights = accepted.astype(float)
    shrink = None if problem.trajectories is None else problem.trajectories.shrink(rho, weights)
    return problem.changed(weights=weights, shrink=shrink)


def _deletion_residuals(
    problem: Problem, theta: Floats, accepted: Bools, rho: float, scales: list[Floats]
) -> list[Floats]:
    """Residuals of all runs, standardised under the fit to the other accepted runs, per entry of ``scales``.

    Shape (fits, n). Noise is assumed proportional to the scale.
    """
    residuals = _remove_shared_error(problem, problem.residuals(theta), accepted, rho)
    slopes = problem.jacobian(theta)
    jacobian = np.stack(
        [_remove_shared_error(problem, slopes[:, index], accepted, rho) for index in range(problem.size)], axis=1
    )
    jacobian /= np.maximum(np.sqrt((jacobian**2).sum(axis=2, keepdims=True)), 1e-300)
    inverse = np.linalg.pinv((jacobian * accepted[:, None]) @ jacobian.transpose(0, 2, 1), hermitian=True)
    leverage = np.einsum("fin,fij,fjn->fn", jacobian, inverse, jacobian)
    dof = (accepted.sum(axis=1) - problem.size)[:, None]
    one_minus_leverage = 1 - np.minimum(leverage, 0.999)
    deletion_residuals = []
    for scale in scales:
        scaled = residuals / scale
        squares = np.sum(scaled**2 * accepted, axis=1)[:, None]
        # An accepted run is compared with the fit without it.
        variance = np.maximum(squares - scaled**2 / one_minus_leverage, 1e-12 * squares) / np.maximum(dof - 1, 1)
        spread = np.where(
            accepted, np.sqrt(variance * one_minus_leverage), np.sqrt(squares / dof * (1 + leverage))
        )
        deletion_residuals.append(scaled / np.maximum(spread, 1e-300))
    return deletion_residuals


def _find_suspicious(problem: Problem, solved: Solved, rho: float, leverage: Floats) -> Bools:
    """Draws with a deletion residual near the bound, shape (fits,)."""
    n = problem.y.shape[-1]
    all_runs = np.ones((len(solved.theta), n), dtype=bool)
    residuals = _remove_shared_error(problem, problem.residuals(solved.theta), all_runs, rho)
    value = np.einsum("fi,fi->f", residuals, residuals) / 2
    residuals /= np.sqrt(1 - np.minimum(leverage, 0.999))
    worse, better = _rejection_bounds(n, np.array([n]), problem.size)
    dof = n - problem.size
    # Convert bounds on deletion residuals t to internally standardised z: t = z sqrt((dof - 1) / (dof - z^2)).
    limits = [_SCREEN * float(bound[0, 0]) for bound in (worse, better)]
    high, low = (bound * np.sqrt(dof / (dof - 1 + bound**2)) for bound in limits)
    sigma = np.sqrt(2 * value / dof)
    is_suspicious: Bools = (residuals.max(axis=1) > high * sigma) | (residuals.min(axis=1) < -low * sigma)
    return is_suspicious


def _rejection_bounds(n: int, count: Ints, size: int) -> tuple[Floats, Floats]:
    """Bounds above and below the law, shape (fits, 1), for ``count`` accepted runs and ``size`` parameters."""
    dof = np.maximum(np.unique(count) - size - 1, 1)
    row = np.searchsorted(np.unique(count), count)
    worse, better = (
        np.asarray(t_upper_quantile(chance / n, dof))[row, None] for chance in (WORSE_CHANCE, BETTER_CHANCE)
    )
    return worse, better


def _is_within(standardised: Floats, worse: Floats, better: Floats) -> Bools:
    is_within: Bools = (standardised <= worse) & (standardised >= -better)
    return is_within


def _remove_shared_error(problem: Problem, values: Floats, accepted: Bools, rho: float) -> Floats:
    """Subtract the fraction of the trajectory's mean over accepted runs that makes errors independent.

    For values (fits, n) with correlation ``rho``; the result has variance 1 - rho.
    """
    if problem.trajectories is None:
        return values
    count = problem.trajectories.sums(accepted.astype(float))
    part = 1 - np.sqrt((1 - rho) / (1 - rho + rho * count))
    mean = problem.trajectories.sums(values * accepted) / np.maximum(count, 1)
    independent: Floats = values - (part * mean)[:, problem.trajectories.number]
    return independent


def _robust_scale(residuals: Floats, undertrained: Bools, size: int) -> Floats:
    """A scale per run and fit, equal for runs on the same side of the optimum, shape (fits, n).

    Under-trained runs vary more between seeds. With few runs on a side, the scale of the under-trained side
    shrinks to the prior of the noise model, and that of the other side to the scale of all runs.
    """
    n = residuals.shape[1]
    magnitude = np.abs(residuals)
    # The fit can pass through ``size`` runs exactly, so they carry no information on the scale.
    overall = np.median(np.sort(magnitude, axis=1)[:, size:], axis=1) / float(normal_quantile(0.75))
    scales = np.repeat(overall[:, None], n, axis=1)
    for side, prior in ((undertrained, STEP_MEAN), (~undertrained, 0.0)):
        count = side.sum(axis=1)
        ordered = np.sort(np.where(side, magnitude, np.inf), axis=1)
        missing = size * count // n
        middle = np.clip([missing + (count - missing - 1) // 2, missing + (count - missing) // 2], 0, n - 1)
        side_scale = np.take_along_axis(ordered, middle.T, axis=1).mean(axis=1) / float(normal_quantile(0.75))
        trust = np.where((count >= 6) & (overall > 0), 1 / (1 + 1.4 / np.maximum(count, 1)), 0.0)
        ratio = np.maximum(side_scale, 1e-3 * overall) / np.where(overall > 0, overall, 1)
        scale = overall * np.where(trust > 0, ratio, 1.0) ** trust * np.exp(prior * (1 - trust))
        scales = np.where(side, scale[:, None], scales)
    return scales
