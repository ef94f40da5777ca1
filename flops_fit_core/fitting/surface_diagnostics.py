"""Diagnostics of a fit of Approach 3: a code, and a sentence that names the problem and the remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from flops_fit_core.fitting.data import Floats, Runs
from flops_fit_core.fitting.diagnostics import count_runs, note
from flops_fit_core.fitting.distributions import f_upper_quantile
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.io.units import looks_like_bits, name_rows
from flops_fit_core.fitting.laws.power_law import fit_line
from flops_fit_core.fitting.residual_diagnostics import FittedResiduals, check_residuals
from flops_fit_core.fitting.solvers.newton import ChinchillaProblem
from flops_fit_core.fitting.solvers.objectives import LeastSquares
from flops_fit_core.fitting.solvers.surface_fit import SurfaceFit, fit_surface, make_problem
from flops_fit_core.fitting.uncertainty.noise import NoiseModel
from flops_fit_core.fitting.uncertainty.outliers import Rejection
from flops_fit_core.records import Diagnostic

MIN_RATIO_SPREAD = 0.35
"""Below this spread of ln (D / N) among runs of equal N, alpha and beta are nearly indistinguishable."""


def check_surface(
    fit: SurfaceFit,
    used: Runs,
    runs: Runs,
    rejection: Rejection,
    residuals: Floats,
    constraint: FlopsPerToken,
    noise: NoiseModel | None,
) -> list[Diagnostic]:
    """Check a fit of Approach 3.

    ``used`` are the accepted ``runs``. ``residuals`` cover all ``runs``; ``noise`` covers ``used``.
    """
    diagnostics = []
    accepted = rejection.accepted
    bits = [runs.ids[row] for row in np.flatnonzero(~accepted) if looks_like_bits(float(residuals[row]))]
    if bits and 2 * len(bits) >= np.sum(~accepted):
        diagnostics.append(
            Diagnostic(
                code="bits",
                message=f"{name_rows(bits)}: off by a factor of 1.44, the ratio between bits and nats; write all "
                "losses in nats",
            )
        )
    if outliers := [runs.ids[row] for row in np.flatnonzero(~accepted)]:
        diagnostics.append(
            Diagnostic(
                code="outliers",
                message=f"{count_runs(len(outliers))} left out, further from the law than noise explains: "
                f"{name_rows(outliers)}; check the tuning of these runs, or fit with objective = 'least-squares' "
                "to use them",
            )
        )
    if rejection.too_many:
        worst = [runs.ids[row] for row in np.argsort(-np.abs(residuals))[:3]]
        diagnostics.append(
            Diagnostic(
                code="outliers",
                message=f"{rejection.too_many} of {len(runs)} runs lie further from the law than noise explains. "
                f"These are too many to leave out, so every run is used (furthest off: {name_rows(worst)}); check "
                "the tuning of these runs, and whether the table mixes kinds of runs",
            )
        )
    has_tokens = "tokens" in fit.problem.law.inputs
    if has_tokens and ratio_spread(used) < MIN_RATIO_SPREAD:
        diagnostics.append(
            Diagnostic(
                code="one-ratio",
                message="nearly all runs of equal N have the same D / N (about "
                f"{np.exp(np.median(np.log(used.tokens / used.params))):.3g}), so alpha and beta cannot be "
                "separated; train some runs at 4 times and at 1/4 of that D / N",
            )
        )
    if not fit.free[_index_of_limit(fit)].all():
        diagnostics.append(
            Diagnostic(
                code="no-irreducible-loss",
                message="E = 0 fits best: the loss does not flatten within the range of the runs, so losses far "
                "beyond it are predicted too low; train over a wider range of N and D",
            )
        )
    if not fit.determined:
        message = "the runs do not determine all parameters: trust losses within the fitted range, not exponents"
        diagnostics.append(Diagnostic(code="ill-conditioned", message=message))
    if not fit.converged:
        diagnostics.append(
            Diagnostic(code="not-converged", message="the solver did not converge: do not rely on this fit")
        )
    if noise is not None and has_tokens:
        u, v = (np.log(values) - np.log(values).mean() for values in (used.params, used.tokens))
        offsets = np.where(noise.covariates[:, 0] > 0, 1, -1) * noise.covariates[:, 1]
        fitted = FittedResiduals(
            fit.residuals * used.noise,
            fit.jacobian[:, fit.free] * used.noise[:, None],
            offsets,
            replace(noise, relative=used.noise),
            used.ids,
        )
        diagnostics += check_residuals(fitted, np.column_stack([u**2, u * v, v**2]))
    if has_tokens and not constraint.is_6n:
        diagnostics.append(
            note(
                "flops-per-token",
                "C is not 6 N D in these runs: optima follow their own FLOPs per token, a smooth curve in ln N, "
                "and a and b are means over the fitted budgets, so a + b need not be 1",
            )
        )
    return diagnostics


def _index_of_limit(fit: SurfaceFit) -> list[int]:
    """Index of the irreducible loss E among the parameters; empty if the law has none."""
    names = [parameter.name for parameter in fit.problem.law.parameters]
    return [names.index("E")] if "E" in names else []


def ratio_spread(runs: Runs) -> float:
    """Standard deviation of ln D about a parabola in ln N; near 0, D is a function of N."""
    x, z = np.log(runs.params), np.log(runs.tokens)
    design = np.vander(x - x.mean(), 3)
    residuals = z - design @ np.linalg.lstsq(design, z, rcond=None)[0]
    return float(np.sqrt(np.sum(residuals**2) / max(len(residuals) - 3, 1)))


def explain_swapped_runs(runs: Runs) -> str:
    """:func:`explain_swapped_roles` for chinchilla fitted to the runs."""
    if ratio_spread(runs) >= MIN_RATIO_SPREAD or len(runs) < 6:
        return ""
    problem = make_problem(np.log(runs.params), np.log(runs.tokens), np.log(runs.loss))
    return explain_swapped_roles(fit_surface(problem, LeastSquares()), runs)


def explain_swapped_roles(fit: SurfaceFit, runs: Runs) -> str:
    """Explain why runs on one line in ln N and ln D give no interval of a; empty if they give one.

    The law with the roles of N and D swapped along the line fits equally well, by an F test at 1%.
    """
    if ratio_spread(runs) >= MIN_RATIO_SPREAD:
        return ""
    problem, theta = fit.problem, fit.theta
    assert isinstance(problem, ChinchillaProblem)
    slope = float(fit_line(problem.u, problem.v, np.ones_like(problem.u))[1])
    if abs(slope) < 0.05:
        return ""
    start = np.array([[theta[0], theta[3], theta[4] * slope, theta[1], theta[2] / slope]])
    swapped = problem.solve(start, LeastSquares(), steps=200)
    dof = max(len(runs) - 5, 1)
    limit = fit.value * (1 + float(f_upper_quantile(0.01, 1, dof)) / dof)
    exponent, swapped_exponent = (
        parameters[4] / (parameters[2] + parameters[4]) for parameters in (theta, swapped.theta[0])
    )
    if float(swapped.value[0]) > limit or abs(exponent - swapped_exponent) < 0.1:
        return ""
    return (
        f"D follows N in nearly all runs, and the law fits equally well with a = {swapped_exponent:.2f} and "
        f"a = {exponent:.2f}; train some runs at 4 times and at 1/4 of that D / N"
    )


def check_draws(runs: int, dof: int, at_bound: int, draws: int) -> list[Diagnostic]:
    """Report weakly supported intervals; ``at_bound`` of the ``draws`` do not determine all parameters."""
    diagnostics = []
    if dof < 10:
        diagnostics.append(
            note(
                "few-runs",
                f"{runs} runs leave {dof} degrees of freedom to estimate the noise, so intervals rest on an "
                "assumption of how much more under-trained runs vary: if they vary 5 times as much, coverage is a "
                "little below the nominal level; train 15 or more",
            )
        )
    if at_bound:
        message = (
            f"{at_bound} of {draws} bootstrap refits ended with a term that vanishes or an exponent out of "
            "bounds; they are kept, so intervals are wide and their ends rough: these runs hardly determine all "
            "parameters; widen the range of N and of D / N, or train more runs"
        )
        severity: Literal["note", "warning"] = "warning" if at_bound > 0.01 * draws else "note"
        diagnostics.append(Diagnostic(code="weakly-determined", message=message, severity=severity))
    return diagnostics
