"""Makes the plan of an experiment: sizes, runs, skipped cells and notes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flops_fit_core import numbers
from flops_fit_core.config import Experiment, PluginConfig, build_dataset
from flops_fit_core.errors import PlanError, no_exit
from flops_fit_core.flops.audit import ReferenceFlops, formula_notes
from flops_fit_core.flops.model_stats import SizeMeasurer, SizeStats, UsageTraces
from flops_fit_core.planning.batch_statistics import batch_statistics_notes
from flops_fit_core.planning.causal import check_causal
from flops_fit_core.planning.cells import CellResolver
from flops_fit_core.planning.completion import complete_dataset
from flops_fit_core.planning.counter import counter_notes, resolve_counter, usage_notes
from flops_fit_core.planning.optimizer_check import check_optimizer
from flops_fit_core.planning.plain_sgd import WARNING, plain_sgd_notes
from flops_fit_core.planning.sizes import SizeLadder, head_notes
from flops_fit_core.plugins import limits
from flops_fit_core.plugins.protocols import Dataset, LossSurface
from flops_fit_core.records import RunSpec, SkippedCell, SweepPlan

if TYPE_CHECKING:
    from torch import nn

PROFILE_SIZES = 3
"""Sizes that a parabola in ln N needs. See ``flops_fit_core.fitting.fitters.profiles.MIN_SIZES``."""
MAX_BUDGETS = 5
"""The most budgets that a note lists."""


@no_exit()
def make_plan(experiment: Experiment, expected_params: Callable[[float], float] | None = None) -> SweepPlan:
    """Resolve every run of an experiment.

    Args:
        experiment: The experiment to plan.
        expected_params: The expected N_opt for a budget, for example from an earlier fit. If it is None, the
            expectation follows from ``sweep.tokens_per_param``.

    Builds the dataset (for its task, size and fingerprint) and, on the meta device, the models.

    Raises PlanError, ConfigError or DataError, with the change to make.
    """
    _check_count(experiment)
    experiment, dataset = complete_dataset(experiment, open_dataset(experiment, experiment.sweep.seeds[0]))
    is_named = not experiment.counter.depends_on_task
    experiment, counter_reason = resolve_counter(experiment, dataset.task)
    usages = UsageTraces(experiment.model, dataset.task)
    measurer = SizeMeasurer(experiment.model, dataset.task, experiment.counter, usages)
    ladder = SizeLadder(experiment, measurer, expected_params)
    cells = [(budget, stats) for budget in experiment.sweep.budgets for stats in ladder.for_budget(budget)]
    sizes = [stats for _, stats in cells]
    module = None
    if not isinstance(dataset, LossSurface):
        module = _check_models(experiment, dataset, ladder, sizes, is_named=is_named)
    ladder.notes += head_notes(sizes)
    resolver = CellResolver(experiment, dataset)
    runs, skipped = _resolve_cells(resolver, cells)
    _check_budgets(experiment, runs, skipped)
    notes = [
        *plain_sgd_notes(experiment, dataset),
        *check_optimizer(experiment, dataset, module, runs[0]),
        *batch_statistics_notes(experiment, module, runs),
        *dataset.notes,
        *counter_reason,
        *ladder.notes,
        *_repetition_notes(runs, dataset),
        *_schedule_notes(experiment),
        *_warmup_notes(runs),
        *_profile_notes(runs),
        *resolver.notes,
        *resolver.shared_phases.notes(),
    ]
    # If only some sizes are mixtures of experts, their name of N applies to all sizes.
    count = next((stats.count for stats in sizes if stats.parameters.inactive), sizes[0].count)
    return SweepPlan(
        name=experiment.name,
        runs=tuple(runs),
        skipped=tuple(skipped),
        notes=tuple(dict.fromkeys(notes)),
        unit=dataset.task.unit,
        params_name=count.params_name,
        flops_name=count.flops_name,
        device=experiment.device.choice,
        runtime=runtime_of(experiment),
        vmap_runs=_vmap_runs(experiment),
        checkpoint_bytes=resolver.shared_phases.checkpoint_bytes,
    )


def _check_count(experiment: Experiment) -> None:
    """Raises PlanError for more sizes or runs than a plan may have, before models are measured."""
    sweep = experiment.sweep
    sizes = sweep.sizes if isinstance(sweep.sizes, int) else len(sweep.sizes)
    runs = len(sweep.budgets) * sizes * len(sweep.seeds)
    advice = "Write fewer budgets, sizes or seeds, or several experiments"
    if isinstance(sweep.sizes, int) and sizes > limits.SIZES_PER_BUDGET:
        raise PlanError(f"sweep.sizes = {sizes:,}: at most {limits.SIZES_PER_BUDGET:,} sizes per budget. {advice}")
    if runs > limits.PLANNED_RUNS:
        raise PlanError(
            f"{len(sweep.budgets):,} budgets x {sizes:,} sizes x {len(sweep.seeds):,} seeds are {runs:,} runs, "
            f"and a plan has at most {limits.PLANNED_RUNS:,}. {advice}"
        )


def _check_models(
    experiment: Experiment, dataset: Dataset, ladder: SizeLadder, sizes: list[SizeStats], *, is_named: bool
) -> nn.Module | None:
    """Check that the models fit the data and the counter, add notes to the ladder's, and return a small model.

    Raises PlanError or PluginError for a model that does not fit.
    """
    smallest = min(sizes, key=lambda stats: stats.parameters.total)
    module = ladder.measurer.check_fit(ladder.small_relative(smallest).options)
    check_causal(experiment.model.name, module, dataset.task)
    reference = ReferenceFlops(experiment.model, dataset.task)
    ladder.notes += formula_notes(experiment.model, dataset.task, sizes, reference)
    ladder.notes += counter_notes(ladder.measurer, sizes, reference, is_named=is_named)
    ladder.notes += usage_notes(ladder.measurer, smallest)
    return module


def _resolve_cells(
    resolve: CellResolver, cells: list[tuple[float, SizeStats]]
) -> tuple[list[RunSpec], list[SkippedCell]]:
    """The distinct runs of all cells, and the cells without runs."""
    runs: dict[str, RunSpec] = {}
    skipped: list[SkippedCell] = []
    for budget, stats in cells:
        outcome = resolve(budget, stats)
        if isinstance(outcome, SkippedCell):
            skipped.append(outcome)
        else:
            runs |= {run.id: run for run in outcome if run.id not in runs}
    return list(runs.values()), skipped


def open_dataset(experiment: Experiment, seed: int) -> Dataset:
    """Build the experiment's dataset. Raises DataError or PluginError that names it."""
    return build_dataset(experiment.dataset, seed)


