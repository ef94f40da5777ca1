"""The store ``parquet``: what others read in its folder, its parts, its log, and kills between the two."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flops_fit_core import ResultStore, StoreError
from flops_fit_core.plugins.registry import installed
from flops_fit_core.testing import example_result, example_run
from flops_fit_core.testing.examples import result_of

pa = pytest.importorskip("pyarrow")
pd = pytest.importorskip("pandas")
pq = pytest.importorskip("pyarrow.parquet")


def open_store(folder: Path, **options: Any) -> ResultStore:
    spec = installed().find("store", "stores/parquet").spec
    store: ResultStore = spec.build(spec.options.model_validate(options), folder)
    return store


def filled(folder: Path, seeds: range, **options: Any) -> Path:
    """A closed store with these results; gives its folder."""
    with closing(open_store(folder, **options)) as store:
        for seed in seeds:
            store.add(result_of(seed))
    return folder / "results.parquet"


def parts(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("*.parquet"))


def left_open(folder: Path, seeds: range, **options: Any) -> Path:
    """As a driver leaves it that is killed: nobody has closed it."""
    store = open_store(folder, **options)
    for seed in seeds:
        store.add(result_of(seed))
    return folder / "results.parquet"


# ---------------------------------------------------------------------------- for people


def test_pandas_reads_the_folder_in_one_go(tmp_path: Path) -> None:
    run = example_run(seed=7, budget=5e10, params=1234)
    with closing(open_store(tmp_path, part_rows=4)) as store:
        store.add(example_result(run=run, loss=2.5, flops=9e9, tokens=5678))
        for seed in range(20, 26):
            store.add(result_of(seed, status="diverged"))
        assert store.claim("run", "anna", 600)
    frame = pd.read_parquet(tmp_path / "results.parquet")
    assert list(frame.seed) == [7, *range(20, 26)]
    first = frame.iloc[0]
    columns = ["id", "attempt", "status", "model", "params", "tokens", "flops", "loss", "budget"]
    assert list(first[columns]) == [run.id, 1, "completed", "gpt/gpt", 1234, 5678, 9e9, 2.5, 5e10]
    assert first.finished == pd.Timestamp("2026-11-01T12:30:15.123456", tz="UTC")
    assert example_result(run=run, loss=2.5, flops=9e9, tokens=5678).model_validate_json(first.record) is not None
    assert frame.loss.isna().sum() == 6
    assert str(frame.params.dtype) == str(frame.attempt.dtype) == "int64"


def test_an_attempt_stands_once_in_the_parts_however_often_it_was_added(tmp_path: Path) -> None:
    filled(tmp_path, range(9), part_rows=4)
    with closing(open_store(tmp_path, part_rows=4)) as store:
        store.add(result_of(2, loss=1.25))
        store.add(result_of(99))
        store.add(result_of(8, loss=1.5))
    frame = pd.read_parquet(tmp_path / "results.parquet")
    assert list(frame.seed) == [*range(9), 99]
    assert list(frame.loss[[2, 8]]) == [1.25, 1.5]


def test_an_integer_beyond_64_bits_is_in_the_record_only(tmp_path: Path) -> None:
    result = example_result(run=example_run(seed=2**64 - 1))
    with closing(open_store(tmp_path)) as store:
        store.add(result)
    with closing(open_store(tmp_path)) as store:
        assert store.results() == [result]
    assert pd.read_parquet(tmp_path / "results.parquet").seed.isna().all()


# ---------------------------------------------------------------------------- how much is written and read


def test_parts_are_filled_one_after_another(tmp_path: Path) -> None:
    path = filled(tmp_path, range(10), part_rows=4)
    assert parts(path) == ["part-000001.parquet", "part-000002.parquet", "part-000003.parquet"]
    assert [pq.read_metadata(path / name).num_rows for name in parts(path)] == [4, 4, 2]


def test_adding_appends_to_the_log_and_leaves_the_parts_alone(tmp_path: Path) -> None:
    path = filled(tmp_path, range(40), part_rows=100)
    before = {file.name: file.stat().st_mtime_ns for file in path.glob("*.parquet")}
    with closing(open_store(tmp_path, part_rows=100)) as store:
        sizes = []
        for seed in range(100, 110):
            store.add(result_of(seed))
            sizes.append((path / "_log.jsonl").stat().st_size)
        steps = {later - earlier for earlier, later in pairwise(sizes)}
        assert len(steps) == 1
        assert {file.name: file.stat().st_mtime_ns for file in path.glob("*.parquet")} == before


def test_a_result_that_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    path = filled(tmp_path, range(3))
    with closing(open_store(tmp_path)) as store:
        before = (path / "_log.jsonl").stat()
        store.add(result_of(1))
        assert (path / "_log.jsonl").stat() == before


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, range(10), part_rows=4)
    read: list[str] = []
    whole = pq.ParquetFile

    def spy(path: Path, **options: Any) -> Any:
        read.append(path.name)
        return whole(path, **options)

    with closing(open_store(tmp_path, part_rows=4)) as store, closing(open_store(tmp_path, part_rows=4)) as other:
        monkeypatch.setattr(pq, "ParquetFile", spy)
        for seed in range(10, 14):
            other.add(result_of(seed))
            assert len(store.results()) == seed + 1
        assert set(read) == {"part-000003.parquet", "part-000004.parquet"}


# ---------------------------------------------------------------------------- kills


def test_a_line_that_a_killed_writer_did_not_finish_is_cut_off(tmp_path: Path) -> None:
    log = left_open(tmp_path, range(3)) / "_log.jsonl"
    whole = log.read_bytes()
    for torn in (b'["abc", 1, {"ru', whole.splitlines()[-1], bytes(500)):
        log.write_bytes(whole + torn)
        with closing(open_store(tmp_path)) as store:
            assert [result.run.seed for result in store.results()] == [0, 1, 2]
    log = left_open(tmp_path, range(3, 5)) / "_log.jsonl"
    log.write_bytes(log.read_bytes() + b'["abc", 1, {"ru')
    with closing(open_store(tmp_path)) as store:
        store.add(result_of(5))
        assert [result.run.seed for result in store.results()] == list(range(6))
    with closing(open_store(tmp_path)) as store:
        assert [result.run.seed for result in store.results()] == list(range(6))


def test_results_in_the_log_of_a_killed_driver_come_into_the_parts_with_the_next(tmp_path: Path) -> None:
    path = left_open(tmp_path, range(3))
    assert parts(path) == []
    with closing(open_store(tmp_path)) as store:
        assert len(store.results()) == 3
    assert list(pd.read_parquet(path).seed) == [0, 1, 2]
    assert len((path / "_log.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("written", [1, 2, 3])
def test_a_kill_in_the_middle_of_a_fold_neither_loses_nor_doubles_anything(tmp_path: Path, written: int) -> None:
    path = left_open(tmp_path, range(10), part_rows=1000)
    log = (path / "_log.jsonl").read_bytes()
    with closing(open_store(tmp_path, part_rows=4)):
        pass
    assert len(parts(path)) == 3
    (path / "_log.jsonl").write_bytes(log)  # as it was before the fold came to its end
    for name in parts(path)[written:]:
        (path / name).unlink()
    (path / ".part-000003.parquet.new").write_bytes(b"PAR1 and no more")
    with closing(open_store(tmp_path, part_rows=4)) as store:
        assert [result.run.seed for result in store.results()] == list(range(10))
        store.add(result_of(10))
    assert list(pd.read_parquet(path).seed) == list(range(11))


def test_a_store_that_was_opened_before_a_fold_by_another_sees_all(tmp_path: Path) -> None:
    with closing(open_store(tmp_path, part_rows=4)) as store:
        store.add(result_of(0))
        filled(tmp_path, range(1, 20), part_rows=4)
        assert [result.run.seed for result in store.results()] == list(range(20))
        store.add(result_of(20))
        filled(tmp_path, range(21, 30), part_rows=4)
        assert [result.run.seed for result in store.results()] == list(range(30))


# ---------------------------------------------------------------------------- files that are not as they should be


def half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def zeros(file: Path) -> None:
    with file.open("r+b") as open_file:
        open_file.seek(file.stat().st_size // 3)
        open_file.write(bytes(300))


def others(file: Path) -> None:
    pd.DataFrame({"photo": [1, 2]}).to_parquet(file)


def newer(file: Path) -> None:
    table = pq.read_table(file, partitioning=None)
    pq.write_table(table.replace_schema_metadata({"flops_fit": "results 2"}), file)


def gone(file: Path) -> None:
    file.unlink()


def text(file: Path) -> None:
    file.write_text("my shopping list\n")


def empty(file: Path) -> None:
    file.write_text("")


def no_json(file: Path) -> None:
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:50], *lines[2:]]) + "\n")


def no_result(file: Path) -> None:
    file.write_text(file.read_text() + '["abc", "first", {}]\n')


def newer_log(file: Path) -> None:
    file.write_text(file.read_text().replace('"version":1', '"version":2', 1))


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("part-000001.parquet", half, "damaged"),
        ("part-000001.parquet", zeros, "damaged"),
        ("part-000001.parquet", text, "damaged"),
        ("part-000001.parquet", others, "of another program"),
        ("part-000001.parquet", newer, "a newer one wrote it"),
        ("part-000001.parquet", gone, "missing. Put it back"),
        ("part-000002.parquet", gone, "missing. Put it back"),
        ("_log.jsonl", gone, "the newest results with it"),
        ("_log.jsonl", empty, "it is empty"),
        ("_log.jsonl", text, "line 1 is no JSON"),
        ("_log.jsonl", no_json, "line 2 is no JSON"),
        ("_log.jsonl", no_result, "line 5: Input should be a valid integer"),
        ("_log.jsonl", newer_log, "a newer one wrote it"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_named_and_left_alone(
    name: str, damage: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    filled(tmp_path, range(6), part_rows=4)
    path = left_open(tmp_path, range(10, 13))
    damage(path / name)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    for _ in range(2):
        with pytest.raises(StoreError, match=says) as caught:
            open_store(tmp_path)
        assert str(path / name) in str(caught.value)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_log_that_gets_shorter_while_in_use_is_not_written_to(tmp_path: Path) -> None:
    log = left_open(tmp_path, range(3)) / "_log.jsonl"
    store = open_store(tmp_path)
    half(log)
    before = log.read_bytes()
    with pytest.raises(StoreError, match="lines that were there are gone"):
        store.add(result_of(9))
    assert log.read_bytes() == before


def test_a_file_in_the_folders_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results.parquet").write_text("mine")
    with pytest.raises(StoreError, match=r"results\.parquet: not a folder"):
        open_store(tmp_path)
    assert (tmp_path / "results.parquet").read_text() == "mine"


def test_a_folder_that_may_only_be_read_can_be_read(tmp_path: Path) -> None:
    path = left_open(tmp_path, range(3))
    copy = tmp_path / "copy"
    shutil.copytree(path, copy / "results.parquet")
    (copy / "results.parquet.lock").mkdir()  # root may write everywhere, but nobody can lock a folder
    with closing(open_store(copy)) as store:
        assert len(store.results()) == 3
        with pytest.raises(StoreError, match="cannot lock"):
            store.add(result_of(9))


def test_old_claims_are_forgotten_in_the_file_in_time(tmp_path: Path) -> None:
    with closing(open_store(tmp_path)) as store:
        assert store.claim("kept", "anna", 600)
        for number in range(1500):
            assert store.claim(f"run {number}", "anna", 600)
            store.release(f"run {number}", "anna")
        claims = tmp_path / "results.parquet" / "_claims.jsonl"
        assert len(claims.read_text().splitlines()) < 1100
    with closing(open_store(tmp_path)) as store:
        assert not store.claim("kept", "bert", 600)
        assert store.claim("run 3", "bert", 600)
