"""Check and repair ``results.json``, its log and its lower bound."""

from __future__ import annotations

import shutil
from pathlib import Path

from flops_fit_core import StoreError
from flops_fit_core.plugins import FileFinding, StoreRepair
from flops_fit_stores.files import sync_folder, unused_name
from flops_fit_stores.json_check import read_records, write_records
from flops_fit_stores.json_records import count_path, log_path

_SHOWN = 5
"""The most damaged places of a file that a finding names."""


def check(path: Path) -> list[FileFinding]:
    """The state of each file of a ``json`` store. Empty if it has no file. Changes nothing."""
    files = [path, log_path(path), count_path(path)]
    if not any(file.exists() for file in files):
        return []
    results, damage = read_records(path)
    findings = []
    for file in files:
        places = [f"{place.place}: {place.reason}".removeprefix(": ") for place in damage if place.file == file]
        if places:
            more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
            text = f"{'; '.join(places[:_SHOWN])}{more}"
            advice = f"flops-fit store repair {path.parent} keeps the {len(results)} intact results"
            findings.append(FileFinding(file=file.name, state="damaged", text=text, advice=advice))
        elif file.exists():
            text = f"{len(results)} results, with its log" if file == path else ""
            findings.append(FileFinding(file=file.name, state="intact", text=text))
    return findings


def repair(path: Path, lock_timeout: float) -> StoreRepair:
    """Copy the files of a ``json`` store aside and write the intact results again.

    After an interruption, the next call repairs what it finds: the files have every intact result at any moment.
    Raises StoreError.
    """
    results, damage = read_records(path)
    aside = path.with_name(unused_name(path))
    moved = []
    try:
        for file in (path, log_path(path), count_path(path)):
            if file.exists():
                copied = aside.with_name(file.name.replace(path.name, aside.name, 1))
                if copied.name == file.name:  # the log does not have the name of the file in its name
                    copied = aside.with_name(f"{aside.name}.log.jsonl")
                shutil.copy2(file, copied)
                moved.append(copied.name)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot copy it to {aside.name}: {error.strerror}. Nothing was changed"
        ) from None
    write_records(path, results, lock_timeout)
    lost = tuple(place.place for place in damage if place.place)
    return StoreRepair(kept=len(results), lost=lost, moved=tuple(moved))
