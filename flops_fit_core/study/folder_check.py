"""Check the JSON files of a study's folder, outside its store, for damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flops_fit_core.errors import ConfigError, DamagedFile
from flops_fit_core.planning import WARNING, family_flops
from flops_fit_core.plugins.checked_json import has_checksum, read_record
from flops_fit_core.plugins.protocols.store_checks import FileFinding
from flops_fit_core.records import LawFit
from flops_fit_core.study import model_check
from flops_fit_core.study.directory import StudyFolder

REQUIRED = ("experiment.json", "plan.json")
"""The files without which a folder is no study. The others are absent in some studies."""
MISSING = "missing: the folder has no study without it"


def check_folder(path: Path) -> list[FileFinding]:
    """The state of each JSON file in a study's folder. An absent file is listed only if every study has it.

    Nothing is changed, and no plugin is imported.
    """
    folder = StudyFolder(path)
    readers: dict[str, Callable[[], Any]] = {
        "experiment.json": folder.table,
        "plan.json": folder.plan,
        "plugins.json": folder.setup,
        "fit.json": lambda: read_record(LawFit, folder.fit_file),
        model_check.FILE: lambda: read_record(model_check.ModelCheck, path / model_check.FILE),
        family_flops.FILE: lambda: read_record(family_flops.FamilyFlops, path / family_flops.FILE),
    }
    present = {name: read for name, read in readers.items() if name in REQUIRED or (path / name).exists()}
    return [_check_file(folder, name, read) for name, read in present.items()]


def damage_notes(path: Path) -> list[str]:
    """Notes for a plan that is about to replace damaged files."""
    notes = []
    for finding in check_folder(path):
        if finding.state != "damaged" or finding.text == MISSING:
            continue
        effect = _LOST.get(finding.file, "")
        file = path / finding.file
        notes.append(f"{WARNING} {file} is damaged: {finding.text}; training writes it again{effect}")
    return notes


_LOST = {
    "plan.json": ". Replacements of runs by 'flops-fit retry --set' are lost",
    model_check.FILE: ". Changes of the model's code since the study began cannot be detected",
}


def _check_file(folder: StudyFolder, name: str, read: Callable[[], Any]) -> FileFinding:
    file = folder.path / name
    if not file.exists():
        text, advice = MISSING, f"flops-fit run EXPERIMENT --out {folder.shown} writes it"
        return FileFinding(file=name, state="damaged", text=text, advice=advice)
    try:
        read()
    except DamagedFile as error:
        advice = error.advice or f"flops-fit run {folder.shown} writes it again"
        return FileFinding(file=name, state="damaged", text=error.reason, advice=advice)
    except ConfigError as error:  # another version, or a file that cannot be read
        text, _, advice = str(error).removeprefix(f"{file}: ").partition(". ")
        return FileFinding(file=name, state="damaged", text=text, advice=advice)
    text = "" if has_checksum(file) else "without a checksum, from an earlier version"
    return FileFinding(file=name, state="intact", text=text)
