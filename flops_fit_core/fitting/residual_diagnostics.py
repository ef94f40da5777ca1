"""Tests of the residuals of a fitted law L(N, D), for any law.

Two tests ask whether residuals follow a pattern that the noise does not explain: one term in (ln N / N_opt(C))^2,
the direction in which the form of the law decides N_opt, and three quadratic terms in ln N and ln D. A third test
counts runs outside the interval of a new run. All are judged under the noise model of the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.fitting.data import Floats
from flops_fit_core.fitting.distributions import binomial_tail, f_tail, f_upper_quantile, t_quantile
from flops_fit_core.fitting.io.units import name_rows
from flops_fit_core.fitting.uncertainty.noise import NoiseModel
from flops_fit_core.records import Diagnostic

MAX_CURVATURE_P, MAX_QUADRATIC_P, MAX_OUTSIDE_P = 0.03, 0.02, 0.01
"""Levels of the three tests. All warnings of a fit together are raised in at most 5% of clean studies."""
_MIN_DOF = 5
"""Degrees of freedom of the noise that a test needs."""
_MIN_SIGMA = 1e-9
"""Smaller residuals are rounding."""
_NEW_RUN_LEVEL = 0.9


@dataclass(frozen=True)
class FittedResiduals:
    """Residuals of n runs about a fitted law, and the quantities that their tests need."""

    residuals: Floats
    """Ln L minus the law's ln L, shape (n,)."""
    jacobian: Floats
    """d ln L / d parameter, shape (n, p), without parameters on a bound."""
    offsets: Floats
    """Ln N / N_opt(C) of each run under the law, shape (n,)."""
    noise: NoiseModel
    ids: Sequence[str]

    @property
    def dof(self) -> int:
        return len(self.residuals) - int(self.jacobian.shape[1])

    @property
    def sigma(self) -> float:
        """Root mean square of the noise's standard deviation of ln L."""
        return float(np.sqrt(np.mean(self.noise.sigma() ** 2)))


@dataclass(frozen=True)
class OutsideCount:
    """Runs outside the interval of a new run."""

    count: int
    expected: float
    p_value: float
    """Probability of as many or more, if every run is outside with probability 1 - level."""


def check_residuals(fitted: FittedResiduals, quadratic: Floats) -> list[Diagnostic]:
    """Diagnostics of the three tests. ``quadratic`` are quadratic terms of the law's inputs, shape (n, k)."""
    if fitted.sigma < _MIN_SIGMA:
        return []
    checks = (
        # A pattern about the optimum is also one in N and D: the first message is the more specific.
        ("lack-of-fit", _describe_curvature(fitted) or _describe_pattern(fitted, quadratic)),
        ("new-runs", _describe_outside(fitted)),
    )
    return [Diagnostic(code=code, message=message) for code, message in checks if message]


def curvature_p_value(fitted: FittedResiduals) -> float:
    """P value of the F test that a term in (ln N / N_opt)^2 adds nothing to the law; 1 for too few runs.

    Rows of a trajectory share an error, so the degrees of freedom are those of trajectories: with those of rows,
    10% of 60 clean studies of 12 training curves failed at 3%.
    """
    rows, trajectories = len(fitted.residuals), len(np.unique(fitted.noise.trunk))
    dof = fitted.dof - 1 - (rows - trajectories)
    if dof < _MIN_DOF:
        return 1.0
    p_value = fitted.noise.misfit(fitted.residuals, fitted.jacobian, fitted.offsets[:, None] ** 2)
    if trajectories == rows:
        return p_value
    return float(f_tail(f_upper_quantile(p_value, 1, fitted.dof - 1), 1, dof))


