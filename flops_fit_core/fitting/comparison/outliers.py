"""Runs far off the surface that both recipes share.

As for a single law (:mod:`flops_fit_core.fitting.uncertainty.outliers`): the deletion residual of a run is
compared with the Bonferroni bound of Student's t distribution, one run at a time, with the same chances of a false
alarm.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from flops_fit_core.fitting.comparison.design import Design
from flops_fit_core.fitting.comparison.posterior import most_probable_z
from flops_fit_core.fitting.comparison.surface import SharedSurface
from flops_fit_core.fitting.uncertainty.outliers import (
    BETTER_CHANCE,
    MAX_REJECTED_SHARE,
    MIN_DOF,
    MIN_RUNS,
    WORSE_CHANCE,
)

_STEPS = 3
"""Refits with a new noise level, until it is stable."""


def reject_outliers(design: Design) -> tuple[Design, list[str]]:
    """The design without outliers, and their ids. Keeps all runs of a design with fewer than 10, and all runs if
    more than a fifth would be rejected."""
    remaining, rejected = design, list[str]()
    while len(remaining) >= MIN_RUNS:
        row = _find_outlier(remaining)
        if row is None:
            return remaining, rejected
        rejected.append(remaining.runs.ids[row])
        if len(rejected) > MAX_REJECTED_SHARE * len(design):
            return design, []
        remaining = remaining.take(np.delete(np.arange(len(remaining)), row))
    return remaining, rejected


def _find_outlier(design: Design) -> int | None:
    """The row of the run with the least probable deletion residual, if it is beyond its bound."""
    surface, sigma = SharedSurface.of(design), 0.003
    z, runs = np.zeros(len(surface.centre)), len(design)
    for _ in range(_STEPS):
        surface, z = surface.with_gain(z)
        z = most_probable_z(surface, design.ln_loss, sigma * np.eye(runs), z)
        residuals, jacobian = design.ln_loss - surface.predict(z), surface.jacobian(z)
        inverse = np.linalg.inv(jacobian.T @ jacobian + sigma**2 * np.eye(len(z)))
        leverage = np.einsum("ij,jk,ik->i", jacobian, inverse, jacobian)
        dof = runs - leverage.sum()
        sigma = max(float(np.sqrt(residuals @ residuals / dof)), 1e-7)
    if dof - 1 < MIN_DOF:
        return None
    explained = residuals**2 / (1 - leverage)
    deleted = np.sqrt(np.maximum(residuals @ residuals - explained, 1e-14 * runs) / (dof - 1))
    ratios = residuals / (deleted * np.sqrt(1 - leverage))
    chances = stats.t.sf(np.abs(ratios), dof - 1) * runs / np.where(ratios > 0, WORSE_CHANCE, BETTER_CHANCE)
    row = int(np.argmin(chances))
    return row if chances[row] < 1 else None
