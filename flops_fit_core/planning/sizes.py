"""The model sizes of each budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pydantic import JsonValue

from flops_fit_core import numbers
from flops_fit_core.config import Experiment
from flops_fit_core.errors import PlanError, PluginError
from flops_fit_core.flops.model_stats import MAX_REAL_PARAMS, SizeMeasurer, SizeStats
from flops_fit_core.planning.ladder_sizes import LadderSizes, mean_log
from flops_fit_core.planning.probing import probe_sizes
from flops_fit_core.plugins.specs import Ladder

WIDEST_GAP = 2.0
"""Largest ratio of N between neighbouring sizes of a ladder that is fine enough for every ``size_ratio``."""
HEAD_DIM_RANGE = 1.3
"""Ratio of the largest to the smallest head_dim above which a plan has a warning."""


class SizeLadder:
    """The sizes of an experiment: the listed sizes, or sizes of one ladder for all budgets.

    Size k of a ladder has about ``size_ratio ** k`` parameters, so a budget that is added later does not change
    the sizes of other budgets. Each budget has the consecutive sizes around its expected N_opt.

    Raises PlanError or PluginError if no size can be built, ConfigError for options that are invalid in every
    ladder.
    """

    def __init__(
        self, experiment: Experiment, measurer: SizeMeasurer, expected_params: Callable[[float], float] | None
    ) -> None:
        self.sweep = experiment.sweep
        self.model = experiment.model
        self.measurer = measurer
        self.notes: list[str] = []
        self._make_sizes = partial(LadderSizes, self.model, self.sweep, measurer, expected_params=expected_params)
        spec = self.model.spec
        self.ladder_sizes = self._make_sizes(
            Ladder(multiple_of=self.sweep.multiple_of or spec.multiple_of, scale=spec.scale)
        )
        if isinstance(self.sweep.sizes, int):
            self._choose_ladder()

    def for_budget(self, budget: float) -> list[SizeStats]:
        """The sizes of a budget, smallest first."""
        if isinstance(self.sweep.sizes, tuple):
            return sorted(self._listed(self.sweep.sizes), key=lambda stats: stats.params)
        sizes = self.ladder_sizes.for_budget(budget)
        self.notes += [note for note in self.ladder_sizes.notes if note not in self.notes]
        if len(sizes) < self.sweep.sizes:
            self.notes.append(
                f"budget {numbers.scientific(budget)}: only {len(sizes)} of {self.sweep.sizes} "
                "sizes can be built near its "
                f"expected optimum in steps of sweep.size_ratio = {self.sweep.size_ratio:g}"
            )
        return sizes

    def _listed(self, sizes: tuple[dict[str, JsonValue], ...]) -> list[SizeStats]:
        """The listed sizes. If some have the same value of the size option, labels include the other options."""
        listed = [self.measurer.measure(self.model.with_options(**changes).options) for changes in sizes]
        if len({stats.size for stats in listed}) == len({stats.params for stats in listed}):
            return listed
        size_option = self.model.spec.size
        labelled = []
        for stats, changes in zip(listed, sizes, strict=True):
            options = [f"{name}={value}" for name, value in changes.items() if name != size_option]
            labelled.append(replace(stats, size=" ".join([str(stats.size), *options])) if options else stats)
        return labelled

    def small_relative(self, smallest: SizeStats) -> SizeStats:
        """A size that is small enough for a trial with real values, if the sweep's smallest size is not."""
        if smallest.parameters.total <= MAX_REAL_PARAMS or self.ladder_sizes.ladder.scale is not None:
            return smallest
        try:
            return self.ladder_sizes.at(self.ladder_sizes.grid.first)
        except PlanError:
            return smallest

    def _choose_ladder(self) -> None:
        """Use the first of the family's ladders that is fine enough for ``size_ratio``, otherwise the finest."""
        ladders = self._ladders()
        if not ladders:
            grid, self.notes = probe_sizes(self.model, self.measurer.task)
            self.ladder_sizes = self._make_sizes(Ladder(multiple_of=grid.step), grid=grid)
        else:
            spacings = []
            for ladder in ladders:
                ladder_sizes = self._make_sizes(ladder)
                spacings.append((self._spacing(ladder_sizes), ladder_sizes))
                if spacings[-1][0] <= self._widest_gap:
                    break
            fine_enough = spacings[-1][0] <= self._widest_gap
            _, self.ladder_sizes = spacings[-1] if fine_enough else min(spacings, key=lambda pair: pair[0])
            if self.ladder_sizes.ladder.options:
                self._note_options(self._make_sizes(ladders[0]))
        self._note_gap()

    def _ladders(self) -> list[Ladder]:
        """The family's ladders, preferred first; none if it does not declare the sizes that can be built."""
        spec, multiple_of = self.model.spec, self.sweep.multiple_of
        ladders = [Ladder(multiple_of=spec.multiple_of, scale=spec.scale)]
        if spec.ladders is not None:
            ladders = self.model.call_all(spec.ladders, self.model.options)
            if not ladders or not all(isinstance(ladder, Ladder) for ladder in ladders):
                raise PluginError(
                    f"model {self.model.name!r}: ladders returned {ladders!r} instead of Ladder objects"
                )
        if multiple_of is not None:
            if ladders[0].scale is not None:
                raise PlanError(
                    f"sweep.multiple_of = {multiple_of}: with these options, model {self.model.name!r} chooses "
                    f"its own sizes, which are not multiples. Remove sweep.multiple_of"
                )
            return [Ladder(multiple_of=multiple_of)]
        is_undeclared = spec.ladders is None and spec.scale is None and spec.multiple_of == 1
        return [] if is_undeclared else ladders

    @property
    def _widest_gap(self) -> float:
        return max(WIDEST_GAP, math.pow(self.sweep.size_ratio, 1.5))

    def _spacing(self, ladder_sizes: LadderSizes) -> float:
        """The largest ratio of N between neighbours, or a larger value for sizes that are not centred.

        If the smallest sizes cannot be built, the sizes of a budget may lie above its center. The squared ratio of
        their mean N to the center then counts if it is larger.
        """
        spacing = self._gap(ladder_sizes)
        for budget in self.sweep.budgets:
            offset = abs(mean_log(ladder_sizes.for_budget(budget)) - math.log(ladder_sizes.center(budget)))
            spacing = max(spacing, math.exp(2 * offset))
        return spacing

    def _gap(self, ladder_sizes: LadderSizes) -> float:
        """The largest ratio of N between neighbouring sizes of a budget."""
        pairs = [
            pair for budget in self.sweep.budgets for pair in itertools.pairwise(ladder_sizes.for_budget(budget))
        ]
        return max((larger.params / smaller.params for smaller, larger in pairs), default=1.0)

    def _note_options(self, preferred: LadderSizes) -> None:
        for option, value in self.ladder_sizes.ladder.options.items():
            default = getattr(self.model.options, option)
            self.notes.append(
                f"model.{option} = {value} at every size: with the default, {default}, neighbouring sizes would "
                f"be up to {self._gap(preferred):.2g}x apart in N. To use another value, write model.{option}"
            )

    def _note_gap(self) -> None:
        gap, grid = self._gap(self.ladder_sizes), self.ladder_sizes.grid
        if gap <= self._widest_gap:
            return
        reason = ""
        if self.ladder_sizes.ladder.scale is None:
            option = self.model.spec.size
            reason = f": {option} is a multiple of {grid.step}" if grid.step > 1 else ""
            if grid.doubling:
                reason = f": {option} is {f'{grid.first} times ' if grid.first > 1 else ''}a power of two"
        self.notes.append(
            f"neighbouring sizes are up to {gap:.2g}x apart in N, with sweep.size_ratio = "
            f"{self.sweep.size_ratio:g}{reason}. This makes the minimum of a profile less certain"
        )


def head_notes(sizes: list[SizeStats]) -> list[str]:
    """A warning if the channels per attention head differ between the sizes.

    At equal width, N and FLOPs, 2 heads of 48 channels were 0.053 and 0.036 nats worse than 6 heads of 16 (two
    seeds). A size with different heads than its neighbours therefore distorts the profile and N_opt.
    """
    heads = {stats.size: stats.heads for stats in sorted(sizes, key=lambda size: size.params)}
    dims = {size: pair[1] for size, pair in heads.items() if pair is not None}
    if not dims or max(dims.values()) <= HEAD_DIM_RANGE * min(dims.values()):
        return []
    listed = ", ".join(f"{size}: {heads[size][0]} x {dim}" for size, dim in dims.items())  # type: ignore[index]
    note = (
        f"the sizes have {min(dims.values())} to {max(dims.values())} channels per attention head (size: heads x "
        f"channels: {listed}). This changes the loss, and with it N_opt and a: use sizes that are multiples of "
        f"one head_dim"
    )
    return [note]
