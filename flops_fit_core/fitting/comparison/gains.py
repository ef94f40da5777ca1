"""Numbers of a comparison from its posterior."""

from __future__ import annotations

import numpy as np
from scipy import stats

from flops_fit_core.fitting.comparison.noise import NoiseModel
from flops_fit_core.fitting.comparison.posterior import NormalMixture, Posterior, standard_error_at_gain
from flops_fit_core.fitting.comparison.result import GainAt
from flops_fit_core.fitting.comparison.surface import CHANGE_SCALE
from flops_fit_core.records import Interval

GATE_ERROR, POWER = 0.05, 0.9
DETECTION_ROUNDS = 5
"""Rounds in which the standard error of the smallest detectable gain, and the gain, become consistent."""
LARGEST_DEVIATION = 1.0
"""Standard deviation of ln g above which no interval is reported; the prior has 2."""


def interval(mixture: NormalMixture, level: float) -> Interval:
    """Median and equal-tailed interval."""
    low, value, high = (mixture.quantile(q) for q in ((1 - level) / 2, 0.5, (1 + level) / 2))
    return Interval(value=value, low=low, high=high)


def gain_interval(mixture: NormalMixture, level: float) -> Interval:
    """Median and equal-tailed interval of the gain, from the posterior of ln g."""
    low, value, high = (float(np.exp(mixture.quantile(q))) for q in ((1 - level) / 2, 0.5, (1 + level) / 2))
    return Interval(value=value, low=low, high=high)


def gain_at(posterior: Posterior, flops: float, gate: float, level: float) -> GainAt:
    """The gain at a budget, without an interval if the runs do not determine it."""
    mixture = posterior.ln_gain(flops)
    interval = gain_interval(mixture, level)
    mean = float(mixture.weights @ mixture.means)
    variance = float(mixture.weights @ (mixture.deviations**2 + (mixture.means - mean) ** 2))
    probability = 1 - mixture.cdf(0.0)
    if variance > LARGEST_DEVIATION**2:
        value = Interval(value=interval.value)
        return GainAt(flops=flops, gain=value, lower=None, probability=probability, smallest_detectable=None)
    bound = mixture.quantile(GATE_ERROR)
    return GainAt(
        flops=flops,
        gain=interval,
        lower=float(np.exp(bound)),
        probability=min(max(probability, 0.0), 1.0),
        smallest_detectable=smallest_detectable(posterior, flops, gate, mixture.quantile(0.5) - bound),
    )


def smallest_detectable(posterior: Posterior, flops: float, gate: float, margin: float) -> float:
    """The gain that the gate promotes in 90% of studies with this design and noise.

    ``margin`` is the distance of the 95% bound from the estimate of ln g. It is a quantile of Student's t
    distribution times the standard error, which depends on the gain.
    """
    dof = posterior.degrees_of_freedom
    here = standard_error_at_gain(posterior, float(posterior.ln_gain(flops).quantile(0.5)), flops)
    unit = margin / stats.t.ppf(1 - GATE_ERROR, dof) / here
    errors, ln_gain = errors_to_detect(dof), float(np.log(gate))
    for _ in range(DETECTION_ROUNDS):
        ln_gain = float(np.log(gate)) + errors * unit * standard_error_at_gain(posterior, ln_gain, flops)
    return float(np.exp(ln_gain))


def errors_to_detect(dof: float) -> float:
    """Distance of ln g from the gate, in estimated standard errors, that a further study detects in 90% of cases.

    The further study promotes if z + d e > t e', all in true standard errors: z is the error of its estimate, e'
    its estimated standard error, and e that of this study; t is the quantile of the gate. e and e' have ``dof``
    degrees of freedom. Their normal approximation gives 93% instead of 90% of cases for 2 degrees of freedom.
    """
    quantile, power = float(stats.t.ppf(1 - GATE_ERROR, dof)), float(stats.norm.ppf(POWER))
    mean = 1 - 1 / (4 * dof)
    distance = quantile + power
    for _ in range(DETECTION_ROUNDS):
        distance = quantile + power * float(np.sqrt(1 + (distance**2 + quantile**2) / (2 * dof))) / mean
    return distance


def probability_of_shared_exponents(posterior: Posterior) -> float:
    """By the density of delta at 0, after the runs and before (Dickey 1971), with even odds before."""
    change = posterior.change()
    after = float(change.weights @ stats.norm.pdf(0.0, change.means, change.deviations))
    before = float(stats.norm.pdf(0.0, 0.0, CHANGE_SCALE))
    return after / (after + before)


def pair_correlation(posterior: Posterior) -> float | None:
    """Correlation of the noise of equal runs of both recipes; None without pairs."""
    noise = NoiseModel.of(posterior.design)
    if not noise.has_sign.any():
        return None
    return float(posterior.weights @ noise.correlations(posterior.points)[:, noise.has_sign].sum(axis=1))
