"""Differences and ratios of two estimates."""

import math

import numpy as np
import pytest

from flops_fit_core import Interval
from flops_fit_core.fitting.uncertainty.contrast import difference, ratio

Z90 = 1.6448536269514722
"""The 95% quantile of the normal distribution."""


def normal(mean, sigma):
    return Interval(value=mean, low=mean - Z90 * sigma, high=mean + Z90 * sigma)


def test_independent_normal_estimates_have_the_textbook_interval_of_their_difference():
    shown = difference(normal(2.0, 0.3), normal(1.5, 0.4))
    assert shown.value == -0.5
    assert (shown.low, shown.high) == pytest.approx((-0.5 - Z90 * 0.5, -0.5 + Z90 * 0.5))


def test_independent_log_normal_estimates_have_the_textbook_interval_of_their_ratio():
    first, second = (
        Interval(value=math.exp(item.value), low=math.exp(item.low), high=math.exp(item.high))
        for item in (normal(3.0, 0.3), normal(3.2, 0.4))
    )
    shown = ratio(first, second)
    assert shown.value == pytest.approx(math.exp(0.2))
    assert shown.low == pytest.approx(math.exp(0.2 - Z90 * 0.5))
    assert shown.high == pytest.approx(math.exp(0.2 + Z90 * 0.5))


def test_skewed_estimates_have_an_interval_near_that_of_their_draws():
    """Compared with the quantiles of the difference of 400,000 draws."""
    random = np.random.default_rng(0)
    draws = [np.exp(random.normal(mean, sigma, 400_000)) for mean, sigma in ((0.0, 0.3), (0.5, 0.2))]
    estimates = [
        Interval(
            value=float(np.median(item)), low=float(np.quantile(item, 0.05)), high=float(np.quantile(item, 0.95))
        )
        for item in draws
    ]
    shown = difference(*estimates)
    low, high = np.quantile(draws[1] - draws[0], [0.05, 0.95])
    assert shown.low == pytest.approx(low, abs=0.05)
    assert shown.high == pytest.approx(high, abs=0.05)


@pytest.mark.parametrize("compare", [difference, ratio])
def test_without_an_interval_of_one_estimate_there_is_none_of_both(compare):
    shown = compare(Interval(value=2.0), normal(3.0, 0.1))
    assert (shown.low, shown.high) == (None, None)
    assert shown.value == {difference: 1.0, ratio: 1.5}[compare]


def test_a_ratio_to_an_interval_that_reaches_zero_has_no_interval():
    assert ratio(normal(0.1, 0.2), normal(3.0, 0.1)).low is None
