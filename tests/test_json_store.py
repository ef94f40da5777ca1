"""The files of the ``json`` store: results, log and lower bound."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from test_stores import in_another_python, open_store

from flops_fit_core import RunResult, StoreError
from flops_fit_core.testing.examples import result_of
from flops_fit_stores import json_records
from flops_fit_stores.json_records import record_of


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


def test_a_result_whose_fsync_fails_is_not_stored_until_it_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = result_of(0), result_of(1)
    with closing(open_store("json", tmp_path)) as store:
        store.add(first)

        def fail(handle: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(StoreError, match="cannot write: Input/output error"):
                store.add(second)
        with closing(open_store("json", tmp_path)) as other:
            assert other.all_attempts() == [first]
            other.add(second)
            assert other.all_attempts() == [first, second]
        assert store.all_attempts() == [first, second]
