"""``predict``: N_opt, D_opt and the loss for a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Annotated, Any

import typer

from flops_fit_core import numbers
from flops_fit_core.cli import arguments as args
from flops_fit_core.cli import compute_options as compute
from flops_fit_core.cli import laws, task_command
from flops_fit_core.cli.law_options import ExplainOption, FlopsArgument, LawArgument, law_source
from flops_fit_core.cli.printing import print_answer, print_json
from flops_fit_core.cli.shared_options import share_options
from flops_fit_core.cli.summary import print_explanation, title_of_table
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import Diagnostic, LawFit, Optimum, Record
from flops_fit_core.report.answer import Answer, order_diagnostics


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(predict)


@share_options(law_source, source=LawArgument)
def predict(
    request: laws.LawRequest,
    registry: Registry,
    flops: FlopsArgument = None,
    gpus: compute.GpusOption = None,
    days: compute.DaysOption = None,
    inference_tokens: Annotated[
        float, typer.Option(help="Tokens of inference that the budget pays for, too.", metavar="D_INF")
    ] = 0.0,
    unique_tokens: Annotated[
        float | None,
        typer.Option(help="Unique tokens of the data; further tokens repeat them (muennighoff).", metavar="U"),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", help="Value of a further input of the law: --input experts=8. Repeatable.", metavar="NAME=X"
        ),
    ] = None,
    new_run: Annotated[
        bool, typer.Option("--new-run", help="Print the interval for the loss of one further run, too.")
    ] = False,
    params: Annotated[
        float | None,
        typer.Option(help="Loss of a model of this size at each C, compared with the optimum.", metavar="N"),
    ] = None,
    device: compute.DeviceOption = None,
    peak_flops: compute.PeakOption = None,
    mfu: compute.MfuOption = 0.4,
    price: compute.PriceOption = None,
    task: task_command.TaskOption = None,
    via: task_command.ViaOption = None,
    chance: task_command.ChanceOption = None,
    questions: task_command.QuestionsOption = None,
    tokens: Annotated[
        float | None,
        typer.Option(help="With --params N: the loss, or accuracy (--task), after D tokens.", metavar="D"),
    ] = None,
    explain: ExplainOption = False,
    json: args.JsonOption = False,
) -> None:
    """Predict N_opt, D_opt and the loss for a training budget (--flops, or --gpus and --days), with intervals."""
    from flops_fit_core.fitting import require_new_run

    peak_flops = compute.find_peak(device, peak_flops, registry)
    task_request = task_command.TaskRequest(task, via, chance, questions)
    if task_command.is_task_fit(request.source) or task_request.check(request):
        task_command.predict_and_print(request, task_request, registry, flops or (), params, tokens, json)
        return
    values = laws.parse_inputs(inputs or ())
    if tokens is not None:
        if params is None or flops or gpus is not None:
            raise ConfigError(
                "--tokens D needs --params N, without --flops: the loss of N parameters after D tokens"
            )
        law = laws.load_or_fit(request, registry).law
        laws.print_loss(law, params, tokens, unique_tokens, values, json)
        return
    budgets = compute.budgets(flops or (), gpus, days, peak_flops, mfu)
    fitted = laws.load_or_fit(request, registry)
    if new_run:
        require_new_run(fitted.law)
    optima = [
        laws.find_optimum(fitted.law, fitted.fitter, budget, inference_tokens, unique_tokens, values)
        for budget in budgets
    ]
    extras = [laws.extras(fitted.law, budget, params, peak_flops, mfu, price) for budget in budgets]
    if json:
        print_json(_prediction_records(optima, extras))
        return
    sentences = [
        f"{f'C = {numbers.scientific(budget)}: ' if len(budgets) > 1 else ''}{line}"
        for budget, extra in zip(budgets, extras, strict=True)
        for line in laws.describe_extras(extra, fitted.law)
    ]
    if peak_flops is not None:
        sentences.append(
            f"Devices: {mfu:.0%} of {numbers.scientific(peak_flops)} FLOP/s each{f' ({device})' if device else ''}"
        )
    _print(request, registry, fitted, Printed(tuple(optima), tuple(sentences), new_run, explain))


@dataclass(frozen=True)
class Printed:
    """The predictions to print, and the options of their text."""

    optima: tuple[Optimum, ...]
    sentences: tuple[str, ...]
    with_new_run: bool
    explain: bool


def _print(request: laws.LawRequest, registry: Registry, fitted: laws.FittedLaw, printed: Printed) -> None:
    law, study, optima = fitted.law, fitted.study, printed.optima
    has_runs = study is not None or bool(fitted.observations)
    isoflop, reason = (
        laws.fit_isoflop(request, registry, fitted) if has_runs else (None, "a saved fit has no runs")
    )
    title = title_of_table(law, str(request.source)) if study is None else study.answer_title(law)
    pointers = {}
    if has_runs and not request.changes_fit():
        pointers["next"] = f"flops-fit backtest {quote(study.folder.shown if study else str(request.source))}"
    if not printed.explain:
        pointers["explain"] = "the same command with --explain"
    diagnostics = order_diagnostics(_notes_of_optima(law, optima), law.diagnostics)
    print_answer(
        Answer(
            title=title,
            fit=law,
            optimum=optima[0] if len(optima) == 1 else None,
            rows=optima,
            isoflop=isoflop,
            diagnostics=tuple(item for item in diagnostics if item.message != title),
            pointers=pointers,
            requested=True,
            further=printed.sentences,
            with_new_run=printed.with_new_run,
        )
    )
    if printed.explain:
        print_explanation(law, optima, isoflop, reason)


def _notes_of_optima(law: LawFit, optima: Sequence[Optimum]) -> list[Diagnostic]:
    """The notes of the optima as warnings, without those about the distance, which the answer states itself."""
    notes = dict.fromkeys(note for optimum in optima for note in optimum.notes)
    return [Diagnostic(code="optimum", message=note) for note in notes if not note.startswith("extrapolated: ")]


def _prediction_records(optima: Sequence[Optimum], extras: Sequence[Mapping[str, Record]]) -> Any:
    """The predictions as plain data: one record, or a list of several."""
    shown = [
        {
            **optimum.model_dump(mode="json"),
            **{name: record.model_dump(mode="json") for name, record in extra.items()},
        }
        for optimum, extra in zip(optima, extras, strict=True)
    ]
    return shown[0] if len(shown) == 1 else shown
