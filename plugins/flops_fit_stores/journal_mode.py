"""The journal of ``results.sqlite``: a write-ahead log on a local disk, a rollback journal elsewhere."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from flops_fit_core import StoreError
from flops_fit_stores.file_systems import is_network
from flops_fit_stores.sqlite_library import Database


def set_journal_mode(db: Database, path: Path, lock_timeout: float) -> None:
    """Write-ahead log on a local disk. A rollback journal on a network file system, which has no shared memory
    for the index of a log; EXTRA also syncs the folder after the journal is deleted."""
    if is_network(path.parent):
        _leave_log_mode(db, path)
        db.execute("PRAGMA synchronous = EXTRA")
        return
    deadline = time.monotonic() + lock_timeout
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # SQLite does not wait for a lock here, and other processes may open the file at the same time.
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    db.execute("PRAGMA synchronous = FULL")


def _leave_log_mode(db: Database, path: Path) -> None:
    """Change a database to a rollback journal. Raises StoreError if another process has it open with a log."""
    # An exclusive lock keeps the index of the log in this process instead of in shared memory.
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    try:
        mode = db.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
    except sqlite3.OperationalError as error:
        if not _is_busy(error):
            raise
        mode = "wal"
    db.execute("PRAGMA locking_mode = NORMAL")
    if mode != "delete":
        raise StoreError(
            f"{path}: on a network file system with a write-ahead log, and another process has it open: end that "
            f"process and run again"
        )
    db.execute("PRAGMA user_version").fetchone()  # the lock is released by the next read


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
