"""``plan``, ``run``, ``runs``, ``show``, ``prune-checkpoints``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import console, print_csv, print_json, print_table, print_text, say
from flops_fit_core.cli.summary import print_summary
from flops_fit_core.errors import FitError
from flops_fit_core.study import Study


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(plan)
    app.command()(run)
    app.command()(runs)
    app.command()(show)
    app.command()(prune_checkpoints)


def plan(
    source: args.SourceArgument,
    out: args.OutOption = None,
    overrides: args.SetOption = None,
    plugin: args.PluginOption = None,
    without: args.WithoutOption = None,
    json: args.JsonOption = False,
    estimate: Annotated[bool, typer.Option(help="Time a few real steps to estimate the wall time.")] = True,
    model: args.ModelOption = None,
    dataset: args.DatasetOption = None,
    optimizer: args.OptimizerOption = None,
    schedule: args.ScheduleOption = None,
    recipe: args.RecipeOption = None,
    counter: args.CounterOption = None,
    trainer: args.TrainerOption = None,
    device: args.DeviceOption = None,
    store: args.StoreOption = None,
    executor: args.ExecutorOption = None,
    fitter: args.FitterOption = None,
) -> None:
    """Show every run of an experiment: sizes, tokens, FLOPs, what is done, how long the rest takes."""
    registry = args.registry_for(source, plugin, without)
    swaps = _swaps(locals())
    study = args.planned(source, registry, out, overrides, swaps)
    seconds = study.seconds() if estimate else None
    if json:
        print_json(_plan_json(study, seconds))
    else:
        _print_plan(study, seconds)


def run(
    source: args.SourceArgument,
    out: args.OutOption = None,
    overrides: args.SetOption = None,
    plugin: args.PluginOption = None,
    without: args.WithoutOption = None,
    retry: Annotated[bool, typer.Option(help="Try runs again that failed before.")] = True,
    model: args.ModelOption = None,
    dataset: args.DatasetOption = None,
    optimizer: args.OptimizerOption = None,
    schedule: args.ScheduleOption = None,
    recipe: args.RecipeOption = None,
    counter: args.CounterOption = None,
    trainer: args.TrainerOption = None,
    device: args.DeviceOption = None,
    store: args.StoreOption = None,
    executor: args.ExecutorOption = None,
    fitter: args.FitterOption = None,
) -> int:
    """Train what is missing, fit the law, write the report. Run it again to go on after any interruption."""
    from flops_fit_core.cli.progress import SweepProgress

    registry = args.registry_for(source, plugin, without)
    study = args.planned(source, registry, out, overrides, _swaps(locals()))
    done = {result.id for result in study.results if result.is_finished or not retry}
    left = len(study.plan.runs) - len(done)
    say(f"{study.plan.name}: {len(study.plan.runs)} runs, {left} to train, in {study.folder.path}")
    for note in study.plan.notes:
        say(f"  {note}")
    for notice in study.notices:
        say(f"! {notice}")
    if study.plan.skipped:
        say(f"  {len(study.plan.skipped)} sizes left out; 'flops-fit plan' says why")
    study.train(loggers=[SweepProgress(console(error=True), done)], retry_failed=retry, check=False)
    return conclude(study)


def runs(
    source: args.SourceArgument,
    out: args.OutOption = None,
    plugin: args.PluginOption = None,
    without: args.WithoutOption = None,
    json: args.JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """List a study's runs. 'show' prints everything about one."""
    study = args.existing(source, args.registry_for(source, plugin, without), out)
    if json:
        print_json(study.runs.json())
    elif csv:
        print_csv(study.runs.csv())
    else:
        print_table(study.runs)


