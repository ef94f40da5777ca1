"""``fit``: a law through the runs of a study or a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli import laws, lr_batch, task_command
from flops_fit_core.cli.law_options import ExplainOption, law_source
from flops_fit_core.cli.printing import (
    console,
    describe_interruption,
    print_answer,
    print_json,
    print_message,
    print_text,
)
from flops_fit_core.cli.shared_options import share_options
from flops_fit_core.cli.summary import answer_of_table, describe_six_nd, print_explanation
from flops_fit_core.errors import ConfigError, FitError
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import Interval, LawFit, Observation
from flops_fit_core.report.answer import Answer


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(fit)


@share_options(law_source)
def fit(
    request: laws.LawRequest,
    registry: Registry,
    explain: ExplainOption = False,
    group_by: Annotated[
        str | None,
        typer.Option("--group-by", help="Fit each group of a table's rows separately.", metavar="COLUMN"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Save the fit with its draws as JSON.")] = None,
    checklist: Annotated[bool, typer.Option("--checklist", help="Print how the fit was made, point by point.")] = (
        False
    ),
    profile: Annotated[bool, typer.Option("--profile", help="Print profile-likelihood intervals, too.")] = False,
    task: task_command.TaskOption = None,
    via: task_command.ViaOption = None,
    chance: task_command.ChanceOption = None,
    questions: task_command.QuestionsOption = None,
    json: args.JsonOption = False,
) -> None:
    """Fit a law to the runs of a study, or of a table with columns params, tokens, flops, loss."""
    from flops_fit_core.fitting import checklist as points
    from flops_fit_core.fitting import summary, write_fit

    unused = {"--group-by": group_by is not None, "--checklist": checklist, "--profile": profile}
    if request.law == lr_batch.LAW:
        lr_batch.fit_grid(request, registry, unused, out, json=json)
        return
    task_request = task_command.TaskRequest(task, via, chance, questions)
    if task_request.check(request, [name for name, is_set in unused.items() if is_set]):
        task_command.fit_and_print(request, task_request, registry, out, json)
        return
    if group_by is not None:
        _refuse_with_groups(out, checklist, profile)
        _print_groups(request, laws.fit_groups(request, registry, group_by), group_by, json)
        return
    fitted = laws.fit_law(request, registry)
    if out is not None:
        write_fit(fitted.law, out)
    if json:
        print_json(summary(fitted.law))
        return
    _print_fitted(request, registry, fitted, explain)
    if profile:
        _print_profile(fitted.law, laws.read_observations(request, registry)[0])
    for name, text in points(fitted.law, str(request.source)) if checklist else ():
        print_text(f"{name}: {text}")


def _print_fitted(request: laws.LawRequest, registry: Registry, fitted: laws.FittedLaw, explain: bool) -> None:
    isoflop, reason = laws.fit_isoflop(request, registry, fitted)
    if fitted.study is not None:
        answer = fitted.study.answer(fit=fitted.law, fitter=fitted.fitter)
    else:
        answer = answer_of_table(fitted.law, fitted.fitter, isoflop, str(request.source))
    pointers = {name: text for name, text in answer.pointers.items() if name != "explain"}
    if request.changes_fit():  # these commands would need the same options
        pointers.pop("next", None)
    if not explain:
        pointers["explain"] = "the same command with --explain"
    print_answer(replace(answer, pointers=pointers))
    if explain:
        print_explanation(fitted.law, answer.rows, isoflop, reason)
        if fitted.study is not None and (line := describe_six_nd(fitted.study, fitted.fitter)):
            print_text(line)


def _print_profile(law: LawFit, runs: Sequence[Observation]) -> None:
    """Print each interval when it is computed, so that Ctrl-C keeps the earlier ones."""
    from flops_fit_core.fitting import profile_intervals

    def show(number: int, total: int, name: str, interval: Interval | None) -> None:
        if interval is None:
            status.update(f"profile likelihood, {number} of {total}: {name}")
            describe_interruption(
                f"stopped: {number - 1} of {total} profile-likelihood intervals are printed. The fit is complete"
            )
        else:
            print_text(f"  {name} = {interval}")

    output = console(error=True)
    print_text("By profile likelihood (one level of noise for all runs, no shared stable phases):")
    if not output.is_terminal:
        print_message("computing profile-likelihood intervals")
    with output.status("profile likelihood") as status:
        profile_intervals(law, runs, [10 * law.flops_range[1], 100 * law.flops_range[1]], show)


def _refuse_with_groups(out: Path | None, checklist: bool, profile: bool) -> None:
    if out is not None or checklist or profile:
        raise ConfigError("--group-by cannot be combined with --out, --checklist or --profile: use --filter")


def _print_groups(
    request: laws.LawRequest, groups: Mapping[str, laws.FittedLaw | FitError], column: str, json: bool
) -> None:
    from flops_fit_core.fitting import summary

    if json:
        print_json(
            {
                text: {"error": str(fitted)} if isinstance(fitted, FitError) else summary(fitted.law)
                for text, fitted in groups.items()
            }
        )
        return
    for text, fitted in groups.items():
        if isinstance(fitted, FitError):
            print_text(f"{column} = {text}")
            print_text(f"! no law: {fitted}")
        else:
            answer = answer_of_table(fitted.law, fitted.fitter, None, str(request.source))
            print_answer(_brief(answer, f"{column} = {text}   {fitted.law.n_runs} runs"))
        print_text("")


def _brief(answer: Answer, title: str) -> Answer:
    pointers = {
        "explain": f"the same command with --filter {title.partition('   ')[0].replace(' = ', '=')} --explain"
    }
    return replace(answer, title=title, rows=(), pointers=pointers)
