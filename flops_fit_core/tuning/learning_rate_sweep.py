"""The runs of a learning-rate sweep: small sizes, few tokens, the experiment's recipe at several values."""

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
from flops_fit_core.tuning.tuned_option import TunedOption, find_tuned_option


def sweep_sizes(plan: SweepPlan) -> list[RunSpec]:
    """One planned run per size to train: a quarter and half way up the plan's ladder, where runs are cheap and the
    larger sizes not too far."""
    ladder = list({run.params: run for run in sorted(plan.runs, key=lambda run: run.params)}.values())
    return list({run.params: run for run in (ladder[len(ladder) // 4], ladder[len(ladder) // 2])}.values())


def sweep_tokens(plan: SweepPlan) -> int:
    """The median D of the smallest budget's runs."""
    return statistics.median_low([run.tokens for run in plan.runs if run.budget == plan.budgets[0]])


class LearningRateSweep:
    """Plans the runs of a learning-rate sweep.

    Args:
        experiment: The experiment to tune.
        plan: Its plan, which has the ladder of sizes.
        sizes: Values of the model's size option; unset, :func:`sweep_sizes`.
        tokens: D of every run; unset, :func:`sweep_tokens`.
        seeds: Training seeds of every size at every value.

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
        self.tokens = tokens or sweep_tokens(plan)
        self.seeds = tuple(seeds)
        sweep = experiment.sweep.model_copy(update={"seeds": self.seeds, "share_stable_phase": False})
        self.experiment = experiment.model_copy(update={"sweep": sweep})
        self.dataset = open_dataset(experiment, self.seeds[0])
        if isinstance(self.dataset, LossSurface):
            raise ConfigError(
                f"dataset {experiment.dataset.name!r} computes losses from a formula without a learning rate: "
                f"choose a dataset that has data, such as 'text'"
            )
        self.experiment, _ = resolve_counter(self.experiment, self.dataset.task)
        usages = UsageTraces(experiment.model, self.dataset.task)
        measurer = SizeMeasurer(experiment.model, self.dataset.task, self.experiment.counter, usages)
        self.measured = [
            replace(measurer.measure(self._sized(options).options), size=label)
            for label, options in self._options(sizes)
        ]
        self.option = self._tuned_option()
        self._check_proportional()

    @property
    def flops(self) -> float:
        """Training FLOPs of one value: every size with every seed."""
        return len(self.seeds) * sum(size.count.flops_per_token * self.tokens for size in self.measured)

    def values(self, steps: Sequence[int]) -> list[float]:
        """Values of the tuned option: the present value times powers of 2."""
        return [self.option.value * 2.0**step for step in steps]

    def runs(self, value: float) -> list[RunSpec]:
        """Every size and seed at one value of the option. Raises PlanError if D is too short for a size."""
        experiment = self.option.with_value(self.experiment, value)
        return [run for size in self.measured for run in self._resolved(experiment, size)]

    def plan_runs(self, values: Sequence[float]) -> SweepPlan:
        """The plan of every run of the sweep. Raises PlanError."""
        runs = {run.id: run for value in values for run in self.runs(value)}
        return SweepPlan(
            name=f"{self.plan.name}-tune",
            runs=tuple(runs.values()),
            unit=self.plan.unit,
            params_name=self.plan.params_name,
            flops_name=self.plan.flops_name,
            device=self.plan.device,
            runtime=runtime_of(self.experiment),
            vmap_runs=self.plan.vmap_runs,
        )

    def lr(self, run: RunSpec) -> float:
        """A run's peak learning rate. Raises ConfigError for an optimizer without a learning rate."""
        options: Any = self.experiment.optimizer.spec.options.model_validate(run.optimizer.options)
        if not hasattr(options, "lr"):
            raise ConfigError(f"optimizer {run.optimizer.name!r} has no option lr to tune")
        return float(options.lr)

    def _options(self, sizes: Sequence[int] | None) -> list[tuple[int | float | str, dict[str, JsonValue]]]:
        """Label and model options of each size: the plan's, for a size in the plan."""
        if sizes is None:
            return [(run.size, self._of(run)) for run in sweep_sizes(self.plan)]
        spec = self.experiment.model.spec
        option = spec.size
        planned = {getattr(spec.options.model_validate(run.model.options), option): run for run in self.plan.runs}
        return [
            (planned[size].size, self._of(planned[size])) if size in planned else (size, {option: size})
            for size in sizes
        ]

    def _of(self, run: RunSpec) -> dict[str, JsonValue]:
        """A planned run's model options. Values equal to their default are included: ``[model]`` may differ."""
        model = self.experiment.model
        options = model.spec.options.model_validate(run.model.options).model_dump(mode="json")
        names = {*run.model.options, *model.options.model_fields_set} - set(model.runtime)
        return {name: options[name] for name in names}

    def _sized(self, options: dict[str, JsonValue]) -> Any:
        try:
            return self.experiment.model.with_options(**options)
        except ValidationError as error:
            raise ConfigError(f"--sizes: model {self.experiment.model.name!r}:\n{explain(error)}") from None

    def _resolved(self, experiment: Experiment, measured: SizeStats) -> list[RunSpec]:
        budget = measured.count.flops_per_token * self.tokens
        runs = CellResolver(experiment, self.dataset)(budget, measured)
        if isinstance(runs, SkippedCell):
            raise PlanError(f"the learning-rate sweep cannot train size {runs.size}: {runs.reason}")
        return runs

    def _tuned_option(self) -> TunedOption:
        rates = {size.size: self.lr(self._resolved(self.experiment, size)[0]) for size in self.measured}
        return find_tuned_option(self.experiment, rates)

    def _check_proportional(self) -> None:
        """Raises ConfigError if the tuned option does not multiply the learning rate."""
        runs, doubled_runs = self.runs(self.option.value), self.runs(2 * self.option.value)
        for run, doubled in zip(runs, doubled_runs, strict=True):
            if not math.isclose(2 * self.lr(run), self.lr(doubled), rel_tol=1e-6):
                raise ConfigError(
                    f"doubling {self.option.name} multiplies the learning rate of size {run.size} by "
                    f"{self.lr(doubled) / self.lr(run):.4g}, not 2: set optimizer.lr, and tune that"
                )
