"""The rungs of one ladder: sizes that can be built, log-spaced in N."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

from flops_fit_core.config import PluginConfig, Sweep
from flops_fit_core.errors import FlopsFitError, PlanError, PluginError
from flops_fit_core.flops.model_stats import SizeMeasurer, SizeStats
from flops_fit_core.planning.own_errors import own_error
from flops_fit_core.plugins.options import Options
from flops_fit_core.plugins.specs import Ladder, ModelSpec

TRIES = 16
"""How often a family that scales itself is asked for one N."""
LARGEST_WITHOUT_GROWTH = 4096
"""A size option whose values up to this, and 64 times the value with the largest N, give no larger N has no effect
on N above that value."""


@dataclass(frozen=True)
class SizeGrid:
    """Values of the size option that can be built."""

    step: int = 1
    """They are multiples of this."""
    first: int = 1
    """The smallest of them."""
    doubling: bool = False
    """Whether only ``first`` times powers of two can be built."""
    last: int | None = None
    """The largest of them; None where none was found."""

    @classmethod
    def multiples(cls, step: int) -> SizeGrid:
        """All multiples of a number."""
        return cls(step, step)


class Rungs:
    """Finds the sizes of one ladder for a budget. Measures sizes on the meta device."""

    def __init__(
        self,
        model: PluginConfig[ModelSpec],
        sweep: Sweep,
        meter: SizeMeasurer,
        ladder: Ladder,
        grid: SizeGrid | None = None,
        expected_params: Callable[[float], float] | None = None,
    ) -> None:
        self.model = model.with_options(**ladder.options) if ladder.options else model
        self.sweep = sweep
        self.meter = meter
        self.ladder = ladder
        self.grid = grid or SizeGrid.multiples(ladder.multiple_of)
        self.expected_params = expected_params
        self.of_user = grid is not None or sweep.multiple_of is not None
        """Whether the family does not declare the sizes, so that one that cannot be built is not its fault."""
        self.notes: list[str] = []
        self._found: dict[float, list[SizeStats]] = {}

    def for_budget(self, budget: float) -> list[SizeStats]:
        """The rungs around a budget's expected N_opt, smallest first; fewer where no more can be built."""
        if budget not in self._found:
            self._found[budget] = self._around(self.center(budget))
        return self._found[budget]

    def at(self, size: int) -> SizeStats:
        """The model with its size option set to ``size``. Raises PlanError, PluginError."""
        try:
            return self.meter.at(size, **self.ladder.options)
        except PluginError as error:
            if "calculation overflowed" in str(error):
                raise PlanError(
                    f"model {self.model.name!r} at {self.model.spec.size} = {size} has more parameters than torch "
                    f"can number, and sweep.budgets, sweep.sizes and sweep.size_ratio ask for sizes near it: make "
                    f"them smaller"
                ) from error
            if not self.of_user:
                raise
            raise PlanError(
                f"model {self.model.name!r} cannot be built at {self.model.spec.size} = {size}: "
                f"{own_error(error)}. Write multiple_of, a number whose multiples can be built, or a list of sizes"
            ) from error

    def center(self, budget: float) -> float:
        """N_opt of a budget, as an earlier fit or ``sweep.tokens_per_param`` predicts it."""
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

    def _around(self, center: float) -> list[SizeStats]:
        wanted = self.sweep.sizes
        assert isinstance(wanted, int)
        log_ratio = math.log(self.sweep.size_ratio)
        middle = round(math.log(center) / log_ratio)
        near: dict[int, SizeStats] = {}
        # Where small sizes round to the same one, look further up for enough different ones.
        doubled = [wanted, 2 * wanted, 4 * wanted, 8 * wanted, 16 * wanted]
        between = () if self.ladder.scale is not None else range(wanted // 2 + 2, 16 * wanted, wanted // 4 + 1)
        for reach in sorted({*doubled, *between}):
            for k in range(middle - reach, middle + reach + 1):
                if k not in near:
                    near[k] = self._nearest(math.exp(k * log_ratio))
            # Of sizes with one N, the first that a doubled reach finds.
            order = sorted(near, key=lambda k: (bisect_left(doubled, abs(k - middle)), k), reverse=True)
            ladder = sorted(
                {near[k].params: near[k] for k in order}.values(), key=lambda measured: measured.params
            )
            if (reach in doubled and len(ladder) >= 2 * wanted) or self._has_best(ladder, center):
                break
        starts = range(max(1, len(ladder) - wanted + 1))
        best = min(starts, key=lambda s: abs(mean_log(ladder[s : s + wanted]) - math.log(center)))
        return ladder[best : best + wanted]

    def _has_best(self, ladder: list[SizeStats], center: float) -> bool:
        """Whether further rungs cannot come nearer to the center than ``wanted`` of these do. They may be much
        larger, and a deep model takes long to build."""
        wanted, smallest = self.sweep.sizes, self.grid.first
        assert isinstance(wanted, int)
        if self.ladder.scale is not None or len(ladder) < wanted:
            return False
        # The first may have been rounded from another value: a rung below decides which.
        is_low_enough = ladder[0].size == smallest or mean_log(ladder[1 : wanted + 1]) <= math.log(center)
        return is_low_enough and mean_log(ladder[-wanted:]) >= math.log(center)

    def _nearest(self, params: float) -> SizeStats:
        """The size that can be built whose N is nearest, on a log scale."""
        if self.ladder.scale is not None:
            return self._scaled(params) if self.ladder.scale is self.model.spec.scale else self._corrected(params)
        if self.grid.doubling:
            return self._doubled(params)
        step = self.grid.step
        low_size, high_size = self._bracket(params)
        low, high = self.at(low_size), self.at(high_size)
        while high_size - low_size > step and low.params < params:
            size = self._between(params, low_size, low.params, high_size, high.params)
            measured = self.at(size)
            if measured.params <= params:
                low, low_size = measured, size
            else:
                high, high_size = measured, size
            if low.params < params and high_size - low_size > step:
                # The interpolated size is nearly right: its neighbour usually closes the bracket.
                size = low_size + step if measured is low else high_size - step
                measured = self.at(size)
                if measured.params <= params:
                    low, low_size = measured, size
                else:
                    high, high_size = measured, size
        return min((low, high), key=lambda measured: abs(math.log(measured.params / params)))

    def _bracket(self, params: float) -> tuple[int, int]:
        """Two sizes with ``params`` between their N; twice the largest size where none has so many."""
        low = high = largest = self.grid.first
        self.at(low)
        while high == self.grid.first or self.at(high).params < params:
            if high == self.grid.last:
                return high, high
            low, high = high, min(high * 4, self.grid.last or high * 4)
            if self.at(high).params > self.at(largest).params:
                largest = high
            elif high >= max(LARGEST_WITHOUT_GROWTH, 64 * largest):
                size = self._largest(largest, high)
                return size, size
        return low, high

    def _doubled(self, params: float) -> SizeStats:
        low = high = largest = self.grid.first
        while self.at(high).params < params:
            low, high = high, high * 2
            if self.at(high).params > self.at(largest).params:
                largest = high
            elif high >= max(LARGEST_WITHOUT_GROWTH, 64 * largest):
                low = high = self._largest(largest, high)
                break
        pair = self.at(low), self.at(high)
        return min(pair, key=lambda measured: abs(math.log(measured.params / params)))

    def _largest(self, size: int, tried: int) -> int:
        """The smallest size that has the most parameters, of a model that grows no further.

        Raises PlanError for a model that never grows.
        """
        option, first, step = self.model.spec.size, self.grid.first, self.grid.step
        most = self.at(size).params
        if size == first:
            raise PlanError(
                f"model {self.model.name!r}: N is {most:,} at {option} = {first} and no larger at any value tried "
                f"up to {tried}, so {option} does not set the model's size. Scale an argument that adds "
                f"parameters, or write a list of sizes"
            )
        below = size if self.grid.doubling else max(first, size // 4 // step * step)
        while size - below > step:
            middle = (below + size) // 2 // step * step
            if self.at(middle).params >= most:
                size = middle
            else:
                below = middle
        note = f"N does not grow above {option} = {size}: it is at most {most:,}"
        if note not in self.notes:
            self.notes.append(note)
        return size

    def _scaled(self, params: float) -> SizeStats:
        """The same of a family that scales itself. Its N may be another than the FLOPs counter's (of all experts,
        of another vocabulary), so it is asked for more or for less until the counter's is about ``params``."""
        low, high, asked, found = 0.0, math.inf, params, []
        for _ in range(TRIES):
            found.append(self._labelled(self._scaled_options(max(1, round(asked)))))
            if found[-1].params == round(params):
                break
            if found[-1].params < params:
                low = asked
            else:
                high = asked
            asked = math.sqrt(low * high) if 0 < low < high < math.inf else 4 * low if low else high / 4
        return min(found, key=lambda measured: abs(math.log(measured.params / params)))

    def _corrected(self, params: float) -> SizeStats:
        """The same of a ladder that scales itself: asked for as much more or less as it was off, until it gives a
        size that it has given before. Few models are built so, which for deep ones takes most of the time."""
        asked, found = params, dict[str, SizeStats]()
        for _ in range(TRIES):
            options = self._scaled_options(max(1, round(asked)))
            key = options.model_dump_json()
            if key in found:
                break
            found[key] = self._labelled(options)
            asked *= params / found[key].params
        return min(found.values(), key=lambda measured: abs(math.log(measured.params / params)))

    def _scaled_options(self, target_params: int) -> Options:
        assert self.ladder.scale is not None
        try:
            return self.ladder.scale(self.model.options, target_params)
        except FlopsFitError:
            raise
        except Exception as error:
            raise PluginError(
                f"model {self.model.name!r} ({self.model.offer.source}): scale to {target_params:,} parameters: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _labelled(self, options: Options) -> SizeStats:
        measured = self.meter.measure(options)
        return measured if self.ladder.label is None else replace(measured, size=self.ladder.label(options))

    def _between(self, params: float, low: int, low_params: int, high: int, high_params: int) -> int:
        """A multiple of the step strictly between two sizes, by log-log interpolation."""
        step = self.grid.step
        share = math.log(params / low_params) / max(1e-9, math.log(high_params / low_params))
        size = round(math.exp(math.log(low) + share * math.log(high / low)) / step) * step
        return min(max(size, low + step), high - step)


def mean_log(rungs: list[SizeStats]) -> float:
    """Mean of ln N."""
    return math.fsum(math.log(measured.params) for measured in rungs) / len(rungs)
