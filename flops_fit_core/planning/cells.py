"""One size at one budget: D, batch and steps solved so that counted FLOPs meet the budget, and the runs of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from pydantic import ValidationError

from flops_fit_core.config import Experiment, PluginConfig, build_hyperparameters, explain
from flops_fit_core.errors import ConfigError, PlanError
from flops_fit_core.flops.model_stats import SizeStats
from flops_fit_core.planning.trunks import FLOAT, Trunks
from flops_fit_core.plugins.protocols import Dataset, RecipeInput, RunInfo, SampleSize, Task
from flops_fit_core.plugins.specs import ModelSpec
from flops_fit_core.records import Hyperparameters, RunSpec, SkippedCell

TOLERANCE = 0.01
"""Counted FLOPs of every run are this close to its budget, relatively."""
DEFAULT_BATCH = 32
"""Samples of a batch in which the data are measured before a recipe has chosen one."""
GOOD_ENOUGH = 0.001
"""The recipe's batch is kept as it is when whole steps come this close to the budget."""


@dataclass(frozen=True)
class Batching:
    """Whole steps of whole samples."""

    batch_size: int
    steps: int
    tokens: int
    miss: float
    """(counted FLOPs - budget) / budget."""


class CellResolver:
    """Turns a (budget, size) cell into fully resolved runs, one a seed, or says why it is left out."""

    def __init__(self, experiment: Experiment, dataset: Dataset) -> None:
        self.experiment = experiment
        self.sweep = experiment.sweep
        self.dataset = dataset
        self.trunks = Trunks(experiment)
        self.notes: list[str] = []

    def __call__(self, budget: float, measured: SizeStats) -> list[RunSpec] | SkippedCell:
        size = self._sample_size(self.sweep.batch_size)
        tokens = budget / measured.count.flops_per_token * _ratio(size.tokens, size.positions)
        reference = self.trunks.reference_tokens(measured)
        hyper = self._hyperparameters(measured, reference or tokens, trunk=reference is not None)
        asked = self.sweep.batch_size or hyper.batch_size
        if asked is None:
            raise PlanError(
                f"recipe {self.experiment.recipe.name!r} gives no batch size: write sweep.batch_size = 32, say"
            )
        size = self._sample_size(asked)
        flops_per_token = measured.count.flops_per_token * _ratio(size.positions, size.tokens)
        tokens = budget / flops_per_token
        fixed = self.sweep.batch_size is not None or self.trunks.shared
        batching = solve_batches(tokens, asked, size.tokens, fixed=fixed)
        reason = self._reason_to_skip(tokens, batching, size) or self._miss(budget, batching, measured)
        if reason:
            return SkippedCell(budget=budget, size=measured.size, params=measured.params, reason=reason)
        if reference is not None:
            self.trunks.add_branch(hyper, self._hyperparameters(measured, tokens), measured)
        return list(self._runs(budget, measured, batching, hyper, size))

    def _sample_size(self, batch_size: int | None) -> SampleSize:
        """Tokens and positions of a sample, on average; equal unless the data hold padding or masked targets."""
        size = self.dataset.sample_size(batch_size or DEFAULT_BATCH)
        if size.tokens > 0:
            return size
        raise PlanError("the dataset has no valid target in a sample of it: every one is ignored (-100)")

    def _recipe_task(self, size: SampleSize) -> Task:
        """The task as a recipe sees it: with the valid targets of a sample."""
        task = self.dataset.task
        if size.tokens == size.positions:
            return task
        return cast("Task", replace(cast("Any", task), tokens_per_sample=max(1, round(size.tokens))))

    def _reason_to_skip(self, tokens: float, batching: Batching, size: SampleSize) -> str | None:
        unit = self.dataset.task.unit
        if tokens < self.sweep.min_steps * batching.batch_size * size.tokens:
            return (
                f"D = {tokens:.3g} {unit} is fewer than sweep.min_steps = {self.sweep.min_steps} steps of "
                f"{batching.batch_size} samples"
            )
        unique = self.dataset.num_unique_tokens
        if unique is not None and batching.tokens > unique and not self.sweep.allow_repeat:
            return (
                f"D = {batching.tokens:.3g} {unit} is {batching.tokens / unique:.2f} epochs of the "
                f"{unique:.3g} there are; allow that with sweep.allow_repeat = true"
            )
        return None

    def _miss(self, budget: float, batching: Batching, measured: SizeStats) -> str | None:
        """Why a cell cannot meet its budget within the tolerance, also as a note; None if it can."""
        if abs(batching.miss) <= TOLERANCE:
            return None
        self.notes.append(
            f"budget {budget:.4g}: size {measured.size} is left out, because whole steps of its batch miss "
            f"the budget by {batching.miss:+.1%}, and the tolerance is {TOLERANCE:.0%}"
        )
        return (
            f"{batching.steps} whole steps of {batching.batch_size} samples miss it by {batching.miss:+.1%}, "
            f"and the tolerance is {TOLERANCE:.0%}; the nearest budget that size can meet is "
            f"{budget * (1 + batching.miss):.6g}. Use that budget or a smaller sweep.batch_size"
        )

    def _hyperparameters(self, measured: SizeStats, tokens: float, *, trunk: bool = False) -> Hyperparameters:
        recipe, optimizer = self.experiment.recipe, self.experiment.optimizer
        about = RecipeInput(
            params=measured.params,
            tokens=max(1, round(tokens)),
            width=measured.width,
            task=self._recipe_task(self._sample_size(self.sweep.batch_size)),
            width_scaling=optimizer.spec.width_scaling,
            lr_relative_to_adamw=optimizer.spec.lr_relative_to_adamw,
            flops=measured.count.flops_per_token * tokens,
            parameters=measured.parameters,
            lr=None if optimizer.unset("lr") else getattr(optimizer.options, "lr", None),
            batch_size=self.sweep.batch_size,
            trunk=trunk,
        )
        return build_hyperparameters(recipe, about)

    def _runs(
        self, budget: float, measured: SizeStats, batching: Batching, hyper: Hyperparameters, size: SampleSize
    ) -> Iterator[RunSpec]:
        experiment = self.experiment
        size_options = measured.options.model_dump(exclude_unset=True)
        optimizer = self._filled(
            experiment.optimizer, lr=hyper.lr, weight_decay=hyper.weight_decay, betas=hyper.betas
        )
        schedule = self._filled(experiment.schedule, warmup_tokens=hyper.warmup_tokens)
        per_step = max(1, round(batching.batch_size * size.tokens))
        positions = batching.steps * batching.batch_size * size.positions
        devices = min(self._devices(measured), batching.batch_size)
        model = experiment.model.with_options(**size_options)
        if hyper.base_width is not None:
            model = self._width_scaled(model, measured.width, hyper.base_width)
        parts: dict[str, PluginConfig[Any]] = {
            "model": model,
            "dataset": experiment.dataset,
            "optimizer": optimizer,
            "schedule": schedule,
        }
        heads, head_dim = measured.heads or (None, None)
        view = RunInfo(
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
                size=measured.size,
                params=measured.params,
                flops_per_token=measured.count.flops_per_token * _ratio(positions, batching.tokens),
                positions=None if size.tokens == size.positions else round(positions),
                branch_step=self.trunks.branch_step(schedule, view),
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
        """The model as its family wants it where learning rates are scaled by the width."""
        spec = model.spec
        if spec.width_scaled_options is not None and self.experiment.planner > 1:
            values = model.call(spec.width_scaled_options, model.options)
            model = model.with_options(**{name: value for name, value in values.items() if model.unset(name)})
        if spec.width_transfer is not None and width != base_width:
            reason = model.call(spec.width_transfer, model.options)
            if reason is not None:
                self.notes.append(f"one learning rate is not verified for all widths: {reason}")
        return model

    def _devices(self, measured: SizeStats) -> int:
        """Devices that train a model of this size together, where the trainer can do that."""
        experiment = self.experiment
        device, can = experiment.device, experiment.trainer.spec.can
        if not can & {"distribute", "launch"} or self.dataset.task.whole_batches:
            return 1
        if "distribute" not in can:
            needed = 1  # What is asked for.
        else:
            kept = (
                3 if experiment.optimizer.spec.width_scaling == "none" else 4
            )  # weights, gradients, one or two moments
            needed = kept * FLOAT * measured.parameters.total
        return int(device.call(device.spec.devices_per_run, device.options, needed))

    def _filled(self, chosen: PluginConfig[Any], **suggested: Any) -> PluginConfig[Any]:
        """The choice with the recipe's values where the user left them unset."""
        changes: dict[str, Any] = {}
        for option, value in suggested.items():
            if value is None or option not in type(chosen.options).model_fields:
                continue
            if chosen.unset(option):
                changes[option] = value
            else:
                kept = getattr(chosen.options, option)
                self.notes.append(f"{chosen.spec.kind}.{option} = {kept} is yours; the recipe was not asked")
        if not changes:
            return chosen
        try:
            return chosen.with_options(**changes)
        except ValidationError as error:
            raise ConfigError(
                f"recipe {self.experiment.recipe.name!r} gave values that {chosen.name!r} refuses:\n"
                f"{explain(error)}"
            ) from None


def _options_of(parts: Mapping[str, PluginConfig[Any]], kind: str) -> dict[str, Any]:
    """All options of the run's plugin of a kind, as the trainer will get them."""
    return parts[kind].options.model_dump(mode="json")


def _ratio(a: float, b: float) -> float:
    """``a / b``; exactly 1 if they are equal."""
    return 1.0 if a == b else a / b


def solve_batches(tokens: float, batch_size: int, per_sample: float, *, fixed: bool) -> Batching:
    """Whole steps of whole samples that come nearest ``tokens``.

    The batch moves by up to a tenth from ``batch_size`` where that comes nearer and it is not ``fixed``.
    """

    def at(batch: int) -> Batching:
        steps = max(1, round(tokens / (batch * per_sample)))
        total = steps * batch * per_sample
        return Batching(batch, steps, round(total), (total - tokens) / tokens)

    best = at(batch_size)
    if fixed or abs(best.miss) <= GOOD_ENOUGH:
        return best
    reach = batch_size // 10
    candidates = [at(batch) for batch in range(max(1, batch_size - reach), batch_size + reach + 1)]
    enough = [one for one in candidates if abs(one.miss) <= GOOD_ENOUGH]
    if enough:
        return min(enough, key=lambda one: abs(one.batch_size - batch_size))
    return min(candidates, key=lambda one: abs(one.miss))
