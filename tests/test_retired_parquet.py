"""The store ``parquet`` was removed. Its folders can be copied into other stores; any other use is an error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flops_fit_core import ConfigError, StoreError
from flops_fit_core.api import plan
from flops_fit_core.cli.main import run as flops_fit
from flops_fit_core.plugins.parquet_results import read_parquet_results
from flops_fit_core.records import RunResult
from flops_fit_core.study import Study
from flops_fit_core.study.heartbeat import Heartbeat
from flops_fit_core.testing.examples import result_of

TABLE = {
    "name": "law",
    "sweep": {"budgets": [1e17, 1e18, 1e19], "sizes": 5},
    "model": "surface",
    "dataset": {"name": "surface", "noise": 0.005},
    "executor": "local",
}


def write_part(folder: Path, number: int, results: list[RunResult], mark: str = "results 1") -> None:
    """Write a part as the removed store did. Its readers used only these columns and the mark."""
    columns = {
        "id": [result.id for result in results],
        "attempt": [result.attempt for result in results],
        "loss": [result.loss for result in results],
        "record": [result.model_dump_json() for result in results],
    }
    table = pa.table(columns).replace_schema_metadata({"flops_fit": mark})
    pq.write_table(table, folder / f"part-{number:06d}.parquet", compression="zstd", write_page_checksum=True)


def write_log(folder: Path, parts: int, results: list[RunResult], version: int = 1, unfinished: str = "") -> None:
    head = {"format": "flops-fit results", "version": version, "turn": 7, "parts": parts}
    lines = [head, *([result.id, result.attempt, result.model_dump(mode="json")] for result in results)]
    (folder / "_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + unfinished)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = plan(TABLE, out=tmp_path_factory.mktemp("trained") / "law")
    study.train()
    return study.folder.path


@pytest.fixture
def results(trained: Path) -> list[RunResult]:
    return Study.open(trained).results


@pytest.fixture
def old(trained: Path, results: list[RunResult], tmp_path: Path) -> Path:
    """A study in the store ``parquet``: 14 runs in two parts, and a log. The log has two newer attempts at these
    runs, another run, a line that a part contains, and a line without a newline."""
    study = Path(shutil.copytree(trained, tmp_path / "old"))
    (study / "results.sqlite").unlink()
    table = json.loads((study / "experiment.json").read_text())
    table["store"] = {"name": "stores/parquet", "part_rows": 8}
    (study / "experiment.json").write_text(json.dumps(table))
    folder = study / "results.parquet"
    folder.mkdir()
    write_part(folder, 1, results[:8])
    write_part(folder, 2, results[8:14])
    write_log(folder, 2, [results[13], *newest(results), results[14]], unfinished='["abc", 1, {"ru')
    (folder / "_claims.jsonl").write_text("never read\n")
    (study / "results.parquet.lock").touch()
    return study


def newest(results: list[RunResult]) -> list[RunResult]:
    completed = results[2].model_copy(update={"attempt": 2, "loss": 2.5})
    failed = RunResult(run=results[9].run, status="failed", attempt=2, finished=results[9].finished)
    return [completed, failed]


def expected(results: list[RunResult]) -> list[list[RunResult]]:
    completed, failed = newest(results)
    attempts = [[result] for result in results]
    attempts[2].append(completed)
    attempts[9].append(failed)
    return attempts


def attempts(study: Path) -> list[list[RunResult]]:
    """All attempts at each run, in the order of the store."""
    with Study.open(study).store() as store:
        return [store.attempts(result.id) for result in store.results()]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ---------------------------------------------------------------------------- store copy


@pytest.mark.parametrize("store", ["sqlite", "json"])
def test_a_copy_has_every_attempt_of_the_parts_and_of_the_log(
    store: str, old: Path, results: list[RunResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(old / "results.parquet")
    assert flops_fit(["store", "copy", str(old), str(tmp_path / "new"), "--store", store]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert f"17 attempts at 15 runs are equal in stores/parquet and stores/{store}" in output
    assert attempts(tmp_path / "new") == expected(results)
    assert files(old / "results.parquet") == before


def test_a_study_that_changes_its_store_in_place_trains_no_run_twice(
    old: Path, results: list[RunResult], capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(old / "results.parquet")
    assert flops_fit(["store", "copy", str(old), str(old), "--store", "sqlite"]) == 0
    assert "left where they are: results.parquet, results.parquet.lock" in capsys.readouterr().out
    assert attempts(old) == expected(results)
    assert files(old / "results.parquet") == before
    assert flops_fit(["run", str(old), "--no-retry"]) == 1  # the last attempt of a run failed
    assert "15 runs, 0 to train" in capsys.readouterr().err


def test_a_second_copy_adds_nothing(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["store", "copy", str(old), str(tmp_path / "new"), "--store", "sqlite", "--json"]
    assert [flops_fit(command), json.loads(capsys.readouterr().out)["new"]] == [0, 17]
    assert [flops_fit(command), json.loads(capsys.readouterr().out)["new"]] == [0, 0]


def test_a_study_that_an_older_version_trains_is_not_copied(old: Path, trained: Path, tmp_path: Path) -> None:
    heartbeat = Heartbeat(old, "anna", "local")
    heartbeat.started(Study.open(trained).plan)
    try:
        assert flops_fit(["store", "copy", str(old), str(tmp_path / "new"), "--store", "sqlite"]) == 2
    finally:
        heartbeat.close()
    assert not (tmp_path / "new" / "experiment.json").exists()


def test_an_attempt_that_is_added_during_the_copy_is_detected(
    old: Path, results: list[RunResult], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flops_fit_stores.sqlite import SqliteStore

    add = SqliteStore.add

    def slow(self: SqliteStore, result: RunResult) -> None:
        add(self, result)
        late = results[0].model_copy(update={"attempt": 2})
        write_log(old / "results.parquet", 2, [*newest(results), results[14], late])

    monkeypatch.setattr(SqliteStore, "add", slow)
    assert flops_fit(["store", "copy", str(old), str(old), "--store", "sqlite"]) == 2
    assert "which may have changed meanwhile: copy again" in capsys.readouterr().err
    assert json.loads((old / "experiment.json").read_text())["store"]["name"] == "stores/parquet"


def test_without_pyarrow_the_copy_names_the_extra(old: Path) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from flops_fit_core.cli.main import run\n"
        "sys.exit(run(['store', 'copy', sys.argv[1], sys.argv[1], '--store', 'sqlite']))"
    )
    process = subprocess.run([sys.executable, "-c", code, old], capture_output=True, text=True)
    assert process.returncode == 2
    assert "pip install 'flops-fit[parquet]'" in process.stderr
    assert not (old / "results.sqlite").exists()


# ---------------------------------------------------------------------------- damaged and missing files


def half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def zeros_in_the_records(file: Path) -> None:
    column = pq.read_metadata(file).row_group(0).column(3)
    assert column.path_in_schema == "record"
    with file.open("r+b") as open_file:
        open_file.seek((column.dictionary_page_offset + column.data_page_offset) // 2)
        open_file.write(bytes(100))


def another_program(file: Path) -> None:
    pq.write_table(pa.table({"photo": [1, 2]}), file)


def newer(file: Path) -> None:
    write_part(file.parent, 1, [result_of(0)], mark="results 2")


def no_record(file: Path) -> None:
    table = pq.read_table(file, partitioning=None)
    texts = [text.replace('"completed"', '"finished"') for text in table["record"].to_pylist()]
    pq.write_table(table.set_column(table.schema.names.index("record"), "record", [texts]), file)


def gone(file: Path) -> None:
    file.unlink()


def text(file: Path) -> None:
    file.write_text("my shopping list\n")


def empty(file: Path) -> None:
    file.write_text("")


def newer_log(file: Path) -> None:
    write_log(file.parent, 2, [], version=2)


def no_attempt(file: Path) -> None:
    file.write_text(file.read_text().rpartition("\n")[0] + '\n["abc"]\n')


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("part-000001.parquet", half, "damaged"),
        ("part-000001.parquet", zeros_in_the_records, "damaged"),
        ("part-000001.parquet", text, "damaged"),
        ("part-000001.parquet", another_program, "not a part of a parquet store"),
        ("part-000001.parquet", newer, "not a part of a parquet store"),
        ("part-000001.parquet", no_record, "cannot read the result of run .*: status: Input should be"),
        ("part-000001.parquet", gone, "missing. It has results: put it back"),
        ("part-000002.parquet", gone, "missing. It has results: put it back"),
        ("_log.jsonl", gone, "It has the newest results: put it back"),
        ("_log.jsonl", empty, "damaged"),
        ("_log.jsonl", text, "damaged"),
        ("_log.jsonl", newer_log, "not the log of a parquet store of version 1"),
        ("_log.jsonl", no_attempt, "damaged"),
    ],
)
def test_the_error_names_a_damaged_or_missing_file_and_nothing_is_copied(
    name: str, damage: Callable[[Path], None], message: str, old: Path
) -> None:
    damage(old / "results.parquet" / name)
    with pytest.raises(StoreError, match=message) as error:
        list(read_parquet_results(old))
    assert str(old / "results.parquet" / name) in str(error.value)
    assert flops_fit(["store", "copy", str(old), str(old), "--store", "sqlite"]) == 2
    assert not (old / "results.sqlite").exists()


# ---------------------------------------------------------------------------- other uses


@pytest.mark.parametrize(
    "words",
    [
        "plan STUDY",
        "run STUDY",
        "run STUDY --store sqlite",
        "runs STUDY",
        "status STUDY --json",
        "fit STUDY",
        "predict STUDY --flops 1e20",
        "backtest STUDY",
        "report STUDY",
        "prune-checkpoints STUDY",
        "retry STUDY",
        "doctor STUDY",
        "tune STUDY",
        "export STUDY --parquet FILE",
        "run FILE --out STUDY",
    ],
)
def test_the_error_for_a_study_in_the_removed_store_contains_the_command_to_type(
    words: str, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps(TABLE))
    paths = {"STUDY": str(old), "FILE": str(file)}
    assert flops_fit([paths.get(word, word) for word in words.split()]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.splitlines()[-1] == (
        f"error: the parquet store was removed: type 'flops-fit store copy {old} {old} --store sqlite' to move a "
        f"study's results, and 'flops-fit export {old} --parquet FILE' to write a Parquet file"
    )


@pytest.mark.parametrize("name", ["parquet", "stores/parquet"])
def test_the_error_for_an_experiment_with_the_removed_store_contains_the_command(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"store: the parquet store was removed: type 'flops-fit store copy STUDY"
    ):
        plan({**TABLE, "store": {"name": name, "part_rows": 8}}, out=tmp_path / "study")
    with pytest.raises(ConfigError, match="no model named 'parquet'"):
        plan({**TABLE, "model": "parquet"}, out=tmp_path / "study")


def test_a_copy_into_the_removed_store_is_refused(trained: Path, tmp_path: Path, capsys) -> None:
    assert flops_fit(["store", "copy", str(trained), str(tmp_path / "new"), "--store", "parquet"]) == 2
    assert "the parquet store was removed" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
