"""Residuals of a fitted law L(N, D) against the distance from the optimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.distributions import t_quantile
from flops_fit_core.fitting.laws.optimum_solver import OptimumSolver
from flops_fit_core.fitting.predict import without_draws
from flops_fit_core.records import LawFit, Observation
from flops_fit_core.report.profiles import surface_loss

NOISE_LEVEL = 0.9
_BUDGET_POINTS = 25
"""N_opt is interpolated between this many budgets."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Residuals:
    """Residuals of runs about a law, one entry per run."""

    ratio: Floats
    """N / N_opt(C), with C of the run."""
    percent: Floats
    """100 (ln L - ln L of the law)."""
    budget: Floats
    """The nominal budget of the run, or its C."""
    used: NDArray[np.bool_]
    """False for runs that the fit excluded."""
    half_width: float | None
    """Half the width of the noise's central 90% interval in percent; None without a degree of freedom."""


def compute_residuals(observations: Sequence[Observation], fit: LawFit) -> Residuals | None:
    """Residuals of the runs; None for a law that gives no loss at (N, D), such as ``isoflop``, and for no runs.

    The noise is one level for all runs: the scatter of the used runs, with Student's t.
    """
    point_fit = without_draws(fit)
    try:
        sizes, tokens = [run.params for run in observations], [run.tokens for run in observations]
        predicted = surface_loss(point_fit, sizes, tokens)
        flops = np.array([run.flops for run in observations], dtype=float)
        grid = np.geomspace(flops.min(), flops.max() * (1 + 1e-9), _BUDGET_POINTS)
        best = [item.params.value for item in OptimumSolver(point_fit).many(grid.tolist(), new_run=False)]
    except (FitError, ValueError):
        # The law of another plugin, a law of the optimum only, or no runs.
        return None
    ln_best = np.interp(np.log(flops), np.log(grid), np.log(best))
    ln_loss = np.log([run.loss for run in observations])
    percent = 100 * (ln_loss - np.log(predicted))
    used = np.array([run.id not in fit.excluded for run in observations])
    dof = int(used.sum()) - len(fit.law.parameters)
    half_width = None
    if dof > 0:
        sigma = np.sqrt(np.sum(percent[used] ** 2) / dof)
        half_width = float(t_quantile((1 + NOISE_LEVEL) / 2, dof) * sigma)
    return Residuals(
        ratio=np.array([run.params for run in observations]) / np.exp(ln_best),
        percent=percent,
        budget=np.array([run.budget or run.flops for run in observations], dtype=float),
        used=used,
        half_width=half_width,
    )
