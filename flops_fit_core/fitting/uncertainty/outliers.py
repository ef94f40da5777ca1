"""Least squares that leaves out gross outliers and nothing else.

A reweighted estimator with a hard rejection rule (Gervini and Yohai 2002): residuals from a Huber fit give
a scale that a tenth of bad runs cannot move; runs beyond what the largest of n Gaussian residuals would
reach are left out, least squares is fitted to the rest, and both are repeated until nothing changes. A run is
judged by its deletion residual, which has Student's t distribution with the degrees of freedom of the runs that
are kept (Cook and Weisberg 1982, section 2.2.2), against the Bonferroni bound. On clean runs nothing is left out
(97 times in 100), so it is least squares; each run left out is named.

Rows of one trajectory are judged by what the trajectory's other rows do not share: residuals less a part of their
trajectory's mean, which makes them independent under the noise model's correlation (Fuller and Battese 1973).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from flops_fit_core.fitting.data import Bools, Floats, Ints
from flops_fit_core.fitting.laws.chinchilla import SurfaceFit, fit_surface
from flops_fit_core.fitting.solvers.newton import Problem, Solved, Trajectories, predict, solve
from flops_fit_core.fitting.solvers.objectives import Huber, LeastSquares
from flops_fit_core.fitting.uncertainty.noise import STEP_MEAN

FEWEST = 10
"""Runs below which none can be told to be an outlier."""
SPARE = 4
"""Degrees of freedom that the runs which are kept leave."""
WORSE, BETTER = 0.02, 0.002
"""Chance of leaving out any run of a study whose noise is Gaussian, for being worse or better than the law.
A mistuned run can only be worse."""
MOST = 0.2
"""Share of the runs beyond which the law is wrong rather than the runs."""
_SCREEN = 0.9
"""Share of the bound from which a clean draw's largest deletion residual has the draw looked at closely."""


@dataclass(frozen=True)
class Rejection:
    """Which runs the fit uses, and how that came about."""

    kept: Bools
    """Shape (n,)."""
    too_many: int = 0
    """Runs beyond the bound, where these were too many to be left out, so that all are used; otherwise 0."""
    tried: bool = True
    """False for too few runs."""


def robust_fit(problem: Problem, rho: float = 0.0, pattern: Floats | None = None) -> tuple[SurfaceFit, Rejection]:
    """The fit, and which runs it uses. Too few runs, or too many outliers: least squares on all.

    ``rho`` is the correlation within the trajectories of ``problem``, where it has any; ``pattern`` is the noise
    of every run (n,) by the noise model, where it is known.
    """
    every = np.ones(len(problem.y), dtype=bool)
    if len(problem.y) < FEWEST:
        return fit_surface(problem, LeastSquares()), Rejection(every, tried=False)
    first = fit_surface(replace(problem, trajectories=None, shrink=None), Huber())
    kept, too_many, _ = _leave_out(problem, first.theta[None], rho, pattern)
    if kept[0].all():
        return fit_surface(problem, LeastSquares()), Rejection(every, int(too_many[0]))
    return fit_surface(subset(problem, kept[0], rho), LeastSquares()), Rejection(kept[0])


def robust_refits(
    problem: Problem, solved: Solved, rho: float, pattern: Floats, leverage: Floats, clean: bool
) -> Solved:
    """Refits of draws with the same rule: ``solved`` are their least-squares fits, with runs of ``leverage`` (n,).

    Of ``clean`` draws only those whose least-squares residuals come near the bound are looked at closely, from
    least squares on: no outliers hide each other in them.
    """
    n = len(problem.u)
    if n < FEWEST:
        return solved
    rows = np.arange(len(solved.theta))
    if clean:
        rows = np.flatnonzero(_suspicious(problem, solved, rho, leverage))
    if not len(rows):
        return solved
    some = problem.rows(rows)
    start = solved.theta[rows]
    if not clean:
        plain = replace(some, trajectories=None, shrink=None)
        start = solve(plain, start, Huber(), steps=30, tolerance=1e-6).theta
    kept, _, reached = _leave_out(some, start, rho, pattern, least_squares=clean)
    changed = ~kept.all(axis=1)
    theta = solved.theta.copy()
    theta[rows[changed]] = reached[changed]
    return replace(solved, theta=theta)


_LEAST = LeastSquares()


