"""``schema``: the JSON Schema of experiment files."""

from __future__ import annotations

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import print_json


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(schema)


def schema(plugin: args.PluginOption = None, disabled: args.DisableOption = None) -> None:
    """Print the JSON Schema of experiment files, with the options of every installed plugin.

    Editors use it for a TOML file with the first line '#:schema FILE', and for JSON with the key "$schema".
    """
    from flops_fit_core.config.schema import experiment_schema

    print_json(experiment_schema(args.registry_for(None, plugin, disabled)))
