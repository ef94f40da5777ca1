"""``report`` and ``laws``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.law_options import EvalSetOption
from flops_fit_core.cli.printing import print_json, print_text
from flops_fit_core.plugins.registry.law_index import find_law
from flops_fit_core.plugins.registry.law_offers import short_name


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(report)
    app.command("laws")(list_laws)


def report(
    source: args.SourceArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write; by default report/ in the study's folder.", metavar="FOLDER"),
    ] = None,
    eval_set: EvalSetOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
) -> None:
    """Write the figures (PNG, SVG), tables and page of a study."""
    study = args.open_study(source, args.registry_for(source, plugin, disabled), None).on(eval_set)
    for file in study.report(out):
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
