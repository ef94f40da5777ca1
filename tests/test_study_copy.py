"""``flops-fit store copy``: every attempt in another store, and a study that continues with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from postgres_server import missing_requirement, postgres_server
from small import text_table, train, write_text

from flops_fit_core import ConfigError, StoreError
from flops_fit_core.api import plan
from flops_fit_core.api import run as run_study
from flops_fit_core.cli.main import run as flops_fit
from flops_fit_core.plugins.outbox import Outbox
from flops_fit_core.plugins.registry import installed
from flops_fit_core.records import RunResult
from flops_fit_core.study import Study
from flops_fit_core.study.copy import copy_study
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.heartbeat import Heartbeat
from flops_fit_core.training.checkpoint_files import TrajectoryFolder

SURFACE = {
    "name": "law",
    "sweep": {"budgets": [1e17, 1e18, 1e19], "sizes": 5},
    "model": "surface",
    "dataset": {"name": "surface", "noise": 0.005},
    "executor": "local",
}
STORES = ["sqlite", "json"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = plan(SURFACE, out=tmp_path_factory.mktemp("trained") / "law")
    run = study.plan.runs[3]
    with study.store() as store:
        store.add(RunResult(run=run, status="failed"))
    study.train()
    study.folder.save_fit(study.fit)
    study.report()
    return study.folder.path


@pytest.fixture
def law(trained: Path, tmp_path: Path) -> Path:
    """A study of 15 runs, one of which failed once and was trained again, with its fit and report."""
    return Path(shutil.copytree(trained, tmp_path / "law"))


def attempts(folder: Path) -> list[list[RunResult]]:
    """Of each run, in the store's order."""
    with Study.open(folder).store() as store:
        return [store.attempts(result.id) for result in store.results()]


def copied(source: Path, target: Path, store: Any) -> Any:
    return copy_study(StudyFolder(source), StudyFolder(target), installed(), store)


@pytest.mark.parametrize("old", STORES)
@pytest.mark.parametrize("new", STORES)
def test_every_attempt_is_the_same_in_another_store(old: str, new: str, law: Path, tmp_path: Path) -> None:
    before = attempts(law)
    if old != "sqlite":
        assert copied(law, law, old).in_place
    done = copied(law, tmp_path / "copy", new)
    assert (done.runs, done.attempts, done.new) == (15, 16, 16)
    assert attempts(tmp_path / "copy") == attempts(law) == before
    assert sorted(len(group) for group in before) == [1] * 14 + [2]
    assert (tmp_path / "copy" / f"results.{new}").exists()


