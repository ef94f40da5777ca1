"""``report`` and ``laws``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli import task_command
from flops_fit_core.cli.law_options import (
    AllowDifferencesOption,
    FilterAOption,
    FilterBOption,
    LawArgument,
    law_source,
)
from flops_fit_core.cli.laws import LawRequest
from flops_fit_core.cli.printing import print_json, print_text
from flops_fit_core.cli.shared_options import share_options
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.plugins.registry.law_index import find_law
from flops_fit_core.plugins.registry.law_offers import short_name


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(report)
    app.command("laws")(list_laws)


@share_options(law_source, source=LawArgument)
def report(
    request: LawRequest,
    registry: Registry,
    others: Annotated[
        list[Path] | None,
        typer.Argument(help="A second source, to overlay both on one page: B. SOURCE is A.", metavar="SECOND"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder to write; by default report/ in the study's folder, or NAME-report for a table or fit. "
            "With two sources, report/against-NAME/ or A-and-B-report.",
            metavar="FOLDER",
        ),
    ] = None,
    filter_a: FilterAOption = None,
    filter_b: FilterBOption = None,
    allow_differences: AllowDifferencesOption = False,
    task: task_command.TaskOption = None,
    via: task_command.ViaOption = None,
    chance: task_command.ChanceOption = None,
    questions: task_command.QuestionsOption = None,
) -> None:
    """Write the page, figures (PNG, SVG) and tables of a study, a table of runs or a saved fit, or of two."""
    from flops_fit_core.cli.overlay_sources import OverlayRequest, write_sources_overlay
    from flops_fit_core.cli.report_sources import write_source_report

    overlay = OverlayRequest(request, others or (), filter_a or (), filter_b or (), allow_differences)
    task_request = task_command.TaskRequest(task, via, chance, questions)
    if overlay.check():
        if task_request.is_set():
            raise ConfigError(f"--task {task}: for one source; the page of two sources has no tasks")
        files = write_sources_overlay(overlay, registry, out)
    else:
        files = write_source_report(request, task_request, registry, out)
    for file in files:
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
