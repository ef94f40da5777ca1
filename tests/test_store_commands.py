"""``flops-fit store check`` and ``flops-fit store repair`` of a study."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from damaged_stores import (
    DATABASE,
    content_of,
)

from flops_fit_core import ConfigError, RunResult, StoreError
from flops_fit_core.api import run
from flops_fit_core.plugins import FileFinding, ResultStore, StoreRepair, StoreSpec, hookimpl
from flops_fit_core.plugins.registry import installed
from flops_fit_core.study.check import check_study, repair_stores
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.heartbeat import Heartbeat

Call = Callable[..., tuple[int, str, str]]
SURFACE = {
    "name": "law",
    "sweep": {"budgets": [1e17, 1e18], "sizes": 4},
    "model": "surface",
    "dataset": "surface",
    "executor": "local",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "law"
    run(SURFACE, out=folder)
    return folder


@pytest.fixture
def study(trained: Path, tmp_path: Path) -> Path:
    """A copy of a study with eight results."""
    return Path(shutil.copytree(trained, tmp_path / "law"))


def break_a_record(study: Path) -> str:
    """Change the loss in one stored record. Returns the run's id."""
    with closing(sqlite3.connect(study / DATABASE, isolation_level=None)) as connection:
        (run_id,) = connection.execute("SELECT id FROM results WHERE added = 3").fetchone()
        changed = "UPDATE results SET record = replace(record, '\"loss\":', '\"loss\":1') WHERE added = 3"
        connection.execute(changed)
    return str(run_id)


def test_the_commands_report_and_repair_a_study(study: Path, call: Call) -> None:
    status, output, _ = call("store", "check", study)
    assert (status, " 0 of " in f" {output.splitlines()[-1]}") == (0, True)
    run_id = break_a_record(study)
    for command in ("status", "runs", "fit"):
        status, _, error = call(command, study)
        assert status == 2
        assert f"run {run_id}, attempt 1: the stored result is not intact; intact results: 7" in error
    status, output, _ = call("store", "check", study, "--json")
    files = {item["file"]: item for item in json.loads(output)["files"]}
    assert status == 1
    assert (files[DATABASE]["state"], files["plan.json"]["state"]) == ("damaged", "intact")
    status, output, _ = call("store", "repair", study)
    assert status == 0
    assert "7 results are intact" in output
    assert f"1 planned runs have no finished result: {run_id}" in output
    assert call("run", study)[0] == 0
    status, output, _ = call("store", "repair", study)
    assert (status, "nothing to repair" in output) == (0, True)


def test_repair_prints_json(study: Path, call: Call) -> None:
    run_id = break_a_record(study)
    status, output, _ = call("store", "repair", study, "--json")
    (store,) = json.loads(output)["stores"]
    assert (status, store["kept"], store["to_train"]) == (0, 7, [run_id])


def test_repair_is_refused_while_a_driver_trains_the_study(study: Path) -> None:
    break_a_record(study)
    before = content_of(study)
    heartbeat = Heartbeat(study, "a driver that trains", "local")
    heartbeat.started(StudyFolder(study).plan())
    with pytest.raises(StoreError, match=f"trained by process {os.getpid()}"):
        repair_stores(StudyFolder(study), installed())
    heartbeat.close()
    assert content_of(study) == before
    assert len(repair_stores(StudyFolder(study), installed())) == 1


@pytest.mark.parametrize("name", ["plan.json", "experiment.json", "plugins.json", "fit.json", "outbox/1.json"])
@pytest.mark.parametrize("content", [b"\xff", b"{", b"[" * 100_000])
def test_check_reports_each_damaged_file_and_reads_the_others(name: str, content: bytes, study: Path) -> None:
    (study / "outbox").mkdir()
    (study / name).write_bytes(content)
    findings = {finding.file: finding for finding in check_study(StudyFolder(study), installed())}
    assert findings[name].state == "damaged"
    assert findings[name].advice
    assert findings[DATABASE].state == "intact"


def test_a_folder_without_a_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no file of a study"):
        check_study(StudyFolder(tmp_path), installed())


def test_a_store_of_a_missing_plugin_is_not_checked(study: Path, call: Call) -> None:
    table = json.loads((study / "experiment.json").read_text())
    table.pop("sha256")
    (study / "experiment.json").write_text(json.dumps({**table, "store": "theirs/lines"}))
    status, output, _ = call("store", "check", study)
    assert status == 0
    assert "results: unchecked: " in output
    assert "theirs/lines" in output


class Lines(ResultStore):
    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, result: RunResult, token: str | None = None) -> None:
        raise NotImplementedError

    def all_attempts(self) -> list[RunResult]:
        return []


def check_lines(options: Any, folder: Path) -> list[FileFinding]:
    path = folder / "results.lines"
    if not path.exists():
        return []
    return [FileFinding(file=path.name, state="intact" if path.read_text() == "ok" else "damaged")]


def repair_lines(options: Any, folder: Path) -> StoreRepair:
    (folder / "results.lines").rename(folder / "results.lines.damaged")
    return StoreRepair(kept=0, moved=("results.lines.damaged",))


class Theirs:
    def __init__(self, **functions: Any) -> None:
        self.functions = functions

    @hookimpl
    def flops_fit_stores(self) -> Iterator[StoreSpec]:
        yield StoreSpec(
            name="lines", build=lambda options, folder: Lines(folder), file="results.lines", **self.functions
        )


def test_a_store_of_another_plugin_offers_check_and_repair(study: Path) -> None:
    (study / "results.lines").write_text("damaged")
    registry = installed().with_plugins({"theirs": Theirs(check=check_lines, repair=repair_lines)})
    findings = {finding.file: finding.state for finding in check_study(StudyFolder(study), registry)}
    assert (findings["results.lines"], findings[DATABASE]) == ("damaged", "intact")
    (repaired,) = repair_stores(StudyFolder(study), registry)
    assert (repaired.store, repaired.repair.moved) == ("theirs/lines", ("results.lines.damaged",))


def test_a_store_without_check_is_reported_and_one_without_repair_is_an_error(study: Path) -> None:
    (study / "results.lines").write_text("damaged")
    registry = installed().with_plugins({"theirs": Theirs()})
    findings = {finding.file: finding for finding in check_study(StudyFolder(study), registry)}
    assert findings["results.lines"].text == "the store theirs/lines has no check"
    registry = installed().with_plugins({"theirs": Theirs(check=check_lines)})
    with pytest.raises(StoreError, match=r"theirs/lines cannot repair results\.lines"):
        repair_stores(StudyFolder(study), registry)
    with pytest.raises(TypeError, match="repair needs check"):
        StoreSpec(name="lines", build=lambda options, folder: Lines(folder), repair=repair_lines)
