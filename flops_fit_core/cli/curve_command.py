"""``curve``: loss curves, the final loss of unfinished runs, and the loss of another schedule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flops_fit_core import numbers
from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.laws import column_pairs
from flops_fit_core.cli.printing import print_json, print_notes, print_table, print_text
from flops_fit_core.errors import ConfigError
from flops_fit_core.records import Diagnostic

if TYPE_CHECKING:
    from flops_fit_core.fitting import CurveFit, CurveTable, FinalLoss, LossCurve
    from flops_fit_core.records import Interval
    from flops_fit_core.report import DataTable

SCHEDULE_HELP = (
    "NAME:key=value,... with NAME constant, linear, cosine or wsd, and keys steps, peak, warmup (updates), final "
    "(last rate / peak), decay (share of the steps, wsd), power (1 or 0.5, wsd)."
)
CurveSource = Annotated[
    Path,
    typer.Argument(
        help="A table with columns step, lr, loss (and run), a study's folder, or an experiment file.",
        metavar="SOURCE",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(curve)


def curve(
    source: CurveSource,
    law: Annotated[str, typer.Option(help="multi-power, or annealing (the simple form).", metavar="NAME")] = (
        "multi-power"
    ),
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule", help=f"The complete schedule of a table's runs: {SCHEDULE_HELP}", metavar="SCHEDULE"
        ),
    ] = None,
    predict: Annotated[
        list[str] | None,
        typer.Option(
            "--predict",
            help="Predict the final loss of another schedule: cosine:steps=48000,final=0.1. Repeatable.",
            metavar="SCHEDULE",
        ),
    ] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option(
            "--with", help="A table with finished runs of the same size, for the law. Repeatable.", metavar="TABLE"
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            help="Name a column: --column loss=eval/loss. Roles: step, lr, loss, run, size. Repeatable.",
            metavar="ROLE=NAME",
        ),
    ] = None,
    decimal: Annotated[
        str | None, typer.Option(help="Decimal sign of a table, if no cell shows it: . or ,", metavar="SIGN")
    ] = None,
    level: Annotated[float, typer.Option(help="Level of the intervals.", min=0.5, max=0.999)] = 0.9,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> int:
    """Fit a loss-curve law, and forecast the final loss of each unfinished run."""
    from flops_fit_core.fitting import final_losses, fit_groups, is_table

    if is_table(source):
        table = _read(source, columns, schedule, decimal)
    else:
        _refuse_table_options(source, {"--schedule": schedule, "--column": columns, "--decimal": decimal})
        table = _study_table(source, plugin, disabled)
    further = [item for path in others or () for item in _read(path, columns, None, decimal).curves]
    further = _join_group(table.curves, further)
    fits = fit_groups([*table.curves, *further], law)
    finals = final_losses(table.curves, fits=fits, law=law, level=level)
    predictions = _predict(fits, predict or (), level)
    if json:
        print_json(_json(table, finals, fits, predictions, level))
    else:
        _print(table, finals, fits, predictions, level)
    return 0


def _read(path: Path, columns: Sequence[str] | None, schedule: str | None, decimal: str | None) -> CurveTable:
    from flops_fit_core.fitting import parse_schedule, read_curves

    shape = None if schedule is None else parse_schedule(schedule)
    by_role = column_pairs(columns or (), "loss=eval/loss, with the role first")
    return read_curves(path, columns=by_role, schedule=shape, decimal=decimal)


def _study_table(source: Path, plugin: Sequence[str] | None, disabled: Sequence[str] | None) -> CurveTable:
    from flops_fit_core.fitting import CurveTable
    from flops_fit_core.study.loss_curves import study_curves

    study = args.open_study(source, args.registry_for(source, plugin, disabled), None)
    return CurveTable(study_curves(study))


def _refuse_table_options(source: Path, values: dict[str, Any]) -> None:
    if names := [name for name, value in values.items() if value]:
        raise ConfigError(f"{', '.join(names)}: for tables only, and {source} is a study")


def _join_group(curves: Sequence[LossCurve], further: Sequence[LossCurve]) -> list[LossCurve]:
    """Further curves in the group of the table's curves. Raises ConfigError if there are several groups."""
    from dataclasses import replace

    groups = {item.group for item in curves}
    if not further or {item.group for item in further} <= groups:
        return list(further)
    if len(groups) > 1:
        raise ConfigError(
            "--with: the runs have several sizes, so the further curves need a column of sizes with equal values"
        )
    return [replace(item, group=next(iter(groups))) for item in further]


