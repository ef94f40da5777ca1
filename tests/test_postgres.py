"""The store ``postgres`` on a real PostgreSQL, which the tests bring up and take down."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from postgres_server import OWNER, PASSWORD, PostgresServer, free_port, postgres_server, why_not

from flops_fit_core import ConfigError, StoreError
from flops_fit_core.plugins import ResultStore
from flops_fit_core.plugins.registry import installed
from flops_fit_core.testing import StoreConformance, example_result
from flops_fit_core.testing.examples import result_of
from flops_fit_stores.schema import MIGRATIONS, migrate, version

psycopg = pytest.importorskip("psycopg")
MISSING = why_not()
pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.usefixtures("database"),
]
VARIABLE = "FLOPS_FIT_TEST_DATABASE"
LIBPQ = ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE", "PGPASSFILE")


@pytest.fixture(scope="module")
def running() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def database(running: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> PostgresServer:
    """The server with its database as it was on the first day; :data:`VARIABLE` leads to it."""
    running.query("DROP SCHEMA IF EXISTS flops_fit CASCADE")
    for name in LIBPQ:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGPASSFILE", str(running.base / "no such file"))
    monkeypatch.setenv(VARIABLE, running.url())
    return running


def open_store(folder: Path, **options: Any) -> ResultStore:
    spec = installed().find("store", "stores/postgres").spec
    given = options if "url" in options or options.pop("bare", False) else {"url_variable": VARIABLE, **options}
    store: ResultStore = spec.build(spec.options.model_validate(given), folder)
    return store


def fails(folder: Path, **options: Any) -> str:
    """What the store says when it cannot be opened."""
    with pytest.raises(StoreError) as caught:
        open_store(folder, **options)
    return str(caught.value)


class TestPostgres(StoreConformance):
    name = "postgres"
    options = {"url_variable": VARIABLE}


@pytest.mark.slow
class TestPostgresKilledTwentyTimes(StoreConformance):
    name = "postgres"
    options = {"url_variable": VARIABLE}
    kills = 20


# ---------------------------------------------------------------------------- whose results


def test_folders_of_one_name_share_their_results(tmp_path: Path) -> None:
    with (
        closing(open_store(tmp_path / "here" / "small")) as here,
        closing(open_store(tmp_path / "there" / "small")) as there,
        closing(open_store(tmp_path / "other")) as other,
        closing(open_store(tmp_path / "anything", study="small")) as named,
    ):
        here.add(result_of(1))
        assert there.results() == named.results() == [result_of(1)]
        assert here.claim("run", "anna", 600)
        assert not there.claim("run", "bert", 600)
        assert other.results() == []
        assert other.claim("run", "bert", 600)


def test_the_probes_of_a_study_are_kept_apart_from_it(tmp_path: Path) -> None:
    with (
        closing(open_store(tmp_path / "small", study="ours")) as study,
        closing(open_store(tmp_path / "small" / "tune", study="ours")) as tune,
        closing(open_store(tmp_path / "large" / "tune")) as other,
    ):
        tune.add(result_of(1))
        assert study.results() == other.results() == []


def test_a_claim_ends_by_the_servers_clock(tmp_path: Path, database: PostgresServer) -> None:
    with closing(open_store(tmp_path)) as store:
        assert store.claim("run", "anna", 600)
        ((left,),) = database.query("SELECT extract(epoch FROM until - now())::float FROM flops_fit.claims")
        assert 590 < left <= 600


# ---------------------------------------------------------------------------- what is in the tables


def test_the_tables_can_be_asked_without_us(tmp_path: Path, database: PostgresServer) -> None:
    result = example_result()
    with closing(open_store(tmp_path / "small")) as store:
        store.add(result)
    columns = "study, id, attempt, status, model, params, tokens, flops, loss, seed, budget, finished"
    (row,) = database.query(f"SELECT {columns} FROM flops_fit.results")
    run = result.run
    assert row[:7] == ("small", run.id, 1, "completed", "gpt/gpt", run.params, result.tokens)
    assert row[7:] == (result.flops, result.loss, run.seed, run.budget, result.finished)
    asked = "SELECT record -> 'run' ->> 'fingerprint' FROM flops_fit.results"
    assert database.query(asked) == [(run.fingerprint,)]


def test_a_database_of_another_encoding_keeps_every_character(tmp_path: Path, database: PostgresServer) -> None:
    database.query("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    result = example_result(params_name="Ünïcödé \U0001f600 \x00", metrics={"Größe": 1.5})
    try:
        with closing(open_store(tmp_path, url=database.url("latin"))) as store:
            store.add(result)
            assert store.results() == [result]
    finally:
        database.query("DROP DATABASE latin")


def test_a_record_that_was_edited_into_nonsense_is_named(tmp_path: Path, database: PostgresServer) -> None:
    with closing(open_store(tmp_path)) as store:
        store.add(result_of(1))
        database.query("UPDATE flops_fit.results SET record = replace(record::text, 'completed', 'ended')::json")
        with pytest.raises(StoreError, match=f"run {result_of(1).id}, attempt 1: status: Input should be"):
            store.results()


def test_an_older_database_is_brought_up_to_date_once(tmp_path: Path, database: PostgresServer) -> None:
    def add_a_note(connection: Any) -> None:
        connection.execute("ALTER TABLE flops_fit.results ADD COLUMN note text")

    with closing(open_store(tmp_path)) as store:
        store.add(result_of(1))
    with closing(psycopg.connect(database.url(), autocommit=True)) as connection:
        migrate(connection, (*MIGRATIONS, add_a_note))
        migrate(connection, (*MIGRATIONS, add_a_note))
        assert version(connection) == len(MIGRATIONS) + 1
    assert database.query("SELECT seed, note FROM flops_fit.results") == [(1, None)]
    assert "written by a newer flops-fit (schema 2; this one knows up to 1)" in fails(tmp_path)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, database: PostgresServer) -> None:
    def stumble(connection: Any) -> None:
        connection.execute("ALTER TABLE flops_fit.results ADD COLUMN note text")
        raise ZeroDivisionError

    with closing(psycopg.connect(database.url(), autocommit=True)) as connection:
        with pytest.raises(ZeroDivisionError):
            migrate(connection, (*MIGRATIONS, stumble))
        assert version(connection) == 0
    with closing(open_store(tmp_path)) as store:
        assert store.results() == []


def test_drivers_that_open_a_new_database_at_once_share_one(tmp_path: Path) -> None:
    failed: list[Exception] = []

    def add(seed: int) -> None:
        try:
            with closing(open_store(tmp_path)) as store:
                store.add(result_of(seed))
        except StoreError as error:
            failed.append(error)

    threads = [threading.Thread(target=add, args=[seed]) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    with closing(open_store(tmp_path)) as store:
        assert sorted(result.run.seed for result in store.results()) == list(range(8))


# ---------------------------------------------------------------------------- a connection that is lost


def test_a_lost_connection_is_made_again(tmp_path: Path, database: PostgresServer) -> None:
    with closing(open_store(tmp_path)) as store:
        store.add(result_of(1))
        database.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        store.add(result_of(2))
        database.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        assert store.results() == [result_of(1), result_of(2)]


def test_a_server_that_is_started_again_meanwhile_is_waited_for(tmp_path: Path, database: PostgresServer) -> None:
    with closing(open_store(tmp_path)) as store:
        store.add(result_of(1))
        database.stop()
        later = threading.Timer(1.0, database.start)
        later.start()
        try:
            store.add(result_of(2))
        finally:
            later.join()
        assert store.results() == [result_of(1), result_of(2)]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such timeout")
def test_a_statement_that_nobody_acknowledges_is_given_up_within_half_a_minute(database: PostgresServer) -> None:
    # Keepalives are only sent while nothing is under way: without this, an add waits for a quarter of an hour.
    from flops_fit_stores.server import connection_string

    conninfo = connection_string(database.tcp_url(), None)
    with (
        closing(psycopg.connect(conninfo, password=PASSWORD)) as connection,
        socket.socket(fileno=os.dup(connection.fileno())) as wire,
    ):
        assert 0 < wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 30_000


def test_a_server_that_stays_away_is_an_error_in_time(tmp_path: Path, database: PostgresServer) -> None:
    with closing(open_store(tmp_path, reconnect_timeout=0.5)) as store:
        database.stop()
        before = time.monotonic()
        try:
            with pytest.raises(StoreError, match=r"is the server up.*tried for 0\.5 seconds"):
                store.add(result_of(1))
        finally:
            database.start()
        assert time.monotonic() - before < 10
        store.add(result_of(1))


def test_a_table_that_stays_locked_is_an_error_in_time(tmp_path: Path, database: PostgresServer) -> None:
    with (
        closing(open_store(tmp_path, reconnect_timeout=0.3)) as store,
        closing(psycopg.connect(database.url())) as other,
    ):
        other.execute("LOCK TABLE flops_fit.results")
        with pytest.raises(StoreError, match=r"kept it locked for 0\.3 seconds"):
            store.add(result_of(1))
        other.rollback()
        store.add(result_of(1))


# ---------------------------------------------------------------------------- what a user may have got wrong


def test_the_usual_variables_lead_to_the_server(
    tmp_path: Path, database: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HOST": "127.0.0.1", "PORT": database.port, "USER": OWNER, "PASSWORD": PASSWORD}.items():
        monkeypatch.setenv(f"PG{name}", str(value))
    with closing(open_store(tmp_path, bare=True)) as store:
        store.add(result_of(1))
    assert database.query("SELECT count(*) FROM flops_fit.results") == [(1,)]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://anna:s3cret@db.example.org/scaling",
        "host=db.example.org password=s3cret",
        "postgresql://db.example.org/scaling?sslpassword=s3cret",
    ],
)
def test_a_password_in_the_experiment_file_is_refused_and_not_shown(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"leave it out and put it into PGPASSWORD, ~/\.pgpass") as caught:
        open_store(tmp_path, url=url)
    assert "s3cret" not in str(caught.value)


def test_a_password_may_come_from_a_variable(
    tmp_path: Path, database: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"host=127.0.0.1 port={database.port} user={OWNER} password='{PASSWORD}'")
    with closing(open_store(tmp_path)) as store:
        assert store.results() == []
    monkeypatch.setenv(VARIABLE, f"host=127.0.0.1 port={database.port} user={OWNER} password=wrong")
    said = fails(tmp_path)
    assert "give the right password in PGPASSWORD, ~/.pgpass or a service file" in said
    assert "=wrong" not in said


def test_what_cannot_be_a_connection_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"store\.url: not a connection string.*postgresql://USER@HOST"):
        open_store(tmp_path, url="hostt=here")
    with pytest.raises(ConfigError, match="give one of them"):
        open_store(tmp_path, url="host=here", url_variable=VARIABLE)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match=f"no environment variable {VARIABLE}: export {VARIABLE}="):
        open_store(tmp_path)


def test_each_way_not_to_get_in_says_what_to_do(tmp_path: Path, database: PostgresServer) -> None:
    nobody = f"postgresql://anna@127.0.0.1:{free_port()}/scaling"
    for url, says in {
        nobody: "is the server up, and are host and port right?",
        "postgresql://no-such-host.invalid/scaling": "look at the host's name",
        database.url("scaling"): "make it with 'createdb NAME', or name another one",
        database.url(user="anna"): "name a user that the server has",
        database.tcp_url(): "put a password into PGPASSWORD, ~/.pgpass or a service file",
    }.items():
        said = fails(tmp_path, url=url)
        assert says in said, said
        assert re.match(r"PostgreSQL .+: cannot connect: ", said)


def test_a_schema_that_an_administrator_has_made_is_used(tmp_path: Path, database: PostgresServer) -> None:
    name = f"guest_{uuid.uuid4().hex[:8]}"
    database.query(f"CREATE ROLE {name} LOGIN")
    database.query("DROP SCHEMA IF EXISTS flops_fit CASCADE")
    database.query(f"CREATE SCHEMA flops_fit AUTHORIZATION {name}")
    try:
        with closing(open_store(tmp_path, url=database.url(user=name))) as store:
            store.add(result_of(1))
            assert len(store.results()) == 1
    finally:
        database.query("DROP SCHEMA flops_fit CASCADE")
        database.query(f"DROP ROLE {name}")


@pytest.mark.parametrize("reconnect_timeout", [1e-4, 1e9])
def test_any_patience_is_one_that_the_server_takes(
    tmp_path: Path, database: PostgresServer, reconnect_timeout: float
) -> None:
    with closing(open_store(tmp_path, url=database.url(), reconnect_timeout=reconnect_timeout)) as store:
        store.add(result_of(1))
        (asked,) = store._server.do(lambda connection: connection.execute("SHOW lock_timeout").fetchone())
        assert asked != "0", "which would be for ever"


def test_missing_rights_are_named_with_what_grants_them(tmp_path: Path, database: PostgresServer) -> None:
    name = f"guest_{uuid.uuid4().hex[:8]}"
    database.query(f"CREATE ROLE {name} LOGIN")
    try:
        url = database.url(user=name)
        assert f'GRANT CREATE ON DATABASE "{OWNER}" TO "{name}"' in fails(tmp_path, url=url)
        with closing(open_store(tmp_path)) as store:
            store.add(result_of(1))
        assert f'GRANT USAGE ON SCHEMA flops_fit TO "{name}"' in fails(tmp_path, url=url)
        database.query(f"GRANT USAGE ON SCHEMA flops_fit TO {name}")
        database.query(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA flops_fit TO {name}")
        with closing(open_store(tmp_path, url=url)) as store:
            store.add(result_of(2))
            assert len(store.results()) == 2
        database.query(f"ALTER ROLE {name} SET default_transaction_read_only = on")
        with (
            closing(open_store(tmp_path, url=url)) as store,
            pytest.raises(StoreError, match="name the primary server"),
        ):
            store.add(result_of(3))
    finally:
        database.query("DROP SCHEMA IF EXISTS flops_fit CASCADE")
        database.query(f"DROP ROLE {name}")