def test_a_copy_is_a_complete_study(law: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "copy"
    assert (
        flops_fit(["store", "copy", str(law), str(target), "--store", "json", "--set", "store.lock_timeout=4"])
        == 0
    )
    output = capsys.readouterr().out
    assert "16 attempts at 15 runs are equal in stores/sqlite and stores/json" in " ".join(output.split())
    table = json.loads((target / "experiment.json").read_text())
    assert table.pop("store") == {"name": "stores/json", "lock_timeout": 4.0}
    original = json.loads((law / "experiment.json").read_text())
    assert table.pop("sha256") != original.pop("sha256")
    assert table == {name: value for name, value in original.items() if name != "store"}
    assert (target / "plan.json").read_bytes() == (law / "plan.json").read_bytes()
    assert (target / "report" / "index.html").exists()
    for command in ("runs", "fit", "status"):
        assert flops_fit([command, str(target), "--json"]) == 0
        of_the_copy = capsys.readouterr().out
        assert flops_fit([command, str(law), "--json"]) == 0
        assert of_the_copy == capsys.readouterr().out
    assert flops_fit(["run", str(target)]) == 0
    assert "15 runs, 0 to train" in capsys.readouterr().err


def test_a_study_can_change_its_store_in_place(law: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = attempts(law)
    assert flops_fit(["store", "copy", str(law), str(law), "--store", "json"]) == 0
    output = capsys.readouterr().out
    assert "now uses stores/json" in output
    assert "the old results are still in results.sqlite" in output
    assert (law / "results.sqlite").exists()
    assert attempts(law) == before
    assert Study.open(law).folder.choice("store", installed()).name == "stores/json"
    with pytest.raises(ConfigError, match="uses the store stores/json already"):
        copied(law, law, "json")


def test_an_unfinished_study_continues_in_its_copy_from_its_checkpoint(tmp_path: Path) -> None:
    table = text_table(write_text(tmp_path / "text"), schedule={"name": "wsd"}, sweep={"budgets": [1e8, 2e8]})
    table["sweep"]["sizes"] = [{"width": 8}]
    study = run_study(table, out=tmp_path / "study")
    copy = tmp_path / "copy"
    copied(study.folder.path, copy, "json")
    (trajectory,) = study.plan.trajectories
    branches = TrajectoryFolder(study.folder.path, trajectory.id).branches()
    assert {
        step: file.read_bytes() for step, file in TrajectoryFolder(copy, trajectory.id).branches().items()
    } == {step: file.read_bytes() for step, file in branches.items()}
    assert branches
    table["sweep"]["budgets"] = [1e8, 2e8, 4e8]
    longer = run_study({**table, "store": "json"}, out=copy)
    last = longer.results[-1]
    assert [result.attempt for result in longer.results] == [1, 1, 1]
    assert last.trained_tokens is not None
    assert last.trained_tokens < last.tokens
    (uninterrupted,) = [result for result in train(table) if result.id == last.id]
    assert last.loss == uninterrupted.loss


def test_results_in_the_outbox_are_copied(law: Path, tmp_path: Path) -> None:
    result = Study.open(law).results[0].model_copy(update={"attempt": 2})
    Outbox(law).put(result)
    copied(law, tmp_path / "copy", "json")
    assert Outbox(tmp_path / "copy").get(result.id) == result


def test_a_second_copy_has_the_present_files_whatever_the_clock_showed(law: Path, tmp_path: Path) -> None:
    copied(law, tmp_path / "copy", "json")
    for name in ("report/index.html", "model_check.json"):
        (law / name).write_text("written while the clock was an hour late")
        os.utime(law / name, (0, 0))
    copied(law, tmp_path / "copy", "json")
    for name in ("report/index.html", "model_check.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (law / name).read_bytes()


def test_a_copy_that_has_trained_further_keeps_its_checkpoint(law: Path, tmp_path: Path) -> None:
    files = [folder / "checkpoints" / "abc" / "latest.pt" for folder in (law, tmp_path / "copy")]
    files[0].parent.mkdir(parents=True)
    files[0].write_text("step 10")
    copied(law, tmp_path / "copy", "json")
    files[1].write_text("step 20")
    copied(law, tmp_path / "copy", "json")
    assert files[1].read_text() == "step 20"


def test_every_file_of_a_program_in_its_checkpoints_is_copied(law: Path, tmp_path: Path) -> None:
    """torch.distributed.checkpoint writes ``.metadata``; a program may call a file ``claim``."""
    folder = law / "checkpoints" / "abc"
    (folder / "step-7").mkdir(parents=True)
    program = ["step-7/.metadata", "step-7/claim", "step-7/weights"]
    for name in (*program, "claim", "claim.lock", ".latest.pt.0123abcd"):
        (folder / name).write_text(name)
    copied(law, tmp_path / "copy", "json")
    copy = tmp_path / "copy" / "checkpoints" / "abc"
    assert sorted(str(file.relative_to(copy)) for file in copy.rglob("*") if file.is_file()) == program


def test_claims_are_not_copied(law: Path, tmp_path: Path) -> None:
    with Study.open(law).store() as store:
        assert store.claim(Study.open(law).plan.runs[0].id, "anna", 600)
    copied(law, tmp_path / "copy", "json")
    with Study.open(tmp_path / "copy").store() as store:
        assert store.claim(Study.open(law).plan.runs[0].id, "bert", 600)


# ---------------------------------------------------------------------------- interruptions


def test_a_killed_copy_continues(law: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from flops_fit_core.study.directory import StudyFolder\n"
        "from flops_fit_core.study.copy import copy_study; from flops_fit_core.plugins.registry import installed\n"
        "from flops_fit_stores.json_file import JsonStore; add = JsonStore.add; count = iter(range(7))\n"
        "def killed(self, result):\n"
        "    add(self, result)\n"
        "    if next(count) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "JsonStore.add = killed\n"
        "copy_study(StudyFolder(Path(sys.argv[1])), StudyFolder(Path(sys.argv[2])), installed(), 'json')\n"
    )
    before = attempts(law)
    done = subprocess.run([sys.executable, "-c", code, law, target], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-9, "")
    assert not (target / "experiment.json").exists()
    with pytest.raises(ConfigError, match="is not a study"):
        StudyFolder.existing(target)
    assert attempts(law) == before
    second = copied(law, target, "json")
    assert (second.attempts, second.new) == (16, 10)
    assert attempts(target) == before
    assert copied(law, target, "json").new == 0


def test_a_copy_with_further_results_keeps_them_in_a_second_copy(law: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    copied(law, target, "json")
    first = Study.open(law).results[0]
    with Study.open(target).store() as store:
        store.add(first.model_copy(update={"attempt": 2, "loss": 1.0}))
    (target / "fit.json").write_text("a fit of the further result")
    assert copied(law, target, "json").new == 0
    assert (target / "fit.json").read_text() == "a fit of the further result"
    with Study.open(law).store() as store:
        store.add(first.model_copy(update={"attempt": 2, "loss": 2.0}))
    with pytest.raises(StoreError, match=f"a different result of run {first.id}, attempt 2, which is unchanged"):
        copied(law, target, "json")
    with Study.open(target).store() as store:
        assert store.get(first.id).loss == 1.0  # type: ignore[union-attr]


# ---------------------------------------------------------------------------- what is refused


def test_a_study_that_is_being_trained_is_not_copied(law: Path, tmp_path: Path) -> None:
    note = Heartbeat(law, "anna", "local")
    note.started(Study.open(law).plan)
    try:
        with pytest.raises(StoreError, match=f"being trained by process {os.getpid()} on .* 'flops-fit status"):
            copied(law, tmp_path / "copy", "json")
    finally:
        note.close()
    copied(law, tmp_path / "copy", "json")


def test_a_driver_on_another_machine_is_seen_by_its_claim(law: Path, tmp_path: Path) -> None:
    study = plan({**SURFACE, "sweep": {**SURFACE["sweep"], "seeds": [0, 1]}}, out=law)  # type: ignore[dict-item]
    study.folder.save(study.experiment, study.plan, study.registry.setup)  # type: ignore[arg-type]
    done = {result.id for result in study.results}
    (run, *_) = [run for run in study.plan.runs if run.id not in done]
    with study.store() as store:
        assert store.claim(run.id, "a driver far away", 600)
        with pytest.raises(StoreError, match=f"run {run.id} .* is being trained, or was until a minute ago"):
            copied(law, tmp_path / "copy", "json")
        store.release(run.id, "a driver far away")
    copied(law, tmp_path / "copy", "json")
    with study.store() as store:
        assert store.claim(run.id, "the next driver", 600)


def test_a_driver_that_starts_during_the_copy_keeps_the_old_store(
    law: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flops_fit_core.study import copy as moving

    note = Heartbeat(law, "anna", "local")
    compare = moving._compare

    def slow(*arguments: Any) -> None:
        compare(*arguments)
        note.started(Study.open(law).plan)

    monkeypatch.setattr(moving, "_compare", slow)
    try:
        with pytest.raises(StoreError, match="being trained"):
            copied(law, law, "json")
    finally:
        note.close()
    assert StudyFolder(law).choice("store", installed()).name == "stores/sqlite"


def test_another_study_is_not_written_to(law: Path, tmp_path: Path) -> None:
    other = run_study({**SURFACE, "sweep": {"budgets": [1e17], "sizes": 3}}, out=tmp_path / "other").folder.path
    with pytest.raises(ConfigError, match="is a different study from"):
        copied(law, other, "json")
    assert not (other / "results.json").exists()
    copied(law, tmp_path / "copy", "json")
    with pytest.raises(
        ConfigError, match=r"earlier copy with its results in .*stores/json.*choose the same store"
    ):
        copied(law, tmp_path / "copy", "sqlite")
    with pytest.raises(ConfigError, match="is a file; a study needs a folder"):
        copied(law, law / "plan.json", "json")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "optimizer.lr=1"], "a copy can only change its store's options"),
        (["--store", "sqlit"], "no store named 'sqlit'"),
        (["--store", "json", "--set", "store.lock_timeout=-1"], "store"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(
    words: list[str], says: str, law: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flops_fit(["store", "copy", str(law), str(tmp_path / "copy"), *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


def test_a_result_that_differs_after_the_copy_is_an_error(
    law: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flops_fit_stores.json_file import JsonStore

    add = JsonStore.add

    def careless(self: JsonStore, result: RunResult) -> None:
        add(self, result.model_copy(update={"seconds": result.seconds + 1}))

    monkeypatch.setattr(JsonStore, "add", careless)
    with pytest.raises(StoreError, match="differ from those of"):
        copied(law, tmp_path / "copy", "json")
    assert not (tmp_path / "copy" / "experiment.json").exists()


# ---------------------------------------------------------------------------- to a server


@pytest.mark.postgres
@pytest.mark.skipif(missing_requirement() is not None, reason=str(missing_requirement()))
def test_a_study_moves_to_postgres_and_back(law: Path, tmp_path: Path) -> None:
    before = attempts(law)
    with postgres_server() as server:
        store = {"name": "postgres", "url": server.url()}
        copied(law, law, store)
        assert attempts(law) == before
        study = Study.open(law)
        study.train()
        assert len(study.results) == 15
        copied(law, tmp_path / "copy", "sqlite")
    assert attempts(tmp_path / "copy") == before


@pytest.mark.postgres
@pytest.mark.skipif(missing_requirement() is not None, reason=str(missing_requirement()))
def test_a_copy_that_would_share_the_sources_results_is_refused(law: Path, tmp_path: Path) -> None:
    before = attempts(law)
    with postgres_server() as server:
        store = {"name": "postgres", "url": server.url()}
        copied(law, law, store)
        with pytest.raises(ConfigError, match=r"would share their results.*store\.study=NAME"):
            copied(law, tmp_path / "backup" / "law", store)
        assert not (tmp_path / "backup" / "law" / "experiment.json").exists()
        assert server.query("SELECT count(*) FROM flops_fit.claims") == [(0,)]
        done = copied(law, tmp_path / "backup" / "law", {**store, "study": "backup"})
        assert done.new == 16
        assert attempts(tmp_path / "backup" / "law") == attempts(law) == before
