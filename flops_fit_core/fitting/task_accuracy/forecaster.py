"""The three fitted parts of a forecast, their forecasts at other runs, and their bootstrap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Floats
from flops_fit_core.fitting.task_accuracy.curves import (
    ComputeCurve,
    LossCurve,
    binomial_variance,
    compute_to_accuracy,
    loss_to_accuracy,
)
from flops_fit_core.fitting.task_accuracy.loss_law import LossLaw, chinchilla_loss
from flops_fit_core.fitting.task_accuracy.scores import TaskScores
from flops_fit_core.fitting.uncertainty.bootstrap import draw_scale

Parts = Mapping[str, Mapping[str, Floats]]
"""Part (``loss``, ``two_step``, ``direct``) -> parameter -> values of all fits, shape (fits,)."""


@dataclass(frozen=True)
class TaskForecaster:
    """The loss law, step 2 and the direct curve, fitted to the same runs."""

    scores: TaskScores
    loss_law: LossLaw
    loss_curve: LossCurve
    compute_curve: ComputeCurve

    @classmethod
    def fit(cls, scores: TaskScores, chance: float | None, ceiling: float) -> TaskForecaster:
        """Fit all three parts."""
        return cls(
            scores,
            LossLaw.fit(scores.params, scores.tokens, scores.loss),
            LossCurve.fit(scores.loss, scores.accuracy, chance, ceiling),
            ComputeCurve.fit(compute_inputs(scores), scores.accuracy, chance, ceiling),
        )

    @property
    def parts(self) -> Parts:
        """The parameters of the fit, each of shape (1,)."""
        return {
            "loss": self.loss_law.parameters(self.loss_law.theta[None]),
            "two_step": self.loss_curve.parameters(self.loss_curve.theta[None]),
            "direct": self.compute_curve.parameters(self.compute_curve.theta[None]),
        }

    def forecast(self, scores: TaskScores) -> Floats:
        """Mean of the two forecasts, shape (n,)."""
        two_step, direct = accuracies(
            self.parts,
            self.loss_curve.ceiling,
            np.log(scores.params),
            np.log(scores.tokens),
            np.log(scores.flops),
        )
        mean: Floats = (two_step[0] + direct[0]) / 2
        return mean

    def residuals(self) -> Floats:
        """Of accuracy from the mean forecast at the fitted runs, in binomial standard deviations of one answer."""
        forecast = self.forecast(self.scores)
        residuals: Floats = (self.scores.accuracy - forecast) / np.sqrt(binomial_variance(forecast))
        return residuals

    def bootstrap(self, draws: int, seed: int) -> Parts:
        """Refits to resampled residuals: a wild bootstrap with a normal multiplier per trajectory.

        The three residuals of a run get the same multiplier, so that their correlation is kept.
        """
        scores, random = self.scores, np.random.default_rng(seed)
        n, clusters = len(scores), scores.clusters
        num_clusters = int(clusters.max()) + 1
        multipliers = random.standard_normal((draws, num_clusters))[:, clusters]
        multipliers *= draw_scale(max(num_clusters - 5, 2), draws, random)[:, None]
        inflated = {count: multipliers * np.sqrt(n / max(n - count, 1)) for count in (3, 4, 5)}
        fitted_loss = np.log(self.loss_law(scores.params, scores.tokens))
        drawn_loss = fitted_loss + inflated[5] * self.loss_law.residuals
        loss = self.loss_law.refit(scores.params, scores.tokens, drawn_loss, random)
        inputs, through_loss = compute_inputs(scores), self.loss_curve(scores.loss[None])
        direct = self.compute_curve(inputs)
        residuals = scores.accuracy - through_loss, scores.accuracy - direct
        two_step = self.loss_curve.refit(scores.loss[None], through_loss + inflated[3] * residuals[0], random)
        compute = self.compute_curve.refit(inputs, direct + inflated[4] * residuals[1], random)
        return {
            "loss": self.loss_law.parameters(loss),
            "two_step": self.loss_curve.parameters(two_step),
            "direct": self.compute_curve.parameters(compute),
        }


def compute_inputs(scores: TaskScores) -> Floats:
    """Ln C and ln(N / D), shape (2, n)."""
    return np.stack([np.log(scores.flops), np.log(scores.params / scores.tokens)])


def accuracies(
    parts: Parts, ceiling: float, ln_params: Floats, ln_tokens: Floats, ln_flops: Floats
) -> tuple[Floats, Floats]:
    """Accuracy by two steps and directly, of all fits at all runs, each of shape (fits, n)."""
    loss, two_step, direct = (
        {name: np.atleast_1d(values)[:, None] for name, values in parts[part].items()}
        for part in ("loss", "two_step", "direct")
    )
    through_loss = loss_to_accuracy(two_step, chinchilla_loss(loss, ln_params, ln_tokens), ceiling)
    return through_loss, compute_to_accuracy(direct, ln_flops, ln_params - ln_tokens, ceiling)
