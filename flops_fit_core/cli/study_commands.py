"""``plan``, ``run``, ``runs``, ``show``, ``prune-checkpoints``."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.law_options import ExplainOption
from flops_fit_core.cli.planned_study import study_planner
from flops_fit_core.cli.printing import (
    print_csv,
    print_error,
    print_json,
    print_message,
    print_notes,
    print_table,
    print_text,
)
from flops_fit_core.cli.shared_options import share_options
from flops_fit_core.cli.summary import print_summary
from flops_fit_core.errors import ConfigError, FitError, FlopsFitError, raised_at
from flops_fit_core.report.run_errors import group_errors, summarise_errors
from flops_fit_core.study import Study


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(plan)
    app.command()(run)
    app.command()(runs)
    app.command()(show)
    app.command()(prune_checkpoints)


@share_options(study_planner)
def plan(
    plan_study: Callable[..., Study],
    estimate: Annotated[bool, typer.Option(help="Time a few real steps to estimate the wall time.")] = True,
    show_script: Annotated[
        bool, typer.Option("--show-script", help="Print the batch scripts that --executor slurm would submit.")
    ] = False,
    json: args.JsonOption = False,
) -> None:
    """Show every run of an experiment: size, tokens, FLOPs, state, and the time to train the rest."""
    study = plan_study()
    if show_script:
        print_text(study.describe_jobs())
        return
    seconds = study.seconds() if estimate else None
    if json:
        print_json(_plan_json(study, seconds))
    else:
        _print_plan(study, seconds)


@share_options(study_planner)
def run(
    plan_study: Callable[..., Study],
    retry: Annotated[bool, typer.Option(help="Retry runs that failed before.")] = True,
    report: args.ReportOption = True,
    explain: ExplainOption = False,
) -> int:
    """Train the missing runs, fit the law, write the report. After an interruption, type it again to continue."""
    study = plan_study(starts=True)
    done = {result.id for result in study.results if result.is_finished or not retry}
    missing = len(study.plan.runs) - len(done)
    print_message(f"{study.plan.name}: {len(study.plan.runs)} runs, {missing} to train, in {study.folder.path}")
    for note in study.plan.notes:
        print_message(f"  {note}")
    for notice in study.notices:
        print_message(f"! {notice}")
    if study.plan.skipped:
        print_message(f"  {len(study.plan.skipped)} sizes skipped; 'flops-fit plan' shows the reasons")
    study.train(retry_failed=retry, check=False, progress=True)
    return print_outcome(study, explain, report=report)


def runs(
    source: args.SourceArgument,
    out: args.OutOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    spreadsheet: Annotated[
        bool, typer.Option("--spreadsheet", help="With --csv: mark texts that a spreadsheet takes for formulas.")
    ] = False,
) -> None:
    """List a study's runs. 'show' prints all details of a run."""
    if spreadsheet and (json or not csv):
        raise ConfigError("--spreadsheet changes CSV only: write --csv --spreadsheet")
    study = args.open_study(source, args.registry_for(source, plugin, disabled), out)
    if json:
        print_json(study.runs.json())
    elif csv:
        print_csv(study.runs.csv(spreadsheet=spreadsheet))
    else:
        print_table(study.runs)
        print_notes(study.runs.diagnostics)


def show(
    source: args.SourceArgument,
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Ids of runs, as 'runs' lists them, or their first characters.", metavar="ID..."),
    ] = None,
    out: args.OutOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> None:
    """Show all details of single runs: plugins, options, every attempt, tracebacks."""
    from flops_fit_core.cli import run_details

    if not ids:
        raise ConfigError(f"name at least one run: 'flops-fit runs {source}' lists their ids")
    study = args.open_study(source, args.registry_for(source, plugin, disabled), out)
    runs = run_details.find_runs(study, ids)
    if json:
        print_json(run_details.to_json(runs))
    else:
        texts = ["\n".join(run_details.describe_run(run, attempts, study.plan)) for run, attempts in runs]
        print_text("\n\n".join(texts))


