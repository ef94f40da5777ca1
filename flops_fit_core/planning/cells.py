"""The runs of a (budget, size) cell: D, batch and steps solved so that counted FLOPs meet the budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from pydantic import ValidationError

from flops_fit_core import numbers
from flops_fit_core.config import Experiment, PluginConfig, build_hyperparameters, explain
from flops_fit_core.errors import ConfigError, PlanError
from flops_fit_core.flops.model_stats import SizeStats
from flops_fit_core.planning.shared_phases import FLOAT, SharedPhases
from flops_fit_core.plugins.protocols import Dataset, RecipeInput, RunInfo, SampleSize, Task
from flops_fit_core.plugins.specs import ModelSpec
from flops_fit_core.records import Hyperparameters, RunSpec, SkippedCell

TOLERANCE = 0.01
"""Largest relative difference between the counted FLOPs of a run and its budget."""
DEFAULT_BATCH = 32
"""Batch size used to measure the data before a recipe has set a batch size."""
ACCEPTED_MISS = 0.001
"""The recipe's batch size is used unchanged if an integer number of steps comes this close to the budget."""


@dataclass(frozen=True)
class Batching:
    """An integer number of steps and of samples per step."""

    batch_size: int
    steps: int
    tokens: int
    miss: float
    """(counted FLOPs - budget) / budget."""


