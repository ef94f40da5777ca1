"""Read a database without creating or changing any file in its folder, also without the right to write there."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flops_fit_core import StoreError
from flops_fit_stores.errors import Damage
from flops_fit_stores.file_systems import is_network
from flops_fit_stores.private_copy import copy_files, is_in_log_mode

_TRIES = 20
"""How often to repeat a read of files that another process changes meanwhile."""

Signature = tuple[tuple[int, int, int] | None, ...]


class Reader:
    """An open database for reading, verified when it is opened. One thread.

    There are three ways to open it. ``shared`` uses the locks and the write-ahead log of other processes.
    ``immutable`` reads a database without a log, which no other process has open. ``copy`` reads a private copy of
    the database and its log: the log of a killed process needs recovery. The last two are repeated when a file has
    changed.

    Args:
        path: The database.
        lock_timeout: Seconds to wait for another process that writes.
        check: Called with each connection that is opened. Raises Damage or StoreError.
    """

    def __init__(self, path: Path, lock_timeout: float, check: Callable[[sqlite3.Connection], None]) -> None:
        self._path, self._lock_timeout, self._check = path, lock_timeout, check
        self._connection: sqlite3.Connection | None = None
        self._copies: tempfile.TemporaryDirectory[str] | None = None
        self._signature: Signature = ()
        self.way = ""
        """``shared``, ``immutable`` or ``copy``."""
        self._read(lambda connection: None)

    def rows(self, sql: str, values: dict[str, Any]) -> list[Any]:
        """All rows of a query. Raises sqlite3.Error, Damage or StoreError."""
        rows: list[Any] = self._read(lambda connection: connection.execute(sql, values).fetchall())
        return rows

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._copies is not None:
            self._copies.cleanup()
            self._copies = None

    def _read(self, query: Callable[[sqlite3.Connection], Any]) -> Any:
        """Call ``query`` with a connection. Repeats it if the files changed while it read them without locks."""
        for _ in range(_TRIES):
            try:
                if self._connection is None or (self.way != "shared" and self._has_changed()):
                    self._open()
                assert self._connection is not None
                answer = query(self._connection)
            except (sqlite3.Error, UnicodeDecodeError, Damage, StoreError, OSError):
                changed = self.way != "shared" and self._has_changed()
                self.close()
                if not changed:
                    raise
                continue
            if self.way != "immutable" or not self._has_changed():
                return answer
        raise StoreError(f"{self._path}: another process changes it all the time: try again")

    def _has_changed(self) -> bool:
        return self._signature != _signature(self._path)

    def _open(self) -> None:
        self.close()
        self._signature = _signature(self._path)
        self.way = _choose_way(self._path)
        try:
            self._check(self._connect())
        except sqlite3.OperationalError as error:
            name = getattr(error, "sqlite_errorname", None) or ""  # Python's own errors have none
            if self.way == "copy" or not name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
                raise
            # The log needs recovery, and this process may not write its index.
            self.close()
            self.way = "copy"
            self._check(self._connect())

    def _connect(self) -> sqlite3.Connection:
        path, option = self._path.absolute(), {"shared": "mode=ro", "immutable": "immutable=1", "copy": "mode=rw"}
        if self.way == "copy":
            self._copies = tempfile.TemporaryDirectory(prefix="flops-fit-", ignore_cleanup_errors=True)
            path = copy_database(self._path, Path(self._copies.name))
        uri = f"{path.as_uri()}?{option[self.way]}"
        self._connection = sqlite3.connect(uri, uri=True, timeout=self._lock_timeout, isolation_level=None)
        self._connection.execute("PRAGMA cell_size_check = ON")
        return self._connection


def copy_database(path: Path, folder: Path) -> Path:
    """Copy a database with its log or journal, all from the same moment. Returns the copy.

    Raises OSError, or StoreError if another process changes the files all the time.
    """
    for _ in range(_TRIES):
        before = _signature(path)
        for copied in folder.iterdir():
            copied.unlink()
        copy_files([(file, folder / file.name) for file in _files(path)])
        if _signature(path) == before:
            return folder / path.name
        time.sleep(0.05)
    raise StoreError(f"{path}: another process changes it all the time: try again")


def _choose_way(path: Path) -> str:
    log, index, journal = (path.with_name(f"{path.name}-{part}") for part in ("wal", "shm", "journal"))
    on_network = is_network(path.parent)
    if log.exists() and log.stat().st_size > 0:
        return "shared" if index.exists() and not on_network else "copy"
    if journal.exists() or (log.exists() and index.exists() and not on_network):
        return "shared"
    # On a local disk, every process that writes has a log or a journal.
    return "shared" if on_network and not is_in_log_mode(path) else "immutable"


def _files(path: Path) -> tuple[Path, ...]:
    return path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-journal")


def _signature(path: Path) -> Signature:
    """Inode, size and time of change of the database, its log and its journal."""
    signature: list[tuple[int, int, int] | None] = []
    for file in _files(path):
        try:
            status = file.stat()
            signature.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            signature.append(None)
    return tuple(signature)
