"""``status``, ``watch`` and ``retry``: the state of a study's runs, and further attempts at them."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import print_json, print_message, print_text
from flops_fit_core.plugins.outbox import Outbox
from flops_fit_core.study import Study
from flops_fit_core.study.heartbeat import Driver, drivers, starting_processes

RUNNING_SHOWN = 20
"""The most runs in training that ``status`` lists."""

ERRORS_SHOWN = 5


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(status)
    app.command()(watch)
    app.command()(retry)


def status(
    source: args.SourceArgument,
    out: args.OutOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> None:
    """Show runs by state, FLOPs and time spent and left, errors, and the processes that train the study."""
    study = args.open_study(source, args.registry_for(source, plugin, disabled), out)
    active = drivers(study.folder.path)
    summary = _summarise(study, active)
    if json:
        print_json(summary)
    else:
        _print_status(study, summary, active)


def _summarise(study: Study, active: list[Driver]) -> dict[str, Any]:
    from flops_fit_core.study.live.other_drivers import current_progress
    from flops_fit_core.study.live.watching import read_state
    from flops_fit_core.study.states import count_states, states_by_run

    results = study.results
    finished = {result.id for result in results if result.is_finished}
    running = current_progress(active, results)
    states = count_states(study.plan, results)
    state_of = states_by_run(study.plan, results)
    for run in {item.run for item in running}.intersection(state_of):
        states[state_of[run]] -= 1
    estimate = read_state(study, active).snapshot().estimate if active else None
    return {
        "name": study.plan.name,
        "runs": {"running": len(running), **states},
        "flops_spent": sum(result.flops_spent for result in results),
        "flops_left": study.plan.flops_left(finished),
        "seconds_spent": sum(result.seconds for result in results),
        "seconds_left": None if estimate is None else estimate.seconds,
        "checkpoint_bytes": study.checkpoint_bytes,
        "notices": study.notices,
        "other_runs": [group.model_dump(mode="json") for group in study.other_runs],
        "uncollected": len(Outbox(study.folder.path)),
        "drivers": [driver.model_dump(mode="json") for driver in active],
        "starting": [
            process.model_dump(mode="json")
            for process in ([] if active else starting_processes(study.folder.path))
        ],
    }


def _print_status(study: Study, summary: dict[str, Any], active: list[Driver]) -> None:
    from flops_fit_core import numbers
    from flops_fit_core.report.run_errors import describe_failures

    order = ("completed", "running", "diverged", "failed", "waiting")
    counts = ", ".join(f"{summary['runs'][state]} {state}" for state in order if summary["runs"][state])
    print_text(f"{summary['name']}: {counts} of {len(study.plan.runs)} runs")
    seconds = summary["seconds_left"]
    time_left = f", about {numbers.duration(round(seconds))} remaining" if seconds is not None else ""
    print_text(
        f"{numbers.scientific(summary['flops_spent'])} FLOPs spent in "
        f"{numbers.duration(summary['seconds_spent'])} of training; "
        f"{numbers.scientific(summary['flops_left'])} left{time_left}"
    )
    for notice in summary["notices"]:
        print_text(f"! {notice}")
    for driver in active:
        since = numbers.duration(max(0.0, time.time() - driver.started))
        line = f"trained by process {driver.pid} on {driver.host} for {since}, executor {driver.executor}"
        if not driver.is_on_this_machine:
            line += f"; last seen {numbers.duration(driver.seconds_since_update)} ago by this machine's clock"
        print_text(line)
        _print_running(study, driver)
    if summary["starting"]:
        pid, host = summary["starting"][0]["pid"], summary["starting"][0]["host"]
        print_text(f"process {pid} on {host} is about to train it: it plans the runs")
    elif not active and summary["flops_left"]:
        print_text(f"no process trains it now. To continue: {study.folder.how_to_train}")
    if summary["uncollected"]:
        print_text(f"{summary['uncollected']} results arrived without a driver; the next run stores them")
    if summary["checkpoint_bytes"]:
        print_text(f"{numbers.disk(summary['checkpoint_bytes'])} of checkpoints")
    for line in describe_failures(study.results, study.folder.shown):
        print_text(line)


def _print_running(study: Study, driver: Driver) -> None:
    from flops_fit_core import numbers

    runs = {run.id: run for run in study.plan.runs}
    running = [item for item in driver.running if item.run in runs]
    for item in running[:RUNNING_SHOWN]:
        run = runs[item.run]
        loss = f", loss {item.loss:.4f}" if item.loss is not None else ""
        speed = f", {numbers.count(item.tokens_per_second)} tokens/s" if item.tokens_per_second else ""
        step = f"step {item.step:,} of {item.steps:,} ({item.step / item.steps:.0%})"
        print_text(f"  C {numbers.scientific(run.budget)}, size {run.size}, seed {run.seed}: {step}{loss}{speed}")
    if len(running) > RUNNING_SHOWN:
        print_text(f"  and {len(running) - RUNNING_SHOWN} more in training")


def watch(
    source: args.SourceArgument,
    out: args.OutOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
) -> None:
    """Watch a sweep that another process or machine trains, until it ends. Nothing is written; Ctrl-C ends only
    the view."""
    from flops_fit_core.study.live.displays import choose_display
    from flops_fit_core.study.live.watching import watch as watch_study

    study = args.open_study(source, args.registry_for(source, plugin, disabled), out)
    if drivers(study.folder.path) or starting_processes(study.folder.path):
        print_message(f"watching {study.folder.shown}; Ctrl-C ends the view, not the sweep")
        try:
            watch_study(study, choose_display())
        except KeyboardInterrupt:
            print_message(f"no longer watching; to look again: flops-fit watch {study.folder.shown}")
            return
        study.refresh()
    active = drivers(study.folder.path)
    _print_status(study, _summarise(study, active), active)


def retry(
    source: args.SourceArgument,
    out: args.OutOption = None,
    overrides: args.SetOption = None,
    prefixes: Annotated[
        list[str] | None,
        typer.Option(
            "--run", help="Only this run: its id or the first characters of it. Repeatable.", metavar="ID"
        ),
    ] = None,
    diverged: Annotated[bool, typer.Option(help="Retry diverged runs, too.")] = False,
    report: args.ReportOption = True,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
) -> int:
    """Retry failed (with --diverged also diverged) runs. With --set, new runs replace them."""
    from flops_fit_core.cli.study_commands import print_outcome
    from flops_fit_core.study.retry import retry as retry_runs
    from flops_fit_core.study.retry import select_results

    study = args.open_study(source, args.registry_to_train(source, plugin, disabled), out)
    statuses = {"failed", "diverged"} if diverged else {"failed"}
    results = select_results(study, statuses, prefixes or ())
    print_message(f"{study.plan.name}: {len(results)} runs to train again, in {study.folder.path}")
    return print_outcome(retry_runs(study, results, overrides or (), progress=True), report=report)