class CellResolver:
    """Turns a (budget, size) cell into fully resolved runs, one per seed, or into a reason to skip it."""

    def __init__(self, experiment: Experiment, dataset: Dataset) -> None:
        self.experiment = experiment
        self.sweep = experiment.sweep
        self.dataset = dataset
        self.shared_phases = SharedPhases(experiment)
        self.notes: list[str] = []

    def __call__(self, budget: float, stats: SizeStats) -> list[RunSpec] | SkippedCell:
        size = self._sample_size(self.sweep.batch_size)
        tokens = budget / stats.count.flops_per_token * _ratio(size.tokens, size.positions)
        reference = self.shared_phases.reference_tokens(stats)
        hyper = self._hyperparameters(stats, reference or tokens, trunk=reference is not None)
        batch_size = self.sweep.batch_size or hyper.batch_size
        if batch_size is None:
            raise PlanError(
                f"recipe {self.experiment.recipe.name!r} sets no batch size: write one, such as "
                f"sweep.batch_size = 32"
            )
        size = self._sample_size(batch_size)
        flops_per_token = stats.count.flops_per_token * _ratio(size.positions, size.tokens)
        tokens = budget / flops_per_token
        is_fixed = self.sweep.batch_size is not None or self.shared_phases.shared
        batching = solve_batches(tokens, batch_size, size.tokens, is_fixed=is_fixed)
        reason = self._reason_to_skip(tokens, batching, size) or self._explain_miss(budget, batching, stats)
        if reason:
            return SkippedCell(budget=budget, size=stats.size, params=stats.params, reason=reason)
        if reference is not None:
            self.shared_phases.add_branch(hyper, self._hyperparameters(stats, tokens), stats)
        return list(self._runs(budget, stats, batching, hyper, size))

    def _sample_size(self, batch_size: int | None) -> SampleSize:
        """Mean tokens and positions per sample. They differ if the data contain padding or masked targets."""
        size = self.dataset.sample_size(batch_size or DEFAULT_BATCH)
        if size.tokens > 0:
            return size
        raise PlanError("the dataset has no valid targets in the measured samples: all targets are -100 (ignored)")

    def _recipe_task(self, size: SampleSize) -> Task:
        """The task for a recipe: its tokens per sample are the valid targets."""
        task = self.dataset.task
        if size.tokens == size.positions:
            return task
        return cast("Task", replace(cast("Any", task), tokens_per_sample=max(1, round(size.tokens))))

    def _reason_to_skip(self, tokens: float, batching: Batching, size: SampleSize) -> str | None:
        unit = self.dataset.task.unit
        if tokens < self.sweep.min_steps * batching.batch_size * size.tokens:
            return (
                f"D = {numbers.count(tokens)} {unit} is fewer than sweep.min_steps = "
                f"{self.sweep.min_steps} steps of "
                f"{batching.batch_size} samples"
            )
        unique = self.dataset.num_unique_tokens
        if unique is not None and batching.tokens > unique and not self.sweep.allow_repeat:
            return (
                f"D = {numbers.count(batching.tokens)} {unit} is {batching.tokens / unique:.2f} epochs of the "
                f"{numbers.count(unique)} available; to allow repetition, write sweep.allow_repeat = true"
            )
        return None

    def _explain_miss(self, budget: float, batching: Batching, stats: SizeStats) -> str | None:
        """The reason why a cell misses its budget by more than the tolerance, also added to the notes; or None."""
        if abs(batching.miss) <= TOLERANCE:
            return None
        self.notes.append(
            f"budget {numbers.scientific(budget)}: size {stats.size} is skipped, because an integer "
            "number of steps misses the "
            f"budget by {numbers.change(1 + batching.miss)} (tolerance {TOLERANCE:.0%})"
        )
        return (
            f"{batching.steps} steps of {batching.batch_size} samples miss it by "
            f"{numbers.change(1 + batching.miss)} (tolerance {TOLERANCE:.0%}). Use a smaller sweep.batch_size, or "
            f"the nearest budget that this size can meet: {budget * (1 + batching.miss):.6g}"
        )

    def _hyperparameters(self, stats: SizeStats, tokens: float, *, trunk: bool = False) -> Hyperparameters:
        recipe, optimizer = self.experiment.recipe, self.experiment.optimizer
        recipe_input = RecipeInput(
            params=stats.params,
            tokens=max(1, round(tokens)),
            width=stats.width,
            task=self._recipe_task(self._sample_size(self.sweep.batch_size)),
            width_scaling=optimizer.spec.width_scaling,
            lr_relative_to_adamw=optimizer.spec.lr_relative_to_adamw,
            flops=stats.count.flops_per_token * tokens,
            parameters=stats.parameters,
            lr=None if optimizer.unset("lr") else getattr(optimizer.options, "lr", None),
            batch_size=self.sweep.batch_size,
            trunk=trunk,
        )
        return build_hyperparameters(recipe, recipe_input)

    def _runs(
        self, budget: float, stats: SizeStats, batching: Batching, hyper: Hyperparameters, size: SampleSize
    ) -> Iterator[RunSpec]:
        experiment = self.experiment
        size_options = stats.options.model_dump(exclude_unset=True)
        optimizer = self._fill_options(
            experiment.optimizer, lr=hyper.lr, weight_decay=hyper.weight_decay, betas=hyper.betas
        )
        schedule = self._fill_options(experiment.schedule, warmup_tokens=hyper.warmup_tokens)
        per_step = max(1, round(batching.batch_size * size.tokens))
        positions = batching.steps * batching.batch_size * size.positions
        devices = min(self._devices(stats), batching.batch_size)
        model = experiment.model.with_options(**size_options)
        if hyper.base_width is not None:
            model = self._width_scaled(model, stats.width, hyper.base_width)
        parts: dict[str, PluginConfig[Any]] = {
            "model": model,
            "dataset": experiment.dataset,
            "optimizer": optimizer,
            "schedule": schedule,
        }
        heads, head_dim = stats.heads or (None, None)
        run_info = RunInfo(
            batching.steps,
            batching.tokens,
            per_step,
            hyper.base_width,
            groups=lambda module: (),
            width_scaling=optimizer.spec.width_scaling,
        )
        for seed in self.sweep.seeds:
            run = RunSpec(
                model=model.choice,
                dataset=experiment.dataset.choice,
                fingerprint=self.dataset.fingerprint,
                optimizer=optimizer.choice,
                schedule=schedule.choice,
                counter=experiment.counter.choice,
                trainer=experiment.trainer.choice,
                batch_size=batching.batch_size,
                steps=batching.steps,
                tokens=batching.tokens,
                seed=seed,
                base_width=hyper.base_width,
                budget=budget,
                size=stats.size,
                params=stats.params,
                flops_per_token=stats.count.flops_per_token * _ratio(positions, batching.tokens),
                positions=None if size.tokens == size.positions else round(positions),
                branch_step=self.shared_phases.branch_step(schedule, run_info),
                devices=devices,
                heads=heads,
                head_dim=head_dim,
            )
            check = experiment.trainer.spec.check
            if check is not None and seed == self.sweep.seeds[0]:
                experiment.trainer.call(check, experiment.trainer.options, run, partial(_options_of, parts))
            yield run

    def _width_scaled(
        self, model: PluginConfig[ModelSpec], width: int | None, base_width: int
    ) -> PluginConfig[ModelSpec]:
        """The model with the options that its family sets if learning rates scale with the width."""
        spec = model.spec
        if spec.width_scaled_options is not None:
            values = model.call(spec.width_scaled_options, model.options)
            model = model.with_options(**{name: value for name, value in values.items() if model.unset(name)})
        if spec.width_transfer is not None and width != base_width:
            reason = model.call(spec.width_transfer, model.options)
            if reason is not None:
                self.notes.append(f"one learning rate is not verified for all widths: {reason}")
        return model

    def _devices(self, stats: SizeStats) -> int:
        """Number of devices that train a run of this size; 1 if the trainer cannot distribute a run."""
        experiment = self.experiment
        device, capabilities = experiment.device, experiment.trainer.spec.can
        if not capabilities & {"distribute", "launch"} or self.dataset.task.whole_batches:
            return 1
        num_bytes = 1  # a run of 1 byte gets the number of devices that the user sets
        if "distribute" in capabilities:
            # weights, gradients, and one or two moments
            numbers = 3 if experiment.optimizer.spec.width_scaling == "none" else 4
            num_bytes = numbers * FLOAT * stats.parameters.total
        return int(device.call(device.spec.devices_per_run, device.options, num_bytes))

    def _fill_options(self, plugin: PluginConfig[Any], **suggested: Any) -> PluginConfig[Any]:
        """The plugin with the recipe's values for the options that the user has not set."""
        changes: dict[str, Any] = {}
        for option, value in suggested.items():
            if value is None or option not in type(plugin.options).model_fields:
                continue
            if plugin.unset(option):
                changes[option] = value
            else:
                user_value = getattr(plugin.options, option)
                self.notes.append(
                    f"{plugin.spec.kind}.{option} = {user_value} is set by you; the recipe's value is not used"
                )
        if not changes:
            return plugin
        try:
            return plugin.with_options(**changes)
        except ValidationError as error:
            raise ConfigError(
                f"recipe {self.experiment.recipe.name!r} set values that {plugin.name!r} does not accept:\n"
                f"{explain(error)}"
            ) from None


