"""Check the JSON files of a study's folder, outside its store, for damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from flops_fit_core.errors import ConfigError
from flops_fit_core.planning import WARNING, family_flops
from flops_fit_core.plugins.checked_json import has_checksum, read_record
from flops_fit_core.records import LawFit, Record
from flops_fit_core.study import model_check
from flops_fit_core.study.directory import StudyFolder

REQUIRED = ("experiment.json", "plan.json")
"""The files without which a folder is no study. The others are absent in some studies."""


class FileFinding(Record):
    """The state of one file."""

    file: str
    """Its name in the folder."""
    state: Literal["intact", "damaged", "absent", "old"]
    """``old``: readable, without a checksum, so that damage of single values cannot be detected."""
    message: str = ""
    """The damage, and the command to type; empty for an intact file."""


def check_folder(path: Path) -> list[FileFinding]:
    """The state of each JSON file in a study's folder. Nothing is changed, and no plugin is imported."""
    folder = StudyFolder(path)
    readers: dict[str, Callable[[], Any]] = {
        "experiment.json": folder.table,
        "plan.json": folder.plan,
        "plugins.json": folder.setup,
        "fit.json": lambda: read_record(LawFit, folder.fit_file),
        model_check.FILE: lambda: read_record(model_check.ModelCheck, path / model_check.FILE),
        family_flops.FILE: lambda: read_record(family_flops.FamilyFlops, path / family_flops.FILE),
    }
    return [_check_file(path / name, read) for name, read in readers.items()]


def damage_notes(path: Path) -> list[str]:
    """Notes for a plan that is about to replace damaged files."""
    notes = []
    for finding in check_folder(path) if path.exists() else ():
        if finding.state != "damaged":
            continue
        effect = _LOST.get(finding.file, "")
        notes.append(f"{WARNING} {finding.message.partition('. ')[0]}; training writes it again{effect}")
    return notes


_LOST = {
    "plan.json": ". Replacements of runs by 'flops-fit retry --set' are lost",
    model_check.FILE: ". Changes of the model's code since the study began cannot be detected",
}


def _check_file(file: Path, read: Callable[[], Any]) -> FileFinding:
    if not file.exists():
        required = "the folder has no study without it" if file.name in REQUIRED else ""
        return FileFinding(file=file.name, state="absent", message=required)
    try:
        read()
        state: Literal["intact", "old"] = "intact" if has_checksum(file) else "old"
    except ConfigError as error:  # damage, another version, or a file that cannot be read
        return FileFinding(file=file.name, state="damaged", message=str(error))
    return FileFinding(file=file.name, state=state)
