"""``trust``: allow the code that a study's folder names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.plugin_arguments import find_plugins
from flops_fit_core.cli.printing import print_json, print_text
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.study import trust as records
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.named_code import NamedCode, StudyContent, named_code
from flops_fit_core.study.trust import TrustRecord


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(trust)


def trust(
    source: Annotated[Path, typer.Argument(help="A study's folder.", metavar="FOLDER")],
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the permission back.")] = False,
    plugin: args.PluginOption = None,
    json: args.JsonOption = False,
) -> None:
    """Show the plugin modules, functions and programs that a study's folder names, and allow training to run them.

    The permission is yours alone, and ends with any change of these files or options.
    """
    folder = StudyFolder.existing(source)
    if revoke:
        had_record = records.revoke(folder)
        _print({"folder": str(folder.path), "revoked": had_record}, _revoked(folder, had_record), json)
        return
    registry = args.registry_for(None, None, None)
    _, paths = find_plugins(plugin or ())
    record = _record(folder, registry, paths)
    shown = {"folder": record.folder, "modules": record.modules, "options": record.options, "files": record.files}
    _print(shown, _allowed(folder, record), json)


def _record(folder: StudyFolder, registry: Registry, paths: Sequence[str]) -> TrustRecord:
    places = records.module_places(folder, paths)
    code = named_code(folder, StudyContent.read(folder), registry, paths=places)
    try:
        return records.trust(folder, code, places)
    except OSError as error:
        raise ConfigError(f"the permission cannot be stored: {error}") from None


def _allowed(folder: StudyFolder, record: TrustRecord) -> list[str]:
    lines = NamedCode(record.modules, record.options, record.files).lines()
    if not lines:
        return [f"{folder.shown} names no code: training needs no permission"]
    return [
        f"flops-fit may now run this code of {folder.shown}:",
        *(f"  {line}" for line in lines),
        f"To take it back: flops-fit trust --revoke {folder.shown}",
    ]


def _revoked(folder: StudyFolder, had_record: bool) -> list[str]:
    if had_record:
        return [f"the code of {folder.shown} needs your permission again"]
    return [f"you have not allowed any code of {folder.shown}"]


def _print(record: Mapping[str, object], lines: list[str], json: bool) -> None:
    if json:
        print_json(record)
        return
    for line in lines:
        print_text(line)
