"""Stores of older schemas, and in folders without the right to write."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from damaged_stores import (
    COUNT,
    DATABASE,
    INDEX,
    LOG,
    RESULTS,
    closed_store,
    content_of,
    kill_driver,
    killed_store,
    start_driver,
    store_at,
    stored,
    without_write_access,
)
from sqlite_utils import Database

from flops_fit_core import StoreError
from flops_fit_core.api import run
from flops_fit_core.plugins import FileFinding
from flops_fit_core.testing.examples import result_of
from flops_fit_stores.records import COLUMNS
from flops_fit_stores.sqlite import to_row
from flops_fit_stores.sqlite_repair import check
from flops_fit_stores.sqlite_schema import MIGRATIONS, migrate

needs_setpriv = pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root needs setpriv to give up its rights"
)
_READ = """
import sys
from pathlib import Path
from flops_fit_core import StoreError
from flops_fit_core.testing.examples import result_of
from flops_fit_stores.sqlite import SqliteStore

store = SqliteStore(Path(sys.argv[1]) / "results.sqlite", 5)
expected = [result_of(seed) for seed in range(int(sys.argv[2]))]
assert store.all_attempts() == expected
try:
    store.add(result_of(99))
except StoreError as error:
    print(error)
store.close()
"""
SURFACE = {
    "name": "law",
    "model": "surface",
    "dataset": "surface",
    "executor": "local",
    "sweep": {"budgets": [1e17, 1e18], "sizes": 3},
}
FLOPS_FIT = [sys.executable, "-c", "from flops_fit_core.cli.main import main; main()"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can reach. pytest makes its folders private each time that it starts."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        for path in (Path(name), *Path(name).rglob("*")):
            if path.is_dir():
                path.chmod(0o755)


def read_as_another_user(folder: Path, count: int = COUNT) -> str:
    before = content_of(folder)
    done = without_write_access([sys.executable, "-c", _READ, str(folder), str(count)], folder)
    assert done.returncode == 0, done.stderr
    assert content_of(folder) == before
    return done.stdout


# ---------------------------------------------------------------------------- without write access


@needs_setpriv
def test_a_closed_store_is_read_and_the_error_of_an_add_names_the_folder(folder: Path) -> None:
    closed_store(folder)
    message = read_as_another_user(folder)
    assert f"{folder}: cannot write: it is read-only for this user. Its results can be read" in message
    assert not (folder / LOG).exists()


@needs_setpriv
@pytest.mark.parametrize("with_index", [True, False])
def test_the_log_of_a_killed_driver_is_read(with_index: bool, folder: Path) -> None:
    killed_store(folder, merged=5)
    if not with_index:
        (folder / INDEX).unlink()
    read_as_another_user(folder)
    assert (folder / INDEX).exists() == with_index


@needs_setpriv
@pytest.mark.parametrize("merged", [5, COUNT])
def test_the_store_of_a_driver_that_runs_is_read(merged: int, folder: Path) -> None:
    driver = start_driver(folder, merged)
    try:
        read_as_another_user(folder)
    finally:
        kill_driver(driver)


@needs_setpriv
def test_a_folder_without_results_is_read(folder: Path) -> None:
    read_as_another_user(folder, count=0)
    assert list(folder.iterdir()) == []


@needs_setpriv
@pytest.mark.parametrize("store", ["sqlite", "json"])
def test_commands_that_read_work_on_a_study_of_another_user(store: str, folder: Path) -> None:
    study = folder / "law"
    run({**SURFACE, "store": store}, out=study)
    for path in study.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    before = content_of(study) if not (study / "report").exists() else None
    for command in ("runs", "status", "fit", "store check"):
        done = without_write_access([*FLOPS_FIT, *command.split(), str(study)], study)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    done = without_write_access([*FLOPS_FIT, "run", str(study), "--set", "sweep.sizes=4"], study)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "write" in done.stderr
    assert before is None or content_of(study) == before


@needs_setpriv
@pytest.mark.parametrize(("store", "new"), [("sqlite", "json"), ("json", "sqlite")])
def test_a_study_of_another_user_is_copied(store: str, new: str, folder: Path) -> None:
    study, target = folder / "law", folder / "target"
    run({**SURFACE, "store": store}, out=study)
    before = content_of(study)
    target.mkdir()
    target.chmod(0o777)
    copy = [*FLOPS_FIT, "store", "copy", str(study), str(target / "copy"), "--store", new]
    done = without_write_access(copy, study)
    assert done.returncode == 0, done.stderr
    assert "6 attempts at 6 runs are equal" in done.stdout
    assert content_of(study) == before


# ---------------------------------------------------------------------------- reading changes nothing


@pytest.mark.parametrize("merged", [5, COUNT])
def test_reading_changes_no_file_of_a_killed_driver(merged: int, tmp_path: Path) -> None:
    killed_store(tmp_path, merged)
    names, before = sorted(path.name for path in tmp_path.iterdir()), content_of(tmp_path)
    assert stored(tmp_path) == RESULTS
    assert content_of(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_reading_creates_no_file(tmp_path: Path) -> None:
    with closing(store_at(tmp_path / "new")) as store:
        assert store.results() == []
    assert not (tmp_path / "new").exists()
    closed_store(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    with closing(store_at(tmp_path)) as store:
        assert store.results() == RESULTS
        assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_an_open_store_reads_the_results_of_a_driver_that_started_later(tmp_path: Path) -> None:
    with closing(store_at(tmp_path)) as store:
        assert store.results() == []
        with closing(store_at(tmp_path)) as driver:
            driver.add(RESULTS[0])
            assert store.results() == RESULTS[:1]
        assert store.results() == RESULTS[:1]
        with closing(store_at(tmp_path)) as driver:
            driver.add(RESULTS[1])
            assert store.results() == RESULTS[:2]
            driver.add(RESULTS[2])
            assert store.results() == RESULTS[:3]


# ---------------------------------------------------------------------------- older schemas


def as_schema_version_1(folder: Path) -> Path:
    """A store as flops-fit wrote it before claims had tokens and rows had checksums."""
    names = [name for name in COLUMNS if name != "superseded"]
    add = f"INSERT INTO results ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)})"
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as connection:
        migrate(Database(connection), MIGRATIONS[:1])
        connection.executemany(add, map(to_row, RESULTS))
        connection.execute("PRAGMA journal_mode = WAL")
    return folder


def test_a_store_without_checksums_is_read_and_gets_them_with_the_next_result(tmp_path: Path) -> None:
    as_schema_version_1(tmp_path)
    before = content_of(tmp_path)
    assert stored(tmp_path) == RESULTS
    assert check(tmp_path / DATABASE, 5) == [FileFinding(file=DATABASE, state="intact", text=f"{COUNT} results")]
    assert content_of(tmp_path) == before
    with closing(store_at(tmp_path)) as store:
        store.add(result_of(COUNT))
    with closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
        (without,) = connection.execute("SELECT COUNT(*) FROM results WHERE sha256 IS NULL").fetchone()
    assert without == 0
    assert stored(tmp_path) == [*RESULTS, result_of(COUNT)]


def test_a_row_without_a_checksum_must_name_its_run(tmp_path: Path) -> None:
    as_schema_version_1(tmp_path)
    with closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as connection:
        connection.execute(f"UPDATE results SET id = '{result_of(99).id}' WHERE added = 3")
    with pytest.raises(StoreError, match=f"run {result_of(99).id}, attempt 1: the stored result is not intact"):
        store_at(tmp_path)
