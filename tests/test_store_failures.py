"""Failures while a store in a file is in use: of the disk, of its files, and of other processes."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from sqlite_utils import Database
from test_stores import FILES, in_another_python, open_store, query

from flops_fit_core import StoreError
from flops_fit_core.plugins.registry import installed
from flops_fit_core.testing.examples import result_of
from flops_fit_stores import database, sqlite_reader
from flops_fit_stores.journal import Journal
from flops_fit_stores.journal_mode import set_journal_mode
from flops_fit_stores.lower_bound import LowerBound


@pytest.mark.parametrize("name", FILES)
def test_a_bound_that_is_damaged_while_in_use_is_an_error(name: str, tmp_path: Path) -> None:
    with closing(open_store(name, tmp_path)) as store:
        store.add(result_of(1))
        (tmp_path / f"results.{name}.count").write_text("many")
        with pytest.raises(StoreError, match="both counts are damaged"):
            store.add(result_of(2))


@pytest.mark.parametrize("name", FILES)
def test_the_error_names_the_bound_that_cannot_be_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(open_store(name, tmp_path)) as store:
        store.add(result_of(1))
        monkeypatch.setattr("flops_fit_stores.lower_bound._sync", fail)
        with pytest.raises(StoreError, match=rf"results\.{name}\.count: cannot write: No space left"):
            store.add(result_of(2))


@pytest.mark.parametrize("name", FILES)
def test_a_repeated_add_raises_the_bound_that_the_first_could_not_raise(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("no space")

    with closing(open_store(name, tmp_path)) as store:
        store.add(result_of(1))
        with monkeypatch.context() as patch, pytest.raises(StoreError, match="no space"):
            patch.setattr(LowerBound, "raise_to", fail)
            store.add(result_of(2))
        store.add(result_of(2))
        assert LowerBound(tmp_path / f"results.{name}.count").read() == 2
        assert store.results() == [result_of(1), result_of(2)]


class Killed(BaseException):
    """The end of a process at this call."""


@pytest.mark.parametrize("claimed", [False, True])
def test_a_json_result_of_a_writer_killed_before_the_sync_is_written_again_before_it_is_acknowledged(
    claimed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(handle: int) -> None:
        raise Killed

    with closing(open_store("json", tmp_path)) as store:
        store.add(result_of(1))
        token = str(store.claim(result_of(2).id, "anna", 600)) if claimed else None
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "fsync", end)
            store.add(result_of(2), token)
        with closing(open_store("json", tmp_path)) as other:
            assert other.results() == [result_of(1), result_of(2)]  # of the log, which may not be on disk
            other.add(result_of(2), token)
            (tmp_path / "results.log.jsonl").unlink()
            assert other.results() == [result_of(1), result_of(2)]


def test_a_json_store_that_has_read_damage_accepts_no_further_result(tmp_path: Path) -> None:
    store, other = open_store("json", tmp_path), open_store("json", tmp_path)
    store.add(result_of(1))
    with (tmp_path / "results.log.jsonl").open("a") as log:
        log.write('{"a line of another process": "damaged"}\n')
    before = (tmp_path / "results.log.jsonl").read_bytes()
    for _ in range(2):
        with pytest.raises(StoreError, match="line 3 is damaged"):
            other.add(result_of(2))
        with pytest.raises(StoreError, match="line 3 is damaged"):
            other.results()
    assert (tmp_path / "results.log.jsonl").read_bytes() == before


def test_a_json_store_reads_every_result_after_an_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_store("json", tmp_path)) as reader:
        with closing(open_store("json", tmp_path)) as writer:
            writer.add(result_of(1))

        def fail(journal: Journal) -> None:
            raise StoreError("Input/output error")

        # The reader has read the new results.json, and cannot read the log.
        with monkeypatch.context() as patch, pytest.raises(StoreError, match="Input/output"):
            patch.setattr(Journal, "read_new", fail)
            reader.results()
        assert reader.results() == [result_of(1)]


def test_the_repair_of_a_json_store_waits_for_a_writer(tmp_path: Path) -> None:
    spec = installed().find("store", "stores/json").spec
    with closing(open_store("json", tmp_path)) as store:
        store.add(result_of(1))
    path = tmp_path / "results.json"
    path.write_text(path.read_text().replace('"loss": 2.', '"loss": 3.', 1))
    with FileLock(f"{path}.lock"), pytest.raises(StoreError, match="held by another process"):
        spec.repair(spec.options(lock_timeout=0.1), tmp_path)
    assert not list(tmp_path.glob("*.damaged-*"))


# ---------------------------------------------------------------------------- sqlite


def test_a_database_that_is_refused_leaves_no_private_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query(tmp_path / "results.sqlite", "CREATE TABLE photos (id INTEGER PRIMARY KEY)")
    copies = tmp_path / "temporary"
    copies.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    monkeypatch.setattr(sqlite_reader, "_choose_way", lambda path: "copy")
    with pytest.raises(StoreError, match="another program") as caught:
        open_store("sqlite", tmp_path)
    assert caught.tb is not None  # the traceback keeps the reader
    assert list(copies.iterdir()) == []


def test_creating_a_database_drops_no_lock_of_a_thread_that_creates_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.sqlite"
    begin = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with monkeypatch.context() as patch:  # the file does not exist yet when the second thread looks
            patch.setattr(Path, "exists", lambda path: False)
            database._create(path)
        assert "database is locked" in in_another_python(begin, str(path)).stderr


def test_a_database_that_cannot_get_a_log_is_an_error_at_once(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    query(path, "CREATE TABLE results (id)")
    uri = f"{path.as_uri()}?mode=ro"
    with (
        closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        set_journal_mode(Database(connection), path, lock_timeout=100_000)  # pytest's timeout is shorter
