"""Step 2 and the direct curve, fitted by weighted least squares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np

from flops_fit_core.fitting.data import Floats
from flops_fit_core.fitting.laws.coordinates import Coordinates
from flops_fit_core.fitting.solvers.law_problem import LawProblem
from flops_fit_core.fitting.solvers.surface_fit import SurfaceFit
from flops_fit_core.fitting.task_accuracy.sigmoids import ComputeSigmoid, LossSigmoid
from flops_fit_core.fitting.uncertainty.posterior import fit_with_prior, refit_with_prior


@dataclass(frozen=True)
class AccuracyCurve(ABC):
    """A fitted sigmoid."""

    result: SurfaceFit
    """The fit. Its residuals are those of accuracy."""
    problem: LawProblem
    """The runs with their weights and priors, and any point that the curve must pass near after the runs."""
    fitted: Floats
    """Accuracy of the fitted runs by the curve, shape (n,)."""

    @classmethod
    def of_problem(cls, problem: LawProblem, runs: int) -> Self:
        """Fit a problem; its first ``runs`` points are the runs."""
        result = fit_with_prior(problem)
        weighted = result.problem
        assert isinstance(weighted, LawProblem)
        return cls(result, weighted, weighted.predict(result.theta[None])[0, :runs])

    @abstractmethod
    def parameters(self, theta: Floats) -> dict[str, Floats]:
        """The parameters of rows theta in the units of the runs, by name, each of shape (fits,)."""

    @property
    def point(self) -> dict[str, Floats]:
        """The fitted parameters, each of shape (1,)."""
        return self.parameters(self.result.theta[None])

    def refit(self, accuracy: Floats, random: np.random.Generator) -> dict[str, Floats]:
        """Parameters of a fit to each row of ``accuracy`` (fits, n), with means drawn from the priors."""
        anchors = np.tile(self.problem.y[accuracy.shape[1] :], (len(accuracy), 1))
        target = np.concatenate([accuracy, anchors], axis=1)
        return self.parameters(refit_with_prior(self.problem, self.result.theta, target, random).theta)


class LossCurve(AccuracyCurve):
    """Step 2: accuracy from the loss.

    One more point, the ceiling at a loss of 0, counts as a run: a model that assigns probability 1 to the correct
    answers makes no error.
    """

    @classmethod
    def fit(cls, loss: Floats, accuracy: Floats, chance: float | None, ceiling: float) -> Self:
        law = LossSigmoid.of(loss, accuracy, chance, ceiling)
        problem = LawProblem(
            Coordinates(law, {}),
            {"loss": np.append(loss, 0.0)},
            np.append(accuracy, ceiling),
            np.append(measure_weights(accuracy), 1.0),
        )
        return cls.of_problem(problem, len(loss))

    def parameters(self, theta: Floats) -> dict[str, Floats]:
        return self.problem.values(theta)


@dataclass(frozen=True)
class ComputeCurve(AccuracyCurve):
    """Directly: accuracy from ln C and ln(N / D)."""

    center: tuple[float, float] = (0.0, 0.0)
    """Mean ln C and mean ln(N / D) of the runs."""

    @classmethod
    def fit(
        cls, ln_flops: Floats, ln_ratio: Floats, accuracy: Floats, chance: float | None, ceiling: float
    ) -> ComputeCurve:
        center = float(ln_flops.mean()), float(ln_ratio.mean())
        problem = LawProblem(
            Coordinates(ComputeSigmoid.of(accuracy, chance, ceiling), {}),
            {"ln_flops": ln_flops - center[0], "ln_ratio": ln_ratio - center[1]},
            accuracy,
            measure_weights(accuracy),
        )
        curve = cls.of_problem(problem, len(accuracy))
        return cls(curve.result, curve.problem, curve.fitted, center)

    def parameters(self, theta: Floats) -> dict[str, Floats]:
        values = self.problem.values(theta)
        shift = values["slope"] * (self.center[0] + values["split"] * self.center[1])
        return {**values, "intercept": values["intercept"] - shift}


def measure_weights(accuracy: Floats) -> Floats:
    """Weights inversely proportional to the binomial variance, with mean 1 and p at least .05 from 0 and 1."""
    weights = 1 / binomial_variance(np.clip(accuracy, 0.05, 0.95))
    normalised: Floats = weights / weights.mean()
    return normalised


def binomial_variance(accuracy: Floats) -> Floats:
    """Variance of one answer, p (1 - p), with p at least .01 away from 0 and 1."""
    p = np.clip(accuracy, 0.01, 0.99)
    variance: Floats = p * (1 - p)
    return variance
