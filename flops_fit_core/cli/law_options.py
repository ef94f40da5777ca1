"""The options of ``fit``, ``predict`` and ``backtest`` that choose the runs and the law."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.laws import LawRequest
from flops_fit_core.plugins.registry import Registry

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
FilterAOption = Annotated[
    list[str] | None,
    typer.Option(
        "--filter-a", help="Use only A's rows with this text, to compare rows of one table.", metavar="COLUMN=TEXT"
    ),
]
FilterBOption = Annotated[
    list[str] | None, typer.Option("--filter-b", help="The same for B.", metavar="COLUMN=TEXT")
]
AllowDifferencesOption = Annotated[
    bool,
    typer.Option("--allow-differences", help="Compare sources with different data or counters, with a warning."),
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
ExplainOption = Annotated[
    bool,
    typer.Option("--explain", help="Print everything about the fit: laws, intervals, all warnings and notes."),
]


def law_source(
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
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
) -> tuple[LawRequest, Registry]:
    """The runs and the law that a command line names, and the plugins."""
    request = LawRequest(
        source,
        fitter=fitter,
        options=options or (),
        columns=columns or (),
        filters=filters or (),
        eval_set=eval_set,
        units=units or (),
        decimal=decimal,
        best_of=best_of,
        law=law_name,
        reader=reader,
    )
    return request, args.registry_for(source, plugin, disabled)