def _predict(fits: dict[str, CurveFit], schedules: Sequence[str], level: float) -> list[tuple[str, str, Interval]]:
    """(group, schedule, final loss). Raises ConfigError if no group has finished runs."""
    from flops_fit_core.fitting import parse_schedule

    if schedules and not fits:
        raise ConfigError("--predict needs a finished run of the same size: add its curve, or use --with TABLE")
    predictions = []
    for group, fit in fits.items():
        for text in schedules:
            warmup = min(fit.warmup, parse_schedule(text).values.get("steps", fit.warmup) / 10)
            rates = parse_schedule(text).rates({"peak": fit.scale.peak, "warmup": warmup})
            predictions.append((group, text, fit.predict(rates, [rates.steps], level=level)[0]))
    return predictions


# ---------------------------------------------------------------------------- output


def _json(
    table: CurveTable,
    finals: Sequence[FinalLoss],
    fits: dict[str, CurveFit],
    predictions: Sequence[tuple[str, str, Interval]],
    level: float,
) -> dict[str, Any]:
    return {
        "level": level,
        "runs": [
            {
                "run": item.name,
                "group": item.group,
                "steps": item.steps,
                "last_step": item.last_step,
                "last_loss": item.last_loss,
                "loss": item.loss,
                "standard_error": item.standard_error,
                "low": item.forecast.loss.low if item.forecast else None,
                "high": item.forecast.loss.high if item.forecast else None,
                "others": list(item.forecast.others) if item.forecast else [],
                "reason": item.reason,
            }
            for item in finals
        ],
        "laws": [
            {"group": group, "law": fit.law.name, "parameters": fit.parameters, "runs": list(fit.names)}
            for group, fit in fits.items()
        ],
        "predictions": [
            {"group": group, "schedule": text, "loss": loss.value, "low": loss.low, "high": loss.high}
            for group, text, loss in predictions
        ],
        "excluded": table.excluded,
        "diagnostics": [item.message for item in table.diagnostics],
    }


def _print(
    table: CurveTable,
    finals: Sequence[FinalLoss],
    fits: dict[str, CurveFit],
    predictions: Sequence[tuple[str, str, Interval]],
    level: float,
) -> None:
    print_table(_finals_table(finals, level))
    several = len(fits) > 1
    for group, fit in fits.items():
        values = ", ".join(f"{name} {value:.4g}" for name, value in fit.parameters.items())
        name = f" {group}:" if several else ""
        print_text(f"Law {fit.law.name},{name} from {len(fit.names)} finished curves: {values}")
        total, spread = (numbers.share(value, 2) for value in (fit.noise.total, fit.spread))
        print_text(f"  residuals {total} of L; a new run lies {spread} around the law")
    for group, text, loss in predictions:
        name = f"{group}, " if several else ""
        print_text(f"Final loss of {name}{text}: {loss.value:.4f} ({level:.0%} interval {_ends(loss)})")
    print_notes(table.diagnostics)
    print_notes(
        Diagnostic(code="curve", message=message)
        for message in [*(item.reason for item in finals if item.reason), *table.excluded.values()]
    )


def _finals_table(finals: Sequence[FinalLoss], level: float) -> DataTable:
    from flops_fit_core.report import DataTable
    from flops_fit_core.report.datatable import Column

    fields = ("run", "last_step", "steps", "last_loss", "loss", "interval", "source")
    rows = tuple(
        {
            "run": item.name,
            "last_step": item.last_step,
            "steps": item.steps,
            "last_loss": item.last_loss,
            "loss": item.loss,
            "interval": _range(item),
            "source": _source(item),
        }
        for item in finals
    )
    return DataTable(
        title="Final loss of each run",
        caption=(
            f"Nats. Final loss: {level:.0%} interval of a forecast; for a finished run, the smoothed last losses "
            "+- standard error"
        ),
        fields=fields,
        rows=rows,
        columns=(
            Column("run", lambda row: str(row["run"]), align_left=True),
            Column("last step", lambda row: str(row["last_step"])),
            Column("of", lambda row: str(row["steps"])),
            Column("last loss", lambda row: numbers.loss(row["last_loss"])),
            Column("final loss", lambda row: numbers.loss(row["loss"])),
            Column("interval", lambda row: str(row["interval"])),
            Column("source", lambda row: str(row["source"]), align_left=True),
        ),
    )


def _range(item: FinalLoss) -> str:
    if item.forecast is not None:
        return _ends(item.forecast.loss)
    return "" if item.standard_error is None else f"+- {item.standard_error:.4f}"


def _ends(loss: Interval) -> str:
    return f"{loss.low:.4f} to {loss.high:.4f}"


def _source(item: FinalLoss) -> str:
    if item.forecast is None:
        return "no forecast" if item.reason else "measured"
    count = len(item.forecast.others)
    if not count:
        return "forecast, alone"
    return f"forecast, decay from {count} other {'curve' if count == 1 else 'curves'}"
