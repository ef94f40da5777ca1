"""Experiment -> SweepPlan: which sizes each budget gets, and D solved so that counted FLOPs meet it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flops_fit_core.config import PLANNER, Experiment, PluginConfig, build_dataset
from flops_fit_core.errors import PlanError, no_exit
from flops_fit_core.flops.audit import ReferenceFlops, formula_notes
from flops_fit_core.flops.model_stats import SizeMeasurer, UsageTraces
from flops_fit_core.planning.batch_statistics import batch_statistics_notes
from flops_fit_core.planning.causal import check_causal
from flops_fit_core.planning.cells import CellResolver
from flops_fit_core.planning.completion import complete_dataset
from flops_fit_core.planning.counter import counter_notes, resolve_counter, usage_notes
from flops_fit_core.planning.plain_sgd import WARNING, plain_sgd_notes
from flops_fit_core.planning.sizes import SizeLadder, head_notes
from flops_fit_core.planning.trial import check_optimizer
from flops_fit_core.plugins.protocols import Dataset, LossSurface
from flops_fit_core.records import RunSpec, SkippedCell, SweepPlan


@no_exit()
def make_plan(experiment: Experiment, expected_params: Callable[[float], float] | None = None) -> SweepPlan:
    """Resolve every run of an experiment.

    Args:
        experiment: What was asked for.
        expected_params: A guess of N_opt for a budget, such as an earlier fit's; where it is None,
            ``sweep.tokens_per_param`` makes the guess.

    Builds the dataset (for its task, size and fingerprint) and, on the meta device, the models.

    Raises PlanError, ConfigError or DataError, saying what to change.
    """
    experiment, dataset = complete_dataset(experiment, open_dataset(experiment, experiment.sweep.seeds[0]))
    is_named = not experiment.counter.depends_on_task
    experiment, counter_reason = resolve_counter(experiment, dataset.task)
    usages = UsageTraces(experiment.model, dataset.task, by_type=experiment.planner == 1)
    meter = SizeMeasurer(experiment.model, dataset.task, experiment.counter, usages)
    choose_sizes = SizeLadder(experiment, meter, expected_params)
    cells = [
        (budget, measured) for budget in experiment.sweep.budgets for measured in choose_sizes.for_budget(budget)
    ]
    module = None
    if not isinstance(dataset, LossSurface):
        smallest = min((measured for _, measured in cells), key=lambda measured: measured.parameters.total)
        module = meter.check_fit(choose_sizes.small_relative(smallest).options)
        check_causal(experiment.model.name, module, dataset.task)
        sizes, reference = [measured for _, measured in cells], ReferenceFlops(experiment.model, dataset.task)
        choose_sizes.notes += formula_notes(experiment.model, dataset.task, sizes, reference)
        is_chosen = is_named or experiment.planner == 1
        choose_sizes.notes += counter_notes(meter, sizes, reference, is_named=is_chosen)
        choose_sizes.notes += usage_notes(meter, smallest)
    choose_sizes.notes += head_notes([measured for _, measured in cells])
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
    left_out = check_optimizer(experiment, dataset, module, next(iter(runs.values())))
    # Where some sizes are mixtures and some are not, the mixtures' name of N holds for all.
    count = next((measured.count for _, measured in cells if measured.parameters.inactive), cells[0][1].count)
    repeats = _repeats(list(runs.values()), dataset)
    return SweepPlan(
        name=experiment.name,
        runs=tuple(runs.values()),
        skipped=tuple(skipped),
        notes=tuple(
            dict.fromkeys(
                [
                    *plain_sgd_notes(experiment, dataset),
                    *left_out,
                    *batch_statistics_notes(experiment, module, runs.values()),
                    *_of_planner(experiment),
                    *dataset.notes,
                    *counter_reason,
                    *choose_sizes.notes,
                    *repeats,
                    *_of_schedule(experiment),
                    *_of_warmup(list(runs.values())),
                    *resolve.notes,
                    *resolve.trunks.notes(),
                ]
            )
        ),
        unit=dataset.task.unit,
        params_name=count.params_name,
        flops_name=count.flops_name,
        device=experiment.device.choice,
        runtime=runtime_of(experiment),
        vmap_runs=_vmap_runs(experiment),
        checkpoint_bytes=resolve.trunks.checkpoint_bytes,
    )


def open_dataset(experiment: Experiment, seed: int) -> Dataset:
    """Build the experiment's dataset. Raises DataError or PluginError that names it."""
    return build_dataset(experiment.dataset, seed)


def _vmap_runs(experiment: Experiment) -> int:
    """How many runs of one shape the trainer is to train side by side."""
    trainer = experiment.trainer
    return int(getattr(trainer.options, "vmap_runs", 1)) if "vmap_runs" in trainer.spec.can else 1


def runtime_of(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """The options in force that are no part of a run's identity, by kind."""
    parts: dict[str, PluginConfig[Any]] = {
        "model": experiment.model,
        "dataset": experiment.dataset,
        "optimizer": experiment.optimizer,
        "schedule": experiment.schedule,
        "trainer": experiment.trainer,
        "flops": experiment.counter,
    }
    return {kind: chosen.runtime for kind, chosen in parts.items() if chosen.runtime}


def _repeats(runs: list[RunSpec], dataset: Dataset) -> list[str]:
    """Which runs see data again, where the user has allowed that."""
    unique, unit = dataset.num_unique_tokens, dataset.task.unit
    repeating = [run.tokens / unique for run in runs if unique is not None and run.tokens > unique]
    if not repeating:
        return []
    note = (
        f"{len(repeating)} of {len(runs)} runs repeat the {unique:,} {unit} there are, up to {max(repeating):.1f} "
        f"times: see 'unique_tokens' of their results, and the fitter muennighoff for laws of repeated data"
    )
    return [note]


def _of_planner(experiment: Experiment) -> list[str]:
    """Which revision of the defaults was used, if it is not the latest."""
    if experiment.planner == PLANNER:
        return []
    note = (
        f"planned with planner = {experiment.planner}, as this study was begun; a new study uses planner = "
        f"{PLANNER}, whose automatic sizes, FLOPs counter and optimizer may differ"
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


def _of_warmup(runs: list[RunSpec]) -> list[str]:
    """Runs that end before their warmup does."""
    asked = [(run.tokens, run.schedule.options.get("warmup_tokens")) for run in runs]
    short = [tokens for tokens, warmup in asked if isinstance(warmup, int | float) and warmup > tokens]
    if not short:
        return []
    verb = "ends" if len(short) == 1 else "end"
    note = (
        f"{WARNING} {len(short)} of {len(runs)} runs {verb} before the learning rate's warmup does, so that the "
        f"peak is never reached: schedule.warmup_tokens is larger than D, {min(short):,} in the shortest run; "
        f"lower it, or leave it out for the recipe's"
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
