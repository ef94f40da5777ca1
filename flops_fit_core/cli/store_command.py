"""``store copy``: copy a study, or move its results to another store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import print_json, print_message, print_text
from flops_fit_core.config import override_value, replace_choice
from flops_fit_core.errors import ConfigError
from flops_fit_core.study.directory import StudyFolder


def register(app: typer.Typer) -> None:
    """Add this command."""
    group = typer.Typer(help="Move a study's results between stores.", no_args_is_help=True, rich_markup_mode=None)
    group.callback()(store)
    group.command()(copy)
    app.add_typer(group, name="store")


def store() -> None:
    """Move a study's results between stores."""


def copy(
    source: Annotated[Path, typer.Argument(help="The study's folder.", metavar="FROM")],
    target: Annotated[
        Path, typer.Argument(help="The copy's folder; FROM again to change its store.", metavar="TO")
    ],
    store: Annotated[
        str | None, typer.Option("--store", help="The copy's store; by default FROM's.", metavar="NAME")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="An option of the copy's store: --set store.lock_timeout=10.", metavar="STORE.B=VALUE"
        ),
    ] = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> None:
    """Copy a study with every attempt at every run, and compare all attempts. With TO = FROM, change its store."""
    from flops_fit_core.study.copy import copy_study

    original, copied = StudyFolder.existing(source.absolute()), StudyFolder(target.absolute())
    registry = args.registry_for(source, plugin, disabled)
    outcome = copy_study(original, copied, registry, _store_table(original, store, overrides or []))
    if json:
        print_json(asdict(outcome))
        return
    earlier = outcome.attempts - outcome.new
    before = f", {earlier} of them from an earlier copy" if earlier else ""
    print_text(
        f"{outcome.attempts} attempts at {outcome.runs} runs are equal in {outcome.old_store} and "
        f"{outcome.new_store}{before}"
    )
    if outcome.in_place:
        print_text(f"{original.shown} now uses {outcome.new_store}")
        if outcome.left_behind:
            print_text(f"the old results are still in {', '.join(outcome.left_behind)}")
        return
    print_text(f"{copied.shown} is a separate study. To continue it: {copied.how_to_train}")
    if (original.path / "tune").exists():
        print_text(f"its tuning was not copied: flops-fit store copy {original.shown}/tune {copied.shown}/tune")


def _store_table(original: StudyFolder, name: str | None, overrides: list[str]) -> Any:
    """The copy's ``[store]`` as in an experiment file."""
    data = {"store": original.table().get("store")}
    if name is not None and (dropped := replace_choice(data, "store", name)):
        print_message(f"--store {name}: dropped {', '.join(dropped)}. To keep them: --set store.name={name}")
    for override in overrides:
        if not override.startswith("store."):
            raise ConfigError(
                f"--set {override}: a copy can only change its store's options: write --set store.OPTION=VALUE"
            )
        override_value(data, override)
    return data["store"]