def _leave_out(
    problem: Problem, theta: Floats, rho: float, pattern: Floats | None, least_squares: bool = False
) -> tuple[Bools, Ints, Floats]:
    """Which runs every fit keeps, shape (fits, n), from the fits ``theta``, Huber's or of ``least_squares``;
    and how many lie beyond the bound where those are too many, so that all are kept; and least
    squares on those that are kept, where not all are."""
    n, fits = len(problem.u), len(theta)
    every = np.ones((fits, n), dtype=bool)
    least = max(5 + SPARE, (1 - MOST) * n)
    y = np.broadcast_to(problem.y, (fits, n))
    loss, a, b = predict(problem, theta)
    residuals = _unshared(problem, y - np.log(loss), every, rho)
    # Runs that would gain more from tokens than from parameters at the same C = 6 N D.
    scale = _robust_scale(residuals, theta[:, 4:] * b > theta[:, 2:3] * a)
    exact = scale.min(axis=1) <= 0
    safe = np.where(exact[:, None], 1.0, scale)
    scales = [np.ones_like(safe), safe / safe.max(axis=1, keepdims=True)]
    if pattern is not None and pattern.min() > 0:
        scales.append(np.broadcast_to(pattern / pattern.max(), safe.shape))
    problem = replace(problem, y=y)
    if least_squares:
        kept = _near(problem, theta, every, rho, scales)
    else:
        kept = _within(residuals / safe, *_bounds(n, np.full(fits, n)))
    kept |= exact[:, None]
    theta, used = theta.copy(), kept.copy()
    # Where least squares itself finds nothing, there is nothing to repeat.
    done = exact | (least_squares & kept.all(axis=1))
    live = np.flatnonzero(~done & (kept.sum(axis=1) >= least))
    for _ in range(5):
        if not len(live):
            break
        used[live] = kept[live]
        part = _masked(problem.rows(live), used[live], rho)
        theta[live] = solve(part, theta[live], _LEAST, steps=30, tolerance=1e-11).theta
        kept[live] = _near(part, theta[live], used[live], rho, [each[live] for each in scales])
        live = live[(used[live] != kept[live]).any(axis=1) & (kept[live].sum(axis=1) >= least)]
    enough = kept.sum(axis=1) >= least
    too_many = np.where(enough, 0, n - kept.sum(axis=1))
    return np.where(enough[:, None], used, True), too_many, theta


def _near(problem: Problem, theta: Floats, used: Bools, rho: float, scales: list[Floats]) -> Bools:
    """Runs within the bound for noise in proportion to any of ``scales``: of one level, of that of each side of
    the optimum, or of the noise model's pattern."""
    bounds = _bounds(used.shape[1], used.sum(axis=1))
    out: Bools = np.logical_or.reduce(
        [_within(each, *bounds) for each in _deletion_residuals(problem, theta, used, rho, scales)]
    )
    return out


def _masked(problem: Problem, kept: Bools, rho: float) -> Problem:
    """The same problems with runs that count (1) or do not (0)."""
    weights = kept.astype(float)
    shrink = None if problem.trajectories is None else problem.trajectories.shrink(rho, weights)
    return replace(problem, weights=weights, shrink=shrink)


def _deletion_residuals(
    problem: Problem, theta: Floats, kept: Bools, rho: float, scales: list[Floats]
) -> list[Floats]:
    """Residuals of all runs over their standard deviation under the fit of the others that are kept, shape
    (fits, n); for noise in proportion to each of ``scales``."""
    loss, a, b = predict(problem, theta)
    residuals = _unshared(problem, problem.y - np.log(loss), kept, rho)
    jacobian = np.stack([1 / loss, a / loss, -problem.u * a / loss, b / loss, -problem.v * b / loss], axis=1)
    jacobian[:, 0] *= theta[:, :1] > 0
    jacobian = np.stack([_unshared(problem, jacobian[:, index], kept, rho) for index in range(5)], axis=1)
    jacobian /= np.maximum(np.sqrt((jacobian**2).sum(axis=2, keepdims=True)), 1e-300)
    inverse = np.linalg.pinv((jacobian * kept[:, None]) @ jacobian.transpose(0, 2, 1), hermitian=True)
    leverage = np.einsum("fin,fij,fjn->fn", jacobian, inverse, jacobian)
    dof = (kept.sum(axis=1) - 5)[:, None]
    inside = 1 - np.minimum(leverage, 0.999)
    out = []
    for scale in scales:
        scaled = residuals / scale
        squares = np.sum(scaled**2 * kept, axis=1)[:, None]
        # A run that is kept is judged by what the fit would be without it.
        others = np.maximum(squares - scaled**2 / inside, 1e-12 * squares) / np.maximum(dof - 1, 1)
        spread = np.where(kept, np.sqrt(others * inside), np.sqrt(squares / dof * (1 + leverage)))
        out.append(scaled / np.maximum(spread, 1e-300))
    return out


