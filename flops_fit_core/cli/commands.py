"""The commands by group, each with a one-line summary and an example. Commands are imported when needed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import typer
import typer.core

from flops_fit_core.cli.printing import redirect_prints


@dataclass(frozen=True)
class Command:
    """A command of ``flops-fit``."""

    module: str
    """Module of ``flops_fit_core.cli`` with the function ``register``."""
    summary: str
    """Its line in ``flops-fit --help``, of at most 57 characters."""
    example: str
    """A command line, printed below its own help."""


GROUPS: dict[str, dict[str, Command]] = {
    "Train": {
        "init": Command("init_command", "Write an experiment file.", "init my.toml --model gpt --dataset text"),
        "plan": Command("study_commands", "Show every run: size, tokens, FLOPs, time.", "plan my.toml"),
        "run": Command(
            "study_commands", "Train the missing runs, fit the law, write the report.", "run my.toml --out runs/my"
        ),
        "status": Command("watching_commands", "Show the progress of a study.", "status runs/my"),
        "watch": Command("watching_commands", "Show a sweep that runs elsewhere, live.", "watch runs/my"),
        "runs": Command("study_commands", "List the runs of a study.", "runs runs/my --csv"),
        "show": Command("study_commands", "Show one run in full: options, errors.", "show runs/my 1a2b3c"),
        "retry": Command("watching_commands", "Retry failed or diverged runs.", "retry runs/my --diverged"),
        "tune": Command("tune_command", "Find the learning rate with a few short runs.", "tune my.toml"),
    },
    "Fit and predict": {
        "fit": Command("fit_command", "Fit a law to a study or a table of runs.", "fit runs.csv"),
        "predict": Command(
            "predict_command", "Predict N, D and the loss for a budget.", "predict runs/my --flops 1e22"
        ),
        "backtest": Command(
            "backtest_command", "Test the fit on held-out budgets.", "backtest runs/my --budgets 2"
        ),
        "report": Command("fitting_commands", "Write the page, figures and tables of a study.", "report runs/my"),
        "compare": Command("compare_command", "Compare two recipes.", "compare runs/adamw runs/muon"),
        "curve": Command("curve_command", "Forecast the final loss of unfinished runs.", "curve runs/my"),
        "laws": Command("fitting_commands", "List the laws that --law fits.", "laws"),
    },
    "FLOPs": {
        "budget": Command(
            "budget_command",
            "Convert devices and days to FLOPs, or back.",
            "budget --gpus 64 --days 14 --device h100",
        ),
        "count-flops": Command("count_flops_command", "Compare the counters of FLOPs.", "count-flops my.toml"),
    },
    "Keep and share": {
        "export": Command(
            "export_command",
            "Write runs or law: CSV, parquet, LaTeX, BibTeX.",
            "export runs/my --latex table.tex",
        ),
        "store": Command("store_command", "Copy, check and repair studies.", "store check runs/my"),
        "prune-checkpoints": Command(
            "study_commands", "Delete checkpoints that are no longer needed.", "prune-checkpoints runs/my"
        ),
    },
    "Set up": {
        "plugins": Command("plugin_commands", "List the plugins, or write a new one.", "plugins"),
        "schema": Command(
            "schema_command", "Print the JSON Schema of experiment files.", "schema > flops-fit.schema.json"
        ),
        "trust": Command("trust_command", "Allow the code that a study's folder names.", "trust runs/my"),
        "doctor": Command("doctor_command", "Check this machine and the plugins.", "doctor"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


class CommandGroup(typer.core.TyperGroup):
    """The group of all commands. Help and completion import none of them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = LoadedCommands()

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the help."""
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """A heading per group, and a line per command."""
        width = max(map(len, COMMANDS))
        for heading, group in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{name:<{width}}", command.summary) for name, command in group.items()])

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The commands that start with a text."""
        from typer._click.shell_completion import CompletionItem

        matches = [name for name in COMMANDS if name.startswith(incomplete)]
        options = typer.core.TyperCommand.shell_complete(self, ctx, incomplete)
        return [*(CompletionItem(name, help=COMMANDS[name].summary) for name in matches), *options]


class LoadedCommands(MutableMapping[str, Any]):
    """Name -> command. The module of a command is imported at the first access to it."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        if name not in self._loaded:
            self._loaded |= load_module(COMMANDS[name].module)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]


def load_module(name: str) -> dict[str, Any]:
    """The commands of a module. Only answers of a command go to standard output."""
    _load_pydantic_plugins()
    module = importlib.import_module(f"flops_fit_core.cli.{name}")
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.callback()(_no_command)  # a group even of a single command
    module.register(app)
    commands: dict[str, Any] = dict(typer.main.get_group(app).commands)
    for key, command in commands.items():
        command.epilog = f"Example: flops-fit {COMMANDS[key].example}"
        for part in _walk(command):
            if part.callback is not None:
                part.callback = redirect_prints()(part.callback)
    return commands


@cache
def _load_pydantic_plugins() -> None:
    """Build the first pydantic model, which loads pydantic's plugins, and ignore its exception.

    It raises if the entry points of any installed distribution cannot be read, or if a plugin does. Later models
    have the plugins that were loaded before the exception.
    """
    with redirect_stdout(sys.stderr), suppress(Exception, SystemExit):
        importlib.import_module("pydantic").create_model("First")


def _no_command() -> None:
    """The group of a module's commands does nothing itself."""


def _walk(command: Any) -> Iterator[Any]:
    yield command
    for subcommand in getattr(command, "commands", {}).values():
        yield from _walk(subcommand)
