"""The three fitted parts of a forecast, their forecasts at other runs, and their bootstrap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Floats
from flops_fit_core.fitting.task_accuracy.curves import ComputeCurve, LossCurve, binomial_variance
from flops_fit_core.fitting.task_accuracy.loss_law import LossFit, chinchilla_loss
from flops_fit_core.fitting.task_accuracy.scores import TaskScores
from flops_fit_core.fitting.task_accuracy.sigmoids import ComputeSigmoid, LossSigmoid
from flops_fit_core.fitting.uncertainty.bootstrap import draw_scale

Parts = Mapping[str, Mapping[str, Floats]]
"""Part (``loss``, ``two_step``, ``direct``) -> parameter -> values of all fits, shape (fits,)."""


@dataclass(frozen=True)
class TaskForecaster:
    """The loss law, step 2 and the direct curve, fitted to the same runs."""

    scores: TaskScores
    loss_law: LossFit
    loss_curve: LossCurve
    compute_curve: ComputeCurve
    ceiling: float

    @classmethod
    def fit(cls, scores: TaskScores, chance: float | None, ceiling: float) -> TaskForecaster:
        """Fit all three parts."""
        ln_ratio = np.log(scores.params / scores.tokens)
        return cls(
            scores,
            LossFit.fit(scores.params, scores.tokens, scores.loss),
            LossCurve.fit(scores.loss, scores.accuracy, chance, ceiling),
            ComputeCurve.fit(np.log(scores.flops), ln_ratio, scores.accuracy, chance, ceiling),
            ceiling,
        )

    @property
    def parts(self) -> Parts:
        """The parameters of the fit, each of shape (1,)."""
        return {"loss": self.loss_law.point, "two_step": self.loss_curve.point, "direct": self.compute_curve.point}

    def forecast(self, scores: TaskScores) -> Floats:
        """Mean of the two forecasts, shape (n,)."""
        two_step, direct = accuracies(
            self.parts,
            self.ceiling,
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
        law, loss_curve, compute_curve = self.loss_law, self.loss_curve, self.compute_curve
        through_loss, direct = (scores.accuracy - curve.fitted for curve in (loss_curve, compute_curve))
        return {
            "loss": law.refit(law.fitted + inflated[5] * law.result.residuals, random),
            "two_step": loss_curve.refit(loss_curve.fitted + inflated[3] * through_loss, random),
            "direct": compute_curve.refit(compute_curve.fitted + inflated[4] * direct, random),
        }


def accuracies(
    parts: Parts, ceiling: float, ln_params: Floats, ln_tokens: Floats, ln_flops: Floats
) -> tuple[Floats, Floats]:
    """Accuracy by two steps and directly, of all fits at all runs, each of shape (fits, n)."""
    loss, two_step, direct = (
        {name: np.atleast_1d(values)[:, None] for name, values in parts[part].items()}
        for part in ("loss", "two_step", "direct")
    )
    through_loss: Floats = LossSigmoid(ceiling).loss(chinchilla_loss(loss, ln_params, ln_tokens), **two_step)
    from_compute: Floats = ComputeSigmoid(ceiling).loss(ln_flops, ln_params - ln_tokens, **direct)
    return through_loss, from_compute
