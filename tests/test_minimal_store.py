"""A study with a store that implements only the two required methods."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest

from flops_fit_core import PluginError, RunResult, StoreError, StudyWarning
from flops_fit_core.api import plan, run
from flops_fit_core.plugins import ResultStore, StoreSpec, hookimpl
from flops_fit_core.plugins.registry import Registry, installed
from flops_fit_core.study import Study
from flops_fit_core.study.copy import copy_study
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.doctor import study as examine
from flops_fit_core.study.heartbeat import Heartbeat
from flops_fit_core.testing.examples import result_of

SURFACE = {
    "name": "law",
    "sweep": {"budgets": [1e17, 1e18, 1e19], "sizes": 3},
    "model": "surface",
    "dataset": {"name": "surface", "noise": 0.005},
    "executor": "local",
}


class TwoMethods(ResultStore):
    """One JSON line per call of ``add``."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.touch()

    def add(self, result: RunResult) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(RunResult.model_validate(result.model_dump()).model_dump_json() + "\n")

    def all_attempts(self) -> Iterator[RunResult]:
        attempts = {}
        with self.file.open(encoding="utf-8") as file:
            for line in file:
                result = RunResult.model_validate_json(line)
                attempts[result.id, result.attempt] = result
        yield from attempts.values()


class Duck:
    """Has the methods of a store but not its base class."""

    def add(self, result: RunResult) -> None:
        raise NotImplementedError

    def all_attempts(self) -> list[RunResult]:
        return []


class Plugin:
    @hookimpl
    def flops_fit_stores(self) -> Iterator[StoreSpec]:
        yield StoreSpec(
            name="two-methods",
            build=lambda options, folder: TwoMethods(folder / "results.jsonl"),
            file="results.jsonl",
        )
        yield StoreSpec(name="duck", build=lambda options, folder: Duck())


@pytest.fixture(scope="module")
def registry() -> Registry:
    return installed().with_plugins({"mine": Plugin()})


@pytest.fixture
def law(tmp_path: Path, registry: Registry) -> Study:
    return run({**SURFACE, "store": "two-methods"}, registry=registry, out=tmp_path / "law")


def test_the_defaults_follow_from_all_attempts(tmp_path: Path) -> None:
    store = TwoMethods(tmp_path / "results.jsonl")
    for seed, attempt in [(2, 2), (1, 1), (2, 10), (2, 1)]:
        store.add(result_of(seed, attempt))
    assert store.attempts(result_of(2).id) == [result_of(2, 1), result_of(2, 2), result_of(2, 10)]
    assert store.get(result_of(2).id) == result_of(2, 10)
    assert store.results() == [result_of(2, 10), result_of(1, 1)]
    assert store.get("unknown") is None
    assert store.attempts("unknown") == []


def test_a_class_without_the_two_methods_cannot_be_used() -> None:
    class OneMethod(ResultStore):
        def add(self, result: RunResult) -> None:
            raise NotImplementedError

    with pytest.raises(TypeError, match="all_attempts"):
        OneMethod()  # type: ignore[abstract]


def test_a_study_in_a_store_of_two_methods_can_be_continued_fitted_and_copied(
    law: Study, tmp_path: Path, registry: Registry
) -> None:
    results = law.results
    assert len(results) == len(law.plan.runs) == 9
    continued = run({**SURFACE, "store": "two-methods"}, registry=registry, out=law.folder.path)
    assert [result.finished for result in continued.results] == [result.finished for result in results]
    assert law.fit.n_runs == 9
    copied = copy_study(StudyFolder(law.folder.path), StudyFolder(tmp_path / "copy"), registry, "json")
    assert (copied.runs, copied.new) == (9, 9)
    back = copy_study(StudyFolder(tmp_path / "copy"), StudyFolder(tmp_path / "back"), registry, "two-methods")
    assert (back.runs, back.new) == (9, 9)
    assert Study.open(tmp_path / "back", registry).results == results


def test_a_failed_run_is_retried_and_the_store_keeps_two_attempts(tmp_path: Path, registry: Registry) -> None:
    study = plan({**SURFACE, "store": "two-methods"}, registry=registry, out=tmp_path / "law")
    failed = study.plan.runs[4]
    with study.store() as store:
        store.add(RunResult(run=failed, status="failed"))
    study.train()
    assert [attempt.status for attempt in study.attempts if attempt.id == failed.id] == ["failed", "completed"]
    assert study.attempts[0].id == failed.id


def test_results_in_a_store_of_two_methods_are_found_after_a_change_to_another_store(
    law: Study, registry: Registry
) -> None:
    with pytest.warns(StudyWarning, match=r"9 results of this plan are in results.jsonl, not in stores/sqlite"):
        changed = plan({**SURFACE, "store": "sqlite"}, registry=registry, out=law.folder.path)
    assert changed.results == law.results


def _train_and_wait(folder: Path, ready: Queue[Any], end: Queue[Any]) -> None:
    heartbeat = Heartbeat(folder, "a driver that trains", "local")
    heartbeat.started(Study.open(folder, installed().with_plugins({"mine": Plugin()})).plan)
    ready.put(os.getpid())
    end.get()
    heartbeat.close()


def test_a_second_driver_and_prune_checkpoints_are_refused_during_training(law: Study, registry: Registry) -> None:
    processes = multiprocessing.get_context("spawn")
    ready, end = processes.Queue(), processes.Queue()
    other = processes.Process(target=_train_and_wait, args=(law.folder.path, ready, end))
    other.start()
    try:
        pid = ready.get(timeout=60)
        message = rf"trained by process {pid} on .*\(TwoMethods\) serves one driver at a time"
        with pytest.raises(StoreError, match=message):
            run({**SURFACE, "store": "two-methods"}, registry=registry, out=law.folder.path)
        with pytest.raises(StoreError, match=message):
            law.prune_checkpoints()
        # Other processes see the claims of sqlite, so a second driver of the same plan may run.
        shared = law.folder.path.parent / "shared"
        run({**SURFACE, "store": "sqlite"}, registry=registry, out=shared)
        shutil.copytree(law.folder.path / "drivers", shared / "drivers")
        assert run({**SURFACE, "store": "sqlite"}, registry=registry, out=shared).prune_checkpoints() == 0
    finally:
        end.put(None)
        other.join()
    assert len(run({**SURFACE, "store": "two-methods"}, registry=registry, out=law.folder.path).results) == 9


def test_doctor_names_the_number_of_drivers(law: Study) -> None:
    stores = {finding.subject: finding.text for finding in examine(law)}
    assert stores["store"] == "9 results; claims work for one driver at a time"


def test_the_error_names_a_plugin_that_builds_no_result_store(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(PluginError, match=r"store 'mine/duck'.*Duck does not inherit from ResultStore"):
        run({**SURFACE, "store": "duck"}, registry=registry, out=tmp_path / "law")