def show(
    source: args.SourceArgument,
    ids: Annotated[
        list[str],
        typer.Argument(help="Ids of runs, as 'runs' lists them, or their first characters.", metavar="ID..."),
    ],
    out: args.OutOption = None,
    plugin: args.PluginOption = None,
    without: args.WithoutOption = None,
    json: args.JsonOption = False,
) -> None:
    """Show everything about single runs: plugins, options, every attempt, tracebacks."""
    from flops_fit_core.cli import run_details

    study = args.existing(source, args.registry_for(source, plugin, without), out)
    runs = run_details.find_runs(study, ids)
    if json:
        print_json(run_details.as_json(runs))
    else:
        texts = ["\n".join(run_details.lines(run, attempts, study.plan)) for run, attempts in runs]
        print_text("\n\n".join(texts))


def prune_checkpoints(
    source: args.SourceArgument,
    out: args.OutOption = None,
    plugin: args.PluginOption = None,
    without: args.WithoutOption = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those from which interrupted runs would go on.")
    ] = False,
) -> None:
    """Delete the checkpoints that a study keeps so that a longer budget can extend its trunks."""
    from flops_fit_core.report import numbers

    study = args.existing(source, args.registry_for(source, plugin, without), out)
    freed = study.prune_checkpoints(unfinished=everything)
    left = study.checkpoint_bytes
    kept = f"; {numbers.disk(left)} are kept, for runs that are not finished: --all deletes them" if left else ""
    print_text(f"{numbers.disk(freed)} freed{kept}")


def _swaps(given: dict[str, Any]) -> dict[str, str | None]:
    kinds = (
        *("model", "dataset", "optimizer", "schedule", "recipe", "counter"),
        *("trainer", "device", "store", "executor", "fitter"),
    )
    return {kind: given[kind] for kind in kinds}


def _plan_json(study: Study, seconds: float | None) -> dict[str, Any]:
    from flops_fit_core.report import plan_table
    from flops_fit_core.study.sweep import states_by_run

    plan = study.plan
    return {
        "name": plan.name,
        "folder": str(study.folder.path),
        "flops": plan.flops,
        "flops_without_sharing": plan.flops_without_sharing,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "seconds_left": seconds,
        "params_name": plan.params_name,
        "flops_name": plan.flops_name,
        "unit": plan.unit,
        "runs": plan_table(plan, states_by_run(plan, study.results)).json(),
        "skipped": [cell.model_dump(mode="json") for cell in plan.skipped],
        "notes": list(plan.notes),
        "notices": study.notices,
        "other_runs": [group.model_dump(mode="json") for group in study.other_runs],
    }


def _print_plan(study: Study, seconds: float | None) -> None:
    from flops_fit_core.report import numbers, plan_table, skipped_table
    from flops_fit_core.study.sweep import states_by_run

    plan = study.plan
    print_table(plan_table(plan, states_by_run(plan, study.results)))
    if plan.skipped:
        print_table(skipped_table(plan))
    for note in plan.notes:
        print_text(f"- {note}")
    for notice in study.notices:
        print_text(f"! {notice}")
    time = f"; about {numbers.duration(seconds)} left on this machine" if seconds is not None else ""
    print_text(f"{len(plan.runs)} runs, {plan.flops:.4g} FLOPs in all{time}. Study: {study.folder.path}")
    if len(plan.trajectories) < len(plan.runs):
        print_text(
            f"{len(plan.trajectories)} trunks: without sharing, {plan.flops_without_sharing:.4g} FLOPs, so "
            f"{1 - plan.flops / plan.flops_without_sharing:.0%} are saved. Checkpoints kept for further branches: "
            f"about {numbers.disk(plan.checkpoint_bytes)}"
        )


def conclude(study: Study) -> int:
    """The answer of a sweep. Exit status 1 where a run failed."""
    failed = [result for result in study.results if result.status == "failed"]
    try:
        study.folder.save_fit(study.fit)
        print_summary(study)
        files = study.report()
        say(f"report: {files[0] if files else study.folder.report}")
    except FitError as error:
        say(f"no law yet: {error}")
    if failed:
        first = failed[0].error
        why = first.line if first else "unknown"
        say(
            f"{len(failed)} runs failed, the first with {why}; 'flops-fit show {study.folder.shown} "
            f"{failed[0].id[:6]}' shows its traceback"
        )
    return 1 if failed else 0
