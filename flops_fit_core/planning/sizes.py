"""Which sizes each budget gets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pydantic import JsonValue

from flops_fit_core.config import Experiment
from flops_fit_core.errors import PlanError, PluginError
from flops_fit_core.flops.model_stats import MAX_REAL_PARAMS, SizeMeasurer, SizeStats
from flops_fit_core.planning.probing import probe_sizes
from flops_fit_core.planning.rungs import Rungs, mean_log
from flops_fit_core.plugins.specs import Ladder

WIDEST_GAP = 2.0
"""N of a size over N of the next smaller one, up to which a ladder is fine enough for any ``size_ratio``."""
HEAD_DIM_RANGE = 1.3
"""Largest head_dim over the smallest, from which a plan warns."""


class SizeLadder:
    """The sizes of an experiment: those written by hand, or rungs of one ladder for all budgets.

    Rung k has about ``size_ratio ** k`` parameters, so a budget that is added later finds the sizes of its
    neighbours unchanged. Each budget gets the consecutive rungs around its expected N_opt.

    Raises PlanError or PluginError where no size can be built, ConfigError for options that no ladder can have.
    """

    def __init__(
        self, experiment: Experiment, meter: SizeMeasurer, expected_params: Callable[[float], float] | None
    ) -> None:
        self.sweep = experiment.sweep
        self.model = experiment.model
        self.meter = meter
        self.notes: list[str] = []
        self._rungs_of = partial(Rungs, self.model, self.sweep, meter, expected_params=expected_params)
        spec = self.model.spec
        self.rungs = self._rungs_of(
            Ladder(multiple_of=self.sweep.multiple_of or spec.multiple_of, scale=spec.scale)
        )
        if isinstance(self.sweep.sizes, int):
            self._choose_rungs()

    def for_budget(self, budget: float) -> list[SizeStats]:
        """Sizes for one budget, smallest first."""
        if isinstance(self.sweep.sizes, tuple):
            return sorted(self._listed(self.sweep.sizes), key=lambda measured: measured.params)
        rungs = self.rungs.for_budget(budget)
        self.notes += [note for note in self.rungs.notes if note not in self.notes]
        if len(rungs) < self.sweep.sizes:
            self.notes.append(
                f"budget {budget:.3g}: only {len(rungs)} of {self.sweep.sizes} sizes can be built near its "
                f"expected optimum in steps of sweep.size_ratio = {self.sweep.size_ratio:g}"
            )
        return rungs

    def _listed(self, sizes: tuple[dict[str, JsonValue], ...]) -> list[SizeStats]:
        """The sizes of a list. Where the size option is the same for several, the others that are written tell
        them apart."""
        given = [self.meter.measure(self.model.with_options(**changes).options) for changes in sizes]
        if len({measured.size for measured in given}) == len({measured.params for measured in given}):
            return given
        option = self.model.spec.size
        named = []
        for measured, changes in zip(given, sizes, strict=True):
            others = [f"{name}={value}" for name, value in changes.items() if name != option]
            named.append(replace(measured, size=" ".join([str(measured.size), *others])) if others else measured)
        return named

    def small_relative(self, smallest: SizeStats) -> SizeStats:
        """A size that is small enough to be tried for real, where the sweep's smallest is not."""
        if smallest.parameters.total <= MAX_REAL_PARAMS or self.rungs.ladder.scale is not None:
            return smallest
        try:
            return self.rungs.at(self.rungs.grid.first)
        except PlanError:
            return smallest

    def _choose_rungs(self) -> None:
        """Take the first of the family's ladders that is fine enough for ``size_ratio``, otherwise the finest."""
        ladders = self._ladders()
        if not ladders:
            grid, self.notes = probe_sizes(self.model, self.meter.task)
            self.rungs = self._rungs_of(Ladder(multiple_of=grid.step), grid=grid)
        else:
            spacings = []
            for ladder in ladders:
                rungs = self._rungs_of(ladder)
                spacings.append((self._spacing(rungs), rungs))
                if spacings[-1][0] <= self._widest_gap:
                    break
            fine_enough = spacings[-1][0] <= self._widest_gap
            _, self.rungs = spacings[-1] if fine_enough else min(spacings, key=lambda pair: pair[0])
            if self.rungs.ladder.options:
                self._note_options(self._rungs_of(ladders[0]))
        self._note_gap()

    def _ladders(self) -> list[Ladder]:
        """The preferred one first; none where nothing is known of the sizes that can be built."""
        spec, multiple_of = self.model.spec, self.sweep.multiple_of
        ladders = [Ladder(multiple_of=spec.multiple_of, scale=spec.scale)]
        if spec.ladders is not None:
            ladders = self.model.call_all(spec.ladders, self.model.options)
            if not ladders or not all(isinstance(ladder, Ladder) for ladder in ladders):
                raise PluginError(f"model {self.model.name!r}: ladders gave {ladders!r} instead of Ladders")
        if multiple_of is not None:
            if ladders[0].scale is not None:
                raise PlanError(
                    f"sweep.multiple_of = {multiple_of}: with these options, model {self.model.name!r} chooses "
                    f"its own sizes, which are no multiples. Leave sweep.multiple_of out"
                )
            return [Ladder(multiple_of=multiple_of)]
        unknown = spec.ladders is None and spec.scale is None and spec.multiple_of == 1
        return [] if unknown else ladders

    @property
    def _widest_gap(self) -> float:
        return max(WIDEST_GAP, math.pow(self.sweep.size_ratio, 1.5))

    def _spacing(self, rungs: Rungs) -> float:
        """The widest gap between neighbours, as a factor of N. Counts twice how far a budget's sizes lie off its
        center, because smaller ones cannot be built, if that is more."""
        spacing = self._gap(rungs)
        for budget in self.sweep.budgets:
            off = abs(mean_log(rungs.for_budget(budget)) - math.log(rungs.center(budget)))
            spacing = max(spacing, math.exp(2 * off))
        return spacing

    def _gap(self, rungs: Rungs) -> float:
        """The largest N over the N of the next smaller size of the same budget."""
        sizes = [rungs.for_budget(budget) for budget in self.sweep.budgets]
        pairs = [pair for one_budget in sizes for pair in itertools.pairwise(one_budget)]
        return max((larger.params / smaller.params for smaller, larger in pairs), default=1.0)

    def _note_options(self, preferred: Rungs) -> None:
        for option, value in self.rungs.ladder.options.items():
            before = getattr(self.model.options, option)
            self.notes.append(
                f"model.{option} = {value} at every size: with the default, {before}, neighbouring sizes would be "
                f"up to {self._gap(preferred):.2g}x apart in N. Write model.{option} to decide it yourself"
            )

    def _note_gap(self) -> None:
        gap, grid = self._gap(self.rungs), self.rungs.grid
        if gap <= self._widest_gap:
            return
        reason = ""
        if self.rungs.ladder.scale is None:
            option = self.model.spec.size
            reason = f": {option} is a multiple of {grid.step}" if grid.step > 1 else ""
            if grid.doubling:
                reason = f": {option} is {f'{grid.first} times ' if grid.first > 1 else ''}a power of two"
        self.notes.append(
            f"neighbouring sizes are up to {gap:.2g}x apart in N, and sweep.size_ratio = {self.sweep.size_ratio:g}"
            f"{reason}. The minimum of a profile is then less certain"
        )


def head_notes(sizes: list[SizeStats]) -> list[str]:
    """A warning where the channels of an attention head vary along the sizes.

    At equal width, N and FLOPs, 2 heads of 48 were 0.053 and 0.036 nats worse than 6 of 16 (two seeds), so a size
    whose heads differ from its neighbours' bends the profile and with it N_opt.
    """
    heads = {measured.size: measured.heads for measured in sorted(sizes, key=lambda size: size.params)}
    dims = {size: pair[1] for size, pair in heads.items() if pair is not None}
    if not dims or max(dims.values()) <= HEAD_DIM_RANGE * min(dims.values()):
        return []
    listed = ", ".join(f"{size}: {heads[size][0]} x {dim}" for size, dim in dims.items())  # type: ignore[index]
    note = (
        f"attention heads have {min(dims.values())} to {max(dims.values())} channels along the sizes (size: heads "
        f"x channels: {listed}). That alone changes the loss, and with it N_opt and a: take sizes that are "
        f"multiples of one head_dim"
    )
    return [note]
