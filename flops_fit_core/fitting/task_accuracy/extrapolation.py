"""Backtests inside the fitted runs: how fast the error of a forecast grows with distance in C."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats
from flops_fit_core.fitting.task_accuracy.curves import binomial_variance
from flops_fit_core.fitting.task_accuracy.forecaster import TaskForecaster
from flops_fit_core.fitting.task_accuracy.scores import TaskScores

CUTS = (0.5, 0.75)
"""Shares of the runs, smallest C first, that are fitted to forecast the others."""
MIN_FITTED, MIN_HELD_OUT = 10, 2
EXPLAINED = 1.5
"""Mean absolute errors up to this many standard deviations of one run may be noise."""


@dataclass(frozen=True)
class BacktestErrors:
    """Errors of forecasts of held-out runs, one per array entry."""

    error: Floats
    """Forecast minus measured accuracy, in binomial standard deviations of one answer."""
    distance: Floats
    """Ln of the run's C divided by the largest fitted C, at least 0."""
    cut: Floats
    """Number of the cut, from 0."""
    last: Floats
    """Error of the accuracy of the fitted run of largest C as forecast, in the same unit."""

    def growth(self, noise: float) -> float:
        """Standard deviation of the error at a distance of ln C = 1, beyond the noise.

        The variance is proportional to the distance. Every cut counts equally, because its runs share an error.
        """
        excess, distance = 0.0, 0.0
        for number in np.unique(self.cut):
            rows = self.cut == number
            excess += max(float((self.error[rows] ** 2).mean()) - noise**2, 0.0)
            distance += float(self.distance[rows].mean())
        return float(np.sqrt(excess / distance)) if distance else 0.0

    def is_helpful(self, noise: float) -> bool:
        """Whether forecasts from the largest fitted part are better than the accuracy of its largest run.

        Also true without a backtest, and for errors that the noise of a run explains.
        """
        rows = self.cut == self.cut.max() if len(self.cut) else np.zeros(0, dtype=bool)
        if not rows.any():
            return True
        error = float(np.abs(self.error[rows]).mean())
        return error < max(float(np.abs(self.last[rows]).mean()), EXPLAINED * noise)


def backtest(scores: TaskScores, chance: float | None, ceiling: float) -> BacktestErrors:
    """Fit the runs below each cut and forecast those above it. Empty for tables with too few runs."""
    parts = []
    for number, share in enumerate(CUTS):
        above = _split(scores, share)
        fitted, held_out = scores.take(~above), scores.take(above)
        if len(fitted) < MIN_FITTED or len(held_out) < MIN_HELD_OUT or float(np.ptp(fitted.accuracy)) == 0:
            continue
        forecast = TaskForecaster.fit(fitted, chance, ceiling).forecast(held_out)
        unit = np.sqrt(binomial_variance(forecast))
        largest = fitted.accuracy[np.argmax(fitted.flops)]
        parts.append(
            np.stack(
                [
                    (forecast - held_out.accuracy) / unit,
                    np.maximum(np.log(held_out.flops / fitted.flops.max()), 0.0),
                    np.full(len(held_out), float(number)),
                    (largest - held_out.accuracy) / unit,
                ]
            )
        )
    columns = np.concatenate(parts, axis=1) if parts else np.empty((4, 0))
    return BacktestErrors(*columns)


def _split(scores: TaskScores, share: float) -> Bools:
    """Mask of the runs above the cut. Runs of equal C, and runs of one trajectory, stay on one side."""
    order = np.sort(scores.flops)
    limit = order[min(int(share * len(order)), len(order) - 1) - 1] * (1 + 1e-9)
    above = scores.flops > limit
    clusters = scores.clusters
    mixed = np.isin(clusters, np.intersect1d(clusters[above], clusters[~above]))
    is_above: Bools = above | mixed
    return is_above
