"""``store``: copy a study, move its results to another store, check its files and repair its store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import print_json, print_message, print_text
from flops_fit_core.config import override_value, replace_choice
from flops_fit_core.errors import ConfigError
from flops_fit_core.study.directory import StudyFolder

if TYPE_CHECKING:
    from flops_fit_core.study.check import RepairedStore


FolderArgument = Annotated[Path, typer.Argument(help="The study's folder.", metavar="FOLDER")]


def register(app: typer.Typer) -> None:
    """Add this command."""
    group = typer.Typer(help="Copy, check and repair studies.", no_args_is_help=True, rich_markup_mode=None)
    group.callback()(store)
    for command in (copy, check, repair):
        group.command()(command)
    app.add_typer(group, name="store")


def store() -> None:
    """Copy, check and repair studies."""


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


def check(
    source: FolderArgument,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> int:
    """Read every file of a study and print the damaged ones. Exit status 1 if a file is damaged."""
    from flops_fit_core.study.check import check_study

    # No plugin of the study is imported: the folder may come from anybody.
    findings = check_study(StudyFolder(source.absolute()), args.registry_for(None, plugin, disabled))
    damaged = [finding for finding in findings if finding.state == "damaged"]
    if json:
        print_json({"files": [finding.model_dump() for finding in findings]})
        return 1 if damaged else 0
    for finding in findings:
        text = f": {finding.text}" if finding.text else ""
        print_text(f"{finding.file}: {finding.state}{text}")
        if finding.advice:
            print_text(f"  {finding.advice}")
    print_text(f"{len(damaged)} of {len(findings)} files are damaged")
    return 1 if damaged else 0


def repair(
    source: FolderArgument,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    json: args.JsonOption = False,
) -> None:
    """Keep every intact result of a damaged store in a new file, and move the damaged files aside."""
    from flops_fit_core.study.check import repair_stores

    study = StudyFolder(source.absolute())
    outcomes = repair_stores(study, args.registry_for(None, plugin, disabled))
    if json:
        print_json(
            {
                "stores": [
                    {"store": item.store, **item.repair.model_dump(mode="json"), "to_train": list(item.to_train)}
                    for item in outcomes
                ]
            }
        )
        return
    for item in outcomes:
        _print_repair(study, item)
    if not outcomes:
        print_text(f"no store of {study.shown} is damaged: nothing to repair")


def _print_repair(study: StudyFolder, item: RepairedStore) -> None:
    print_text(f"{item.store}: {item.repair.kept} results are intact and in the repaired store")
    print_text(f"moved aside: {', '.join(item.repair.moved) or 'no file'}")
    for lost in item.repair.lost:
        print_text(f"! not intact: {lost}")
    if item.to_train:
        print_text(
            f"{len(item.to_train)} planned runs have no finished result: {', '.join(item.to_train)}. "
            f"'flops-fit run {study.shown}' trains them"
        )


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