def _options_of(parts: Mapping[str, PluginConfig[Any]], kind: str) -> dict[str, Any]:
    """All options of the run's plugin of a kind, as the trainer receives them."""
    return parts[kind].options.model_dump(mode="json")


def _ratio(a: float, b: float) -> float:
    """``a / b``; exactly 1 if they are equal."""
    return 1.0 if a == b else a / b


def solve_batches(tokens: float, batch_size: int, per_sample: float, *, is_fixed: bool) -> Batching:
    """The batch size and number of steps with a total nearest to ``tokens``.

    Args:
        tokens: D to reach.
        batch_size: Samples per step. It changes by up to 10% if that comes nearer to ``tokens``.
        per_sample: Tokens per sample.
        is_fixed: Whether ``batch_size`` must stay unchanged.
    """

    def batching_of(samples: int) -> Batching:
        steps = max(1, round(tokens / (samples * per_sample)))
        total = steps * samples * per_sample
        return Batching(samples, steps, round(total), (total - tokens) / tokens)

    best = batching_of(batch_size)
    if is_fixed or abs(best.miss) <= ACCEPTED_MISS:
        return best
    reach = batch_size // 10
    sample_counts = range(max(1, batch_size - reach), batch_size + reach + 1)
    candidates = [batching_of(samples) for samples in sample_counts]
    accepted = [batching for batching in candidates if abs(batching.miss) <= ACCEPTED_MISS]
    if accepted:
        return min(accepted, key=lambda batching: abs(batching.batch_size - batch_size))
    return min(candidates, key=lambda batching: abs(batching.miss))
