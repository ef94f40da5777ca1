"""The difference and the ratio of two independent estimates, with intervals from theirs.

Zou & Donner 2008, "Construction of confidence limits about effect measures: a general approach" (Statistics in
Medicine 27:1693), the method of variance estimates recovery. It needs the two intervals only, which may be
asymmetric. If the estimates have positively correlated errors, for example because both studies share seeds, the
interval is too wide.
"""

from __future__ import annotations

import math

from flops_fit_core.records import Interval


def difference(first: Interval, second: Interval) -> Interval:
    """``second - first``, with an interval of the level of theirs; without an interval if either has none."""
    value = second.value - first.value
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Interval(value=value)
    down = math.hypot(max(second.value - second.low, 0.0), max(first.high - first.value, 0.0))
    up = math.hypot(max(second.high - second.value, 0.0), max(first.value - first.low, 0.0))
    return Interval(value=value, low=value - down, high=value + up)


def ratio(first: Interval, second: Interval) -> Interval:
    """``second / first`` of positive estimates: :func:`difference` of their logarithms."""
    result = difference(_logarithm(first), _logarithm(second))
    ends = (result.low, result.high)
    low, high = (None if end is None else math.exp(end) for end in ends)
    return Interval(value=second.value / first.value, low=low, high=high)


def _logarithm(interval: Interval) -> Interval:
    """The logarithm of a positive estimate. An interval that reaches 0 or less has none."""
    if interval.low is None or interval.high is None or interval.low <= 0:
        return Interval(value=math.log(interval.value))
    return Interval(value=math.log(interval.value), low=math.log(interval.low), high=math.log(interval.high))
