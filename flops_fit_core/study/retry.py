"""Retry failed or diverged runs, optionally with changed settings."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence

from flops_fit_core import numbers
from flops_fit_core.config import make_experiment, override_value
from flops_fit_core.errors import PlanError
from flops_fit_core.planning import make_plan
from flops_fit_core.planning.init_from_fit import expected_params
from flops_fit_core.records import RunResult, RunSpec, SweepPlan
from flops_fit_core.study import Study
from flops_fit_core.study.trust import save_study

Cell = tuple[float, int | float | str, int]
"""Budget, size and seed of a run."""


def select_results(study: Study, statuses: Collection[str], prefixes: Collection[str] = ()) -> list[RunResult]:
    """The study's results with one of these statuses and, if there are prefixes, an id that starts with a prefix.

    Raises PlanError if no result matches.
    """
    results = [result for result in study.results if result.status in statuses]
    if prefixes:
        results = [result for result in results if result.id.startswith(tuple(prefixes))]
    if not results:
        among = f" among {', '.join(prefixes)}" if prefixes else ""
        diverged = sum(result.status == "diverged" for result in study.results)
        hint = ""
        if diverged and "diverged" not in statuses:
            hint = f"; {diverged} diverged: retry them with --diverged --set optimizer.lr=0.001, for example"
        raise PlanError(f"{study.plan.name} has no {' or '.join(sorted(statuses))} runs{among}{hint}")
    return results


def retry(
    study: Study, results: Sequence[RunResult], overrides: Sequence[str] = (), *, progress: bool = False
) -> Study:
    """Train the runs of these results again, as planned with ``overrides`` (``a.b=value``). Returns the new study.

    A run with changed settings is a new run. It replaces the old run in the study's plan permanently; the old
    result stays in the store. Options that change no result (``trainer.micro_batch``, ``device.devices_per_run``,
    the executor's options) apply to this attempt only.

    Raises PlanError if a diverged run has unchanged settings, or if the changed plan lacks a run; ConfigError.
    """
    data, origin = study.consented_table(), str(study.folder.experiment_file)
    unchanged = make_experiment(copy.deepcopy(data), study.registry, origin)
    for override in overrides:
        override_value(data, override)
    experiment = make_experiment(data, study.registry, origin)
    changed = make_plan(experiment, expected_params(experiment, study.registry))
    planned = {_cell(run): run for run in changed.runs}
    runs = [_planned_again(result, planned) for result in results]
    originals = {new.id: old for old, new in study.plan.replaced.items()}
    replaced = {
        originals.get(result.id, result.id): run
        for result, run in zip(results, runs, strict=True)
        if run.id != result.id
    }
    updated = Study(study.plan.with_replacements(replaced), study.registry, study.folder)
    save_study(study.folder, unchanged, updated.plan, study.registry)
    retry_plan = SweepPlan(**{**dict(changed), "runs": tuple(runs), "name": study.plan.name})
    attempt = Study(retry_plan, study.registry, study.folder, experiment=experiment)
    attempt.train(only={run.id for run in runs}, save=False, check=False, progress=progress)
    return updated


def _planned_again(result: RunResult, planned: Mapping[Cell, RunSpec]) -> RunSpec:
    old, new = result.run, planned.get(_cell(result.run))
    if new is None:
        raise PlanError(
            f"with these changes, the plan has no run of size {old.size} at C = "
            f"{numbers.scientific(old.budget)}, seed {old.seed}"
        )
    if new.id == old.id and result.status == "diverged":
        raise PlanError(
            f"run {old.id} (C {numbers.scientific(old.budget)}, size {old.size}) diverged and would "
            "diverge again with the same "
            f"settings: change one, for example --set optimizer.lr=0.001"
        )
    return new


def _cell(run: RunSpec) -> Cell:
    return run.budget, run.size, run.seed
