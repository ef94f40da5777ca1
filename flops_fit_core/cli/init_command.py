"""``init``: write a commented experiment file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.init_questions import ask_budgets, ask_plugin, ask_to_plan
from flops_fit_core.cli.printing import describe_interruption, print_error, print_message, print_text
from flops_fit_core.config import experiment_name, make_experiment, override_value
from flops_fit_core.config.starter import COMPANIONS, bare_name, default_budgets, starter_table, starter_text
from flops_fit_core.errors import ConfigError, FlopsFitError
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.plugins.utilities import write_atomically

SCHEMA_FILE = "flops-fit.schema.json"
DEFAULTS = {"model": "gpt", "dataset": "text", "device": "auto"}
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
) -> int:
    """Write a commented experiment file. On a terminal, ask for values that no option sets."""
    if file.suffix != ".toml":
        raise ConfigError(f"{file}: an experiment file of init ends in .toml, such as my.toml")
    if file.exists():
        raise ConfigError(f"{file} exists and is not overwritten: name another file, or delete it")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"{file}: the folder {file.parent} does not exist; create it first")
    describe_interruption("stopped: no file was written")
    registry = args.registry_for(None, plugin, disabled)
    interactive = sys.stdin.isatty() and sys.stderr.isatty()
    chosen = {"model": model, "dataset": dataset, "device": device}
    choices = _choose(chosen, registry, overrides or (), interactive)
    flops = parse_budgets(budgets) if budgets else _choose_budgets(choices, interactive)
    table = starter_table(experiment_name(file), choices, flops)
    for override in overrides or ():
        override_value(table, override)
    make_experiment(table, registry, str(file))
    is_checked = interactive and ask_to_plan()
    if schema:
        _write_schema(file, registry)
    write_atomically(file, starter_text(table, registry, quote(str(file)), f"./{SCHEMA_FILE}" if schema else None))
    print_text(f"wrote {file}")
    describe_interruption(f"stopped: {file} is written, but no run was planned")
    if is_checked and not _plan(file, registry):
        return 2
    modules = "".join(f" -p {quote(name)}" for name in plugin or ())
    print_text("next:")
    print_text(f"  flops-fit plan {quote(str(file))}{modules}    # every run, its size and time")
    print_text(f"  flops-fit run {quote(str(file))}{modules}     # train, fit, report")
    return 0


def _choose(
    chosen: Mapping[str, str | None], registry: Registry, overrides: Sequence[str], interactive: bool
) -> dict[str, dict[str, Any]]:
    """Kind -> table with the name of the plugin. On a terminal, with the options that it needs."""
    companions: Mapping[str, str] = {}
    choices: dict[str, dict[str, Any]] = {}
    for kind in [*chosen, "trainer"]:
        default = companions.get(kind, DEFAULTS.get(kind))
        if default is None:  # most models have a default trainer
            continue
        name = default if kind == "trainer" else chosen[kind]
        if interactive:
            choices[kind] = ask_plugin(kind, registry, default, name, overrides)
        else:
            choices[kind] = {"name": name or default}
        if kind == "model":
            companions = COMPANIONS.get(bare_name(choices[kind]["name"]), {})
    return choices


def _choose_budgets(choices: Mapping[str, dict[str, Any]], interactive: bool) -> list[float]:
    from flops_fit_core.numbers import scientific

    budgets = default_budgets(choices)
    return ask_budgets(",".join(map(scientific, budgets)), parse_budgets) if interactive else list(budgets)


def _plan(file: Path, registry: Registry) -> bool:
    """Plan the runs of the file that was written, and print their number. Returns whether there are any."""
    from flops_fit_core import numbers
    from flops_fit_core.api.functions import plan_study

    try:
        plan = plan_study(file, registry=registry).plan
    except FlopsFitError as error:
        print_error(str(error))
        print_message(f"Edit {file}, then type: flops-fit plan {quote(str(file))}")
        return False
    sizes = sorted({run.params for run in plan.runs})
    print_text(
        f"{len(plan.runs)} runs, N {numbers.count(sizes[0])} to {numbers.count(sizes[-1])}, "
        f"{numbers.scientific(plan.flops)} FLOPs"
    )
    return True


def _write_schema(file: Path, registry: Registry) -> None:
    from flops_fit_core.config.schema import experiment_schema

    text = json.dumps(experiment_schema(registry), indent=1) + "\n"
    write_atomically(file.absolute().parent / SCHEMA_FILE, text, durable=False)


def parse_budgets(text: str) -> list[float]:
    """``5e10,1e11`` as numbers. Raises ConfigError."""
    try:
        budgets = sorted({float(part) for part in text.split(",")})
    except ValueError:
        budgets = []
    if not budgets or not 0 < budgets[0] <= budgets[-1] < float("inf"):
        raise ConfigError(f"--budgets {text}: write positive numbers of FLOPs with commas, such as 5e10,1e11,2e11")
    return budgets