def deletion_residuals(fitted: FittedResiduals) -> Floats:
    """Residuals of the runs about the law fitted without them, over their standard deviation, shape (n,).

    They follow Student's t with dof - 1 degrees of freedom (Cook and Weisberg 1982, section 2.2), to first order
    in the parameters, if noise has the posterior mean pattern of the noise model and no trajectory has two rows.
    Needs dof > 1.
    """
    weight = 1 / fitted.noise.sigma()
    basis = np.linalg.qr(fitted.jacobian * weight[:, None])[0]
    one_minus_leverage = 1 - np.minimum((basis**2).sum(axis=1), 0.999)
    scaled = fitted.residuals * weight
    internal = scaled**2 / one_minus_leverage
    variance = np.maximum(np.sum(scaled**2) - internal, 1e-12 * np.sum(scaled**2)) / (fitted.dof - 1)
    standardised: Floats = scaled / np.sqrt(variance * one_minus_leverage)
    return standardised


def count_outside(standardised: Floats, dof: int, level: float = _NEW_RUN_LEVEL) -> OutsideCount:
    """Count the runs outside their central ``level`` interval, and compare with the binomial distribution.

    ``standardised`` (n,) are deletion residuals: each run against the interval of a new run from the other runs.
    They follow Student's t with ``dof`` degrees of freedom if the noise is Gaussian.
    """
    limit = float(t_quantile((1 + level) / 2, dof))
    count = int(np.sum(np.abs(standardised) > limit))
    p_value = float(binomial_tail(count - 1, len(standardised), 1 - level))
    return OutsideCount(count, (1 - level) * len(standardised), p_value)


def _describe_curvature(fitted: FittedResiduals) -> str:
    p_value = curvature_p_value(fitted)
    if p_value > MAX_CURVATURE_P:
        return ""
    order = np.argsort(np.abs(fitted.offsets), kind="stable")
    count = max(3, len(order) // 4)
    nearest, furthest = (
        _describe_side(fitted.residuals[rows]) for rows in (order[:count], order[len(order) - count :])
    )
    return (
        f"the law misses the losses near the optimum: the {count} runs nearest to N_opt lie {nearest} the law, "
        f"the {count} furthest {furthest} it, and a term in (ln N / N_opt)^2 improves the fit, p = {p_value:.1g}. "
        "The form of the law decides N_opt and a here, and intervals do not include this: compare other laws and "
        "fitter isoflop, and train more sizes near N_opt"
    )


def _describe_side(residuals: Floats) -> str:
    mean = float(np.expm1(residuals.mean()))
    return f"{numbers.share(abs(mean))} {'above' if mean > 0 else 'below'}"


def _describe_pattern(fitted: FittedResiduals, quadratic: Floats) -> str:
    if fitted.dof - quadratic.shape[1] < _MIN_DOF:
        return ""
    if fitted.noise.misfit(fitted.residuals, fitted.jacobian, quadratic) > MAX_QUADRATIC_P:
        return ""
    noise = numbers.share(fitted.sigma, 2)
    return (
        f"residuals follow a pattern in N and D that noise of {noise} does not explain: the law has "
        "the wrong shape for these losses, or runs were tuned unevenly (furthest off: "
        f"{_name_furthest(fitted, np.abs(fitted.residuals))}); trust the law within the fitted range only"
    )


def _describe_outside(fitted: FittedResiduals) -> str:
    has_shared_rows = len(np.unique(fitted.noise.trunk)) < len(fitted.noise.trunk)
    if fitted.dof - 1 < _MIN_DOF or has_shared_rows:  # rows that share an error are not new runs
        return ""
    standardised = deletion_residuals(fitted)
    outside = count_outside(standardised, fitted.dof - 1)
    if outside.p_value > MAX_OUTSIDE_P:
        return ""
    return (
        f"{outside.count} of {len(standardised)} runs lie outside the {_NEW_RUN_LEVEL:.0%} interval of a new run "
        f"computed without them, and chance explains about {outside.expected:.0f}: some runs differ from the "
        f"rest in more than N and D (furthest off: {_name_furthest(fitted, np.abs(standardised))}); check their "
        "tuning, and whether the table mixes kinds of runs"
    )


def _name_furthest(fitted: FittedResiduals, distance: Floats) -> str:
    return name_rows([fitted.ids[row] for row in np.argsort(-distance)[:3]])
