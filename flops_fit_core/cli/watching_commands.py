"""``status`` and ``retry``: what has become of a study's runs, and another try."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import console, print_json, print_text, say
from flops_fit_core.plugins.outbox import Outbox
from flops_fit_core.records import RunResult
from flops_fit_core.study import Study
from flops_fit_core.study.heartbeat import Driver, drivers, seconds_left

ERRORS_SHOWN = 5


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(status)
    app.command()(retry)


def status(
    source: args.SourceArgument,
    out: args.OutOption = None,
    plugin: args.PluginOption = None,
    without: args.WithoutOption = None,
    json: args.JsonOption = False,
) -> None:
    """What is done, running, failed and waiting; FLOPs and time spent and left; who trains it now."""
    study = args.existing(source, args.registry_for(source, plugin, without), out)
    there = drivers(study.folder.path)
    about = _about(study, there)
    if json:
        print_json(about)
    else:
        _print_status(study, about, there)


def _about(study: Study, there: list[Driver]) -> dict[str, Any]:
    from flops_fit_core.study.sweep import count_states, states_by_run

    finished = {result.id for result in study.results if result.is_finished}
    running = [one for driver in there for one in driver.running if one.run not in finished]
    states = count_states(study.plan, study.results)
    state_of = states_by_run(study.plan, study.results)
    for run in {one.run for one in running}.intersection(state_of):
        states[state_of[run]] -= 1
    return {
        "name": study.plan.name,
        "runs": {"running": len(running), **states},
        "flops_spent": sum(result.flops_spent for result in study.results),
        "flops_left": study.plan.flops_left(finished),
        "seconds_spent": sum(result.seconds for result in study.results),
        "seconds_left": seconds_left(study.plan, finished, running),
        "checkpoint_bytes": study.checkpoint_bytes,
        "notices": study.notices,
        "other_runs": [group.model_dump(mode="json") for group in study.other_runs],
        "uncollected": len(Outbox(study.folder.path)),
        "drivers": [driver.model_dump(mode="json") for driver in there],
    }


def _print_status(study: Study, about: dict[str, Any], there: list[Driver]) -> None:
    from flops_fit_core.report import numbers

    order = ("completed", "running", "diverged", "failed", "waiting")
    counts = ", ".join(f"{about['runs'][state]} {state}" for state in order if about["runs"][state])
    print_text(f"{about['name']}: {counts} of {len(study.plan.runs)} runs")
    left = about["seconds_left"]
    time_left = f", about {numbers.duration(left)} at the present rate" if left is not None else ""
    print_text(
        f"{about['flops_spent']:.3g} FLOPs spent in {numbers.duration(about['seconds_spent'])} of training; "
        f"{about['flops_left']:.3g} left{time_left}"
    )
    for notice in about["notices"]:
        print_text(f"! {notice}")
    for driver in there:
        since = numbers.duration(time.time() - driver.started)
        print_text(f"trained by process {driver.pid} on {driver.host} for {since}, executor {driver.executor}")
        _print_running(study, driver)
    if not there and about["flops_left"]:
        print_text(f"nobody trains it now: {study.folder.how_to_train} goes on")
    if about["uncollected"]:
        print_text(f"{about['uncollected']} results came while no driver was there: the next run collects them")
    if about["checkpoint_bytes"]:
        print_text(f"{numbers.disk(about['checkpoint_bytes'])} of checkpoints")
    _print_errors([result for result in study.results if result.status == "failed"])


def _print_running(study: Study, driver: Driver) -> None:
    from flops_fit_core.report import numbers

    runs = {run.id: run for run in study.plan.runs}
    for one in driver.running:
        if (run := runs.get(one.run)) is None:
            continue
        loss = f", loss {one.loss:.4f}" if one.loss is not None else ""
        speed = f", {numbers.count(one.tokens_per_second)} tokens/s" if one.tokens_per_second else ""
        where = f"step {one.step:,} of {one.steps:,} ({one.step / one.steps:.0%})"
        print_text(f"  C {run.budget:.3g}, size {run.size}, seed {run.seed}: {where}{loss}{speed}")


def _print_errors(failed: list[RunResult]) -> None:
    for result in failed[:ERRORS_SHOWN]:
        run = result.run
        said = ""
        if result.error is not None:
            first = result.error.message.strip().partition("\n")[0]
            said = f": {result.error.model_copy(update={'message': first}).line}"
        print_text(f"  {result.id} failed at attempt {result.attempt} (C {run.budget:.3g}, size {run.size}){said}")
    if len(failed) > ERRORS_SHOWN:
        print_text(f"  and {len(failed) - ERRORS_SHOWN} more: 'flops-fit runs' lists them")


def retry(
    source: args.SourceArgument,
    out: args.OutOption = None,
    overrides: args.SetOption = None,
    which: Annotated[
        list[str] | None,
        typer.Option("--run", help="Only this run: its id, or how it begins. Repeatable.", metavar="ID"),
    ] = None,
    diverged: Annotated[bool, typer.Option(help="Diverged runs as well as failed ones.")] = False,
    plugin: args.PluginOption = None,
    without: args.WithoutOption = None,
) -> int:
    """Train failed (and --diverged) runs again; with --set they are new runs in the place of the old ones."""
    from flops_fit_core.cli.progress import SweepProgress
    from flops_fit_core.cli.study_commands import conclude
    from flops_fit_core.study.retry import retry as retry_runs
    from flops_fit_core.study.retry import select_results

    study = args.existing(source, args.registry_for(source, plugin, without), out)
    statuses = {"failed", "diverged"} if diverged else {"failed"}
    results = select_results(study, statuses, which or ())
    say(f"{study.plan.name}: {len(results)} runs to train again, in {study.folder.path}")
    return conclude(retry_runs(study, results, overrides or (), [SweepProgress(console(error=True), set())]))
