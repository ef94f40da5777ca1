"""Numbers of a comparison from its posterior."""

from __future__ import annotations

import numpy as np
from scipy import stats

from flops_fit_core.fitting.comparison.posterior import NormalMixture, Posterior, standard_error_at_gain
from flops_fit_core.fitting.comparison.result import GainAt
from flops_fit_core.fitting.comparison.surface import CHANGE_SCALE
from flops_fit_core.fitting.data import Floats
from flops_fit_core.records import Interval

GATE_ERROR, POWER = 0.05, 0.9
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
    distribution times the standard error; both depend on the degrees of freedom.
    """
    dof = posterior.degrees_of_freedom
    here = standard_error_at_gain(posterior, float(posterior.ln_gain(flops).quantile(0.5)), flops)
    at_gate = standard_error_at_gain(posterior, float(np.log(gate)), flops)
    error = margin / stats.t.ppf(1 - GATE_ERROR, dof) * min(at_gate / here, 1.0)
    noncentrality = stats.t.ppf(1 - GATE_ERROR, dof) + stats.t.ppf(POWER, dof)
    return float(gate * np.exp(noncentrality * error))


def probability_of_shared_exponents(posterior: Posterior) -> float:
    """By the density of delta at 0, after the runs and before (Dickey 1971), with even odds before."""
    change = posterior.change()
    after = float(change.weights @ stats.norm.pdf(0.0, change.means, change.deviations))
    before = float(stats.norm.pdf(0.0, 0.0, CHANGE_SCALE))
    return after / (after + before)


def pair_correlation(posterior: Posterior, shares: Floats, sources: list[str]) -> float | None:
    """Share of the noise that equal runs of both recipes share; None without pairs."""
    paired = [1 + sources.index(name) for name in ("pair", "trunk pair") if name in sources]
    if not paired:
        return None
    return float(posterior.weights @ shares[:, paired].sum(axis=1))
