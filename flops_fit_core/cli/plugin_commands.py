"""``plugins``: what is installed, from where, and what is broken; ``plugins new``: a project for another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import complain, console, print_json, say
from flops_fit_core.cli.scaffold import write_plugin
from flops_fit_core.plugins.registry import KINDS, Registry


def register(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
    group.callback()(plugins)
    group.command()(new)
    app.add_typer(group, name="plugins")


def new(
    name: Annotated[str, typer.Argument(help="Of the plugin, such as my-rnn.", metavar="NAME")],
    kind: Annotated[
        str, typer.Option("--kind", help=f"What it offers: {', '.join(KINDS)}.", metavar="KIND")
    ] = "model",
    out: Annotated[
        Path, typer.Option("--out", help="Where the project's folder goes.", metavar="FOLDER", show_default=False)
    ] = Path(),
) -> int:
    """Write a plugin's project, ready to install, test and sweep."""
    folder = write_plugin(name, kind, out)
    console().print(f"wrote {folder}; next:", markup=False, highlight=False)
    for line in (f"cd {folder}", 'pip install -e ".[test]"', "pytest", "flops-fit run experiment.toml"):
        console().print(f"  {line}", markup=False, highlight=False)
    return 0


def plugins(
    context: typer.Context,
    plugin: args.PluginOption = None,
    without: args.WithoutOption = None,
    json: args.JsonOption = False,
) -> int:
    """What plugins offer, from which distribution and version, and which are broken (exit status 1)."""
    if context.invoked_subcommand is not None:
        return 0
    registry = args.registry_for(None, plugin, without)
    if json:
        print_json(_as_json(registry))
    else:
        _print(registry)
    for who in registry.importing_torch:
        say(f"{who} imports torch when it is discovered, and every command waits for it: import it in build")
    for problem in registry.problems:
        complain(str(problem))
    return 1 if registry.problems else 0


def _as_json(registry: Registry) -> dict[str, Any]:
    return {
        "plugins": registry.plugins,
        "offers": [
            {
                "kind": offer.spec.kind,
                "name": offer.name,
                "source": offer.source,
                "options": sorted(offer.spec.options.model_fields),
                "missing": offer.missing(),
            }
            for offer in registry.offers()
        ],
        "problems": [str(problem) for problem in registry.problems],
        "disabled": sorted(registry.disabled),
    }


def _print(registry: Registry) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("kind", "name", "options", "from"):
        table.add_column(heading, overflow="fold")
    for kind in KINDS:
        for index, offer in enumerate(registry.offers(kind)):
            missing = offer.missing()
            state = f"  (needs {', '.join(missing)})" if missing else ""
            options = ", ".join(offer.spec.options.model_fields)
            table.add_row(kind if index == 0 else "", offer.name, options, offer.source + state)
    console().print(table)
    for name in sorted(registry.disabled):
        console().print(f"disabled: {name}", markup=False)
