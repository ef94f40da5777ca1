"""Claims of the stores in a file: leases end without a comparison of two clocks, and tokens survive migrations."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database
from test_stores import FILES, in_another_python, open_store, query

from flops_fit_core.plugins import ResultStore
from flops_fit_core.testing.examples import result_of
from flops_fit_stores import lease_clock
from flops_fit_stores.leases import UNKNOWN_SECONDS
from flops_fit_stores.sqlite_schema import MIGRATIONS, migrate

SwitchMachine = Callable[[str, float], None]


@pytest.fixture
def switch_machine(monkeypatch: pytest.MonkeyPatch) -> SwitchMachine:
    """A function that sets the machine and the time since its start."""

    def switch(name: str, now: float) -> None:
        monkeypatch.setattr(lease_clock, "machine", lambda: name)
        monkeypatch.setattr(lease_clock, "now", lambda: now)

    return switch


@pytest.fixture(params=FILES)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[ResultStore, ResultStore]]:
    """The same store, opened by two drivers."""
    with (
        closing(open_store(request.param, tmp_path)) as anna,
        closing(open_store(request.param, tmp_path)) as bert,
    ):
        yield anna, bert


def test_a_claim_on_this_machine_ends_by_its_clock(
    stores: tuple[ResultStore, ResultStore], switch_machine: SwitchMachine
) -> None:
    anna, bert = stores
    switch_machine("a machine", 1000.0)
    assert anna.claim("run", "anna", 60)
    switch_machine("a machine", 1059.9)
    assert not bert.claim("run", "bert", 60)
    switch_machine("a machine", 1060.1)
    assert bert.claim("run", "bert", 60)
    assert not anna.renew("run", "anna", 60)


@pytest.mark.parametrize("theirs", [5.0, 1000.0, 5_000_000.0])
def test_another_machine_takes_over_a_claim_that_is_not_renewed_for_its_duration(
    theirs: float, stores: tuple[ResultStore, ResultStore], switch_machine: SwitchMachine
) -> None:
    anna, bert = stores
    switch_machine("a machine", 1000.0)
    assert anna.claim("run", "anna", 60)
    switch_machine("another machine", theirs)
    assert not bert.claim("run", "bert", 60)
    switch_machine("another machine", theirs + 59)
    assert not bert.claim("run", "bert", 60)
    switch_machine("another machine", theirs + 60)
    assert bert.claim("run", "bert", 60)
    switch_machine("a machine", 1060.0)
    assert not anna.renew("run", "anna", 60)


def test_another_machine_waits_as_long_as_a_claim_is_renewed(
    stores: tuple[ResultStore, ResultStore], switch_machine: SwitchMachine
) -> None:
    anna, bert = stores
    switch_machine("a machine", 1000.0)
    assert anna.claim("run", "anna", 60)
    for minute in range(10):
        switch_machine("another machine", 7.0 + 45 * minute)
        assert not bert.claim("run", "bert", 60)
        switch_machine("a machine", 1000.0 + 45 * minute)
        assert anna.renew("run", "anna", 60)
    switch_machine("another machine", 7.0 + 45 * 10)
    assert not bert.claim("run", "bert", 60)
    switch_machine("another machine", 7.0 + 45 * 10 + 61)
    assert bert.claim("run", "bert", 60)


def test_a_new_claim_of_the_same_owner_is_observed_from_its_start(
    stores: tuple[ResultStore, ResultStore], switch_machine: SwitchMachine
) -> None:
    anna, bert = stores
    switch_machine("a machine", 1000.0)
    assert anna.claim("run", "anna", 60)
    switch_machine("another machine", 7.0)
    assert not bert.claim("run", "bert", 60)
    switch_machine("a machine", 1050.0)
    anna.release("run", "anna")
    assert anna.claim("run", "anna", 60)
    switch_machine("another machine", 68.0)
    assert not bert.claim("run", "bert", 60)


def test_a_restarted_machine_is_another_machine(
    stores: tuple[ResultStore, ResultStore], switch_machine: SwitchMachine
) -> None:
    anna, bert = stores
    switch_machine("first start", 1_000_000.0)
    assert anna.claim("run", "anna", 60)
    switch_machine("second start", 20.0)
    assert not bert.claim("run", "bert", 60)
    switch_machine("second start", 80.0)
    assert bert.claim("run", "bert", 60)


def test_a_damaged_end_blocks_a_run_for_the_duration_of_the_lease_only(
    tmp_path: Path, switch_machine: SwitchMachine
) -> None:
    with closing(open_store("sqlite", tmp_path)) as store:
        switch_machine("a machine", 1000.0)
        assert store.claim("run", "anna", 60)
        assert store.claim("another run", "anna", 60)
        query(tmp_path / "results.sqlite", "UPDATE claims SET \"end\" = 1e300 WHERE id = 'run'")
        query(tmp_path / "results.sqlite", "UPDATE claims SET seconds = x'00' WHERE id = 'another run'")
        for run_id in ("run", "another run"):
            assert not store.claim(run_id, "bert", 60)
        switch_machine("a machine", 1061.0)
        for run_id in ("run", "another run"):
            assert store.claim(run_id, "bert", 60)


def test_processes_of_a_machine_have_the_same_machine_and_clock() -> None:
    code = "from flops_fit_stores import lease_clock; print(lease_clock.machine()); print(lease_clock.now())"
    before = lease_clock.now()
    machine, now = in_another_python(code).stdout.splitlines()
    assert machine == lease_clock.machine()
    assert before < float(now) < lease_clock.now()


def test_without_a_boot_id_every_process_is_another_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lease_clock, "_BOOT_ID", tmp_path / "missing")
    first, second = (lease_clock.machine.__wrapped__() for _ in range(2))
    assert first != second


def test_a_study_of_the_first_schema_continues(tmp_path: Path, switch_machine: SwitchMachine) -> None:
    path = tmp_path / "results.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(Database(connection), MIGRATIONS[:1])
        for seed in range(3):
            result = result_of(seed)
            record = result.model_dump_json(exclude={"superseded"})
            values = (result.id, 1, "completed", record)
            connection.execute("INSERT INTO results (id, attempt, status, record) VALUES (?, ?, ?, ?)", values)
        connection.execute("INSERT INTO claims VALUES ('run', 'anna', 9e9)")
    switch_machine("a machine", 1000.0)
    with closing(open_store("sqlite", tmp_path)) as store:
        assert store.results() == [result_of(seed) for seed in range(3)]
        store.add(result_of(3))
        assert not store.claim("run", "bert", 60)
        switch_machine("a machine", 1000.0 + UNKNOWN_SECONDS)
        token = store.claim("run", "bert", 60)
        assert isinstance(token, str)
    assert query(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert query(path, "SELECT superseded FROM results") == [(0,)] * 4


def test_sql_queries_can_leave_out_superseded_attempts(tmp_path: Path) -> None:
    with closing(open_store("sqlite", tmp_path)) as store:
        store.add(result_of(1))
        store.add(result_of(1, loss=1.5), "no token")
    assert query(tmp_path / "results.sqlite", "SELECT attempt, superseded FROM results") == [(1, 0), (2, 1)]
