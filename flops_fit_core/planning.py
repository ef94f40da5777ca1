"""Experiment -> SweepPlan: which sizes each budget gets, and D solved so that counted FLOPs meet it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from flops_fit_core.audit import own_count_notes
from flops_fit_core.config import Chosen, Experiment, explain
from flops_fit_core.contracts import Dataset, LossSurface, RecipeInput, RunView
from flops_fit_core.errors import ConfigError, FlopsFitError, PlanError, PluginError
from flops_fit_core.measure import LARGEST_TRIED, Measured, Meter
from flops_fit_core.records import Hyperparameters, RunSpec, SkippedCell, SweepPlan
from flops_fit_core.trunks import FLOAT, Trunks

TOLERANCE = 0.01
"""Counted FLOPs of every run are this close to its budget, relatively."""
GOOD_ENOUGH = 0.001
"""The recipe's batch is kept as it is when whole steps come this close to the budget."""


def make_plan(experiment: Experiment, expected_params: Callable[[float], float] | None = None) -> SweepPlan:
    """Resolve every run of an experiment.

    Args:
        experiment: What was asked for.
        expected_params: A guess of N_opt for a budget, such as an earlier fit's; where it is None,
            ``sweep.tokens_per_param`` makes the guess.

    Builds the dataset (for its task, size and fingerprint) and, on the meta device, the models.

    Raises PlanError, ConfigError or DataError, saying what to change.
    """
    dataset = open_dataset(experiment, experiment.sweep.seeds[0])
    meter = Meter(experiment.model, dataset.task, experiment.flops)
    choose_sizes = SizeLadder(experiment, meter, expected_params)
    cells = [
        (budget, measured) for budget in experiment.sweep.budgets for measured in choose_sizes.for_budget(budget)
    ]
    if not isinstance(dataset, LossSurface):
        smallest = min((measured for _, measured in cells), key=lambda measured: measured.parameters.total)
        meter.check_fit(choose_sizes.small_relative(smallest).options)
        choose_sizes.notes += own_count_notes(experiment.model, dataset.task, [measured for _, measured in cells])
    resolve = CellResolver(experiment, dataset)
    runs: dict[str, RunSpec] = {}
    skipped: list[SkippedCell] = []
    for budget, measured in cells:
        outcome = resolve(budget, measured)
        if isinstance(outcome, SkippedCell):
            skipped.append(outcome)
        else:
            runs |= {run.id: run for run in outcome if run.id not in runs}
    _check_budgets(experiment, list(runs.values()), skipped)
    count = cells[0][1].count
    repeats = _repeats(list(runs.values()), dataset)
    return SweepPlan(
        name=experiment.name,
        runs=tuple(runs.values()),
        skipped=tuple(skipped),
        notes=tuple(
            dict.fromkeys(
                [*choose_sizes.notes, *repeats, *_of_schedule(experiment), *resolve.notes, *resolve.trunks.notes()]
            )
        ),
        unit=dataset.task.unit,
        params_name=count.params_name,
        flops_name=count.flops_name,
        device=experiment.device.choice,
        runtime=runtime_of(experiment),
        pack=_pack(experiment),
        checkpoint_bytes=resolve.trunks.checkpoint_bytes,
    )


def open_dataset(experiment: Experiment, seed: int) -> Dataset:
    """Build the experiment's dataset. Raises DataError or PluginError that names it."""
    chosen = experiment.dataset
    try:
        return chosen.spec.build(chosen.options, seed)
    except FlopsFitError:
        raise
    except Exception as error:
        raise PluginError(
            f"dataset {chosen.name!r} ({chosen.offer.source}): {type(error).__name__}: {error}"
        ) from error


def _pack(experiment: Experiment) -> int:
    """How many runs of one shape the trainer is to train side by side."""
    trainer = experiment.trainer
    return int(getattr(trainer.options, "pack", 1)) if "pack" in trainer.spec.can else 1


