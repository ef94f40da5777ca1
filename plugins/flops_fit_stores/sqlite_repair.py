"""Check and repair ``results.sqlite``: every intact result is kept, and nothing is deleted."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from flops_fit_core import StoreError
from flops_fit_core.plugins import FileFinding, StoreRepair
from flops_fit_stores.database import DatabaseFile, repair_marker
from flops_fit_stores.errors import Damage, DamagedStore, summary
from flops_fit_stores.files import locked, replace_file, sync_folder, unused_name
from flops_fit_stores.lower_bound import LowerBound
from flops_fit_stores.records import COLUMNS, parse_record
from flops_fit_stores.row_digest import row_digest
from flops_fit_stores.salvage import SavedRow, salvage
from flops_fit_stores.sqlite import ADD, to_row
from flops_fit_stores.sqlite_errors import explain_errors
from flops_fit_stores.sqlite_library import Database
from flops_fit_stores.sqlite_schema import migrate

_PARTS = ("", "-wal", "-journal", ".count")
"""Suffixes of the files that are moved aside together: SQLite reads the first three as one database."""


def check(path: Path, lock_timeout: float) -> list[FileFinding]:
    """The state of a database, its log and its lower bound. Empty if none of them exists. Changes nothing."""
    log, count = (path.with_name(path.name + suffix) for suffix in ("-wal", ".count"))
    if not any(file.exists() for file in (path, log, count, repair_marker(path))):
        return []
    findings = [_check_count(count)] if count.exists() else []
    try:
        results, wrong = _read_all(path, lock_timeout)
    except DamagedStore as error:
        return [_describe_damage(path, error.reason), *findings]
    except StoreError as error:  # a file of another program or a newer version, or one that cannot be read now
        text = str(error).removeprefix(f"{path}: ")
        return [FileFinding(file=path.name, state="unchecked", text=text), *findings]
    if wrong:
        text = f"{results} results are intact, but columns differ from their record: {summary(wrong)}"
        advice = f"flops-fit store repair {path.parent} writes the columns again"
        return [FileFinding(file=path.name, state="damaged", text=text, advice=advice), *findings]
    return [FileFinding(file=path.name, state="intact", text=f"{results} results"), *findings]


def repair(path: Path, lock_timeout: float) -> StoreRepair:
    """Move a damaged database aside and write a new one with every intact result. Leaves an intact one as it is.

    An interruption at any point loses nothing: the next call completes the repair, and the store refuses to open
    until then. No process may use the store meanwhile. Raises StoreError, also for a database of another program
    or of a newer version.
    """
    with _lock(path, lock_timeout), explain_errors(path, lock_timeout):
        try:
            results, wrong = _read_all(path, lock_timeout)
        except DamagedStore:
            return _repair(path)
        return _repair(path) if wrong else StoreRepair(kept=results)


def _repair(path: Path) -> StoreRepair:
    marker = repair_marker(path)
    aside = path.with_name(_read_marker(marker) or unused_name(path))
    moved_log = aside.with_name(f"{aside.name}-wal")
    log = path.with_name(f"{path.name}-wal")
    # After an interruption, the database may be moved and its log may not.
    saved = salvage(path, [(aside, moved_log), (aside, log)])
    new = path.with_name(f".{path.name}.repaired")
    _write(new, saved.rows)
    replace_file(marker, aside.name.encode())
    moved = _move_aside(path, aside)
    new.replace(path)
    sync_folder(path.parent)
    LowerBound(path.with_name(f"{path.name}.count")).reset(len(saved.rows))
    marker.unlink()
    sync_folder(path.parent)
    return StoreRepair(kept=len(saved.rows), lost=tuple(saved.damaged), moved=tuple(moved))


def _read_all(path: Path, lock_timeout: float) -> tuple[int, list[str]]:
    """Number of results, and the columns that differ from their record. Raises StoreError."""
    with closing(DatabaseFile(path, lock_timeout)) as file:
        return len(file.records("ORDER BY added", {})), _wrong_columns(file)


def _describe_damage(path: Path, reason: str) -> FileFinding:
    repair = f"flops-fit store repair {path.parent}"
    if repair_marker(path).exists():
        return FileFinding(file=path.name, state="damaged", text=reason, advice=f"{repair} completes it")
    try:
        saved = salvage(path)
    except OSError as error:
        text = f"{reason}. Its results cannot be read: {error}"
        return FileFinding(file=path.name, state="damaged", text=text, advice="make its files readable")
    damaged = f". Not intact: {summary(saved.damaged)}" if len(saved.damaged) > 1 else ""
    advice = f"{repair} keeps the {len(saved.rows)} intact results"
    return FileFinding(file=path.name, state="damaged", text=f"{reason}{damaged}", advice=advice)


def _check_count(path: Path) -> FileFinding:
    try:
        bound = LowerBound(path).read()
    except Damage as error:
        advice = f"flops-fit store repair {path.parent} writes it again"
        text = str(error).removeprefix(f"{path.name}: ")
        return FileFinding(file=path.name, state="damaged", text=text, advice=advice)
    except StoreError as error:
        return FileFinding(file=path.name, state="unchecked", text=str(error).removeprefix(f"{path}: "))
    return FileFinding(file=path.name, state="intact", text=f"at least {bound} results were stored")


def _wrong_columns(file: DatabaseFile) -> list[str]:
    """The columns that differ from the record of their row. They serve queries; the store reads the record."""
    wrong = []
    present = {name for (name,) in file.query("SELECT name FROM pragma_table_info('results')", {})}
    names = [name for name in COLUMNS if name in present]  # schema version 1 has fewer
    for row in file.query(f"SELECT {', '.join(names)} FROM results ORDER BY added", {}):  # noqa: S608
        stored = dict(zip(names, row, strict=True))
        result = parse_record(stored["record"], file.path, stored["id"], stored["attempt"])
        expected = to_row(result)
        differ = [name for name in names if name != "record" and stored[name] != expected[name]]
        if differ:
            wrong.append(f"{', '.join(differ)} of run {stored['id']}, attempt {stored['attempt']}")
    return wrong


@contextmanager
def _lock(path: Path, lock_timeout: float) -> Iterator[None]:
    # The file of the lock stays. After a deletion, a process that waits for it and a process that creates it
    # again would both hold the lock.
    lock = FileLock(path.with_name(f".{path.name}.repair.lock"), timeout=lock_timeout)
    with locked(lock, path):
        yield


def _read_marker(marker: Path) -> str | None:
    """The name to which an interrupted repair moves the database. Raises StoreError if it is damaged."""
    try:
        name = marker.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    if not re.fullmatch(r"results\.sqlite\.damaged-\d{8}T\d{6}(-\d+)?", name):
        raise StoreError(
            f"{marker}: damaged. Write into it the name of the newest file {marker.stem}.damaged-TIME of this "
            f"folder"
        )
    return name


def _write(new: Path, rows: list[SavedRow]) -> None:
    """Write a complete database without a log, and force it to disk."""
    for suffix in ("", "-journal", "-wal", "-shm"):  # of an interrupted repair
        new.with_name(new.name + suffix).unlink(missing_ok=True)
    with closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        migrate(Database(connection, execute_plugins=False))
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(ADD, map(_new_row, rows))
        connection.execute("COMMIT")
        (count,) = connection.execute("SELECT COUNT(*) FROM results").fetchone()
        if count != len(rows) or connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            raise StoreError(f"{new}: written with {count} of {len(rows)} results. {new} is not used")


def _new_row(row: SavedRow) -> dict[str, Any]:
    """The row with its columns computed from the record. A record of another version keeps id, attempt and
    status."""
    try:
        result = parse_record(row.record, "", row.run_id, row.attempt)
    except StoreError:
        table = json.loads(row.record)
        status, superseded = str(table.get("status", "unknown")), bool(table.get("superseded"))
        keys = {"id": row.run_id, "attempt": row.attempt, "status": status, "superseded": superseded}
        values = {**dict.fromkeys(COLUMNS), **keys}
        return {**values, "record": row.record, "sha256": row_digest(row.run_id, row.attempt, row.record)}
    # The record as it was written, byte for byte.
    return {**to_row(result), "record": row.record, "sha256": row_digest(row.run_id, row.attempt, row.record)}


def _move_aside(path: Path, aside: Path) -> list[str]:
    """Rename the damaged files. Returns their new names, those of an interrupted repair included."""
    moved = []
    for suffix in _PARTS:
        file, target = path.with_name(path.name + suffix), aside.with_name(aside.name + suffix)
        # After an interruption, an existing target is the damaged file, and the present file is a repaired one.
        if file.exists() and not target.exists():
            file.rename(target)
        if target.exists():
            moved.append(target.name)
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)  # an index of the log, without content
    sync_folder(path.parent)
    return moved
