"""The accuracy of tasks on the page: forecasts, and the data of their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting import AccuracyForecast, TaskFit, TaskScores, predict_accuracy

FACTORS = (1.0, 10.0, 100.0)
"""Budgets of the forecasts, over the largest C of the runs."""
CURVE_POINTS = 40


@dataclass(frozen=True)
class TaskReport:
    """The forecast accuracy of a task."""

    fit: TaskFit
    scores: TaskScores | None
    """The runs; None for a saved fit."""
    forecasts: Sequence[AccuracyForecast]
    """Forecasts for 1, 10 and 100 times the largest C of the runs."""
    curve: Sequence[AccuracyForecast]
    """Forecasts along C, ascending, for the figure."""
    path: str
    """The N of each budget, in words."""


def describe_task(fit: TaskFit, scores: TaskScores | None = None) -> TaskReport:
    """Forecasts of a fit along the optimum of the main loss; if the runs do not determine it, N ~ sqrt(C)."""
    low, high = fit.flops_range
    flops = [float(value) for value in np.geomspace(low, FACTORS[-1] * high, CURVE_POINTS)]
    budgets = sorted({*flops, *(factor * high for factor in FACTORS)})
    try:
        curve = [predict_accuracy(fit, budget) for budget in budgets]
        path = "N and D are the optimum of C by the main loss."
    except FitError:
        largest = fit.params_range[1]
        curve = [predict_accuracy(fit, budget, params=largest * (budget / high) ** 0.5) for budget in budgets]
        path = "The runs do not determine the optimal N and D: here N grows as the square root of C."
    forecasts = [curve[budgets.index(factor * high)] for factor in FACTORS]
    return TaskReport(fit, scores, forecasts, curve, path)
