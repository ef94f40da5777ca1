"""The store ``postgres`` on a real PostgreSQL server, which the tests start and stop."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from postgres_server import OWNER, PASSWORD, PostgresServer, free_port, missing_requirement, postgres_server

from flops_fit_core import ConfigError, StoreError
from flops_fit_core.plugins import ResultStore, settle_result
from flops_fit_core.plugins.registry import installed
from flops_fit_core.testing import StoreConformance, example_result
from flops_fit_core.testing.examples import result_of
from flops_fit_core.testing.store_claims import claim_token
from flops_fit_stores import postgres
from flops_fit_stores.postgres_schema import MIGRATIONS, migrate, version

psycopg = pytest.importorskip("psycopg")
MISSING = missing_requirement()
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
    """The server with an empty database. The environment variable :data:`VARIABLE` has its url."""
    running.query("DROP SCHEMA IF EXISTS flops_fit CASCADE")
    for name in LIBPQ:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGPASSFILE", str(running.base / "no such file"))
    monkeypatch.setenv(VARIABLE, running.url())
    return running


def open_store(folder: Path, **options: Any) -> ResultStore:
    spec = installed().find("store", "stores/postgres").spec
    if not options.pop("bare", False) and "url" not in options:
        options["url_variable"] = VARIABLE
    store: ResultStore = spec.build(spec.options.model_validate(options), folder)
    return store


def error_of(folder: Path, **options: Any) -> str:
    """The message of the StoreError of a store that cannot be opened."""
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


# ---------------------------------------------------------------------------- names of studies


def test_folders_of_the_same_name_share_their_results(tmp_path: Path) -> None:
    with (
        closing(open_store(tmp_path / "a" / "small")) as first,
        closing(open_store(tmp_path / "b" / "small")) as second,
        closing(open_store(tmp_path / "other")) as other,
        closing(open_store(tmp_path / "anything", study="small")) as named,
    ):
        first.add(result_of(1))
        assert second.results() == named.results() == [result_of(1)]
        assert first.claim("run", "anna", 600)
        assert not second.claim("run", "bert", 600)
        assert other.results() == []
        assert other.claim("run", "bert", 600)


def test_the_probes_of_tune_are_not_results_of_the_study(tmp_path: Path) -> None:
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
        ((seconds,),) = database.query("SELECT extract(epoch FROM ends - now())::float FROM flops_fit.claims")
        assert 590 < seconds <= 600


# ---------------------------------------------------------------------------- tables


def test_plain_sql_queries_read_the_columns_of_a_result(tmp_path: Path, database: PostgresServer) -> None:
    result = example_result()
    with closing(open_store(tmp_path / "small")) as store:
        store.add(result)
    columns = "study, id, attempt, status, model, params, tokens, flops, loss, seed, budget, finished"
    (row,) = database.query(f"SELECT {columns} FROM flops_fit.results")
    run = result.run
    assert row[:7] == ("small", run.id, 1, "completed", "gpt/gpt", run.params, result.tokens)
    assert row[7:] == (result.flops, result.loss, run.seed, run.budget, result.finished)
    fingerprint = "SELECT record -> 'run' ->> 'fingerprint' FROM flops_fit.results"
    assert database.query(fingerprint) == [(run.fingerprint,)]


def test_a_database_of_another_encoding_keeps_every_character(tmp_path: Path, database: PostgresServer) -> None:
    database.query("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    result = example_result(params_name="Ünïcödé \U0001f600 \x00", metrics={"Größe": 1.5})
    try:
        with closing(open_store(tmp_path, url=database.url("latin"))) as store:
            store.add(result)
            assert store.results() == [result]
    finally:
        database.query("DROP DATABASE latin")


def test_the_error_names_the_run_of_an_invalid_record(tmp_path: Path, database: PostgresServer) -> None:
    with closing(open_store(tmp_path)) as store:
        store.add(result_of(1))
        database.query("UPDATE flops_fit.results SET record = replace(record::text, 'completed', 'ended')::json")
        with pytest.raises(StoreError, match=f"run {result_of(1).id}, attempt 1: status: Input should be"):
            store.results()


def test_an_older_database_is_migrated_once(tmp_path: Path, database: PostgresServer) -> None:
    def add_a_note(connection: Any) -> None:
        connection.execute("ALTER TABLE flops_fit.results ADD COLUMN note text")

    with closing(open_store(tmp_path)) as store:
        store.add(result_of(1))
    with closing(psycopg.connect(database.url(), autocommit=True)) as connection:
        migrate(connection, (*MIGRATIONS, add_a_note))
        migrate(connection, (*MIGRATIONS, add_a_note))
        assert version(connection) == len(MIGRATIONS) + 1
    assert database.query("SELECT seed, note FROM flops_fit.results") == [(1, None)]
    message = "written by a newer flops-fit: its schema is version 3, the latest supported here is 2"
    assert message in error_of(tmp_path)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, database: PostgresServer) -> None:
    def failing_migration(connection: Any) -> None:
        connection.execute("ALTER TABLE flops_fit.results ADD COLUMN note text")
        raise ZeroDivisionError

    with closing(psycopg.connect(database.url(), autocommit=True)) as connection:
        with pytest.raises(ZeroDivisionError):
            migrate(connection, (*MIGRATIONS, failing_migration))
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


# ---------------------------------------------------------------------------- lost connections


def test_a_lost_connection_is_re_established(tmp_path: Path, database: PostgresServer) -> None:
    with closing(open_store(tmp_path)) as store:
        store.add(result_of(1))
        database.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        store.add(result_of(2))
        database.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        assert store.results() == [result_of(1), result_of(2)]


def test_the_store_waits_for_a_server_that_restarts(tmp_path: Path, database: PostgresServer) -> None:
    with closing(open_store(tmp_path)) as store:
        store.add(result_of(1))
        database.stop()
        restart = threading.Timer(1.0, database.start)
        restart.start()
        try:
            store.add(result_of(2))
        finally:
            restart.join()
        assert store.results() == [result_of(1), result_of(2)]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such timeout")
def test_an_unacknowledged_statement_fails_within_half_a_minute(database: PostgresServer) -> None:
    # TCP sends no keepalives while data is unacknowledged: without this timeout, an add waits for 15 minutes.
    from flops_fit_stores.server import connection_string

    conninfo = connection_string(database.tcp_url(), None)
    with (
        closing(psycopg.connect(conninfo, password=PASSWORD)) as connection,
        socket.socket(fileno=os.dup(connection.fileno())) as wire,
    ):
        assert 0 < wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 30_000


def test_a_server_that_stays_down_is_an_error_after_the_timeout(tmp_path: Path, database: PostgresServer) -> None:
    with closing(open_store(tmp_path, reconnect_timeout=0.5)) as store:
        database.stop()
        before = time.monotonic()
        try:
            with pytest.raises(StoreError, match=r"is the server running.*tried for 0\.5 seconds"):
                store.add(result_of(1))
        finally:
            database.start()
        assert time.monotonic() - before < 10
        store.add(result_of(1))


def test_a_table_that_stays_locked_is_an_error_after_the_timeout(tmp_path: Path, database: PostgresServer) -> None:
    with (
        closing(open_store(tmp_path, reconnect_timeout=0.3)) as store,
        closing(psycopg.connect(database.url())) as other,
    ):
        other.execute("LOCK TABLE flops_fit.results")
        with pytest.raises(StoreError, match=r"locked by another process for 0\.3 seconds"):
            store.add(result_of(1))
        other.rollback()
        store.add(result_of(1))


# ---------------------------------------------------------------------------- tokens and lost connections


class CuttingProxy:
    """Forwards TCP to the server. Cuts the first connection that sends a text, before or after its answer."""

    def __init__(self, port: int, cut_at: bytes, *, answered: bool) -> None:
        self._port, self._cut_at, self._answered = port, cut_at, answered
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._forward, args=[client, server], daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            while True:
                ready, _, _ = select.select([client, server], [], [])
                for source, target in ((client, server), (server, client)):
                    if source not in ready:
                        continue
                    data = source.recv(65536)
                    if source is client and self._cut_at in data and not self.cuts:
                        self.cuts += 1
                        if self._answered:
                            server.sendall(data)
                            server.recv(65536)
                        return
                    if not data:
                        return
                    target.sendall(data)


@pytest.mark.parametrize("cut_at", [b"BEGIN", b"pg_advisory", b"INSERT INTO flops_fit.results", b"COMMIT"])
@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("stale", [False, True])
def test_a_cut_connection_neither_loses_nor_repeats_nor_supersedes_a_result(
    tmp_path: Path,
    database: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    cut_at: bytes,
    answered: bool,
    stale: bool,
) -> None:
    proxy = CuttingProxy(database.port, cut_at, answered=answered)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    url = f"host=127.0.0.1 port={proxy.port} user={OWNER} dbname={OWNER} sslmode=disable gssencmode=disable"
    with closing(open_store(tmp_path)) as other, closing(open_store(tmp_path, url=url)) as store:
        proxy.cuts = 0
        result = result_of(1)
        token = claim_token(store, result.id, "anna", 0.01)
        if stale:
            time.sleep(0.05)
            claim_token(other, result.id, "bert")
        assert store.add(result, token) == result
        assert proxy.cuts == 1
        assert other.attempts(result.id) == [result]
        assert other.get(result.id) == result
        assert other.renew(result.id, "bert", 600) is False
    proxy.close()


def test_a_killed_server_neither_loses_nor_repeats_a_result(tmp_path: Path, database: PostgresServer) -> None:
    with closing(open_store(tmp_path)) as store:
        tokens = {seed: claim_token(store, result_of(seed).id, "anna") for seed in range(40)}

        def kill_twice() -> None:
            for _ in range(2):
                time.sleep(0.05)
                database.kill()
                database.start()

        killer = threading.Thread(target=kill_twice)
        killer.start()
        stored = []
        for seed, token in tokens.items():
            stored.append(store.add(result_of(seed), token))
            time.sleep(0.01)
        killer.join()
        assert stored == [result_of(seed) for seed in tokens]
        assert store.all_attempts() == stored
        assert all(store.renew(result.id, "anna", 600) for result in stored)


@pytest.mark.parametrize("result_of_other", [False, True])
def test_a_frozen_statement_ends_as_superseded_after_another_driver_has_finished(
    tmp_path: Path, database: PostgresServer, result_of_other: bool
) -> None:
    late, accepted = result_of(1, loss=1.5), result_of(1, loss=1.25)
    stored: list[Any] = []
    with closing(open_store(tmp_path)) as store, closing(open_store(tmp_path)) as other:
        token = claim_token(store, late.id, "anna", 0.2)
        backend = store._server.retry(lambda connection: connection.info.backend_pid)  # type: ignore[attr-defined]
        os.kill(backend, signal.SIGSTOP)
        adding = threading.Thread(target=lambda: stored.append(store.add(late, token)))
        try:
            adding.start()
            time.sleep(0.4)
            token = claim_token(other, late.id, "bert")
            if result_of_other:
                assert other.add(accepted, token) == accepted
        finally:
            os.kill(backend, signal.SIGCONT)
        adding.join()
        assert [result.superseded for result in stored] == [result_of_other]
        assert other.get(late.id) == (accepted if result_of_other else late)
        assert other.renew(late.id, "bert", 600) is result_of_other


def test_a_driver_that_is_paused_within_a_transaction_does_not_block_other_drivers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, accepted = result_of(1, loss=1.5), result_of(1, loss=1.25)
    paused, continued, stored = threading.Event(), threading.Event(), []

    def pause_once(*arguments: Any, **options: Any) -> Any:
        if not paused.is_set():
            paused.set()
            assert continued.wait(30)
        return settle_result(*arguments, **options)

    with (
        closing(open_store(tmp_path, reconnect_timeout=2.0)) as store,
        closing(open_store(tmp_path, reconnect_timeout=10.0)) as other,
    ):
        token = claim_token(store, late.id, "anna", 0.1)
        monkeypatch.setattr(postgres, "settle_result", pause_once)
        adding = threading.Thread(target=lambda: stored.append(store.add(late, token)))
        adding.start()
        assert paused.wait(10)
        assert other.add(accepted, claim_token(other, late.id, "bert")) == accepted
        continued.set()
        adding.join()
        assert [result.superseded for result in stored] == [True]
        assert other.results() == [accepted]


def test_concurrent_results_of_one_run_without_a_claim_count_once(tmp_path: Path) -> None:
    stored: list[Any] = []

    def add(run: int, number: int) -> None:
        with closing(open_store(tmp_path)) as store:
            barrier.wait()
            stored.append(store.add(result_of(run, loss=1.0 + number), f"no token {number}"))

    with closing(open_store(tmp_path)) as store:
        for run in range(5):
            barrier = threading.Barrier(6)
            stored.clear()
            threads = [threading.Thread(target=add, args=[run, number]) for number in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(result.superseded for result in stored) == [False] + [True] * 5
            assert [result.attempt for result in store.attempts(result_of(run).id)] == [1, 2, 3, 4, 5, 6]
            assert store.get(result_of(run).id) in stored


def test_a_study_of_the_first_schema_continues(tmp_path: Path, database: PostgresServer) -> None:
    with closing(psycopg.connect(database.url(), autocommit=True)) as connection:
        migrate(connection, MIGRATIONS[:1])
        for seed in range(3):
            result = result_of(seed)
            record = result.model_dump_json(exclude={"superseded"})
            connection.execute(
                "INSERT INTO flops_fit.results (study, id, attempt, status, record) "
                "VALUES (%s, %s, 1, 'completed', %s)",
                [tmp_path.name, result.id, record],
            )
        claim = "INSERT INTO flops_fit.claims VALUES (%s, 'run', 'anna', clock_timestamp() + interval '1 s')"
        connection.execute(claim, [tmp_path.name])
    with closing(open_store(tmp_path)) as store:
        assert store.results() == [result_of(seed) for seed in range(3)]
        assert not store.claim("run", "bert", 600)
        time.sleep(1)
        assert isinstance(store.claim("run", "bert", 600), str)
        store.add(result_of(3))
    assert database.query("SELECT superseded FROM flops_fit.results") == [(False,)] * 4
    # A driver of the first version stops, because it would take over claims without a new token.
    with pytest.raises(psycopg.errors.UndefinedColumn):
        database.query("UPDATE flops_fit.claims SET until = now()")


# ---------------------------------------------------------------------------- connection settings


def test_libpqs_environment_variables_select_the_server(
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
    with pytest.raises(ConfigError, match=r"remove it and put it into PGPASSWORD, ~/\.pgpass") as caught:
        open_store(tmp_path, url=url)
    assert "s3cret" not in str(caught.value)


def test_a_password_may_come_from_a_variable(
    tmp_path: Path, database: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"host=127.0.0.1 port={database.port} user={OWNER} password='{PASSWORD}'")
    with closing(open_store(tmp_path)) as store:
        assert store.results() == []
    monkeypatch.setenv(VARIABLE, f"host=127.0.0.1 port={database.port} user={OWNER} password=wrong")
    message = error_of(tmp_path)
    assert "put the correct password into PGPASSWORD, ~/.pgpass or a service file" in message
    assert "=wrong" not in message


def test_an_invalid_connection_setting_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError, match=r"store\.url: not a PostgreSQL connection string.*postgresql://USER@HOST"
    ):
        open_store(tmp_path, url="hostt=here")
    with pytest.raises(ConfigError, match="write only one of them"):
        open_store(tmp_path, url="host=here", url_variable=VARIABLE)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match=f"environment variable {VARIABLE} is not set: export {VARIABLE}="):
        open_store(tmp_path)


def test_each_failed_connection_has_a_hint(tmp_path: Path, database: PostgresServer) -> None:
    unused_port = f"postgresql://anna@127.0.0.1:{free_port()}/scaling"
    for url, hint in {
        unused_port: "is the server running, and are host and port correct?",
        "postgresql://no-such-host.invalid/scaling": "check the name of the host",
        database.url("scaling"): "create it with 'createdb NAME', or name another database",
        database.url(user="anna"): "name an existing user with user=... or PGUSER",
        database.tcp_url(): "put a password into PGPASSWORD, ~/.pgpass or a service file",
    }.items():
        message = error_of(tmp_path, url=url)
        assert hint in message, message
        assert re.match(r"PostgreSQL .+: cannot connect: ", message)


def test_a_schema_that_an_administrator_has_created_is_used(tmp_path: Path, database: PostgresServer) -> None:
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
def test_the_server_accepts_very_short_and_very_long_timeouts(
    tmp_path: Path, database: PostgresServer, reconnect_timeout: float
) -> None:
    with closing(open_store(tmp_path, url=database.url(), reconnect_timeout=reconnect_timeout)) as store:
        store.add(result_of(1))
        (timeout,) = store._server.retry(lambda connection: connection.execute("SHOW lock_timeout").fetchone())
        assert timeout != "0", "0 disables the timeout"


def test_the_error_for_a_missing_privilege_contains_the_grant_statement(
    tmp_path: Path, database: PostgresServer
) -> None:
    name = f"guest_{uuid.uuid4().hex[:8]}"
    database.query(f"CREATE ROLE {name} LOGIN")
    try:
        url = database.url(user=name)
        assert f'GRANT CREATE ON DATABASE "{OWNER}" TO "{name}"' in error_of(tmp_path, url=url)
        with closing(open_store(tmp_path)) as store:
            store.add(result_of(1))
        assert f'GRANT USAGE ON SCHEMA flops_fit TO "{name}"' in error_of(tmp_path, url=url)
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


def test_the_error_for_tables_that_only_their_owner_can_migrate_states_this(
    tmp_path: Path, database: PostgresServer
) -> None:
    name = f"guest_{uuid.uuid4().hex[:8]}"
    database.query(f"CREATE ROLE {name} LOGIN")
    try:
        with closing(psycopg.connect(database.url(), autocommit=True)) as connection:
            migrate(connection, MIGRATIONS[:1])
        database.query(f"GRANT USAGE ON SCHEMA flops_fit TO {name}")
        database.query(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA flops_fit TO {name}")
        message = error_of(tmp_path, url=database.url(user=name))
        assert "only their owner can migrate them (must be owner of table results)" in message
        assert "Ask the owner to type 'flops-fit status STUDY' once with this version" in message
    finally:
        database.query("DROP SCHEMA IF EXISTS flops_fit CASCADE")
        database.query(f"DROP ROLE {name}")