def prune_checkpoints(
    source: args.SourceArgument,
    out: args.OutOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also delete those from which interrupted runs would continue.")
    ] = False,
) -> None:
    """Delete the checkpoints from which a larger budget could continue the stable phases of a study."""
    from flops_fit_core import numbers

    study = args.open_study(source, args.registry_for(source, plugin, disabled), out)
    freed = study.prune_checkpoints(unfinished=everything)
    remaining = study.checkpoint_bytes
    hint = f"; {numbers.disk(remaining)} remain for unfinished runs: --all deletes them" if remaining else ""
    print_text(f"{numbers.disk(freed)} freed{hint}")


def _plan_json(study: Study, seconds: float | None) -> dict[str, Any]:
    from flops_fit_core.report import plan_table
    from flops_fit_core.study.states import states_by_run

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
    from flops_fit_core import numbers
    from flops_fit_core.report import plan_table, skipped_table
    from flops_fit_core.study.states import states_by_run

    plan = study.plan
    print_table(plan_table(plan, states_by_run(plan, study.results)))
    if plan.skipped:
        print_table(skipped_table(plan))
    for note in plan.notes:
        print_text(f"- {note}")
    for notice in study.notices:
        print_text(f"! {notice}")
    time = f"; about {numbers.duration(seconds)} left on this machine" if seconds is not None else ""
    print_text(
        f"{len(plan.runs)} runs, {numbers.scientific(plan.flops)} FLOPs in all{time}. Study: {study.folder.path}"
    )
    if len(plan.trajectories) < len(plan.runs):
        print_text(
            f"{len(plan.trajectories)} shared stable phases: without sharing, "
            f"{numbers.scientific(plan.flops_without_sharing)} "
            f"FLOPs, so {1 - plan.flops / plan.flops_without_sharing:.0%} are saved. Checkpoints kept for further "
            f"branches: about {numbers.disk(plan.checkpoint_bytes)}"
        )


def print_outcome(study: Study, explain: bool = False, *, report: bool = True) -> int:
    """Print the answer of a sweep and write its report. Returns 1 if a run, the fit or the report failed."""
    failed = [result for result in study.results if result.status == "failed"]
    failures = _print_answer(study, explain, report)
    if not report and study.folder.report.exists():
        again = f"flops-fit report {study.folder.shown}"
        print_message(f"the report is of an earlier sweep; to write it again: {again}")
    for step, error in failures:
        print_error(f"{step} failed: {_describe_error(error)}")
    if failures:
        finished = sum(result.is_finished for result in study.results)
        state = "complete" if finished == len(study.plan.runs) else "over"
        print_error(
            f"training is {state}: {finished} of {len(study.plan.runs)} runs are finished and stored. To fit and "
            f"report again without training: flops-fit report {study.folder.shown}"
        )
    for line in summarise_errors(failed):
        print_message(line)
    if failed:
        first = group_errors(failed)[0].ids[0][:6]
        print_message(f"'flops-fit show {study.folder.shown} {first}' prints the error in full")
    return 1 if failed or failures else 0


def _print_answer(study: Study, explain: bool, report: bool) -> list[tuple[str, Exception]]:
    """Fit, print the answer, and write fit.json and the report. Returns the steps that failed, with their errors.

    The steps are independent, so that a full disk does not hide the answer. After a sweep, no error of a fitter,
    of matplotlib or of the disk may end the command: it would hide that training is complete.
    """
    try:
        fit = study.fit
    except FitError as error:
        print_message(f"no law yet: {error}")
        return _attempt({"the report": lambda: print_message(f"report: {study.report()[0]}")} if report else {})
    except Exception as error:
        return [("the fit", error)]
    return _attempt(
        {
            "fit.json": lambda: study.folder.save_fit(fit),
            **({"the report": study.report} if report else {}),
            "printing the answer": lambda: print_summary(study, explain),
        }
    )


def _attempt(steps: Mapping[str, Callable[[], object]]) -> list[tuple[str, Exception]]:
    """Run independent steps. Returns those that failed, with their errors."""
    failures: list[tuple[str, Exception]] = []
    for step, action in steps.items():
        try:
            action()
        except BrokenPipeError:  # the reader of the output has closed it; not an error of the study
            raise
        except Exception as error:
            failures.append((step, error))
    return failures


def _describe_error(error: Exception) -> str:
    if isinstance(error, FlopsFitError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    line = raised_at("".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {error}" + (f" ({line})" if line else "")
