"""``store copy``: a study's results in another store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import print_json, print_text, say
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
        Path, typer.Argument(help="The copy's folder; FROM once more to change its store.", metavar="TO")
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
    without: args.WithoutOption = None,
    json: args.JsonOption = False,
) -> None:
    """Copy a study with every attempt at every run, look at all of it again, and use it from then on."""
    from flops_fit_core.study.copy import copy_study

    given, made = StudyFolder.existing(source.absolute()), StudyFolder(target.absolute())
    registry = args.registry_for(source, plugin, without)
    done = copy_study(given, made, registry, _store(given, store, overrides or []))
    if json:
        print_json(asdict(done))
        return
    before = f", {done.attempts - done.new} of them from before" if done.attempts > done.new else ""
    print_text(
        f"{done.attempts} attempts at {done.runs} runs are equal in {done.old_store} and {done.new_store}{before}"
    )
    if done.in_place:
        print_text(f"{given.shown} has its results in {done.new_store} from now on")
        if done.left_behind:
            print_text(f"the old ones were left where they are: {', '.join(done.left_behind)}")
        return
    print_text(f"{made.shown} is a study of its own: {made.how_to_train} goes on there")
    if (given.path / "tune").exists():
        print_text(f"its tuning was not copied: flops-fit store copy {given.shown}/tune {made.shown}/tune")


def _store(given: StudyFolder, name: str | None, overrides: list[str]) -> Any:
    """The copy's [store], as an experiment file would have it."""
    data = {"store": given.table().get("store")}
    if name is not None and (dropped := replace_choice(data, "store", name)):
        say(f"--store {name}: left out {', '.join(dropped)}; --set store.name={name} keeps them")
    for override in overrides:
        if not override.startswith("store."):
            raise ConfigError(
                f"--set {override}: only the store's options can change here: --set store.OPTION=VALUE"
            )
        override_value(data, override)
    return data["store"]
