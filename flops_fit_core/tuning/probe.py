"""What a learning-rate probe trains: small sizes, few tokens, the experiment's own recipe at other values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import JsonValue, ValidationError

from flops_fit_core.config import Experiment, explain
from flops_fit_core.errors import ConfigError, PlanError
from flops_fit_core.flops.model_stats import SizeMeasurer, SizeStats, UsageTraces
from flops_fit_core.planning import CellResolver, open_dataset, resolve_counter, runtime_of
from flops_fit_core.plugins.protocols import LossSurface
from flops_fit_core.records import RunSpec, SkippedCell, SweepPlan
from flops_fit_core.tuning.knob import Knob, find_knob


def probe_sizes(plan: SweepPlan) -> list[RunSpec]:
    """A run of each size to probe: those a quarter and half up the plan's ladder, so that one is not too far from
    the larger ones and both are cheap."""
    ladder = list({run.params: run for run in sorted(plan.runs, key=lambda run: run.params)}.values())
    return list({run.params: run for run in (ladder[len(ladder) // 4], ladder[len(ladder) // 2])}.values())


def probe_tokens(plan: SweepPlan) -> int:
    """The median D of the smallest budget's runs: what half of the cheapest profile is trained on."""
    return statistics.median_low([run.tokens for run in plan.runs if run.budget == plan.budgets[0]])


class Probe:
    """Plans a probe's runs.

    Args:
        experiment: What is to be tuned.
        plan: Its plan, from whose ladder the sizes come.
        sizes: Values of the model's size option; unset, :func:`probe_sizes`.
        tokens: D of every run; unset, :func:`probe_tokens`.
        seeds: Of every size at every value.

    Raises ConfigError, PlanError or DataError, saying what to change.
    """

    def __init__(
        self,
        experiment: Experiment,
        plan: SweepPlan,
        *,
        sizes: Sequence[int] | None = None,
        tokens: float | None = None,
        seeds: Sequence[int] = (0,),
    ) -> None:
        self.plan = plan
        self.tokens = tokens or probe_tokens(plan)
        self.seeds = tuple(seeds)
        sweep = experiment.sweep.model_copy(update={"seeds": self.seeds, "share_trunks": False})
        self.experiment = experiment.model_copy(update={"sweep": sweep})
        self.dataset = open_dataset(experiment, self.seeds[0])
        if isinstance(self.dataset, LossSurface):
            raise ConfigError(
                f"dataset {experiment.dataset.name!r} computes losses from a formula that knows no learning rate: "
                f"there is nothing to tune"
            )
        self.experiment, _ = resolve_counter(self.experiment, self.dataset.task)
        usages = UsageTraces(experiment.model, self.dataset.task, by_type=experiment.planner == 1)
        meter = SizeMeasurer(experiment.model, self.dataset.task, self.experiment.flops, usages)
        self.measured = [
            replace(meter.measure(self._sized(options).options), size=label)
            for label, options in self._options(sizes)
        ]
        self.knob = self._knob()
        self._check_proportional()

    @property
    def flops(self) -> float:
        """Of one value: every size once with every seed."""
        return len(self.seeds) * sum(one.count.flops_per_token * self.tokens for one in self.measured)

    def values(self, steps: Sequence[int]) -> list[float]:
        """Of the knob: its own times powers of 2."""
        return [self.knob.value * 2.0**step for step in steps]

    def runs(self, value: float) -> list[RunSpec]:
        """Every size and seed at one value of the knob. Raises PlanError where D is too short for a size."""
        turned = self.knob.turned(self.experiment, value)
        return [run for one in self.measured for run in self._resolved(turned, one)]

    def sweep(self, values: Sequence[float]) -> SweepPlan:
        """The plan of the whole probe. Raises PlanError."""
        runs = {run.id: run for value in values for run in self.runs(value)}
        return SweepPlan(
            name=f"{self.plan.name}-tune",
            runs=tuple(runs.values()),
            unit=self.plan.unit,
            params_name=self.plan.params_name,
            flops_name=self.plan.flops_name,
            device=self.plan.device,
            runtime=runtime_of(self.experiment),
            pack=self.plan.pack,
        )

    def lr(self, run: RunSpec) -> float:
        """A run's peak learning rate. Raises ConfigError for an optimizer that has none."""
        options: Any = self.experiment.optimizer.spec.options.model_validate(run.optimizer.options)
        if not hasattr(options, "lr"):
            raise ConfigError(f"optimizer {run.optimizer.name!r} has no option lr: there is nothing to tune")
        return float(options.lr)

    def _options(self, sizes: Sequence[int] | None) -> list[tuple[int | float | str, dict[str, JsonValue]]]:
        """What a size is called, and its options of the model: as in the plan where it is in the plan."""
        if sizes is None:
            return [(run.size, self._of(run)) for run in probe_sizes(self.plan)]
        spec = self.experiment.model.spec
        option = spec.size
        planned = {getattr(spec.options.model_validate(run.model.options), option): run for run in self.plan.runs}
        return [
            (planned[size].size, self._of(planned[size])) if size in planned else (size, {option: size})
            for size in sizes
        ]

    def _of(self, run: RunSpec) -> dict[str, JsonValue]:
        """A planned run's model, with the values that equal their default: ``[model]`` may have another."""
        model = self.experiment.model
        whole = model.spec.options.model_validate(run.model.options).model_dump(mode="json")
        names = {*run.model.options, *model.options.model_fields_set} - set(model.runtime)
        return {name: whole[name] for name in names}

    def _sized(self, options: dict[str, JsonValue]) -> Any:
        try:
            return self.experiment.model.with_options(**options)
        except ValidationError as error:
            raise ConfigError(f"--sizes: model {self.experiment.model.name!r}:\n{explain(error)}") from None

    def _resolved(self, experiment: Experiment, measured: SizeStats) -> list[RunSpec]:
        budget = measured.count.flops_per_token * self.tokens
        found = CellResolver(experiment, self.dataset)(budget, measured)
        if isinstance(found, SkippedCell):
            raise PlanError(f"the probe cannot train size {found.size}: {found.reason}")
        return found

    def _knob(self) -> Knob:
        rates = {one.size: self.lr(self._resolved(self.experiment, one)[0]) for one in self.measured}
        return find_knob(self.experiment, rates)

    def _check_proportional(self) -> None:
        """Raises ConfigError where the option that is to be tuned does not multiply the learning rate."""
        once, twice = self.runs(self.knob.value), self.runs(2 * self.knob.value)
        for one, two in zip(once, twice, strict=True):
            if not math.isclose(2 * self.lr(one), self.lr(two), rel_tol=1e-6):
                raise ConfigError(
                    f"{self.knob.name} twice as large makes the learning rate of size {one.size} "
                    f"{self.lr(two) / self.lr(one):.4g} times as large, not 2: set optimizer.lr, and tune that"
                )
