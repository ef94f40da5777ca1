"""A law through the runs that have completed, fitted while the sweep is in progress."""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Sequence

from flops_fit_core import numbers
from flops_fit_core.records import RunResult, SweepPlan

LARGEST_SHARE = 0.02
"""The largest share of the time that fits may take."""
FIRST_COST = 0.4
"""Seconds that the first fit is assumed to take. It imports scipy."""
MIN_BUDGETS = 3
"""With fewer budgets, an exponent would be noise."""


class LawSoFar:
    """The IsoFLOP law through the completed runs, without intervals. It is fitted again after new results.

    An error of a fit is not reported: few runs determine no law, and a live view must not disturb a sweep.
    """

    def __init__(self) -> None:
        self.text = ""
        """``N_opt ~ C^0.51 from 3 of 4 budgets, 34.0K at C 4e11``; empty without a minimum."""
        self._ended = time.monotonic()
        self._cost = FIRST_COST

    def update(self, plan: SweepPlan, completed: Sequence[RunResult]) -> None:
        """Fit again, unless fits would take more than ``LARGEST_SHARE`` of the time."""
        if time.monotonic() - self._ended < self._cost / LARGEST_SHARE:
            return
        importlib.import_module("flops_fit_core.fitting.fitters.isoflop")  # once, so it is no part of the cost
        started = time.monotonic()
        try:
            self.text = _fit(plan, completed)
        except Exception:
            self.text = ""
        self._ended = time.monotonic()
        self._cost = self._ended - started


def _fit(plan: SweepPlan, completed: Sequence[RunResult]) -> str:
    from flops_fit_core.fitting import IsoflopFitter, observations, profile_minima

    runs = observations(completed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minima = [item for item in profile_minima(runs)[0] if not item.at_edge]
        if not minima:
            return ""
        largest = max(minima, key=lambda item: item.budget)
        optimum = f"{numbers.count(largest.params)} at C {numbers.scientific(largest.budget)}"
        if len(minima) < MIN_BUDGETS:
            return f"N_opt {optimum}, from {len(minima)} of {len(plan.budgets)} budgets"
        fit = IsoflopFitter(draws=0).fit(runs)
    exponent = fit.exponents["a"].value
    return f"N_opt ~ C^{exponent:.2f} from {len(minima)} of {len(plan.budgets)} budgets, {optimum}"
