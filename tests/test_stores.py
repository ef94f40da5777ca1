"""The bundled stores: the conformance kit, and tests of their file formats."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from damaged_stores import killed_store
from filelock import FileLock
from sqlite_utils import Database

from flops_fit_core import StoreError
from flops_fit_core.plugins import ResultStore
from flops_fit_core.plugins.registry import installed
from flops_fit_core.testing import StoreConformance, example_result, example_run
from flops_fit_core.testing.examples import result_of
from flops_fit_stores.checksums import digest
from flops_fit_stores.sqlite_schema import APPLICATION_ID, MIGRATIONS, migrate


class TestSqlite(StoreConformance):
    name = "sqlite"


class TestJson(StoreConformance):
    name = "json"


@pytest.mark.slow
class TestSqliteKilledTwentyTimes(StoreConformance):
    name = "sqlite"
    kills = 20


@pytest.mark.slow
class TestJsonKilledTwentyTimes(StoreConformance):
    name = "json"
    kills = 20


def test_every_bundled_store_is_tested_with_the_kit() -> None:
    import test_postgres

    kits = [*globals().values(), test_postgres.TestPostgres]
    tested = {kit.name for kit in kits if isinstance(kit, type) and kit in StoreConformance.__subclasses__()}
    bundled = {spec.spec.name for spec in installed().offers("store") if spec.source.startswith("flops-fit ")}
    assert bundled == tested


FILES = ["sqlite", "json"]


def open_store(name: str, folder: Path, **options: Any) -> ResultStore:
    spec = installed().find("store", f"stores/{name}").spec
    store: ResultStore = spec.build(spec.options.model_validate(options), folder)
    return store


def filled(name: str, folder: Path, count: int = 30) -> Path:
    """The file of a closed store with ``count`` results."""
    with closing(open_store(name, folder)) as store:
        for seed in range(count):
            store.add(result_of(seed))
    return folder / f"results.{name}"


def query(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(sql).fetchall()


def in_another_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


# ---------------------------------------------------------------------------- all stores


def test_two_kinds_of_store_share_one_folder(tmp_path: Path) -> None:
    with closing(open_store("sqlite", tmp_path)) as database, closing(open_store("json", tmp_path)) as file:
        database.add(result_of(1))
        file.add(result_of(2))
        assert database.claim("run", "anna", 600)
        assert file.claim("run", "bert", 600)
        assert database.results() == [result_of(1)]
        assert file.results() == [result_of(2)]


@pytest.mark.parametrize("name", FILES)
def test_a_store_makes_the_study_folder(name: str, tmp_path: Path) -> None:
    assert filled(name, tmp_path / "runs" / "new", count=1).exists()


@pytest.mark.parametrize("name", FILES)
def test_numbers_keep_every_digit(name: str, tmp_path: Path) -> None:
    generator = random.Random(0)
    doubles = [generator.uniform(-1, 1) * 10.0 ** generator.randint(-300, 300) for _ in range(500)]
    result = example_result(metrics={str(index): value for index, value in enumerate(doubles)})
    with closing(open_store(name, tmp_path)) as store:
        store.add(result)
    with closing(open_store(name, tmp_path)) as store:
        stored = store.get(result.id)
    assert stored is not None
    assert list(stored.metrics.values()) == doubles


@pytest.mark.parametrize("name", FILES)
def test_a_number_in_a_dict_must_be_finite(name: str, tmp_path: Path) -> None:
    result = example_result()
    result.metrics["accuracy"] = math.nan
    with closing(open_store(name, tmp_path)) as store:
        with pytest.raises(ValueError, match="finite"):
            store.add(result)
        assert store.results() == []


@pytest.mark.parametrize("name", FILES)
def test_adding_to_a_store_that_is_deleted_while_in_use_is_an_error(name: str, tmp_path: Path) -> None:
    with closing(open_store(name, tmp_path)) as store:
        store.add(result_of(1))
        (tmp_path / f"results.{name}").rename(tmp_path / "moved")
        with pytest.raises(StoreError, match="moved or deleted while in use"):
            store.add(result_of(2))


@pytest.mark.parametrize("name", FILES)
def test_the_error_names_a_folder_that_cannot_be_created(name: str, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StoreError, match=r"runs.study: cannot create this folder"):
        open_store(name, tmp_path / "runs" / "study")


@pytest.mark.parametrize("name", FILES)
def test_processes_that_create_a_store_at_once_share_one(name: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from flops_fit_core.plugins.registry import installed\n"
        "from flops_fit_core.testing.examples import result_of\n"
        "spec = installed().find('store', sys.argv[1]).spec; import flops_fit_stores.sqlite\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "store = spec.build(spec.options(), Path(sys.argv[2]))\n"
        "store.add(result_of(int(sys.argv[3]))); store.close()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, name, tmp_path, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    assert [process.communicate("go\n")[1] for process in processes] == [""] * 3
    with closing(open_store(name, tmp_path)) as store:
        assert sorted(result.run.seed for result in store.results()) == [0, 1, 2]


# ---------------------------------------------------------------------------- damaged and foreign files


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_to_a_few_bytes(path: Path) -> None:
    os.truncate(path, 20)


def zeros_in_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(8192))


def other_text(path: Path) -> None:
    path.write_text("my shopping list")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def other_database(path: Path) -> None:
    path.unlink()
    query(path, "CREATE TABLE photos (id INTEGER PRIMARY KEY)")


def newer_schema(path: Path) -> None:
    query(path, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")


def empty(path: Path) -> None:
    path.write_text("")


def other_json(path: Path) -> None:
    path.write_text('{"results": []}')


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def newer_version(path: Path) -> None:
    data = json.loads(path.read_text())
    head = {"format": data["format"], "version": 3, "writes": data["writes"], "log": data["log"]}
    change_json(
        path, version=3, sha256=digest({**head, "results": [record["sha256"] for record in data["results"]]})
    )


def damaged_version(path: Path) -> None:
    change_json(path, version=3)


def damaged_format(path: Path) -> None:
    change_json(path, format="flops-fit pesults")


def results_are_no_list(path: Path) -> None:
    change_json(path, results={"a": 1})


def an_entry_without_id(path: Path) -> None:
    change_json(path, results=[{"attempt": 1}])


def not_a_number(path: Path) -> None:
    path.write_text(path.read_text().replace('"loss": 2.345678901234568', '"loss": NaN', 1))


def another_loss(path: Path) -> None:
    path.write_text(path.read_text().replace('"loss": 2.345678901234568', '"loss": 2.345678901234567', 1))


def without_the_first_result(path: Path) -> None:
    change_json(path, results=json.loads(path.read_text())["results"][1:])


def deleted(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("sqlite", cut_in_half, "damaged"),
        ("sqlite", cut_to_a_few_bytes, "damaged"),
        ("sqlite", zeros_in_the_middle, "damaged"),
        ("sqlite", other_text, "not an SQLite database"),
        ("sqlite", other_database, "another program"),
        ("sqlite", newer_schema, "newer flops-fit"),
        ("sqlite", a_folder, "not a file"),
        ("json", cut_in_half, "truncated or not valid JSON"),
        ("json", cut_to_a_few_bytes, "truncated or not valid JSON"),
        ("json", zeros_in_the_middle, "truncated or not valid JSON"),
        ("json", other_text, "truncated or not valid JSON"),
        ("json", empty, "empty"),
        ("json", other_json, "a file of another program"),
        ("json", damaged_version, "damaged: its format or version is damaged; intact results: 30"),
        ("json", damaged_format, "damaged: its format or version is damaged; intact results: 30"),
        ("json", newer_version, "written by a newer flops-fit"),
        ("json", results_are_no_list, "results: Input should be a valid list"),
        ("json", an_entry_without_id, r"results\.0\.id: Field required"),
        (
            "json",
            another_loss,
            f"of 1 of 30 results does not match: run {result_of(0).id}, attempt 1; intact results: 29",
        ),
        ("json", without_the_first_result, "list of results does not match; intact results: 29"),
        ("json", deleted, r"does not exist, but results\.json\.count does"),
        ("json", not_a_number, "truncated or not valid JSON"),
        ("json", a_folder, "Is a directory"),
    ],
)
def test_the_error_names_a_damaged_or_foreign_file_which_stays_unchanged(
    name: str, damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = filled(name, tmp_path)
    damage(path)
    before = path.read_bytes() if path.is_file() else b""
    for _ in range(2):
        with pytest.raises(StoreError, match=message) as caught:
            open_store(name, tmp_path)
        assert str(path) in str(caught.value)
    assert (path.read_bytes() if path.is_file() else b"") == before


@pytest.mark.parametrize("damage", [cut_in_half, other_json, newer_version])
def test_a_file_that_is_damaged_while_in_use_is_not_overwritten(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    path = filled("json", tmp_path)
    store = open_store("json", tmp_path)
    damage(path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"results\.json"):
        store.add(result_of(99))
    assert path.read_bytes() == before


def test_the_error_names_the_run_of_an_invalid_record(tmp_path: Path) -> None:
    path = filled("sqlite", tmp_path, count=3)
    invalid = "replace(record, 'completed', 'finished')"
    query(path, f"UPDATE results SET record = {invalid} WHERE id = '{result_of(1).id}'")
    with pytest.raises(StoreError, match=f"run {result_of(1).id}, attempt 1: the stored result is not intact"):
        open_store("sqlite", tmp_path)


def test_the_log_of_a_missing_database_is_not_deleted(tmp_path: Path) -> None:
    killed_store(tmp_path, merged=0)
    log = tmp_path / "results.sqlite-wal"
    before = log.read_bytes()
    os.truncate(tmp_path / "results.sqlite", 0)
    with pytest.raises(StoreError, match=r"missing or empty, but its log results\.sqlite-wal has content"):
        open_store("sqlite", tmp_path)
    (tmp_path / "results.sqlite").unlink()
    with pytest.raises(StoreError, match="missing or empty"):
        open_store("sqlite", tmp_path)
    assert log.read_bytes() == before


def test_a_truncated_database_and_its_log_stay_unchanged(tmp_path: Path) -> None:
    killed_store(tmp_path, merged=10)
    path, log = tmp_path / "results.sqlite", tmp_path / "results.sqlite-wal"
    cut_in_half(path)
    before = path.read_bytes(), log.read_bytes()
    with pytest.raises(StoreError, match="damaged"):
        open_store("sqlite", tmp_path)
    assert (path.read_bytes(), log.read_bytes()) == before


def test_a_database_opens_after_a_process_was_killed_while_creating_it(tmp_path: Path) -> None:
    code = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA cache_size = 2'); db.execute('BEGIN IMMEDIATE'); db.execute('CREATE TABLE t (x)')\n"
        "db.executemany('INSERT INTO t VALUES (?)', [('x' * 3000,)] * 100); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "results.sqlite"
    assert in_another_python(code, str(path)).returncode == -signal.SIGKILL
    assert path.stat().st_size > 0
    assert path.with_name("results.sqlite-journal").stat().st_size > 0
    with closing(open_store("sqlite", tmp_path)) as store:
        store.add(result_of(1))
        assert store.results() == [result_of(1)]


# ---------------------------------------------------------------------------- locks


def test_a_database_that_stays_locked_is_an_error_after_the_timeout(tmp_path: Path) -> None:
    path = filled("sqlite", tmp_path, count=1)
    with closing(open_store("sqlite", tmp_path, lock_timeout=0.2)) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert len(store.results()) == 1
            with pytest.raises(StoreError, match=r"locked by another process for 0\.2 seconds"):
                store.add(result_of(1))
        store.add(result_of(1))


def test_a_file_that_stays_locked_is_an_error_after_the_timeout(tmp_path: Path) -> None:
    path = filled("json", tmp_path, count=1)
    with closing(open_store("json", tmp_path, lock_timeout=0.2)) as store:
        with FileLock(f"{path}.lock"):
            assert len(store.results()) == 1
            with pytest.raises(StoreError, match=r"results\.json\.lock held by another process for 0\.2 seconds"):
                store.add(result_of(1))
        store.add(result_of(1))


# ---------------------------------------------------------------------------- sqlite


def test_plain_sql_queries_read_the_columns_of_a_result(tmp_path: Path) -> None:
    run = example_run(seed=7, budget=5e10, params=1234, tokens=5678)
    with closing(open_store("sqlite", tmp_path)) as store:
        store.add(example_result(run=run, loss=2.5, flops=9e9))
        store.add(example_result(run=example_run(seed=8), attempt=3, status="diverged"))
    columns = "id, attempt, status, model, params, tokens, flops, loss, seed, budget, finished"
    first, second = query(tmp_path / "results.sqlite", f"SELECT {columns} FROM results ORDER BY added")
    finished = "2026-11-01T12:30:15.123456+00:00"
    assert first == (run.id, 1, "completed", "gpt/gpt", 1234, 5678, 9e9, 2.5, 7, 5e10, finished)
    assert second[1:4] == (3, "diverged", "gpt/gpt")
    assert second[7] is None


def test_the_database_has_its_application_id_and_settings_that_survive_power_failure(tmp_path: Path) -> None:
    path = filled("sqlite", tmp_path, count=1)
    assert query(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert query(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert query(path, "PRAGMA journal_mode") == [("wal",)]
    with closing(open_store("sqlite", tmp_path)) as store:
        full = 2
        assert store._file.writer.execute("PRAGMA synchronous").fetchone() == (full,)  # type: ignore[attr-defined]


def test_a_closed_database_has_no_log(tmp_path: Path) -> None:
    filled("sqlite", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.sqlite", "results.sqlite.count"]


def add_a_note(db: Database) -> None:
    db.execute("ALTER TABLE results ADD COLUMN note TEXT")


def failing_migration(db: Database) -> None:
    raise ZeroDivisionError


def test_an_older_database_is_migrated_once(tmp_path: Path) -> None:
    path = filled("sqlite", tmp_path, count=3)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        db = Database(connection)
        migrate(db, (*MIGRATIONS, add_a_note))
        migrate(db, (*MIGRATIONS, add_a_note))
    assert query(path, "PRAGMA user_version") == [(len(MIGRATIONS) + 1,)]
    assert query(path, "SELECT seed, note FROM results ORDER BY added") == [(0, None), (1, None), (2, None)]


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = filled("sqlite", tmp_path, count=3)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection, pytest.raises(ZeroDivisionError):
        migrate(Database(connection), (*MIGRATIONS, add_a_note, failing_migration))
    with closing(open_store("sqlite", tmp_path)) as store:
        assert len(store.results()) == 3
    assert "note" not in str(query(path, "SELECT sql FROM sqlite_master"))
