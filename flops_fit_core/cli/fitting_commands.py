"""``fit``, ``predict``, ``backtest``, ``report``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli import compute_options as compute
from flops_fit_core.cli import laws, lr_batch, task_command
from flops_fit_core.cli.printing import print_diagnostics, print_json, print_notes, print_table, print_text
from flops_fit_core.cli.summary import describe_six_nd, print_law
from flops_fit_core.errors import ConfigError, FitError
from flops_fit_core.plugins.registry.law_index import find_law
from flops_fit_core.plugins.registry.law_offers import short_name
from flops_fit_core.records import LawFit, Observation, Optimum, Record

TABLE = "a table of runs (CSV, TSV, JSON, JSON lines, parquet), logs of runs (W&B, trainer_state.json, ...)"
RunsArgument = Annotated[
    Path, typer.Argument(help=f"A study's folder, an experiment file, or {TABLE}.", metavar="SOURCE")
]
LawArgument = Annotated[
    Path,
    typer.Argument(
        help=f"A study's folder, an experiment file, {TABLE}, or a fit saved by fit --out.", metavar="SOURCE"
    ),
]
FlopsArgument = Annotated[
    list[float] | None, typer.Option("--flops", help="Training FLOPs. Repeatable.", metavar="C")
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="Name a column, or a product: --column params=n_params, --column tokens=step*524288. Repeatable.",
        metavar="COLUMN=NAME",
    ),
]
FilterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--filter", help="Use only a table's rows with this text: --filter group=c4.", metavar="COLUMN=TEXT"
    ),
]
UnitsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--units", help="Factor of a column: --units params=1e6 or params=M. Repeatable.", metavar="COLUMN=X"
    ),
]
DecimalOption = Annotated[
    str | None,
    typer.Option("--decimal", help="Decimal sign of a table, if no cell shows it: . or ,", metavar="SIGN"),
]
BestOfOption = Annotated[
    str | None,
    typer.Option(
        "--best-of",
        help="For a grid over these hyperparameters, such as lr,batch_size: fit the best run at each N and D. "
        "'none' fits all runs.",
        metavar="COLUMNS",
    ),
]
ReaderOption = Annotated[
    str | None,
    typer.Option(
        "--reader", help="How to read the logs of runs, if several readers recognise them.", metavar="NAME"
    ),
]
EvalSetOption = Annotated[
    str | None,
    typer.Option(help="Fit the losses on this further held-out set of the study's dataset.", metavar="NAME"),
]
FitterSetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="An option of the fitter: --set draws=4000. Repeatable.", metavar="OPTION=VALUE"),
]


LawNameOption = Annotated[
    str | None,
    typer.Option(
        "--law",
        help="Fit this law; 'flops-fit laws' lists them. With fit also lr-batch, the best learning rate and batch "
        "of a grid of runs.",
        metavar="NAME",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (fit, predict, backtest, report, list_laws):
        app.command("laws" if command is list_laws else None)(command)


def fit(
    source: RunsArgument,
    law_name: LawNameOption = None,
    fitter: args.FitterOption = None,
    options: FitterSetOption = None,
    columns: ColumnOption = None,
    filters: FilterOption = None,
    units: UnitsOption = None,
    decimal: DecimalOption = None,
    best_of: BestOfOption = None,
    reader: ReaderOption = None,
    eval_set: EvalSetOption = None,
    group_by: Annotated[
        str | None,
        typer.Option("--group-by", help="Fit each group of a table's rows separately.", metavar="COLUMN"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Save the fit with its draws as JSON.")] = None,
    checklist: Annotated[bool, typer.Option(help="Print how the fit was made, point by point.")] = False,
    profile: Annotated[bool, typer.Option(help="Print profile-likelihood intervals, too.")] = False,
    task: task_command.TaskOption = None,
    via: task_command.ViaOption = None,
    chance: task_command.ChanceOption = None,
    questions: task_command.QuestionsOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> None:
    """Fit a law to the runs of a study, or of a table with columns params, tokens, flops, loss."""
    from flops_fit_core.fitting import checklist as points
    from flops_fit_core.fitting import summary, write_fit

    registry = args.registry_for(source, plugin, disabled)
    request = laws.LawRequest(
        source,
        fitter,
        options or (),
        columns or (),
        filters or (),
        eval_set,
        units or (),
        decimal,
        best_of,
        law_name,
        reader,
    )
    unused = {"--group-by": group_by is not None, "--checklist": checklist, "--profile": profile}
    if law_name == lr_batch.LAW:
        lr_batch.fit_grid(request, registry, unused, out, json=json)
        return
    task_request = task_command.TaskRequest(task, via, chance, questions)
    if task_request.check(request, [name for name, is_set in unused.items() if is_set]):
        task_command.fit_and_print(request, task_request, registry, out, json)
        return
    if group_by is not None:
        _refuse_with_groups(out, checklist, profile)
        _print_groups(laws.fit_groups(request, registry, group_by), group_by, json)
        return
    law, law_fitter, study = laws.fit_law(request, registry)
    if out is not None:
        write_fit(law, out)
    if json:
        print_json(summary(law))
        return
    print_law(law)
    if study is not None and (line := describe_six_nd(study, law_fitter)):
        print_text(line)
    print_diagnostics(law)
    if profile:
        _print_profile(law, laws.read_observations(request, registry)[0])
    for name, text in points(law, str(source)) if checklist else ():
        print_text(f"{name}: {text}")


def _print_profile(law: LawFit, runs: Sequence[Observation]) -> None:
    from flops_fit_core.fitting import profile_intervals

    intervals = profile_intervals(law, runs, [10 * law.flops_range[1], 100 * law.flops_range[1]])
    print_text(
        "By profile likelihood (one level of noise for all runs, no shared stable phases): "
        + ", ".join(f"{name} = {interval}" for name, interval in intervals.items())
    )


def _refuse_with_groups(out: Path | None, checklist: bool, profile: bool) -> None:
    if out is not None or checklist or profile:
        raise ConfigError("--group-by cannot be combined with --out, --checklist or --profile: use --filter")


def _print_groups(groups: Mapping[str, LawFit | FitError], column: str, json: bool) -> None:
    from flops_fit_core.fitting import summary

    if json:
        print_json(
            {
                text: {"error": str(law)} if isinstance(law, FitError) else summary(law)
                for text, law in groups.items()
            }
        )
        return
    for text, law in groups.items():
        print_text(f"{column} = {text}")
        if isinstance(law, FitError):
            print_text(f"! no law: {law}")
        else:
            print_law(law)
            print_diagnostics(law)
        print_text("")


def predict(
    source: LawArgument,
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
    law_name: LawNameOption = None,
    fitter: args.FitterOption = None,
    options: FitterSetOption = None,
    columns: ColumnOption = None,
    filters: FilterOption = None,
    units: UnitsOption = None,
    decimal: DecimalOption = None,
    best_of: BestOfOption = None,
    reader: ReaderOption = None,
    eval_set: EvalSetOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> None:
    """Predict N_opt, D_opt and the loss for a training budget (--flops, or --gpus and --days), with intervals."""
    from flops_fit_core.fitting import require_new_run
    from flops_fit_core.report import predictions_table

    registry = args.registry_for(source, plugin, disabled)
    peak_flops = compute.find_peak(device, peak_flops, registry)
    request = laws.LawRequest(
        source,
        fitter,
        options or (),
        columns or (),
        filters or (),
        eval_set,
        units or (),
        decimal,
        best_of,
        law_name,
        reader,
    )
    task_request = task_command.TaskRequest(task, via, chance, questions)
    if task_command.is_task_fit(source) or task_request.check(request):
        task_command.predict_and_print(request, task_request, registry, flops or (), params, tokens, json)
        return
    values = laws.parse_inputs(inputs or ())
    if tokens is not None:
        if params is None or flops or gpus is not None:
            raise ConfigError(
                "--tokens D needs --params N, without --flops: the loss of N parameters after D tokens"
            )
        law, _, _ = laws.load_or_fit(request, registry)
        laws.print_loss(law, params, tokens, unique_tokens, values, json)
        return
    budgets = compute.budgets(flops or (), gpus, days, peak_flops, mfu)
    law, law_fitter, _ = laws.load_or_fit(request, registry)
    if new_run:
        require_new_run(law)
    optima = [
        laws.find_optimum(law, law_fitter, budget, inference_tokens, unique_tokens, values) for budget in budgets
    ]
    extras = [laws.extras(law, budget, params, peak_flops, mfu, price) for budget in budgets]
    if json:
        print_json(_prediction_records(optima, extras))
        return
    print_table(predictions_table(law, optima, new_run))
    codes = {"columns"} if request.is_table(registry) else {"other-results"}
    print_notes(
        [
            item
            for item in law.diagnostics
            if item.code in codes or ("columns" in codes and item.severity == "warning")
        ]
    )
    if peak_flops is not None:
        print_text(f"Devices: {mfu:.0%} of {peak_flops:.4g} FLOP/s each{f' ({device})' if device else ''}")
    for budget, extra in zip(budgets, extras, strict=True):
        for line in laws.describe_extras(extra):
            print_text(f"C = {budget:.4g}: {line}")
    for note in dict.fromkeys(note for optimum in optima for note in optimum.notes):
        print_text(f"! {note}")


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


def backtest(
    source: RunsArgument,
    law_name: LawNameOption = None,
    fitter: args.FitterOption = None,
    options: FitterSetOption = None,
    columns: ColumnOption = None,
    filters: FilterOption = None,
    units: UnitsOption = None,
    decimal: DecimalOption = None,
    best_of: BestOfOption = None,
    reader: ReaderOption = None,
    eval_set: EvalSetOption = None,
    budgets: Annotated[int, typer.Option(help="How many of the largest budgets to hold out.")] = 1,
    above: Annotated[
        float | None, typer.Option(help="Hold out every run of more FLOPs than this instead.", metavar="C")
    ] = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> None:
    """Fit without the largest budgets, and report the error of the fit's predictions of them."""
    from flops_fit_core.fitting import backtest as hold_out

    registry = args.registry_for(source, plugin, disabled)
    request = laws.LawRequest(
        source,
        fitter,
        options or (),
        columns or (),
        filters or (),
        eval_set,
        units or (),
        decimal,
        best_of,
        law_name,
        reader,
    )
    observations, law_fitter, reading = laws.read_observations(request, registry)
    tested = hold_out(law_fitter, observations, budgets, above)
    if json:
        shown = tested.model_dump(mode="json", exclude={"fit"})
        summary = {"mean_abs_error": tested.mean_abs_error, "bias": tested.bias}
        print_json({**shown, **summary, "inside": tested.inside, "with_interval": tested.with_interval})
        return
    print_notes(reading)
    for point in tested.held_out:
        print_text(
            f"{point.id}: C {point.flops:.4g}, loss {point.loss:.4f}, predicted {point.predicted} "
            f"({point.error:+.2%})"
        )
    print_text(
        f"{len(tested.held_out)} held out above C = {tested.above:.4g}, {tested.fit.n_runs} runs fitted by "
        f"{tested.fit.fitter.name}: mean absolute relative error {tested.mean_abs_error:.3%}, bias "
        f"{tested.bias:+.3%}"
    )
    if tested.with_interval:
        print_text(
            f"{tested.inside} of {tested.with_interval} held-out losses lie inside the {tested.fit.level:.0%} "
            "interval of the law"
        )


