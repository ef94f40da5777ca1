"""``export``: a study's attempts in one Parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(export)


def export(
    source: args.SourceArgument,
    parquet: Annotated[
        Path, typer.Option("--parquet", help="The file to write; an earlier export is replaced.", metavar="FILE")
    ],
    out: args.OutOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> None:
    """Write every attempt at every run to one Parquet file. The study may be in training."""
    from flops_fit_core.report.parquet import write_parquet

    study = args.open_study(source, args.registry_for(source, plugin, disabled), out)
    attempts = study.attempts
    write_parquet(parquet, attempts, {run.id for run in study.plan.runs})
    runs = len({attempt.id for attempt in attempts})
    if json:
        print_json({"file": str(parquet.absolute()), "attempts": len(attempts), "runs": runs})
    else:
        print_text(f"{len(attempts)} attempts at {runs} runs of {study.folder.shown} are in {parquet}")
