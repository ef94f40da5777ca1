"""``plugins``: list installed and broken plugins; ``plugins new``: write the project of a new plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import console, print_error, print_json, print_message, print_text
from flops_fit_core.cli.scaffold import NO_EXPERIMENT, write_plugin
from flops_fit_core.plugins.registry import KINDS, Registry


def register(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
    group.callback()(plugins)
    group.command()(new)
    app.add_typer(group, name="plugins")


def new(
    name: Annotated[str, typer.Argument(help="Name of the plugin, such as my-rnn.", metavar="NAME")],
    kind: Annotated[
        str, typer.Option("--kind", help=f"Kind of the plugin: {', '.join(KINDS)}.", metavar="KIND")
    ] = "model",
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder in which to create the project.", metavar="FOLDER", show_default=False),
    ] = Path(),
) -> int:
    """Write the project of a plugin, ready to install, test and use."""
    folder = write_plugin(name, kind, out)
    print_text(f"wrote {folder}; next:")
    use = "flops-fit fit FOLDER" if kind in NO_EXPERIMENT else "flops-fit run experiment.toml"
    for line in (f"cd {folder}", 'pip install -e ".[test]"', "pytest", use):
        print_text(f"  {line}")
    return 0


def plugins(
    context: typer.Context,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> int:
    """List what plugins offer, from which distribution, and broken plugins (exit status 1)."""
    if context.invoked_subcommand is not None:
        return 0
    registry = args.registry_for(None, plugin, disabled)
    if json:
        print_json(_to_json(registry))
    else:
        _print(registry)
    for name in registry.importing_torch:
        print_message(f"{name} imports torch at discovery, which slows every command: import torch in build")
    for problem in registry.problems:
        print_error(str(problem))
    return 1 if registry.problems else 0


def _to_json(registry: Registry) -> dict[str, Any]:
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
    from rich.text import Text

    from flops_fit_core.plugins.utilities import escape_controls

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("kind", "name", "options", "from"):
        table.add_column(heading, overflow="fold")
    for kind in KINDS:
        for index, offer in enumerate(registry.offers(kind)):
            missing = offer.missing()
            state = f"  (needs {', '.join(missing)})" if missing else ""
            options = ", ".join(offer.spec.options.model_fields)
            cells = (kind if index == 0 else "", offer.name, options, offer.source + state)
            table.add_row(*(Text(escape_controls(cell)) for cell in cells))
    console().print(table)
    for name in sorted(registry.disabled):
        print_text(f"disabled: {name}")
