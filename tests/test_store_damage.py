"""Damage of ``results.sqlite``, its log and its bound is detected or harmless, and never used silently.

``pytest -m slow tests/test_store_damage.py`` flips 2,000 random bits in each file.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from damaged_stores import (
    BOUND,
    COUNT,
    DATABASE,
    INDEX,
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

from flops_fit_core import StoreError
from flops_fit_core.testing.examples import result_of
from flops_fit_stores.salvage import salvage


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A closed store, and stores of killed drivers with all, half or none of the results in the log."""
    folder = tmp_path_factory.mktemp("states")
    killed = {
        name: killed_store(folder / name, merged) for name, merged in (("all", 0), ("half", 10), ("none", COUNT))
    }
    return {"closed": closed_store(folder / "closed"), **killed}


CASES = [
    ("closed", DATABASE),
    ("closed", BOUND),
    ("half", DATABASE),
    ("half", LOG),
    ("all", LOG),
    ("half", INDEX),
]


def damage_and_read(source: Path, folder: Path, damage: Callable[[], None]) -> str:
    """Damage a copy of a store and read it: ``harmless`` or ``detected``. Fails if damage is used silently, if
    detected damage changes a file, or if a damaged store accepts a result."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    damage()
    before = content_of(folder)
    try:
        assert stored(folder) == RESULTS
        with closing(store_at(folder)) as store:
            store.add(result_of(COUNT))
        assert stored(folder) == [*RESULTS, result_of(COUNT)]
    except StoreError:
        assert content_of(folder) == before
        return "detected"
    return "harmless"


def flip_bits(state: Path, name: str, folder: Path, number: int) -> Counter[str]:
    generator, outcomes = random.Random(f"{state.name} {name}"), Counter[str]()
    size = (state / name).stat().st_size
    for _ in range(number):
        position, bit = generator.randrange(size), generator.randrange(8)
        outcome = damage_and_read(state, folder, lambda at=(position, bit): flip_bit(folder / name, *at))  # type: ignore[misc]
        outcomes[outcome] += 1
        if outcome == "detected":
            assert len(salvage(folder / DATABASE).rows) >= COUNT - 1, f"bit {bit} of byte {position}"
    return outcomes


@pytest.mark.parametrize(("state", "name"), CASES)
def test_a_flipped_bit_is_detected_or_harmless(
    state: str, name: str, states: dict[str, Path], tmp_path: Path
) -> None:
    outcomes = flip_bits(states[state], name, tmp_path / "copy", 40)
    if name in (LOG, DATABASE):
        assert outcomes["detected"]


def test_a_damaged_character_of_a_stored_text_is_detected(tmp_path: Path) -> None:
    path = closed_store(tmp_path) / DATABASE
    # A byte that is not UTF-8, in a column, in the schema, and in a message of SQLite: Python cannot decode any.
    for text in (RESULTS[2].id.encode() + b"completed", b'token" TEXT', b"claimsclaims", b"results_id_attempt"):
        before = path.read_bytes()
        flip_bit(path, before.rindex(text), 7)
        with pytest.raises(StoreError, match="damaged"):
            store_at(tmp_path)
        path.write_bytes(before)


@pytest.mark.parametrize(
    "text", [b'added" INTEGER', b"PRIMARY KEY", b'record" TEXT', b"sha256 TEXT", b"CREATE UNIQUE"]
)
@pytest.mark.parametrize("bit", [1, 2, 3])
def test_a_damaged_schema_is_detected_and_every_result_is_read(text: bytes, bit: int, tmp_path: Path) -> None:
    path = closed_store(tmp_path) / DATABASE
    content = path.read_bytes()
    flip_bit(path, content.index(text) + len(text) - 3, bit)
    with pytest.raises(StoreError, match=f"damaged: .*intact results: {COUNT}"):
        store_at(tmp_path)
    assert [row.run_id for row in salvage(path).rows] == [result.id for result in RESULTS]


@pytest.mark.slow
@pytest.mark.parametrize(("state", "name"), CASES)
def test_two_thousand_flipped_bits_are_detected_or_harmless(
    state: str, name: str, states: dict[str, Path], tmp_path: Path
) -> None:
    assert sum(flip_bits(states[state], name, tmp_path / "copy", 2000).values()) == 2000


@pytest.mark.parametrize(("state", "name"), CASES)
def test_a_truncated_file_is_detected_or_harmless(
    state: str, name: str, states: dict[str, Path], tmp_path: Path
) -> None:
    folder, size = tmp_path / "copy", (states[state] / name).stat().st_size
    lengths = [0, *(random.Random(name).randrange(size) for _ in range(15))]
    outcomes = Counter(
        damage_and_read(states[state], folder, lambda at=length: os.truncate(folder / name, at))  # type: ignore[misc]
        for length in lengths
    )
    if (state, name) in [("closed", DATABASE), ("all", LOG)]:
        assert outcomes["detected"] == len(lengths)


@pytest.mark.parametrize(
    ("state", "name", "expected"),
    [
        ("closed", DATABASE, "detected"),
        ("closed", BOUND, "harmless"),
        ("half", DATABASE, "detected"),
        ("half", LOG, "detected"),
        ("half", INDEX, "harmless"),
        ("half", BOUND, "harmless"),
        ("none", DATABASE, "detected"),
        ("none", LOG, "harmless"),
    ],
)
def test_a_deleted_file_is_detected_or_harmless(
    state: str, name: str, expected: str, states: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    assert damage_and_read(states[state], folder, lambda: (folder / name).unlink()) == expected


def test_the_error_names_damage_intact_results_and_commands(tmp_path: Path) -> None:
    result = flip_bit_of_record(closed_store(tmp_path), 3)
    with pytest.raises(StoreError) as caught:
        store_at(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / DATABASE}: damaged: run {result.id}, attempt 1: the stored result is not intact; intact "
        f"results: {COUNT - 1}. Nothing was changed. To list the damage: flops-fit store check {tmp_path}. To "
        f"keep every intact result and move the damaged file aside: flops-fit store repair {tmp_path}"
    )


def change_row(folder: Path, sql: str) -> None:
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as connection:
        assert connection.execute(sql).rowcount == 1


def test_a_result_in_the_row_of_another_run_is_detected(tmp_path: Path) -> None:
    closed_store(tmp_path)
    change_row(tmp_path, f"UPDATE results SET id = '{result_of(99).id}' WHERE added = 3")
    with pytest.raises(StoreError, match=f"run {result_of(99).id}, attempt 1: the stored result is not intact"):
        store_at(tmp_path)


def test_a_store_that_has_read_damage_accepts_no_further_result(tmp_path: Path) -> None:
    closed_store(tmp_path)
    with closing(store_at(tmp_path)) as store:
        store.add(result_of(COUNT))
        change_row(
            tmp_path, "UPDATE results SET record = replace(record, '\"loss\":', '\"loss\":1') WHERE added = 5"
        )
        with pytest.raises(StoreError, match="is not intact"):
            store.get(RESULTS[4].id)
        before = content_of(tmp_path)
        with pytest.raises(StoreError, match="is not intact"):
            store.add(result_of(99))
        assert content_of(tmp_path) == before


def test_an_index_that_lacks_a_row_is_detected(tmp_path: Path) -> None:
    path = closed_store(tmp_path) / DATABASE
    content = path.read_bytes()
    # The id occurs in the table and in the index: change it in the index, which has no record after it.
    wanted = RESULTS[7].id.encode()
    positions = [at for at in range(len(content)) if content.startswith(wanted, at)]
    in_index = [at for at in positions if b"completed" not in content[at : at + 40] and at > 4096]
    flip_bit(path, in_index[0])
    with pytest.raises(StoreError, match="damaged"):
        store_at(tmp_path)


def test_the_log_is_empty_after_every_add(tmp_path: Path) -> None:
    with closing(store_at(tmp_path)) as store:
        for result in RESULTS[:3]:
            store.claim(result.id, "anna", 60)
            store.add(result)
            assert (tmp_path / LOG).stat().st_size == 0


def test_an_add_does_not_wait_for_a_reader(tmp_path: Path) -> None:
    closed_store(tmp_path)
    with closing(store_at(tmp_path, 60)) as store:
        store.claim("run", "anna", 60)
        with closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM results").fetchone()
            store.add(result_of(COUNT))  # pytest's timeout is shorter than 60 seconds per add
            assert (tmp_path / LOG).stat().st_size > 0
        store.add(result_of(COUNT + 1))
        assert (tmp_path / LOG).stat().st_size == 0


def test_a_store_may_have_more_results_than_its_bound(tmp_path: Path) -> None:
    closed_store(tmp_path)
    bound = (tmp_path / BOUND).read_bytes()
    with closing(store_at(tmp_path)) as store:
        store.add(result_of(COUNT))
    (tmp_path / BOUND).write_bytes(bound)
    assert len(stored(tmp_path)) == COUNT + 1


def test_fewer_results_than_the_bound_are_damage(tmp_path: Path) -> None:
    closed_store(tmp_path)
    change_row(tmp_path, "DELETE FROM results WHERE added = 20")
    with pytest.raises(StoreError, match=f"1 of {COUNT} results are missing; intact results: {COUNT}|{COUNT - 1}"):
        store_at(tmp_path)


def test_a_process_opens_the_database_only_with_sqlite(tmp_path: Path) -> None:
    """Closing the file in any other way drops the locks of the process's connections to it."""
    code = """
import contextlib, sys
from pathlib import Path
from damaged_stores import RESULTS, flip_bit_of_record, store_at
from flops_fit_core import StoreError
folder = Path(sys.argv[1])
opened = []
def watch(event, arguments):
    is_file = str(arguments[0]).endswith(("results.sqlite", "-wal", "-shm")) if event == "open" else False
    if is_file and Path(arguments[0]).exists():  # a new file has no locks
        opened.append(arguments[0])
sys.addaudithook(watch)
with contextlib.closing(store_at(folder)) as store, contextlib.closing(store_at(folder)) as reader:
    for result in RESULTS:
        store.add(result)
    assert reader.results() == RESULTS
assert store_at(folder).results() == RESULTS
assert opened == []
flip_bit_of_record(folder, 3)
opened.clear()
try:
    store_at(folder)
except StoreError as error:
    assert "intact results: 19" in str(error)
else:
    sys.exit("damage was not detected")
assert opened == []
"""
    tests = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=tests)
    assert done.returncode == 0, done.stderr