def _suspicious(problem: Problem, solved: Solved, rho: float, leverage: Floats) -> Bools:
    """Draws with a deletion residual near the bound; shape (fits,)."""
    n = len(problem.u)
    every = np.ones((len(solved.theta), n), dtype=bool)
    residuals = _unshared(problem, problem.y - np.log(predict(problem, solved.theta)[0]), every, rho)
    residuals /= np.sqrt(1 - np.minimum(leverage, 0.999))
    worse, better = _bounds(n, np.array([n]))
    dof = n - 5
    # Of deletion residuals t, as of internally standardised ones: t = z sqrt((dof - 1) / (dof - z^2)).
    limits = [_SCREEN * float(bound[0, 0]) for bound in (worse, better)]
    high, low = (bound * np.sqrt(dof / (dof - 1 + bound**2)) for bound in limits)
    sigma = np.sqrt(2 * solved.value / dof)
    out: Bools = (residuals.max(axis=1) > high * sigma) | (residuals.min(axis=1) < -low * sigma)
    return out


def _bounds(n: int, count: Ints) -> tuple[Floats, Floats]:
    """How far a run may lie above and below the law, shape (fits, 1), for ``count`` runs that are kept."""
    dof = np.maximum(np.unique(count) - 6, 1)
    which = np.searchsorted(np.unique(count), count)
    worse, better = (np.asarray(stats.t.isf(chance / n, dof))[which, None] for chance in (WORSE, BETTER))
    return worse, better


def _within(standardised: Floats, worse: Floats, better: Floats) -> Bools:
    out: Bools = (standardised <= worse) & (standardised >= -better)
    return out


def _unshared(problem: Problem, values: Floats, kept: Bools, rho: float) -> Floats:
    """Values (fits, n) less the part of their trajectory's mean over runs that are kept which makes errors of
    correlation ``rho`` independent, of variance 1 - rho."""
    if problem.trajectories is None:
        return values
    count = problem.trajectories.sums(kept.astype(float))
    part = 1 - np.sqrt((1 - rho) / (1 - rho + rho * count))
    mean = problem.trajectories.sums(values * kept) / np.maximum(count, 1)
    out: Floats = values - (part * mean)[:, problem.trajectories.number]
    return out


def _robust_scale(residuals: Floats, undertrained: Bools) -> Floats:
    """A scale for every run of every fit, one for each side of the optimum, shape (fits, n).

    Under-trained runs vary more from seed to seed: as far as few runs leave a side's scale unknown, that of the
    under-trained side is drawn to the noise model's prior, and that of the other to the scale of all runs.
    """
    n = residuals.shape[1]
    size = np.abs(residuals)
    # Five runs are passed through exactly and say nothing of the scale.
    whole = np.median(np.sort(size, axis=1)[:, 5:], axis=1) / float(stats.norm.ppf(0.75))
    out = np.repeat(whole[:, None], n, axis=1)
    for side, prior in ((undertrained, STEP_MEAN), (~undertrained, 0.0)):
        count = side.sum(axis=1)
        ordered = np.sort(np.where(side, size, np.inf), axis=1)
        missing = 5 * count // n
        middle = np.clip([missing + (count - missing - 1) // 2, missing + (count - missing) // 2], 0, n - 1)
        own = np.take_along_axis(ordered, middle.T, axis=1).mean(axis=1) / float(stats.norm.ppf(0.75))
        trust = np.where((count >= 6) & (whole > 0), 1 / (1 + 1.4 / np.maximum(count, 1)), 0.0)
        ratio = np.maximum(own, 1e-3 * whole) / np.where(whole > 0, whole, 1)
        scale = whole * np.where(trust > 0, ratio, 1.0) ** trust * np.exp(prior * (1 - trust))
        out = np.where(side, scale[:, None], out)
    return out


def subset(problem: Problem, kept: Bools, rho: float = 0.0) -> Problem:
    """The same problem, in the same coordinates, with fewer runs."""
    part = Problem(problem.u[kept], problem.v[kept], problem.y[kept])
    if problem.trajectories is None:
        return part
    trajectories = Trajectories.of(np.unique(problem.trajectories.number[kept], return_inverse=True)[1])
    return replace(part, trajectories=trajectories, shrink=trajectories.shrink(rho, np.ones(int(kept.sum()))))
