"""The files of the ``json`` store: results, log, lower bound and claims."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from test_stores import in_another_python, open_store

from flops_fit_core import RunResult, StoreError
from flops_fit_core.testing.examples import result_of
from flops_fit_stores import json_records, lease_clock
from flops_fit_stores.checksums import digest
from flops_fit_stores.json_check import read_records, write_records
from flops_fit_stores.json_file import JsonStore
from flops_fit_stores.json_records import record_of
from flops_fit_stores.leases import UNKNOWN_SECONDS

NAMES = ("results.json", "results.log.jsonl", "results.json.count")


def killed_store(folder: Path, in_file: int = 6, in_log: int = 6) -> list[RunResult]:
    """A store of a killed driver with results in ``results.json`` and others in the log. Returns the results."""
    code = (
        "import os, sys; from pathlib import Path; from flops_fit_core.testing.examples import result_of\n"
        "from flops_fit_stores.json_file import JsonStore\n"
        "path, in_file, total = Path(sys.argv[1]) / 'results.json', int(sys.argv[2]), int(sys.argv[3])\n"
        "store = JsonStore(path, 10)\n"
        "for seed in range(in_file): store.add(result_of(seed))\n"
        "store.close(); store = JsonStore(path, 10)\n"
        "for seed in range(in_file, total): store.add(result_of(seed))\n"
        "os.kill(os.getpid(), 9)"
    )
    total = in_file + in_log
    assert in_another_python(code, str(folder), str(in_file), str(total)).returncode == -signal.SIGKILL
    return [result_of(seed) for seed in range(total)]


def outcome(folder: Path, expected: list[RunResult]) -> str:
    """``detected``, ``harmless`` or ``silent`` for a store that was damaged."""
    try:
        with closing(open_store("json", folder)) as store:
            return "harmless" if store.results() == expected else "silent"
    except StoreError as error:
        assert "flops-fit store repair" in str(error) or "flops-fit store check" not in str(error)
        return "detected"


# ---------------------------------------------------------------------------- results.json and its log


def test_results_are_in_the_log_until_the_driver_ends(tmp_path: Path) -> None:
    with closing(open_store("json", tmp_path)) as store, closing(open_store("json", tmp_path)) as reader:
        for seed in range(5):
            store.add(result_of(seed))
        assert json.loads((tmp_path / "results.json").read_text())["results"] == []
        assert len((tmp_path / "results.log.jsonl").read_text().splitlines()) == 6
        assert len(reader.results()) == 5
    content = json.loads((tmp_path / "results.json").read_text())
    assert [record["id"] for record in content["results"]] == [result_of(seed).id for seed in range(5)]
    assert not (tmp_path / "results.log.jsonl").exists()


def test_reading_changes_no_file(tmp_path: Path) -> None:
    expected = killed_store(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with closing(open_store("json", tmp_path)) as store:
        assert store.results() == expected
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_driver_that_continues_a_killed_driver_merges_its_log(tmp_path: Path) -> None:
    expected = killed_store(tmp_path)
    (tmp_path / ".results.json.new").write_text('{"format": "flops-f')
    with closing(open_store("json", tmp_path)) as store:
        assert store.claim("run", "anna", 600)
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]) == len(expected)
    assert {path.name for path in tmp_path.glob("*results*")} <= {
        *("results.json", "results.json.count", "results.json.lock", "results.claims.jsonl")
    }


def test_the_json_file_is_indented_and_starts_with_the_important_fields(tmp_path: Path) -> None:
    with closing(open_store("json", tmp_path)) as store:
        for seed in range(2):
            store.add(result_of(seed))
    path = tmp_path / "results.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    assert (data["format"], data["version"]) == ("flops-fit results", 2)
    assert list(data["results"][0])[:4] == ["id", "status", "attempt", "loss"]
    assert data["results"][1]["id"] == result_of(1).id
    assert '\n    {\n      "id": "' in path.read_text()


def test_adding_many_results_writes_a_small_multiple_of_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    original = json_records.Document.write

    def write(document: Any, *arguments: Any) -> None:
        original(document, *arguments)
        written.append(document.size)

    monkeypatch.setattr(json_records.Document, "write", write)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    with closing(open_store("json", tmp_path)) as store:
        for seed in range(600):
            store.add(result_of(seed))
    assert sum(written) < 3 * (tmp_path / "results.json").stat().st_size


@pytest.mark.parametrize("step", ["results.json replaced", "log not replaced"])
def test_a_kill_while_the_log_is_merged_loses_and_repeats_nothing(step: str, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from flops_fit_core.testing.examples import result_of\n"
        "from flops_fit_stores import journal, json_records; from flops_fit_stores.json_file import JsonStore\n"
        "store = JsonStore(Path(sys.argv[1]) / 'results.json', 10)\n"
        "for seed in range(5): store.add(result_of(seed))\n"
        "die = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        "if sys.argv[2] == 'results.json replaced': json_records.Journal.remove = die; store.close()\n"
        "store._records.fold(); json_records.Journal.replace = die; store.add(result_of(5))\n"
    )
    assert in_another_python(code, str(tmp_path), step).returncode == -signal.SIGKILL
    assert (tmp_path / "results.log.jsonl").exists()
    with closing(open_store("json", tmp_path)) as store:
        assert store.results() == [result_of(seed) for seed in range(5)]
        store.add(result_of(6))
        assert len(store.results()) == 6
    with closing(open_store("json", tmp_path)) as store:
        assert [result.run.seed for result in store.results()] == [0, 1, 2, 3, 4, 6]


def test_a_reader_finds_every_result_while_the_log_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_store("json", tmp_path)) as writer, closing(open_store("json", tmp_path)) as reader:
        for seed in range(3):
            writer.add(result_of(seed))
        original = json_records.Journal.read_new

        def merge_first(journal: Any) -> Any:
            monkeypatch.setattr(json_records.Journal, "read_new", original)
            writer.close()
            return original(journal)

        # The reader has read results.json. Before it reads the log, the writer merges and deletes it.
        monkeypatch.setattr(json_records.Journal, "read_new", merge_first)
        assert len(reader.results()) == 3


def test_readers_and_writers_at_once_see_every_acknowledged_result(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from flops_fit_core.testing.examples import result_of\n"
        "from flops_fit_stores import json_records; from flops_fit_stores.json_file import JsonStore\n"
        "json_records._MIN_LOG_BYTES = 5000; os.fsync = lambda handle: None; first = int(sys.argv[2])\n"
        "for start in range(first, first + 80, 20):\n"
        "    store = JsonStore(Path(sys.argv[1]) / 'results.json', 30)\n"
        "    for seed in range(start, start + 20):\n"
        "        store.add(result_of(seed)); print(seed, flush=True)\n"
        "    store.close()\n"
    )
    with closing(open_store("json", tmp_path)) as reader:
        writers = [
            subprocess.Popen([sys.executable, "-c", code, tmp_path, str(first)], stdout=subprocess.PIPE, text=True)
            for first in (0, 1000)
        ]
        counts = [0]
        while any(writer.poll() is None for writer in writers):
            counts.append(len(reader.all_attempts()))
        acknowledged = {int(seed) for writer in writers for seed in writer.communicate()[0].split()}
        assert [writer.returncode for writer in writers] == [0, 0]
        assert counts == sorted(counts)
        assert {result.run.seed for result in reader.all_attempts()} == acknowledged
        assert len(acknowledged) == 160
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]) == 160


def test_a_log_that_cannot_be_merged_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("results.json: cannot write: No space left on device")

    store = open_store("json", tmp_path)
    store.add(result_of(1))
    monkeypatch.setattr(json_records.Document, "write", fail)
    with caplog.at_level(logging.WARNING, "flops_fit"):
        store.close()
    assert "results are still in the log of results.json: results.json: cannot write: No space" in caplog.text
    with closing(open_store("json", tmp_path)) as again:
        assert again.results() == [result_of(1)]


def first_version(path: Path, results: list[RunResult]) -> None:
    """Write ``results.json`` as the first version of flops-fit did."""
    records = [record_of(result) for result in results]
    for record in records:
        del record["superseded"]
    content = {"format": "flops-fit results", "version": 1, "writes": len(records), "results": records}
    path.write_text(json.dumps(content, indent=2))


def test_a_file_of_the_first_version_is_read_and_continued(tmp_path: Path) -> None:
    path, results = tmp_path / "results.json", [result_of(seed) for seed in range(4)]
    first_version(path, results[:3])
    before = path.read_bytes()
    with closing(open_store("json", tmp_path)) as store:
        assert store.results() == results[:3]
    assert path.read_bytes() == before
    with closing(open_store("json", tmp_path)) as store:
        store.add(results[3])
        # The first version would not read the log: it refuses version 2.
        assert json.loads(path.read_text())["version"] == 2
        assert store.results() == results
    with closing(open_store("json", tmp_path)) as store:
        assert store.results() == results


def test_the_error_names_the_run_of_an_invalid_entry_of_the_first_version(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    first_version(path, [result_of(seed) for seed in range(3)])
    path.write_text(path.read_text().replace('"status": "completed"', '"status": "finished"', 1))
    with closing(open_store("json", tmp_path)) as store:
        assert store.get(result_of(2).id) == result_of(2)
        with pytest.raises(StoreError, match=f"run {result_of(0).id}, attempt 1: status: Input should be"):
            store.results()


# ---------------------------------------------------------------------------- damage


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
    assert "11 results are intact, and no file was changed" in message
    assert f"'flops-fit store check {tmp_path}'" in message
    assert f"'flops-fit store repair {tmp_path}'" in message
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


# ---------------------------------------------------------------------------- claims


def test_an_incomplete_claim_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    claims = tmp_path / "results.claims.jsonl"
    with closing(open_store("json", tmp_path)) as store:
        assert store.claim("run 1", "anna", 600)
        claims.write_bytes(claims.read_bytes() + b'{"run":"run 2","lease":{"owner":"anna","tok')
        assert store.claim("run 2", "bert", 600)
    with closing(open_store("json", tmp_path)) as store:
        assert not store.claim("run 1", "bert", 600)
        assert not store.claim("run 2", "anna", 600)
    assert len(claims.read_text().splitlines()) == 3


def test_the_claims_file_is_compacted_after_many_releases(tmp_path: Path) -> None:
    with closing(open_store("json", tmp_path)) as store, closing(open_store("json", tmp_path)) as other:
        assert store.claim("held", "anna", 600)
        for number in range(1500):
            assert store.claim(f"run {number}", "anna", 600)
            store.release(f"run {number}", "anna")
        assert len((tmp_path / "results.claims.jsonl").read_text().splitlines()) < 1100
        assert not other.claim("held", "bert", 600)
        assert other.claim("run 3", "bert", 600)


def test_a_refused_claim_writes_nothing(tmp_path: Path) -> None:
    with closing(open_store("json", tmp_path)) as store:
        assert store.claim("run", "anna", 600)
        before = (tmp_path / "results.claims.jsonl").stat().st_mtime_ns
        assert not store.claim("run", "bert", 600)
        assert not store.renew("run", "bert", 600)
        store.release("run", "bert")
        assert (tmp_path / "results.claims.jsonl").stat().st_mtime_ns == before


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_the_header(path: Path) -> None:
    path.write_text(path.read_text().replace("flops-fit claims", "flops-fit blaims"))


def flip_a_claim(path: Path) -> None:
    path.write_text(path.read_text().replace('"run 2"', '"run 9"'))


def random_bytes(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(5000))


@pytest.mark.parametrize("damage", [cut, flip_the_header, flip_a_claim, random_bytes])
def test_a_damaged_claims_file_is_rebuilt_after_the_duration_of_a_lease(
    damage: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    claims, now = tmp_path / "results.claims.jsonl", lease_clock.now()
    monkeypatch.setattr(lease_clock, "now", lambda: now)
    with closing(open_store("json", tmp_path)) as store, closing(open_store("json", tmp_path)) as other:
        for number in range(4):
            assert store.claim(f"run {number}", "anna", 600)
        if damage is cut:  # to another process, the file would look as it was before the last claims
            assert not other.claim("run 0", "bert", 600)
        damage(claims)
        content = claims.read_bytes()
        assert not other.claim("another run", "bert", 600)
        other.add(result_of(1))
        assert other.results() == [result_of(1)]
        now += UNKNOWN_SECONDS
        with caplog.at_level(logging.WARNING, "flops_fit"):
            assert other.claim("another run", "bert", 600)
        assert "results.claims.jsonl: damaged" in caplog.text
        assert claims.with_name("results.claims.jsonl.damaged").read_bytes() == content
        if damage is flip_a_claim:
            assert [store.renew(f"run {number}", "anna", 600) for number in range(4)] == [True, True, False, True]
        assert store.claim("third run", "anna", 600)


def test_no_flipped_bit_in_the_claims_grants_a_claim_twice_or_blocks_it_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "flops_fit")
    now = lease_clock.now()
    monkeypatch.setattr(lease_clock, "now", lambda: now)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    claims, generator = tmp_path / "results.claims.jsonl", random.Random(0)
    with closing(open_store("json", tmp_path)) as store:
        assert store.claim("run", "anna", 600)
        assert store.claim("ended", "anna", 1)
        assert store.claim("last", "anna", 1)
    content = claims.read_bytes()
    for _ in range(300):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        claims.write_bytes(damaged)
        store = JsonStore(tmp_path / "results.json", 10)
        granted = store.claim("run", "bert", 600)
        # The flip of a newline at the end of the file looks like an incomplete line of a killed writer.
        assert not granted or not damaged.endswith(b"\n")
        now += UNKNOWN_SECONDS + 1
        assert store.claim("ended", "bert", 600)
        now += 600
        assert store.claim("run", "carl", 600)


def test_claims_of_the_first_version_are_observed_until_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = lease_clock.now()
    monkeypatch.setattr(lease_clock, "now", lambda: now)
    lines = [
        {"format": "flops-fit claims", "version": 1, "turn": 3},
        ["a", "anna", 9e9],
        ["b", "anna", 9e9],
        ["b", "anna", 0],
    ]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    (tmp_path / "results.claims.jsonl").write_text(text)
    with closing(open_store("json", tmp_path)) as store:
        assert not store.claim("a", "bert", 600)
        assert store.claim("b", "bert", 600)
        now += UNKNOWN_SECONDS
        assert store.claim("a", "bert", 600)


def test_a_result_whose_fsync_fails_is_not_stored_until_it_is_written_again(
    tmp_path: Path, monkeypatch: Any
) -> None:
    first, second = result_of(0), result_of(1)
    with closing(JsonStore(tmp_path / "results.json", 10)) as store:
        store.add(first)

        def fail(handle: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(StoreError, match="cannot write: Input/output error"):
                store.add(second)
        with closing(JsonStore(tmp_path / "results.json", 10)) as other:
            assert other.all_attempts() == [first]
            other.add(second)
            assert other.all_attempts() == [first, second]
        assert store.all_attempts() == [first, second]
