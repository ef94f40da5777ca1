"""What a person should know about a fit of Approach 3, in plain words, each with what to do about it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import stats

from flops_fit_core.fitting.data import Floats, Runs
from flops_fit_core.fitting.diagnostics import note
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.io.units import looks_like_bits, name_rows
from flops_fit_core.fitting.laws.chinchilla import SurfaceFit
from flops_fit_core.fitting.laws.power_law import fit_line
from flops_fit_core.fitting.solvers.newton import solve
from flops_fit_core.fitting.solvers.objectives import LeastSquares
from flops_fit_core.fitting.uncertainty.noise import NoiseModel
from flops_fit_core.fitting.uncertainty.outliers import Rejection
from flops_fit_core.records import Diagnostic

ONE_RATIO = 0.35
"""Spread of ln (D / N) among runs of one N below which they hardly tell alpha from beta."""


def about_surface(
    fit: SurfaceFit,
    used: Runs,
    runs: Runs,
    rejection: Rejection,
    residuals: Floats,
    constraint: FlopsPerToken,
    noise: NoiseModel | None,
) -> list[Diagnostic]:
    """What Approach 3 should say of itself. ``rejection`` keeps the ``used`` among the ``runs``, of which all have
    ``residuals``; ``noise`` is theirs."""
    found = []
    kept = rejection.kept
    if bits := [runs.ids[row] for row in np.flatnonzero(~kept) if looks_like_bits(float(residuals[row]))]:
        found.append(
            Diagnostic(
                code="bits",
                message=f"{name_rows(bits)}: off by a factor of 1.44, as between bits and nats; write all in nats",
            )
        )
    if outliers := [runs.ids[row] for row in np.flatnonzero(~kept)]:
        found.append(
            Diagnostic(
                code="outliers",
                message=f"left out, further from the law than noise explains: {name_rows(outliers)}; "
                "check their tuning, or fit with objective = 'least-squares' to use them",
            )
        )
    if rejection.too_many:
        worst = [runs.ids[row] for row in np.argsort(-np.abs(residuals))[:3]]
        found.append(
            Diagnostic(
                code="outliers",
                message=f"{rejection.too_many} of {len(runs)} runs lie further from the law than noise explains, "
                f"which is too many to leave out, so every run is used (furthest off: {name_rows(worst)}); check "
                "their tuning and whether all runs are of one kind",
            )
        )
    if ratio_spread(used) < ONE_RATIO:
        found.append(
            Diagnostic(
                code="one-ratio",
                message="nearly all runs of one N have one D / N (about "
                f"{np.exp(np.median(np.log(used.tokens / used.params))):.3g}), which cannot tell alpha from beta; "
                "train some runs at 4 times and at 1/4 of it",
            )
        )
    if not fit.free[0]:
        found.append(
            Diagnostic(
                code="no-irreducible-loss",
                message="E = 0 fits best: the runs do not reach far enough to see the loss flatten, so losses far "
                "beyond them are too low; train over a wider range of N and D",
            )
        )
    if not fit.determined:
        text = (
            "the runs do not tell the five parameters apart: trust losses within the fitted range, not exponents"
        )
        found.append(Diagnostic(code="ill-conditioned", message=text))
    if not fit.converged:
        found.append(
            Diagnostic(code="not-converged", message="the solver did not converge: do not rely on this fit")
        )
    if misfit := _lack_of_fit(fit, used, noise):
        found.append(Diagnostic(code="lack-of-fit", message=misfit))
    if not constraint.is_6n:
        found.append(
            note(
                "flops-per-token",
                "C is not 6 N D in these runs: optima follow their own FLOPs per token, a smooth curve in ln N, "
                "and a and b are means over the fitted budgets, so a + b need not be 1",
            )
        )
    return found


def ratio_spread(runs: Runs) -> float:
    """How far ln D of the runs lies from a parabola in ln N: where all lie on one, D is a function of N."""
    x, z = np.log(runs.params), np.log(runs.tokens)
    design = np.vander(x - x.mean(), 3)
    rest = z - design @ np.linalg.lstsq(design, z, rcond=None)[0]
    return float(np.sqrt(np.sum(rest**2) / max(len(rest) - 3, 1)))


def swapped_roles(fit: SurfaceFit, runs: Runs) -> str:
    """Why runs along one line in ln N and ln D have no interval of a: the law with the roles of N and D swapped
    along that line fits as well, by an F test at 1%. Empty where it does not, or where D / N varies."""
    if ratio_spread(runs) >= ONE_RATIO:
        return ""
    problem, theta = fit.problem, fit.theta
    slope = float(fit_line(problem.u, problem.v, np.ones_like(problem.u))[1])
    if abs(slope) < 0.05:
        return ""
    start = np.array([[theta[0], theta[3], theta[4] * slope, theta[1], theta[2] / slope]])
    other = solve(problem, start, LeastSquares(), steps=200)
    dof = max(len(runs) - 5, 1)
    limit = fit.value * (1 + float(stats.f.isf(0.01, 1, dof)) / dof)
    here, there = (each[4] / (each[2] + each[4]) for each in (theta, other.theta[0]))
    if float(other.value[0]) > limit or abs(here - there) < 0.1:
        return ""
    return (
        f"D follows N in nearly all runs, and the law fits as well with a = {there:.2f} as with a = {here:.2f}; "
        "train some runs at 4 times and at 1/4 of that D / N"
    )


def about_draws(runs: int, dof: int, at_bound: int, draws: int) -> list[Diagnostic]:
    """What parametric intervals rest on: ``at_bound`` of the ``draws`` do not determine all parameters."""
    found = []
    if dof < 10:
        found.append(
            note(
                "few-runs",
                f"{runs} runs leave {dof} degrees of freedom to learn the noise from, so intervals rest on a "
                "guess of how much more under-trained runs vary: where that is 5 times, they hold the truth a "
                "little less often than they say; train 15 or more",
            )
        )
    if at_bound:
        message = (
            f"{at_bound} of {draws} bootstrap refits ended with a term that vanishes or an exponent out of "
            "bounds; they are kept, so intervals are wide and their ends rough: these runs hardly determine all "
            "five parameters; widen the range of N and of D / N, or train more runs"
        )
        severity: Literal["note", "warning"] = "warning" if at_bound > 0.01 * draws else "note"
        found.append(Diagnostic(code="weakly-determined", message=message, severity=severity))
    return found


def _lack_of_fit(fit: SurfaceFit, used: Runs, noise: NoiseModel | None) -> str | None:
    """An F test at 1% of what quadratic terms in ln N and ln D would add to the law, under the noise model."""
    u, v = fit.problem.u, fit.problem.v
    small = fit.jacobian[:, fit.free]
    more = np.column_stack([u**2, u * v, v**2])
    if noise is None or len(u) - small.shape[1] - more.shape[1] < 5:
        return None
    sigma = float(np.sqrt(np.mean(noise.sigma() ** 2)))
    if sigma < 1e-9 or noise.misfit(fit.residuals, small, more) > 0.01:
        return None
    worst = [used.ids[row] for row in np.argsort(-np.abs(fit.residuals))[:3]]
    return (
        f"residuals follow a pattern in N and D that noise of {sigma:.2%} does not explain: these losses have "
        f"another shape than the law, or runs were tuned unevenly (furthest off: {name_rows(worst)}); "
        "trust it within the fitted range only"
    )
