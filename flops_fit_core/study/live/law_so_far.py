"""A law through the runs that have completed, fitted while the sweep is in progress."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

from flops_fit_core.records import RunResult, SweepPlan

LARGEST_SHARE = 0.02
"""The largest share of the time that fits may take."""
FIRST_COST = 0.4
"""Seconds that the first fit is assumed to take. It imports numpy and scipy."""


class LawSoFar:
    """The IsoFLOP law through the completed runs, without intervals. It is fitted again after new results.

    An error of a fit is not reported: few runs determine no law, and a live view must not disturb a sweep.
    """

    def __init__(self) -> None:
        self.text = ""
        """``N_opt ~ C^0.51, 3 of 4 budgets``; empty without a law."""
        self._ended = time.monotonic()
        self._cost = FIRST_COST

    def update(self, plan: SweepPlan, completed: Sequence[RunResult]) -> None:
        """Fit again, unless fits would take more than ``LARGEST_SHARE`` of the time."""
        started = time.monotonic()
        if started - self._ended < self._cost / LARGEST_SHARE:
            return
        try:
            self.text = _fit(plan, completed)
        except Exception:
            self.text = ""
        self._ended = time.monotonic()
        self._cost = self._ended - started


def _fit(plan: SweepPlan, completed: Sequence[RunResult]) -> str:
    if len({result.run.budget for result in completed}) < 2:
        return ""
    from flops_fit_core.fitting import IsoflopFitter, observations

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = IsoflopFitter(draws=0).fit(observations(completed))
    used = sum(not minimum.at_edge for minimum in fit.minima)
    exponent = fit.exponents["a"].value
    return f"N_opt ~ C^{exponent:.2f}, {used} of {len(plan.budgets)} budgets"
