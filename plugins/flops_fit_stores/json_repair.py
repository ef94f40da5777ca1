"""Check and repair ``results.json``, its log and its lower bound."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from flops_fit_core import StoreError
from flops_fit_core.plugins import FileFinding, StoreRepair
from flops_fit_stores.errors import OtherFile, summary
from flops_fit_stores.files import locked, replace_file, unused_name
from flops_fit_stores.json_check import DamagedPlace, read_records, write_records
from flops_fit_stores.json_records import count_path, log_path


def check(path: Path) -> list[FileFinding]:
    """The state of each file of a ``json`` store. Empty if it has no file. Changes nothing."""
    files = [file for file in (path, log_path(path), count_path(path)) if file.exists()]
    unreadable = [file for file in files if not os.access(file, os.R_OK)]
    if unreadable:
        text = "this user may not read it"
        return [FileFinding(file=file.name, state="unchecked", text=text) for file in unreadable]
    if not files:
        return []
    try:
        results, damage = read_records(path)
    except OtherFile as error:
        text = str(error).removeprefix(f"{path}: ")
        return [FileFinding(file=path.name, state="unchecked", text=text)]
    return [_finding(file, path, len(results), damage) for file in dict.fromkeys((path, *files))]


def _finding(file: Path, path: Path, count: int, damage: Sequence[DamagedPlace]) -> FileFinding:
    places = [f"{place.place}: {place.reason}".removeprefix(": ") for place in damage if place.file == file]
    if not places:
        text = f"{count} results, with its log" if file == path else ""
        return FileFinding(file=file.name, state="intact", text=text)
    advice = f"flops-fit store repair {path.parent} keeps the {count} intact results"
    return FileFinding(file=file.name, state="damaged", text=summary(places), advice=advice)


def repair(path: Path, lock_timeout: float) -> StoreRepair:
    """Copy the files of a damaged ``json`` store aside and write the intact results again. Leaves an intact store
    as it is.

    After an interruption, the next call repairs the store as it is then: its files have every intact result at any
    moment. Raises StoreError, also for a file of another program or of a newer version.
    """
    with locked(FileLock(f"{path}.lock", timeout=lock_timeout), path):
        results, damage = read_records(path)
        if not damage:
            return StoreRepair(kept=len(results))
        copies = _copy_aside(path)
        write_records(path, results)
    lost = tuple(place.place for place in damage if place.place)
    return StoreRepair(kept=len(results), lost=lost, moved=tuple(copies))


def _copy_aside(path: Path) -> list[str]:
    """Copy the files of a store, durably. Returns the names of the copies."""
    name, copies = unused_name(path), []
    for file, suffix in ((path, ""), (log_path(path), ".log.jsonl"), (count_path(path), ".count")):
        if file.exists():
            try:
                content = file.read_bytes()
            except OSError as error:
                raise StoreError(f"{file}: cannot read: {error.strerror}. Nothing was changed") from None
            replace_file(path.with_name(f"{name}{suffix}"), content)
            copies.append(f"{name}{suffix}")
    return copies
