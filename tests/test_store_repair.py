"""Check and repair of the stores in a file."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from damaged_stores import (
    BOUND,
    COUNT,
    DATABASE,
    LOG,
    RESULTS,
    closed_store,
    content_of,
    flip_bit,
    flip_bit_of_record,
    killed_store,
    store_at,
    stored,
)
from test_stores import filled, newer_version, other_json

from flops_fit_core import StoreError
from flops_fit_core.plugins import FileFinding, StoreRepair
from flops_fit_core.plugins.registry import installed
from flops_fit_stores.sqlite_repair import check, repair


def states(folder: Path) -> dict[str, str]:
    return {finding.file: finding.state for finding in check(folder / DATABASE, 5)}


def test_check_names_the_damaged_result_and_changes_nothing(tmp_path: Path) -> None:
    damaged = flip_bit_of_record(closed_store(tmp_path), 3)
    before = content_of(tmp_path)
    database, bound = check(tmp_path / DATABASE, 5)
    assert database.state == "damaged"
    assert damaged.id in database.text
    assert f"store repair {tmp_path} keeps the {COUNT - 1} intact results" in database.advice
    assert bound == FileFinding(file=BOUND, state="intact", text=f"at least {COUNT} results were stored")
    assert content_of(tmp_path) == before


def test_check_of_a_folder_without_a_store_has_no_findings(tmp_path: Path) -> None:
    assert check(tmp_path / DATABASE, 5) == []


def test_repair_keeps_every_intact_result_and_moves_the_damaged_file(tmp_path: Path) -> None:
    damaged = flip_bit_of_record(closed_store(tmp_path), 3)
    before = (tmp_path / DATABASE).read_bytes()
    outcome = repair(tmp_path / DATABASE, 5)
    assert (outcome.kept, outcome.lost) == (COUNT - 1, (f"run {damaged.id}, attempt 1",))
    assert (tmp_path / outcome.moved[0]).read_bytes() == before
    assert stored(tmp_path) == [result for result in RESULTS if result != damaged]
    assert states(tmp_path) == {DATABASE: "intact", BOUND: "intact"}
    with closing(store_at(tmp_path)) as store:
        store.add(damaged)
    assert len(stored(tmp_path)) == COUNT


def test_two_repairs_keep_both_damaged_files(tmp_path: Path) -> None:
    closed_store(tmp_path)
    moved = []
    for index in (3, 4):
        flip_bit_of_record(tmp_path, index)
        moved += repair(tmp_path / DATABASE, 5).moved
    assert len(set(moved)) == 4
    assert all((tmp_path / name).exists() for name in moved)
    assert len(stored(tmp_path)) == COUNT - 2


def test_results_behind_a_damaged_part_of_the_log_are_kept(tmp_path: Path) -> None:
    killed_store(tmp_path, merged=5)
    flip_bit(tmp_path / LOG, 40)
    with pytest.raises(StoreError, match=f"{COUNT - 5} of {COUNT} results are missing; intact results: {COUNT}"):
        store_at(tmp_path)
    assert repair(tmp_path / DATABASE, 5).kept == COUNT
    assert stored(tmp_path) == RESULTS


@pytest.mark.parametrize("name", ["results", "results_id_attempt", "claims"])
def test_results_below_a_damaged_root_page_are_kept(name: str, tmp_path: Path) -> None:
    """The roots of the table, its index and the claims; rows of results are on other pages."""
    closed_store(tmp_path)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [name]).fetchone()
    with (tmp_path / DATABASE).open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))
    assert repair(tmp_path / DATABASE, 5).kept == COUNT
    assert stored(tmp_path) == RESULTS


def test_a_damaged_result_before_a_damaged_page_is_not_kept(tmp_path: Path) -> None:
    """SQLite reads the rows up to the damaged page. They are compared with their checksums all the same."""
    damaged = flip_bit_of_record(closed_store(tmp_path), 1)
    content = (tmp_path / DATABASE).read_bytes()
    page = content.index(RESULTS[-1].id.encode() + b"completed") // 4096
    with (tmp_path / DATABASE).open("r+b") as file:
        file.seek(page * 4096)
        file.write(b"\xff" * 200)
    outcome = repair(tmp_path / DATABASE, 5)
    assert f"run {damaged.id}, attempt 1" in outcome.lost
    assert [result for result in RESULTS if result in stored(tmp_path)] == stored(tmp_path)


def test_results_in_the_log_of_a_deleted_database_are_kept(tmp_path: Path) -> None:
    killed_store(tmp_path, merged=0)
    (tmp_path / DATABASE).unlink()
    assert states(tmp_path)[DATABASE] == "damaged"
    assert repair(tmp_path / DATABASE, 5).kept == COUNT
    assert stored(tmp_path) == RESULTS


def test_a_damaged_bound_is_written_again(tmp_path: Path) -> None:
    closed_store(tmp_path)
    (tmp_path / BOUND).write_text("many")
    with pytest.raises(
        StoreError,
        match=r"results\.sqlite: damaged: results\.sqlite\.count: both counts are damaged; intact results: 20",
    ):
        store_at(tmp_path)
    assert states(tmp_path) == {DATABASE: "damaged", BOUND: "damaged"}
    assert repair(tmp_path / DATABASE, 5).kept == COUNT
    assert states(tmp_path) == {DATABASE: "intact", BOUND: "intact"}


def test_columns_that_differ_from_their_record_are_written_again(tmp_path: Path) -> None:
    closed_store(tmp_path)
    with closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as connection:
        connection.execute("UPDATE results SET loss = 9, model = 'other' WHERE added = 4")
    assert stored(tmp_path) == RESULTS
    database, _ = check(tmp_path / DATABASE, 5)
    assert f"model, loss of run {RESULTS[3].id}, attempt 1" in database.text
    assert repair(tmp_path / DATABASE, 5) == StoreRepair(kept=COUNT, moved=repair_names(tmp_path))
    assert states(tmp_path) == {DATABASE: "intact", BOUND: "intact"}


def repair_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if ".damaged-" in path.name))


def newer_schema(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def other_database(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE photos (id)")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [(newer_schema, "newer flops-fit"), (other_database, "another program"), (a_folder, "not a file")],
)
def test_a_file_that_is_not_ours_is_neither_damaged_nor_repaired(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    closed_store(tmp_path)
    change(tmp_path / DATABASE)
    before = content_of(tmp_path)
    database, _ = check(tmp_path / DATABASE, 5)
    assert (database.state, database.advice) == ("unchecked", "")
    assert message in database.text
    with pytest.raises(StoreError, match=message):
        repair(tmp_path / DATABASE, 5)
    assert {name: content for name, content in content_of(tmp_path).items() if "lock" not in name} == before


@pytest.mark.parametrize(("position", "bit"), [(63, 2), (63, 5), (62, 0), (68, 7), (71, 0)])
def test_a_flipped_bit_of_the_schema_version_or_the_application_id_is_repaired(
    position: int, bit: int, tmp_path: Path
) -> None:
    """The bytes 60 to 63 and 68 to 71 of the header of a database (https://sqlite.org/fileformat2.html)."""
    flip_bit(closed_store(tmp_path) / DATABASE, position, bit)
    assert states(tmp_path)[DATABASE] == "damaged"
    assert repair(tmp_path / DATABASE, 5).kept == COUNT
    assert stored(tmp_path) == RESULTS


@pytest.mark.parametrize("column", ["id", "attempt", "sha256"])
def test_an_intact_record_with_a_damaged_key_is_kept(column: str, tmp_path: Path) -> None:
    closed_store(tmp_path)
    changes = {"id": "'0' || substr(id, 2)", "attempt": "9", "sha256": "'00' || substr(sha256, 3)"}
    with closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as connection:
        connection.execute(f"UPDATE results SET {column} = {changes[column]} WHERE added = 4")
    assert states(tmp_path)[DATABASE] == "damaged"
    assert repair(tmp_path / DATABASE, 5).kept == COUNT
    assert stored(tmp_path) == RESULTS


def repair_until_step(path: Path, step: int) -> bool:
    """Repair in a child process that ends at this call of a function that changes files. Returns whether the
    repair ended before."""
    child = os.fork()
    if child == 0:
        calls = 0

        def count(original: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == step:
                    os._exit(9)
                return original(*args, **kwargs)

            return counted

        for name in ("rename", "replace", "unlink", "fsync"):
            setattr(os, name, count(getattr(os, name)))
        try:
            repair(path, 5)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9)
    return code == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_repair_that_was_interrupted_at_any_step_is_completed_by_the_next(tmp_path: Path) -> None:
    source = killed_store(tmp_path / "source", merged=5)
    damaged = flip_bit_of_record(source, 1)
    flip_bit(source / LOG, 40)
    expected = [result for result in RESULTS if result != damaged]
    ended, step = False, 0
    while not ended:
        step += 1
        folder = Path(shutil.copytree(source, tmp_path / f"step-{step}"))
        ended = repair_until_step(folder / DATABASE, step)
        if not ended:
            with contextlib.suppress(StoreError):  # raised until the repair is complete
                assert stored(folder) == expected
            assert (folder / "results.sqlite.repair").exists() == (
                check(folder / DATABASE, 5)[0].advice == f"flops-fit store repair {folder} completes it"
            )
        repair(folder / DATABASE, 5)
        assert stored(folder) == expected, f"step {step}"
        contents = [file.read_bytes() for file in folder.iterdir()]
        assert (source / DATABASE).read_bytes() in contents, f"step {step}: the damaged file is gone"
        assert (source / LOG).read_bytes() in contents, f"step {step}: the damaged log is gone"
    assert step > 8


@pytest.mark.parametrize("name", ["results.json", "results.json.count"])
def test_a_damaged_json_store_is_checked_and_repaired(name: str, tmp_path: Path) -> None:
    spec = installed().find("store", "stores/json").spec
    with closing(spec.build(spec.options(), tmp_path)) as store:
        for result in RESULTS:
            store.add(result)
    assert [finding.state for finding in spec.check(spec.options(), tmp_path)] == ["intact", "intact"]
    content = (tmp_path / name).read_text()
    (tmp_path / name).write_text(
        content.replace('"loss": 2.', '"loss": 3.', 1) if name == "results.json" else "many"
    )
    damaged = (tmp_path / name).read_bytes()
    findings = {finding.file: finding for finding in spec.check(spec.options(), tmp_path)}
    assert findings[name].state == "damaged"
    assert "flops-fit store repair" in findings[name].advice
    outcome = spec.repair(spec.options(), tmp_path)
    assert outcome.kept == COUNT - (name == "results.json")
    assert damaged in [(tmp_path / moved).read_bytes() for moved in outcome.moved]
    assert {finding.state for finding in spec.check(spec.options(), tmp_path)} == {"intact"}
    with closing(spec.build(spec.options(), tmp_path)) as store:
        assert len(store.results()) == outcome.kept


@pytest.mark.parametrize(
    ("change", "message"), [(newer_version, "newer flops-fit"), (other_json, "another program")]
)
def test_a_json_file_that_is_not_ours_is_neither_damaged_nor_repaired(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = filled("json", tmp_path)
    change(path)
    before = content_of(tmp_path)
    spec = installed().find("store", "stores/json").spec
    (finding,) = spec.check(spec.options(), tmp_path)
    assert (finding.state, finding.advice) == ("unchecked", "")
    assert message in finding.text
    with pytest.raises(StoreError, match=message):
        spec.repair(spec.options(), tmp_path)
    assert content_of(tmp_path) == before
