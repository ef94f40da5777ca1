"""Fits a curve law to several loss curves of one model size, and predicts the loss of another schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.curves.changes import RateChanges
from flops_fit_core.fitting.curves.curve import BinnedCurve, LossCurve, decay_seen
from flops_fit_core.fitting.curves.laws import CurveLaw, CurveScale, Prior, find_law
from flops_fit_core.fitting.curves.noise import CurveNoise, estimate_noise
from flops_fit_core.fitting.curves.rates import Integers, LearningRates
from flops_fit_core.fitting.curves.solver import Problem, minimise
from flops_fit_core.fitting.data import Floats
from flops_fit_core.fitting.distributions import normal_quantile
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.records import Interval

FIRST_NOISE = CurveNoise(deviation=2e-3, length=0.05, white=0.0)
"""The noise before the residuals are known."""
LEAST_DEVIATION = 1e-3
"""The law itself is wrong by about 0.1% of the loss (arXiv 2503.12811, table of prediction errors), so residuals
below this size do not count for more."""
LEAST_LENGTH = 0.1
"""Likewise: misfit of the law is correlated over at least this distance in ln(step)."""
LAW_ERROR = CurveNoise(deviation=1.75e-3, length=0.5, white=0.0)
"""The error of the law, in addition to noise. The published mean error on other schedules is 0.0011 to 0.0017 (25M
to 400M), which is a standard deviation of 0.00175 for a normal error."""
LEAST_ROWS = 8
"""Bins of rows that a fit needs."""


@dataclass(frozen=True, eq=False)
class CurveData:
    """Binned curves and the changes of their rates, in the units of one scale."""

    curves: list[BinnedCurve]
    changes: list[RateChanges]
    scale: CurveScale

    @classmethod
    def of(cls, curves: Sequence[LossCurve], scale: CurveScale | None = None) -> CurveData:
        binned = [BinnedCurve.of(curve.after_warmup()) for curve in curves]
        peak = scale.peak if scale else max(curve.rates.peak for curve in curves)
        changes = [RateChanges.of(bins.curve.rates, bins.steps, peak) for bins in binned]
        if scale is None:
            updates = float(np.median(np.concatenate([item.sums for item in changes])))
            loss = float(np.median([curve.losses[-1] for curve in curves]))
            scale = CurveScale(peak, updates, loss)
        return cls(binned, changes, scale)

    @property
    def log_losses(self) -> Floats:
        return np.concatenate([bins.log_losses for bins in self.curves])

    @property
    def spans(self) -> Floats:
        return np.concatenate([bins.spans for bins in self.curves])

    @property
    def log_steps(self) -> list[Floats]:
        return [bins.log_steps for bins in self.curves]

    def only(self, number: int) -> CurveData:
        """One of the curves."""
        return CurveData([self.curves[number]], [self.changes[number]], self.scale)

    def without(self, number: int) -> CurveData:
        """All curves but one."""
        curves = [*self.curves[:number], *self.curves[number + 1 :]]
        changes = [*self.changes[:number], *self.changes[number + 1 :]]
        return CurveData(curves, changes, self.scale)

    def split(self, values: Floats) -> list[Floats]:
        """Values per bin, cut into curves along the first axis."""
        return np.split(values, np.cumsum([len(bins.steps) for bins in self.curves])[:-1])

    def model(self, law: CurveLaw, theta: Floats) -> tuple[Floats, Floats]:
        """Ln L of every bin and its gradient."""
        parts = [log_losses(law, theta, changes, self.scale) for changes in self.changes]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def log_losses(law: CurveLaw, theta: Floats, changes: RateChanges, scale: CurveScale) -> tuple[Floats, Floats]:
    """Ln L of each evaluation and its gradient; NaN where the law gives a loss that is not positive."""
    losses, slopes = law.losses(theta, changes, scale)
    positive = np.where(losses > 0, losses, np.nan)
    return np.log(positive), slopes / positive[:, None]


@dataclass(frozen=True, eq=False)
class CurveFit:
    """A curve law with its uncertainty. It holds for the model size, data and batch size of the fitted curves."""

    law: CurveLaw
    theta: Floats
    """The scaled parameters of the law."""
    covariance: Floats
    """Covariance of ``theta``, with residuals that are correlated along a curve."""
    scale: CurveScale
    noise: CurveNoise
    spread: float
    """Standard deviation of ln L of a new run around its law: the larger of noise and law error, and the error of
    each curve's prediction from the other curves."""
    names: tuple[str, ...]
    """The fitted curves."""
    rows: int
    bins: int
    largest_step: int
    warmup: int
    """Median number of updates before the peak."""
    decay_seen: float
    """The largest fall of a rate below its peak in the fitted rows, as a share of the peak."""
    residuals: dict[str, float] = field(default_factory=dict)
    """Curve -> root mean square of the residuals of ln L."""

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters of the law by their published names, in the unit of the rates."""
        return self.law.published(self.theta, self.scale)

    def losses(self, rates: LearningRates, steps: Integers | Sequence[int]) -> Floats:
        """L after each number of updates, in nats; shape (steps,)."""
        return np.exp(self._evaluate(rates, steps)[0])

    def predict(
        self, rates: LearningRates, steps: Integers | Sequence[int], *, level: float = 0.9
    ) -> list[Interval]:
        """L of another run of this size with a schedule, after each number of updates.

        The interval holds one new run: parameter uncertainty, noise along the curve, and the error of the law
        between schedules. Raises FitError for steps outside the schedule.
        """
        values, slopes = self._evaluate(rates, steps)
        variance = np.einsum("rp,pq,rq->r", slopes, self.covariance, slopes) + self.spread**2
        width = float(normal_quantile(0.5 + level / 2)) * np.sqrt(variance)
        ends = zip(values, width, strict=True)
        return [
            Interval(value=float(np.exp(value)), low=float(np.exp(value - half)), high=float(np.exp(value + half)))
            for value, half in ends
        ]

    def _evaluate(self, rates: LearningRates, steps: Integers | Sequence[int]) -> tuple[Floats, Floats]:
        numbers = np.asarray(steps, dtype=np.int64)
        if not len(numbers) or numbers.min() < 1 or numbers.max() > rates.steps:
            raise FitError(f"steps must be from 1 to the {rates.steps} steps of the schedule")
        changes = RateChanges.of(rates, numbers, self.scale.peak)
        return log_losses(self.law, self.theta, changes, self.scale)


@convert_numerical_errors
def fit_curves(curves: Sequence[LossCurve], law: str = "multi-power") -> CurveFit:
    """Fit a curve law to one or several loss curves of one model size.

    Rows of the warmup are not used. Rows are averaged in bins of 1/32 of their step, and bins count by their
    length in ln(step): a long curve does not outweigh a short one. The objective is the Huber loss of ln L. Two
    passes: the second uses the scale and the correlation length of the first pass' residuals.

    Args:
        curves: The curves; those of several runs need several schedules to determine the decay term.
        law: ``multi-power`` or ``annealing``.

    Raises FitError for an unknown law, too few rows, or curves that do not determine the law.
    """
    chosen = find_law(law)
    data = CurveData.of(_check_curves(curves))
    if len(data.spans) < LEAST_ROWS:
        raise FitError(
            f"the curves have {len(data.spans)} losses after the warmup (rows within 1/32 of a step count once), "
            f"and a fit needs {LEAST_ROWS}: evaluate more often, or add a curve"
        )
    prior = chosen.prior(data.scale)
    theta, noise = fit_parameters(data, chosen, prior)
    return describe_fit(data, chosen, theta, noise, prior, spread=_spread(data, chosen, theta, noise))


def _check_curves(curves: Sequence[LossCurve]) -> Sequence[LossCurve]:
    if not curves:
        raise FitError("no loss curve to fit")
    names = [curve.name for curve in curves]
    if len(set(names)) < len(names):
        raise FitError(f"several curves have the same name: {', '.join(sorted(names))}")
    return curves


def fit_parameters(data: CurveData, law: CurveLaw, prior: Prior) -> tuple[Floats, CurveNoise]:
    """The scaled parameters, and the noise of the residuals."""
    starts, noise, theta = law.starts(data.scale), FIRST_NOISE, None
    for _ in range(2):
        problem = make_problem(data, law, prior, noise)
        theta = minimise(problem, starts)
        residuals = data.model(law, theta)[0] - data.log_losses
        noise = estimate_noise(data.log_steps, data.split(residuals))
        starts = [theta]
    assert theta is not None
    return theta, noise


def make_problem(data: CurveData, law: CurveLaw, prior: Prior, noise: CurveNoise) -> Problem:
    """The objective for residuals with this noise, or with the least noise of any curve if that is more."""
    deviation = max(noise.total, LEAST_DEVIATION)
    length = max(noise.length, LEAST_LENGTH) if noise is not FIRST_NOISE else noise.length
    weights = np.minimum(1.0, data.spans / (2 * length))
    return Problem(lambda theta: data.model(law, theta), data.log_losses, weights, deviation, prior)


def describe_fit(
    data: CurveData, law: CurveLaw, theta: Floats, noise: CurveNoise, prior: Prior, spread: float
) -> CurveFit:
    """The fit with its covariance.

    The covariance is H^-1 M H^-1, with the Gauss-Newton Hessian H of the objective and the variance M of its
    gradient under noise that is correlated along a curve (the "sandwich" of White 1982, clustered by curve).
    """
    problem = make_problem(data, law, prior, noise)
    values, slopes = data.model(law, theta)
    weighted = slopes * (problem.weights / problem.scale**2)[:, None]
    penalty = prior.root.T @ prior.root
    hessian = slopes.T @ weighted + penalty
    middle = penalty.copy()
    for part, steps in zip(data.split(weighted), data.log_steps, strict=True):
        middle += part.T @ (noise.matrix(steps) + LAW_ERROR.matrix(steps)) @ part
    inverse = np.linalg.inv(hessian)
    residuals = data.split(values - data.log_losses)
    names = tuple(bins.curve.name for bins in data.curves)
    return CurveFit(
        law=law,
        theta=theta,
        covariance=inverse @ middle @ inverse,
        scale=data.scale,
        noise=noise,
        spread=max(spread, float(np.hypot(LAW_ERROR.deviation, noise.total))),
        names=names,
        rows=sum(len(bins.curve.steps) for bins in data.curves),
        bins=len(values),
        largest_step=max(bins.curve.last_step for bins in data.curves),
        warmup=int(np.median([int(np.argmax(bins.curve.rates.values)) for bins in data.curves])),
        decay_seen=max(decay_seen(bins.curve) for bins in data.curves),
        residuals={name: float(np.sqrt((part**2).mean())) for name, part in zip(names, residuals, strict=True)},
    )


def _spread(data: CurveData, law: CurveLaw, theta: Floats, noise: CurveNoise) -> float:
    """Root mean square of ln L between a curve and its prediction from the others, each curve left out in turn.

    0 for fewer than three curves.
    """
    if len(data.curves) < 3:
        return 0.0
    prior, squares = law.prior(data.scale), []
    for number in range(len(data.curves)):
        rest, single = data.without(number), data.only(number)
        refit = minimise(make_problem(rest, law, prior, noise), [theta])
        residuals = single.model(law, refit)[0] - single.log_losses
        squares.append(np.average(residuals**2, weights=single.spans))
    return float(np.sqrt(np.mean(squares)))
