"""The share of a law's prior in the precision of the exponent a."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flops_fit_core.fitting.data import Floats, Ints
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.optima import end_slopes
from flops_fit_core.fitting.laws.surfaces import LawSurface
from flops_fit_core.fitting.solvers.surface_fit import SurfaceFit
from flops_fit_core.records import Diagnostic

LARGEST_SHARE = 0.25
"""A truth 1.6 standard deviations of the prior from its mean then lies 0.8 posterior standard deviations from the
estimate, and a nominal 90% interval holds it in about 80% of studies."""
_STEP = 1e-4
"""Difference of theta for the gradient of a. Theta is a logarithm or of order 1."""


def check_prior(share: float | None) -> list[Diagnostic]:
    """Warn if more than ``LARGEST_SHARE`` of the precision of a comes from the prior."""
    if share is None or share <= LARGEST_SHARE:
        return []
    message = (
        f"the runs hardly determine a; {share:.0%} of its precision is the prior's. The prior expects the usual "
        "exponents, so an unusual a lies outside its interval too often. Further budgets and seeds help; "
        "--fitter parametric has no prior"
    )
    return [Diagnostic(code="prior", message=message)]


def prior_share(
    fit: SurfaceFit, constraint: FlopsPerToken, flops: Floats, inputs: Mapping[str, float] | None = None
) -> float | None:
    """The share of the prior in the precision of a, from 0 to 1; None if the law fixes a.

    ``flops`` (n,) are those of the runs, and ``inputs`` the values of the law's further inputs.

    With the information of the runs J, that of the prior Q and the gradient g of a, the posterior variance of a is
    g' S g with S = (J + Q)^-1, and the share is g' S Q S g / g' S g.
    """
    free = np.flatnonzero(fit.free)
    slopes = _gradient(fit, free, constraint, flops, dict(inputs or {}))
    if not np.isfinite(slopes).all() or np.abs(slopes).max(initial=0.0) < 1e-6:
        return None
    design = fit.jacobian[:, free]
    weights = np.ones(len(design)) if fit.problem.weights is None else fit.problem.weights
    prior = np.diag(fit.problem.prior_precision[free])
    direction = np.linalg.pinv((design.T * weights) @ design + prior, hermitian=True) @ slopes
    return float(direction @ prior @ direction / (slopes @ direction))


def _gradient(
    fit: SurfaceFit, free: Ints, constraint: FlopsPerToken, flops: Floats, inputs: Mapping[str, float]
) -> Floats:
    """Derivatives of a by the free parameters, by central differences."""
    shifts = _STEP * np.eye(fit.problem.size)[free]
    theta = fit.theta + np.concatenate([shifts, -shifts])
    surface = LawSurface(fit.problem.law, fit.problem.values(theta), inputs)
    above, below = np.split(end_slopes(surface, constraint, flops)[0], 2)
    gradient: Floats = (above - below) / (2 * _STEP)
    return gradient
