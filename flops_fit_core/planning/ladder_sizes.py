"""The sizes of one ladder: log-spaced in N, at values of the size option that can be built."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

from flops_fit_core.config import PluginConfig, Sweep
from flops_fit_core.errors import FlopsFitError, PlanError, PluginError
from flops_fit_core.flops.model_stats import SizeMeasurer, SizeStats
from flops_fit_core.planning.model_errors import describe_model_error
from flops_fit_core.plugins.options import Options
from flops_fit_core.plugins.specs import Ladder, ModelSpec

MAX_SCALE_CALLS = 16
"""Largest number of calls of a family's ``scale`` for one N."""
LARGEST_WITHOUT_GROWTH = 4096
"""If N does not grow at values of the size option up to this value, and up to 64 times the value with the largest
N, the option is taken to have no effect on N above the latter."""


@dataclass(frozen=True)
class SizeGrid:
    """Values of the size option that can be built."""

    step: int = 1
    """All values are multiples of ``step``."""
    first: int = 1
    """The smallest value."""
    doubling: bool = False
    """Whether the values are ``first`` times powers of two."""
    last: int | None = None
    """The largest value; None if no limit is known."""

    @classmethod
    def multiples(cls, step: int) -> SizeGrid:
        """All multiples of ``step``."""
        return cls(step, step)


