"""Explain errors of SQLite, and count the intact results of a damaged database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flops_fit_core import StoreError
from flops_fit_stores.errors import Damage, DamagedStore, damaged_store
from flops_fit_stores.salvage import salvage


@contextmanager
def explain_errors(path: Path, lock_timeout: float) -> Iterator[None]:
    """Convert Damage, and errors of SQLite and of the file system, to StoreError."""
    try:
        yield
    except Damage as error:
        raise _damaged(path, str(error)) from None
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", None) or ""
        if name.startswith("SQLITE_NOTADB"):
            raise _damaged(path, "not an SQLite database, or its header is damaged") from None
        if _is_damage(name, str(error)):
            raise _damaged(path, str(error)) from None
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise StoreError(
                f"{path}: locked by another process for {lock_timeout:g} seconds. Wait for that process, "
                f"or stop it"
            ) from None
        raise StoreError(f"{path}: {error}") from None
    except UnicodeDecodeError:  # the message of an error names a damaged table
        raise _damaged(path, "a name in its schema is not UTF-8") from None
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror or error}") from None


def _damaged(path: Path, reason: str) -> DamagedStore:
    """The error for a damaged database, with the number of intact results."""
    try:
        intact = len(salvage(path).rows)
    except OSError:
        return damaged_store(path, reason)
    return damaged_store(path, reason, intact)


def _is_damage(name: str, text: str) -> bool:
    """Whether an error of SQLite, or of Python's module, means that the file is damaged."""
    # Python raises an OperationalError without a code for text that is not UTF-8. SQLite reports a schema with a
    # flipped bit as a plain error.
    return name.startswith("SQLITE_CORRUPT") or text.startswith(
        ("Could not decode", "no such table", "no such column", "malformed", "unsupported file format")
    )
