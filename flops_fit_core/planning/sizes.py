"""Which sizes each budget gets."""

from __future__ import annotations

import math
from collections.abc import Callable

from flops_fit_core.config import Experiment
from flops_fit_core.errors import PlanError
from flops_fit_core.measure import LARGEST_TRIED, Measured, Meter

TRIES = 16
"""How often a family that scales itself is asked for one N."""


class SizeLadder:
    """The sizes that can be built, log-spaced in N on one grid for all budgets.

    Rung k has about ``size_ratio ** k`` parameters, so a budget that is added later finds the sizes of its
    neighbours unchanged. Each budget gets the consecutive rungs around its expected N_opt.
    """

    def __init__(
        self, experiment: Experiment, meter: Meter, expected_params: Callable[[float], float] | None
    ) -> None:
        self.sweep = experiment.sweep
        self.model = experiment.model
        self.meter = meter
        self.expected_params = expected_params
        self.step = self.sweep.multiple_of or self.model.spec.multiple_of
        self.notes: list[str] = []

    def for_budget(self, budget: float) -> list[Measured]:
        """Sizes for one budget, smallest first."""
        if isinstance(self.sweep.sizes, tuple):
            given = [
                self.meter.measure(self.model.with_options(**changes).options) for changes in self.sweep.sizes
            ]
            return sorted(given, key=lambda measured: measured.params)
        rungs = self._rungs_around(self._center(budget))
        if len(rungs) < self.sweep.sizes:
            self.notes.append(
                f"budget {budget:.3g}: only {len(rungs)} sizes can be built near its expected optimum"
            )
        return rungs

    def small_relative(self, smallest: Measured) -> Measured:
        """A size that is small enough to be tried for real, where the sweep's smallest is not."""
        if smallest.parameters.total <= LARGEST_TRIED or self.model.spec.scale is not None:
            return smallest
        try:
            return self.meter.at(self.step)
        except PlanError:
            return smallest

    def _center(self, budget: float) -> float:
        if self.expected_params is not None:
            return self.expected_params(budget)
        ratio = self.sweep.tokens_per_param
        params = math.sqrt(budget / (6 * ratio))
        for _ in range(8):
            # FLOPs of this size trained at the guessed ratio; C grows about as N squared.
            near = self._nearest(params)
            planned = near.count.flops_per_token * ratio * near.params
            params = near.params * math.sqrt(budget / planned)
        return params

    def _rungs_around(self, center: float) -> list[Measured]:
        wanted = self.sweep.sizes
        assert isinstance(wanted, int)
        log_ratio = math.log(self.sweep.size_ratio)
        middle = round(math.log(center) / log_ratio)
        rungs: dict[int, Measured] = {}
        reach = wanted
        while True:
            for k in range(middle - reach, middle + reach + 1):
                near = self._nearest(math.exp(k * log_ratio))
                rungs.setdefault(near.params, near)
            # Where small sizes round to the same one, look further up for enough different ones.
            if len(rungs) >= 2 * wanted or reach > 8 * wanted:
                break
            reach *= 2
        ladder = sorted(rungs.values(), key=lambda measured: measured.params)
        starts = range(max(1, len(ladder) - wanted + 1))
        best = min(starts, key=lambda s: abs(_mean_log(ladder[s : s + wanted]) - math.log(center)))
        return ladder[best : best + wanted]

    def _nearest(self, params: float) -> Measured:
        """The size that can be built whose N is nearest, on a log scale."""
        if self.model.spec.scale is not None:
            return self._scaled(params)
        low, high = self.meter.at(self.step), None
        low_size, high_size = self.step, self.step
        while high is None or high.params < params:
            if high is not None:
                low, low_size = high, high_size
            high_size *= 4
            high = self.meter.at(high_size)
        while high_size - low_size > self.step and low.params < params:
            size = self._between(params, low_size, low.params, high_size, high.params)
            measured = self.meter.at(size)
            if measured.params <= params:
                low, low_size = measured, size
            else:
                high, high_size = measured, size
            if low.params < params and high_size - low_size > self.step:
                # The interpolated size is nearly right: its neighbour usually closes the bracket.
                size = low_size + self.step if measured is low else high_size - self.step
                measured = self.meter.at(size)
                if measured.params <= params:
                    low, low_size = measured, size
                else:
                    high, high_size = measured, size
        return min((low, high), key=lambda measured: abs(math.log(measured.params / params)))

    def _scaled(self, params: float) -> Measured:
        """The same of a family that scales itself. Its N may be another than the FLOPs counter's (of all experts,
        of another vocabulary), so it is asked for more or for less until the counter's is about ``params``."""
        low, high, asked, found = 0.0, math.inf, params, []
        for _ in range(TRIES):
            found.append(self.meter.measure(self.model.calling("scale", self.model.options, max(1, round(asked)))))
            if found[-1].params == round(params):
                break
            if found[-1].params < params:
                low = asked
            else:
                high = asked
            asked = math.sqrt(low * high) if 0 < low < high < math.inf else 4 * low if low else high / 4
        return min(found, key=lambda measured: abs(math.log(measured.params / params)))

    def _between(self, params: float, low: int, low_params: int, high: int, high_params: int) -> int:
        """A multiple of the step strictly between two sizes, by log-log interpolation."""
        share = math.log(params / low_params) / max(1e-9, math.log(high_params / low_params))
        size = round(math.exp(math.log(low) + share * math.log(high / low)) / self.step) * self.step
        return min(max(size, low + self.step), high - self.step)


def _mean_log(rungs: list[Measured]) -> float:
    return math.fsum(math.log(measured.params) for measured in rungs) / len(rungs)
