"""Transactions of ``results.sqlite``."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from flops_fit_stores.sqlite_library import Database


@contextmanager
def write_transaction(db: Database) -> Iterator[None]:
    """A transaction that excludes other writers from its start to its end."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        connection: sqlite3.Connection = db.conn
        if connection.in_transaction:
            db.execute("ROLLBACK")
        raise