def runtime_of(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """The options in force that are no part of a run's identity, by kind."""
    parts: dict[str, Chosen[Any]] = {
        "model": experiment.model,
        "dataset": experiment.dataset,
        "optimizer": experiment.optimizer,
        "schedule": experiment.schedule,
        "trainer": experiment.trainer,
        "flops": experiment.flops,
    }
    return {kind: chosen.runtime for kind, chosen in parts.items() if chosen.runtime}


# ---------------------------------------------------------------------------- sizes


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
        scale = self.model.spec.scale
        if scale is not None:
            return self.meter.measure(scale(self.model.options, max(1, round(params))))
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

    def _between(self, params: float, low: int, low_params: int, high: int, high_params: int) -> int:
        """A multiple of the step strictly between two sizes, by log-log interpolation."""
        share = math.log(params / low_params) / max(1e-9, math.log(high_params / low_params))
        size = round(math.exp(math.log(low) + share * math.log(high / low)) / self.step) * self.step
        return min(max(size, low + self.step), high - self.step)


def _mean_log(rungs: list[Measured]) -> float:
    return math.fsum(math.log(measured.params) for measured in rungs) / len(rungs)


# ---------------------------------------------------------------------------- cells


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

    def __call__(self, budget: float, measured: Measured) -> list[RunSpec] | SkippedCell:
        tokens = budget / measured.count.flops_per_token
        reference = self.trunks.reference_tokens(measured)
        hyper = self._hyperparameters(measured, reference or tokens, trunk=reference is not None)
        asked = self.sweep.batch_size or hyper.batch_size
        if asked is None:
            raise PlanError(
                f"recipe {self.experiment.recipe.name!r} gives no batch size: write sweep.batch_size = 32, say"
            )
        per_sample = self.dataset.task.tokens_per_sample
        fixed = self.sweep.batch_size is not None or self.trunks.shared
        batching = solve_batches(tokens, asked, per_sample, fixed=fixed)
        if reason := self._reason_to_skip(tokens, batching):
            return SkippedCell(budget=budget, size=measured.size, params=measured.params, reason=reason)
        if abs(batching.miss) > TOLERANCE:
            nearest = batching.tokens * measured.count.flops_per_token
            raise PlanError(
                f"budget {budget:.4g}: {batching.steps} whole steps of {batching.batch_size} samples miss it by "
                f"{batching.miss:+.1%} at size {measured.size}; the nearest budget that size can meet is "
                f"{nearest:.6g}. Use that budget, a smaller sweep.batch_size, or more sweep.min_steps"
            )
        if reference is not None:
            self.trunks.add_branch(hyper, self._hyperparameters(measured, tokens), measured)
        return list(self._runs(budget, measured, batching, hyper))

    def _reason_to_skip(self, tokens: float, batching: Batching) -> str | None:
        unit = self.dataset.task.unit
        if tokens < self.sweep.min_steps * batching.batch_size * self.dataset.task.tokens_per_sample:
            return (
                f"D = {tokens:.3g} {unit} is fewer than sweep.min_steps = {self.sweep.min_steps} steps of "
                f"{batching.batch_size} samples"
            )
        unique = self.dataset.tokens
        if unique is not None and batching.tokens > unique and not self.sweep.repeat:
            return (
                f"D = {batching.tokens:.3g} {unit} is {batching.tokens / unique:.2f} epochs of the "
                f"{unique:.3g} there are; allow that with sweep.repeat = true"
            )
        return None

    def _hyperparameters(self, measured: Measured, tokens: float, *, trunk: bool = False) -> Hyperparameters:
        recipe, optimizer = self.experiment.recipe, self.experiment.optimizer
        about = RecipeInput(
            params=measured.params,
            tokens=max(1, round(tokens)),
            width=measured.width,
            task=self.dataset.task,
            adam_like=optimizer.spec.adam_like,
            lr_over_adam=optimizer.spec.lr_over_adam,
            flops=measured.count.flops_per_token * tokens,
            parameters=measured.parameters,
            lr=None if optimizer.unset("lr") else getattr(optimizer.options, "lr", None),
            batch_size=self.sweep.batch_size,
            trunk=trunk,
        )
        try:
            hyper = recipe.spec.build(recipe.options, about)
        except FlopsFitError:
            raise
        except Exception as error:
            raise PluginError(f"recipe {recipe.name!r}: {type(error).__name__}: {error}") from error
        if not isinstance(hyper, Hyperparameters):
            raise PluginError(f"recipe {recipe.name!r} gave {hyper!r} instead of Hyperparameters")
        return hyper

    def _runs(
        self, budget: float, measured: Measured, batching: Batching, hyper: Hyperparameters
    ) -> Iterator[RunSpec]:
        experiment = self.experiment
        size_options = measured.options.model_dump(exclude_unset=True)
        optimizer = self._filled(
            experiment.optimizer, lr=hyper.lr, weight_decay=hyper.weight_decay, betas=hyper.betas
        )
        schedule = self._filled(experiment.schedule, warmup_tokens=hyper.warmup_tokens)
        per_step = batching.batch_size * self.dataset.task.tokens_per_sample
        devices = min(self._devices(measured), batching.batch_size)
        view = RunView(batching.steps, batching.tokens, per_step, hyper.base_width, groups=lambda module: ())
        for seed in self.sweep.seeds:
            yield RunSpec(
                model=experiment.model.with_options(**size_options).choice,
                dataset=experiment.dataset.choice,
                fingerprint=self.dataset.fingerprint,
                optimizer=optimizer.choice,
                schedule=schedule.choice,
                flops_counter=experiment.flops.choice,
                trainer=experiment.trainer.choice,
                batch_size=batching.batch_size,
                steps=batching.steps,
                tokens=batching.tokens,
                seed=seed,
                base_width=hyper.base_width,
                budget=budget,
                size=measured.size,
                params=measured.params,
                flops_per_token=measured.count.flops_per_token,
                branch_step=self.trunks.branch_step(schedule, view),
                devices=devices,
            )

    def _devices(self, measured: Measured) -> int:
        """Devices that train a model of this size together, where the trainer can do that."""
        experiment = self.experiment
        can = experiment.trainer.spec.can
        if not can & {"distribute", "launch"}:
            return 1
        if "distribute" not in can:
            return experiment.device.spec.devices_per_run(experiment.device.options, 1)  # What is asked for.
        kept = 4 if experiment.optimizer.spec.adam_like else 3  # weights, gradients, one or two moments
        device = experiment.device
        return device.spec.devices_per_run(device.options, kept * FLOAT * measured.parameters.total)

    def _filled(self, chosen: Chosen[Any], **suggested: Any) -> Chosen[Any]:
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


def solve_batches(tokens: float, batch_size: int, per_sample: int, *, fixed: bool) -> Batching:
    """Whole steps of whole samples that come nearest ``tokens``.

    The batch moves by up to a tenth from ``batch_size`` where that comes nearer and it is not ``fixed``.
    """

    def at(batch: int) -> Batching:
        steps = max(1, round(tokens / (batch * per_sample)))
        total = steps * batch * per_sample
        return Batching(batch, steps, total, (total - tokens) / tokens)

    best = at(batch_size)
    if fixed or abs(best.miss) <= GOOD_ENOUGH:
        return best
    reach = batch_size // 10
    candidates = [at(batch) for batch in range(max(1, batch_size - reach), batch_size + reach + 1)]
    enough = [one for one in candidates if abs(one.miss) <= GOOD_ENOUGH]
    if enough:
        return min(enough, key=lambda one: abs(one.batch_size - batch_size))
    return min(candidates, key=lambda one: abs(one.miss))


def _repeats(runs: list[RunSpec], dataset: Dataset) -> list[str]:
    """Which runs see data again, where the user has allowed that."""
    unique, unit = dataset.tokens, dataset.task.unit
    repeating = [run.tokens / unique for run in runs if unique is not None and run.tokens > unique]
    if not repeating:
        return []
    note = (
        f"{len(repeating)} of {len(runs)} runs repeat the {unique:,} {unit} there are, up to {max(repeating):.1f} "
        f"times: see 'unique_tokens' of their results, and the fitter muennighoff for laws of repeated data"
    )
    return [note]


def _of_schedule(experiment: Experiment) -> list[str]:
    """What to say where the optimizer is meant for another schedule."""
    meant, chosen = experiment.optimizer.spec.schedule, experiment.schedule
    if meant is None or meant == chosen.name:
        return []
    note = (
        f"optimizer {experiment.optimizer.name!r} is meant for schedule {meant!r}, and {chosen.name!r} is yours: "
        f"leave [schedule] out for the one it is meant for"
    )
    return [note]


def _check_budgets(experiment: Experiment, runs: list[RunSpec], skipped: list[SkippedCell]) -> None:
    for budget in experiment.sweep.budgets:
        if any(run.budget == budget for run in runs):
            continue
        reasons = [
            f"  size {one.size} (N = {one.params:,}): {one.reason}" for one in skipped if one.budget == budget
        ]
        raise PlanError(f"budget {budget:.4g} can train none of its sizes:\n" + "\n".join(reasons))
