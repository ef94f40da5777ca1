"""Checks for tasks with an accuracy that cannot be forecast."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flops_fit_core.fitting.data import Floats
from flops_fit_core.fitting.task_accuracy.curves import binomial_variance
from flops_fit_core.fitting.task_accuracy.extrapolation import BacktestErrors
from flops_fit_core.fitting.task_accuracy.forecaster import Parts, TaskForecaster
from flops_fit_core.records import Diagnostic

TREND_CHANCE = 0.01
"""A trend counts if chance gives one as strong in at most this share of tables."""
MIN_RISE = 3.0
"""Smallest rise of accuracy over the runs, in standard deviations of one run."""
MIN_ABOVE_CHANCE = 2.0
"""Smallest distance from chance of the largest third of the runs, in standard deviations of one run."""
MAX_SLOPE_RATIO = 10.0
"""Largest ratio between the ends of the 90% interval of a slope."""


def check_task(
    forecaster: TaskForecaster,
    draws: Parts,
    errors: BacktestErrors,
    noise: float,
    chance: float | None,
) -> list[Diagnostic]:
    """A warning for every reason why accuracy of this task cannot be forecast from these runs."""
    checks = (
        _check_trend(forecaster),
        _check_rise(forecaster, noise),
        _check_chance(forecaster, noise, chance),
        _check_slope("step 2", draws.get("two_step", {})),
        _check_slope("the direct curve", draws.get("direct", {})),
        _check_backtest(errors, noise),
    )
    return [diagnostic for diagnostic in checks if diagnostic is not None]


def _check_trend(forecaster: TaskForecaster) -> Diagnostic | None:
    from scipy.stats import spearmanr  # slow to import

    scores = forecaster.scores
    trend = spearmanr(scores.accuracy, -scores.loss, alternative="greater")
    if trend.pvalue <= TREND_CHANCE:
        return None
    message = (
        f"{scores.task} has no monotone relation with {scores.via} in these {len(scores)} runs (rank "
        f"correlation {-trend.statistic:.2f}, p = {trend.pvalue:.2g}), so it cannot be forecast: train runs over "
        "a wider range of C, or use a task with more questions"
    )
    return Diagnostic(code="task-no-trend", message=message)


def _check_rise(forecaster: TaskForecaster, noise: float) -> Diagnostic | None:
    scores = forecaster.scores
    fitted = forecaster.forecast(scores)
    rise, sd = float(np.ptp(fitted)), noise * _unit(fitted)
    if rise >= MIN_RISE * sd:
        return None
    message = (
        f"{scores.task} rises by {rise:.3f} over the fitted runs, less than {MIN_RISE:.0f} standard deviations of "
        f"one run ({sd:.3f}), so it cannot be forecast: use a task with more questions, or larger runs"
    )
    return Diagnostic(code="task-within-noise", message=message)


def _check_chance(forecaster: TaskForecaster, noise: float, chance: float | None) -> Diagnostic | None:
    if chance is None:
        return None
    scores = forecaster.scores
    largest = scores.accuracy[np.argsort(scores.flops)[-max(3, len(scores) // 3) :]]
    mean, sd = float(largest.mean()), noise * _unit(largest)
    if mean - chance >= MIN_ABOVE_CHANCE * sd:
        return None
    message = (
        f"{scores.task} is within noise of chance: the largest third of the runs reaches {mean:.3f}, chance "
        f"is {chance:.3f} and the standard deviation of one run is {sd:.3f}. It cannot be forecast "
        "without larger runs"
    )
    return Diagnostic(code="task-chance", message=message)


def _check_slope(label: str, draws: Mapping[str, Floats]) -> Diagnostic | None:
    slopes = draws.get("slope", np.empty(0))
    if not len(slopes):
        return None
    low, high = np.quantile(slopes, [0.05, 0.95])
    if high <= MAX_SLOPE_RATIO * low:
        return None
    message = (
        f"the runs do not determine how steeply accuracy rises in {label}: the 90% interval of its slope is "
        f"{low:.3g} to {high:.3g}, so a forecast beyond the runs is arbitrary. Train runs over a wider range of C"
    )
    return Diagnostic(code="task-unidentified", message=message)


def _check_backtest(errors: BacktestErrors, noise: float) -> Diagnostic | None:
    if errors.is_helpful(noise):
        return None
    message = (
        "forecasts of the largest quarter of the runs from the other runs are worse than the accuracy of the "
        "largest other run, so forecasts from these runs cannot be trusted"
    )
    return Diagnostic(code="task-backtest", message=message)


def _unit(accuracy: Floats) -> float:
    return float(np.sqrt(binomial_variance(accuracy)).mean())