def _vmap_runs(experiment: Experiment) -> int:
    """Number of runs of one shape that the trainer trains together."""
    trainer = experiment.trainer
    return int(getattr(trainer.options, "vmap_runs", 1)) if "vmap_runs" in trainer.spec.can else 1


def runtime_of(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """The effective options that are not part of a run's id, by kind."""
    plugins: dict[str, PluginConfig[Any]] = {
        "model": experiment.model,
        "dataset": experiment.dataset,
        "optimizer": experiment.optimizer,
        "schedule": experiment.schedule,
        "trainer": experiment.trainer,
        "counter": experiment.counter,
    }
    return {kind: config.runtime for kind, config in plugins.items() if config.runtime}


def _repetition_notes(runs: list[RunSpec], dataset: Dataset) -> list[str]:
    """A note on runs that repeat data, which the user has allowed."""
    unique, unit = dataset.num_unique_tokens, dataset.task.unit
    epochs = [run.tokens / unique for run in runs if unique is not None and run.tokens > unique]
    if not epochs:
        return []
    note = (
        f"{len(epochs)} of {len(runs)} runs repeat the {unique:,} available {unit}, up to {max(epochs):.1f} "
        f"times: see 'unique_tokens' in their results, and fit with --law muennighoff, a law of repeated data"
    )
    return [note]


def _schedule_notes(experiment: Experiment) -> list[str]:
    """A note if the optimizer is designed for a different schedule."""
    default, schedule = experiment.optimizer.spec.schedule, experiment.schedule
    if default is None or default == schedule.name:
        return []
    note = (
        f"optimizer {experiment.optimizer.name!r} is designed for schedule {default!r}, but the experiment sets "
        f"{schedule.name!r}: remove [schedule] to use {default!r}"
    )
    return [note]


def _warmup_notes(runs: list[RunSpec]) -> list[str]:
    """A warning for runs that end before their warmup."""
    pairs = [(run.tokens, run.schedule.options.get("warmup_tokens")) for run in runs]
    short = [tokens for tokens, warmup in pairs if isinstance(warmup, int | float) and warmup > tokens]
    if not short:
        return []
    verb = "ends" if len(short) == 1 else "end"
    note = (
        f"{WARNING} {len(short)} of {len(runs)} runs {verb} before the warmup of the learning rate, so the peak "
        f"is never reached: schedule.warmup_tokens is larger than D ({min(short):,} in the shortest run); lower "
        f"it, or remove it to use the recipe's value"
    )
    return [note]


def _profile_notes(runs: list[RunSpec]) -> list[str]:
    """A warning for budgets with too few sizes for an IsoFLOP profile."""
    sizes_by_budget: dict[float, set[int]] = {}
    for run in runs:
        sizes_by_budget.setdefault(run.budget, set()).add(run.params)
    counts = {budget: len(sizes) for budget, sizes in sorted(sizes_by_budget.items())}
    few = [budget for budget, count in counts.items() if count < PROFILE_SIZES]
    if not few:
        return []
    names = ", ".join(f"{budget:.6g} ({counts[budget]})".replace("e+", "e") for budget in few[:MAX_BUDGETS])
    more = f" and {len(few) - MAX_BUDGETS} more" if len(few) > MAX_BUDGETS else ""
    note = (
        f"{WARNING} too few sizes for an IsoFLOP profile, which needs {PROFILE_SIZES}, at the budgets (sizes): "
        f"{names}{more}. A law through all runs uses them"
    )
    return [note]


def _check_budgets(experiment: Experiment, runs: list[RunSpec], skipped: list[SkippedCell]) -> None:
    for budget in experiment.sweep.budgets:
        if any(run.budget == budget for run in runs):
            continue
        reasons = [
            f"  size {cell.size} (N = {cell.params:,}): {cell.reason}" for cell in skipped if cell.budget == budget
        ]
        raise PlanError(f"budget {numbers.scientific(budget)} can train none of its sizes:\n" + "\n".join(reasons))
