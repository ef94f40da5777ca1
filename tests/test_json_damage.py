"""Damage of ``results.json``, its log and its bound is detected or harmless, and never used silently."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from test_json_store import killed_store
from test_stores import open_store

from flops_fit_core import RunResult, StoreError
from flops_fit_core.testing.examples import result_of
from flops_fit_stores.checksums import digest
from flops_fit_stores.json_check import read_records, write_records

NAMES = ("results.json", "results.log.jsonl", "results.json.count")


def outcome(folder: Path, expected: list[RunResult]) -> str:
    """``detected``, ``harmless`` or ``silent`` for a store that was damaged."""
    try:
        with closing(open_store("json", folder)) as store:
            return "harmless" if store.results() == expected else "silent"
    except StoreError as error:
        assert "flops-fit store repair" in str(error) or "flops-fit store check" not in str(error)
        return "detected"


def flips_of(folder: Path, name: str, trials: int) -> Counter[str]:
    """Outcomes of random single flipped bits in a file of a killed driver."""
    study, generator = folder / "study", random.Random(name)
    study.mkdir()
    expected = killed_store(study)
    content, outcomes = (study / name).read_bytes(), Counter[str]()
    for _ in range(trials):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        (study / name).write_bytes(damaged)
        outcomes[outcome(study, expected)] += 1
    (study / name).write_bytes(content)
    assert outcome(study, expected) == "harmless"
    return outcomes


@pytest.mark.parametrize("name", NAMES)
def test_no_flipped_bit_changes_results_silently(name: str, tmp_path: Path) -> None:
    assert flips_of(tmp_path, name, trials=150)["silent"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_none_of_two_thousand_flipped_bits_changes_results_silently(name: str, tmp_path: Path) -> None:
    assert flips_of(tmp_path, name, trials=2000)["silent"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_no_truncation_loses_results_silently(name: str, tmp_path: Path) -> None:
    expected = killed_store(tmp_path)
    content = (tmp_path / name).read_bytes()
    lengths = {*range(0, len(content), max(1, len(content) // 60)), len(content) - 1, len(content) - 2}
    outcomes = Counter[str]()
    for length in lengths:
        (tmp_path / name).write_bytes(content[:length])
        outcomes[outcome(tmp_path, expected)] += 1
    assert outcomes["silent"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_no_deleted_file_loses_results_silently(name: str, tmp_path: Path) -> None:
    expected = killed_store(tmp_path)
    (tmp_path / name).unlink()
    # Without the lower bound, every result is still present.
    assert outcome(tmp_path, expected) == ("harmless" if name.endswith("count") else "detected")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("results.json", '"loss": 2.345678901234568', '"loss": 2.345678901234567'),
        ("results.log.jsonl", '"loss":2.345678901234568', '"loss":2.345678901234567'),
    ],
)
def test_damage_is_an_error_that_states_what_is_intact_and_what_to_do(
    name: str, old: str, new: str, tmp_path: Path
) -> None:
    killed_store(tmp_path)
    path = tmp_path / name
    path.write_text(path.read_text().replace(old, new, 1))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(StoreError) as caught:
        open_store("json", tmp_path)
    message = str(caught.value)
    assert "intact results: 11. Nothing was changed" in message
    assert f"flops-fit store check {tmp_path}" in message
    assert f"flops-fit store repair {tmp_path}" in message
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_store_that_is_damaged_while_in_use_is_not_written_to(tmp_path: Path) -> None:
    store = open_store("json", tmp_path)
    for seed in range(3):
        store.add(result_of(seed))
    log = tmp_path / "results.log.jsonl"
    os.truncate(log, log.stat().st_size - 100)
    before = log.read_bytes()
    with pytest.raises(StoreError, match="lines are missing that were read before"):
        store.add(result_of(3))
    assert log.read_bytes() == before
    with pytest.raises(StoreError, match="2 results, but 3 were stored"):
        open_store("json", tmp_path)
    assert log.read_bytes() == before


@pytest.mark.parametrize("name", NAMES[:2])
def test_every_intact_record_of_a_damaged_store_is_read(name: str, tmp_path: Path) -> None:
    expected, generator = killed_store(tmp_path), random.Random(1)
    content = (tmp_path / name).read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        (tmp_path / name).write_bytes(damaged)
        intact, damage = read_records(tmp_path / "results.json")
        assert len(intact) >= len(expected) - 1
        assert [result for result in expected if result in intact] == intact
        assert damage
        assert all(place.reason for place in damage)


def test_a_new_store_is_written_with_the_intact_records(tmp_path: Path) -> None:
    expected = killed_store(tmp_path)
    path = tmp_path / "results.json"
    text = path.read_text().replace('"loss": 2.345678901234568', '"loss": 1.5', 1)
    path.write_text(f"[{text}")
    for name in NAMES:
        shutil.copy(tmp_path / name, tmp_path / f"{name}.copy")
    intact, damage = read_records(path)
    assert intact == expected[1:]
    assert [place.reason for place in damage][1:] == [
        "its checksum does not match",
        "11 results are intact, but 12 were stored",
    ]
    write_records(path, intact)
    assert read_records(path) == (intact, [])
    with closing(open_store("json", tmp_path)) as store:
        assert store.results() == intact
        store.add(expected[0])
        assert len(store.results()) == 12


def test_undecodable_bytes_are_damage(tmp_path: Path) -> None:
    killed_store(tmp_path)
    for name in NAMES:
        content = (tmp_path / name).read_bytes()
        for bad in (b"\xff" * len(content), b"[" * 100_000):
            (tmp_path / name).write_bytes(bad)
            with pytest.raises(StoreError, match="damaged"):
                open_store("json", tmp_path)
            read_records(tmp_path / "results.json")
        (tmp_path / name).write_bytes(content)


def test_the_records_of_a_newer_version_are_not_taken_for_damage(tmp_path: Path) -> None:
    killed_store(tmp_path)
    path = tmp_path / "results.json"
    data = json.loads(path.read_text())
    newer = {**{name: data[name] for name in ("format", "writes", "log")}, "version": 3, "new field": 1}
    newer["sha256"] = digest({**newer, "results": [record["sha256"] for record in data["results"]]})
    path.write_text(json.dumps({**newer, "results": data["results"]}))
    with pytest.raises(StoreError, match=r"written by a newer flops-fit: its version is 3"):
        read_records(path)
