"""``init``: write a commented experiment file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import print_text
from flops_fit_core.config import experiment_name, make_experiment, override_value
from flops_fit_core.config.starter import DEFAULT_BUDGETS, starter_table, starter_text
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.plugins.utilities import write_atomically

SCHEMA_FILE = "flops-fit.schema.json"
QUESTIONS = {"model": "gpt", "dataset": "text", "device": "auto"}
"""Kind -> the plugin of a new experiment if no other is named."""


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(init)


def init(
    file: Annotated[Path, typer.Argument(help="The file to write.", metavar="[FILE]", show_default=False)] = Path(
        "experiment.toml"
    ),
    model: args.ModelOption = None,
    dataset: args.DatasetOption = None,
    device: args.DeviceOption = None,
    budgets: Annotated[
        str | None, typer.Option("--budgets", help="Training FLOPs: --budgets 5e10,1e11,2e11.", metavar="C,C,...")
    ] = None,
    overrides: args.SetOption = None,
    schema: Annotated[
        bool, typer.Option(help=f"Write {SCHEMA_FILE}, with which editors complete and check the file.")
    ] = True,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
) -> None:
    """Write a commented experiment file. On a terminal, ask for values that no option sets."""
    if file.suffix != ".toml":
        raise ConfigError(f"{file}: an experiment file of init ends in .toml, such as my.toml")
    if file.exists():
        raise ConfigError(f"{file} exists and is not overwritten: name another file, or delete it")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"{file}: the folder {file.parent} does not exist; create it first")
    registry = args.registry_for(None, plugin, disabled)
    chosen = {"model": model, "dataset": dataset, "device": device}
    interactive = sys.stdin.isatty() and sys.stderr.isatty()
    choices = {kind: name or _ask(kind, registry, interactive) for kind, name in chosen.items()}
    flops = parse_budgets(budgets or _ask_budgets(interactive))
    table = starter_table(experiment_name(file), choices, flops)
    for override in overrides or ():
        override_value(table, override)
    make_experiment(table, registry, str(file))
    if schema:
        _write_schema(file, registry)
    write_atomically(file, starter_text(table, registry, quote(str(file)), f"./{SCHEMA_FILE}" if schema else None))
    modules = "".join(f" -p {quote(name)}" for name in plugin or ())
    print_text(f"wrote {file}; next:")
    print_text(f"  flops-fit plan {quote(str(file))}{modules}    # every run, its size and time")
    print_text(f"  flops-fit run {quote(str(file))}{modules}     # train, fit, report")


def _write_schema(file: Path, registry: Registry) -> None:
    from flops_fit_core.config.schema import experiment_schema

    text = json.dumps(experiment_schema(registry), indent=1) + "\n"
    write_atomically(file.absolute().parent / SCHEMA_FILE, text, durable=False)


def _ask(kind: str, registry: Registry, interactive: bool) -> str:
    if not interactive:
        return QUESTIONS[kind]
    names = ", ".join(sorted({offer.spec.name for offer in registry.offers(kind)}))
    return str(typer.prompt(f"{kind} ({names})", default=QUESTIONS[kind], err=True))


def _ask_budgets(interactive: bool) -> str:
    default = ",".join(f"{flops:.3g}" for flops in DEFAULT_BUDGETS).replace("e+", "e")
    if not interactive:
        return default
    return str(typer.prompt("training FLOPs of each budget, with commas", default=default, err=True))


def parse_budgets(text: str) -> list[float]:
    """``5e10,1e11`` as numbers. Raises ConfigError."""
    try:
        budgets = sorted({float(part) for part in text.split(",")})
    except ValueError:
        budgets = []
    if not budgets or not 0 < budgets[0] <= budgets[-1] < float("inf"):
        raise ConfigError(f"--budgets {text}: write positive numbers of FLOPs with commas, such as 5e10,1e11,2e11")
    return budgets