def report(
    source: LawArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder to write; by default report/ in the study's folder, or NAME-report for a table or fit.",
            metavar="FOLDER",
        ),
    ] = None,
    law_name: LawNameOption = None,
    fitter: args.FitterOption = None,
    options: FitterSetOption = None,
    columns: ColumnOption = None,
    filters: FilterOption = None,
    units: UnitsOption = None,
    decimal: DecimalOption = None,
    best_of: BestOfOption = None,
    reader: ReaderOption = None,
    eval_set: EvalSetOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
) -> None:
    """Write the page, figures (PNG, SVG) and tables of a study, a table of runs or a saved fit."""
    from flops_fit_core.cli.report_sources import write_source_report

    registry = args.registry_for(source, plugin, disabled)
    request = laws.LawRequest(
        source,
        fitter,
        options or (),
        columns or (),
        filters or (),
        eval_set,
        units or (),
        decimal,
        best_of,
        law_name,
        reader,
    )
    for file in write_source_report(request, registry, out):
        print_text(str(file))


def list_laws(
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> None:
    """List the laws that --law fits, with their formulas, inputs and sources."""
    registry = args.registry_for(None, plugin, disabled)
    laws_by_name = {short_name(offer.name): find_law(short_name(offer.name)) for offer in registry.offers("law")}
    if json:
        print_json(
            {
                name: {
                    "formula": law.formula,
                    "inputs": law.inputs,
                    "parameters": [parameter.name for parameter in law.parameters],
                    "source": law.source,
                }
                for name, law in laws_by_name.items()
            }
        )
        return
    for name, law in laws_by_name.items():
        print_text(f"{name}: {law.formula}")
        print_text(f"    inputs {', '.join(law.inputs)}; {law.source}")