class LadderSizes:
    """The sizes of one ladder for each budget. Sizes are measured on the meta device."""

    def __init__(
        self,
        model: PluginConfig[ModelSpec],
        sweep: Sweep,
        measurer: SizeMeasurer,
        ladder: Ladder,
        grid: SizeGrid | None = None,
        expected_params: Callable[[float], float] | None = None,
    ) -> None:
        self.model = model.with_options(**ladder.options) if ladder.options else model
        self.sweep = sweep
        self.measurer = measurer
        self.ladder = ladder
        self.grid = grid or SizeGrid.multiples(ladder.multiple_of)
        self.expected_params = expected_params
        self.is_undeclared = grid is not None or sweep.multiple_of is not None
        """Whether the family does not declare the sizes. A size that cannot be built is then the user's error."""
        self.notes: list[str] = []
        self._sizes: dict[float, list[SizeStats]] = {}

    def for_budget(self, budget: float) -> list[SizeStats]:
        """The sizes around a budget's expected N_opt, smallest first; fewer if no more can be built."""
        if budget not in self._sizes:
            self._sizes[budget] = self._sizes_around(self.center(budget))
        return self._sizes[budget]

    def at(self, size: int) -> SizeStats:
        """The model with its size option set to ``size``. Raises PlanError, PluginError."""
        try:
            return self.measurer.at(size, **self.ladder.options)
        except PluginError as error:
            if "calculation overflowed" in str(error):
                raise PlanError(
                    f"model {self.model.name!r} at {self.model.spec.size} = {size} has more parameters than torch "
                    f"can count: use smaller sweep.budgets, sweep.sizes or sweep.size_ratio"
                ) from error
            if not self.is_undeclared:
                raise
            raise PlanError(
                f"model {self.model.name!r} cannot be built at {self.model.spec.size} = {size}: "
                f"{describe_model_error(error)}. Write multiple_of, a number with multiples that can be built, or "
                f"a list of sizes"
            ) from error

    def center(self, budget: float) -> float:
        """The N_opt of a budget that an earlier fit or ``sweep.tokens_per_param`` predicts."""
        if self.expected_params is not None:
            return self.expected_params(budget)
        ratio = self.sweep.tokens_per_param
        params = math.sqrt(budget / (6 * ratio))
        for _ in range(8):
            # C of this size at the guessed D / N grows approximately with the square of N.
            nearest = self._nearest(params)
            flops = nearest.count.flops_per_token * ratio * nearest.params
            params = nearest.params * math.sqrt(budget / flops)
        return params

    def _sizes_around(self, center: float) -> list[SizeStats]:
        """The ``sweep.sizes`` consecutive sizes with the mean ln N nearest to that of the center."""
        count = self.sweep.sizes
        assert isinstance(count, int)
        log_ratio = math.log(self.sweep.size_ratio)
        middle = round(math.log(center) / log_ratio)
        near: dict[int, SizeStats] = {}
        # Small targets may round to the same size. Then a larger reach finds enough distinct sizes.
        doubled = [count, 2 * count, 4 * count, 8 * count, 16 * count]
        between = () if self.ladder.scale is not None else range(count // 2 + 2, 16 * count, count // 4 + 1)
        for reach in sorted({*doubled, *between}):
            for k in range(middle - reach, middle + reach + 1):
                if k not in near:
                    near[k] = self._nearest(math.exp(k * log_ratio))
            # Of sizes with equal N, keep the size of the smallest doubled reach.
            order = sorted(near, key=lambda k: (bisect_left(doubled, abs(k - middle)), k), reverse=True)
            ladder = sorted({near[k].params: near[k] for k in order}.values(), key=lambda stats: stats.params)
            if (reach in doubled and len(ladder) >= 2 * count) or self._is_sufficient(ladder, center):
                break
        starts = range(max(1, len(ladder) - count + 1))
        best = min(starts, key=lambda start: abs(mean_log(ladder[start : start + count]) - math.log(center)))
        return ladder[best : best + count]

    def _is_sufficient(self, ladder: list[SizeStats], center: float) -> bool:
        """Whether further sizes cannot give a mean ln N nearer to the center.

        Further sizes are not built unnecessarily: they may be much larger, and a deep model takes long to build.
        """
        count, smallest = self.sweep.sizes, self.grid.first
        assert isinstance(count, int)
        if self.ladder.scale is not None or len(ladder) < count:
            return False
        # The first size may be rounded from another target, which only a smaller size shows.
        is_low_enough = ladder[0].size == smallest or mean_log(ladder[1 : count + 1]) <= math.log(center)
        return is_low_enough and mean_log(ladder[-count:]) >= math.log(center)

    def _nearest(self, params: float) -> SizeStats:
        """The size with the nearest N on a log scale."""
        if self.ladder.scale is not None:
            is_family_scale = self.ladder.scale is self.model.spec.scale
            return self._scale_by_bisection(params) if is_family_scale else self._scale_by_correction(params)
        if self.grid.doubling:
            return self._nearest_doubling(params)
        step = self.grid.step
        low_size, high_size = self._bracket(params)
        low, high = self.at(low_size), self.at(high_size)
        while high_size - low_size > step and low.params < params:
            size = self._between(params, low_size, low.params, high_size, high.params)
            stats = self.at(size)
            if stats.params <= params:
                low, low_size = stats, size
            else:
                high, high_size = stats, size
            if low.params < params and high_size - low_size > step:
                # The interpolated size is nearly exact: its neighbour usually closes the bracket.
                size = low_size + step if stats is low else high_size - step
                stats = self.at(size)
                if stats.params <= params:
                    low, low_size = stats, size
                else:
                    high, high_size = stats, size
        return min((low, high), key=lambda stats: abs(math.log(stats.params / params)))

    def _bracket(self, params: float) -> tuple[int, int]:
        """Two sizes with ``params`` between their N; the largest size twice if no size has as many parameters."""
        low = high = largest = self.grid.first
        self.at(low)
        while high == self.grid.first or self.at(high).params < params:
            if high == self.grid.last:
                return high, high
            low, high = high, min(high * 4, self.grid.last or high * 4)
            if self.at(high).params > self.at(largest).params:
                largest = high
            elif high >= max(LARGEST_WITHOUT_GROWTH, 64 * largest):
                size = self._smallest_with_most_params(largest, high)
                return size, size
        return low, high

    def _nearest_doubling(self, params: float) -> SizeStats:
        low = high = largest = self.grid.first
        while self.at(high).params < params:
            low, high = high, high * 2
            if self.at(high).params > self.at(largest).params:
                largest = high
            elif high >= max(LARGEST_WITHOUT_GROWTH, 64 * largest):
                low = high = self._smallest_with_most_params(largest, high)
                break
        pair = self.at(low), self.at(high)
        return min(pair, key=lambda stats: abs(math.log(stats.params / params)))

    def _smallest_with_most_params(self, size: int, tried: int) -> int:
        """The smallest size with the largest N, for a model with a limited N.

        Args:
            size: A size with the largest N.
            tried: The largest value of the size option that was tried.

        Raises PlanError for a model with a constant N.
        """
        option, first, step = self.model.spec.size, self.grid.first, self.grid.step
        max_params = self.at(size).params
        if size == first:
            raise PlanError(
                f"model {self.model.name!r}: N is {max_params:,} at {option} = {first} and no larger at any "
                f"value tried up to {tried}, so {option} does not set the model's size. Scale another "
                f"argument, which adds parameters, or write a list of sizes"
            )
        smaller = size if self.grid.doubling else max(first, size // 4 // step * step)
        while size - smaller > step:
            middle = (smaller + size) // 2 // step * step
            if self.at(middle).params >= max_params:
                size = middle
            else:
                smaller = middle
        note = f"N does not grow above {option} = {size}: it is at most {max_params:,}"
        if note not in self.notes:
            self.notes.append(note)
        return size

    def _scale_by_bisection(self, params: float) -> SizeStats:
        """The nearest size from the family's ``scale``, by bisection of its target.

        The family's N may differ from the counter's N: it may count all experts, or another vocabulary.
        """
        low, high, target, sizes = 0.0, math.inf, params, []
        for _ in range(MAX_SCALE_CALLS):
            sizes.append(self._measure(self.scaled_options(max(1, round(target)))))
            if sizes[-1].params == round(params):
                break
            if sizes[-1].params < params:
                low = target
            else:
                high = target
            target = math.sqrt(low * high) if 0 < low < high < math.inf else 4 * low if low else high / 4
        return min(sizes, key=lambda stats: abs(math.log(stats.params / params)))

    def _scale_by_correction(self, params: float) -> SizeStats:
        """The nearest size from a ladder's ``scale``. The target is corrected until a size repeats.

        This builds few models: building deep models takes most of the time.
        """
        target, sizes = params, dict[str, SizeStats]()
        for _ in range(MAX_SCALE_CALLS):
            options = self.scaled_options(max(1, round(target)))
            key = options.model_dump_json()
            if key in sizes:
                break
            sizes[key] = self._measure(options)
            target *= params / sizes[key].params
        return min(sizes.values(), key=lambda stats: abs(math.log(stats.params / params)))

    def scaled_options(self, target_params: int) -> Options:
        """Options of the ladder's ``scale`` for a number of parameters. Raises PluginError if it fails."""
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

    def _measure(self, options: Options) -> SizeStats:
        stats = self.measurer.measure(options)
        return stats if self.ladder.label is None else replace(stats, size=self.ladder.label(options))

    def _between(self, params: float, low: int, low_params: int, high: int, high_params: int) -> int:
        """A multiple of the step strictly between two sizes, by log-log interpolation to ``params``."""
        step = self.grid.step
        share = math.log(params / low_params) / max(1e-9, math.log(high_params / low_params))
        size = round(math.exp(math.log(low) + share * math.log(high / low)) / step) * step
        return min(max(size, low + step), high - step)


def mean_log(sizes: list[SizeStats]) -> float:
    """Mean of ln N."""
    return math.fsum(math.log(stats.params) for stats in sizes) / len(sizes)
