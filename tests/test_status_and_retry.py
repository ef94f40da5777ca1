"""What people see of a sweep from another terminal, and how they give its runs another try."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import text_table, write_text

from flops_fit_core import Progress, Study
from flops_fit_core.cli.main import run
from flops_fit_core.study.heartbeat import Heartbeat, drivers, seconds_left

NET = """
import os
from flops_fit_core.plugins import ModelSpec, Options, hookimpl

class NetOptions(Options):
    width: int = 8

def build(options, task):
    import torch
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(task.vocab_size, options.width)
            self.head = torch.nn.Linear(options.width, task.vocab_size)
            self.calls = 0
        def forward(self, ids):
            self.calls += 1
            if os.path.exists("broken") and options.width == 8 and self.calls > 20:
                raise RuntimeError("the disk is full\\nof dust")
            return self.head(self.embedding(ids))
    return Net()

@hookimpl
def flops_fit_models():
    yield ModelSpec(name="net", options=NetOptions, build=build, size="width")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text", words=200)
    (tmp_path / "watched_net.py").write_text(NET)
    table = text_table(tmp_path / "text", model="net", counter="chinchilla", sweep={"budgets": [4e7]})
    (tmp_path / "small.json").write_text(json.dumps(table))
    yield tmp_path
    sys.modules.pop("watched_net", None)


@pytest.fixture
def said(capsys):
    def call(*arguments):
        status = run([str(argument) for argument in arguments])
        output, error = capsys.readouterr()
        return status, output, error

    return call


def test_status_says_what_failed_and_why_and_what_is_left(here, said):
    (here / "broken").touch()
    assert said("run", "small.json", "-p", "watched_net")[0] == 1
    status, output, _ = said("status", "runs/small")
    assert status == 0
    assert "1 completed, 1 failed of 2 runs" in output
    assert "failed at attempt 1 (C 4e+07, size 8): RuntimeError: the disk is full\n" in output
    assert "nobody trains it now: 'flops-fit run runs/small' goes on" in output
    about = json.loads(said("status", "runs/small", "--json")[1])
    assert about["runs"] == {"running": 0, "waiting": 0, "completed": 1, "diverged": 0, "failed": 1}
    assert about["flops_left"] == pytest.approx(4e7, rel=0.01)
    assert about["drivers"] == []


def test_a_sweep_that_runs_is_seen_from_another_terminal_and_leaves_no_note(here, said):
    table = json.loads((here / "small.json").read_text())
    table["name"] = "long"
    table["sweep"] |= {"budgets": [1e11], "sizes": [{"width": 12}]}
    (here / "long.json").write_text(json.dumps(table))
    sweep = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from flops_fit_core.cli import main; main()",
            *["run", "long.json", "-p", "watched_net"],
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            about = (
                json.loads(said("status", "long.json", "--json")[1] or "{}") if Path("runs/long").exists() else {}
            )
            if about.get("runs", {}).get("running"):
                break
            time.sleep(0.2)
        assert about["runs"] == {"running": 1, "waiting": 0, "completed": 0, "diverged": 0, "failed": 0}
        assert about["seconds_left"] > 0
        (driver,) = about["drivers"]
        assert driver["pid"] == sweep.pid
        output = said("status", "runs/long")[1]
        assert f"trained by process {sweep.pid} on " in output
        assert "  C 1e+11, size 12, seed 0: step " in output
        assert " at the present rate" in output
    finally:
        sweep.terminate()
        sweep.wait(30)
    assert not Path("runs/long/drivers").exists()


def test_notes_of_dead_drivers_are_not_believed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    note = Heartbeat(tmp_path, "me", "executors/local")
    note.started(None)
    assert [one.pid for one in drivers(tmp_path)] == [os.getpid()]
    (mine,) = drivers(tmp_path)
    folder = tmp_path / "drivers"
    far = {"host": "another-machine", "machine": "another one", "pid": 1}
    for name, changes in {
        "dead": {"pid": gone.pid},
        "far": {**far, "updated": time.time() - 30},
        "long-ago": {**far, "updated": time.time() - 3600},
    }.items():
        (folder / f"{name}.json").write_text(mine.model_copy(update=changes).model_dump_json())
    (folder / "torn.json").write_text('{"host": ')
    assert sorted(one.host for one in drivers(tmp_path)) == sorted([mine.host, "another-machine"])
    note.close()
    assert not (folder / f"{mine.host}-{mine.pid}.json").exists()


def test_a_failed_run_that_is_being_tried_again_is_running(here, said):
    (here / "broken").touch()
    said("run", "small.json", "-p", "watched_net")
    failed = next(result for result in Study.open("runs/small").results if result.status == "failed")
    note = Heartbeat(here / "runs/small", "me", "executors/local")
    note.started(None)
    note.progress(Progress(run=failed.id, step=1, steps=2, tokens=1))
    note.write()
    about = json.loads(said("status", "runs/small", "--json")[1])
    note.close()
    assert about["runs"] == {"running": 1, "waiting": 0, "completed": 1, "diverged": 0, "failed": 0}


def test_the_time_left_is_the_flops_left_at_the_present_rate(here, said):
    said("plan", "small.json", "-p", "watched_net")
    from flops_fit_core import plan
    from flops_fit_core.plugins.registry import Registry

    sys.path.insert(0, str(here))
    try:
        sweep = plan("small.json", registry=Registry({"watched_net": __import__("watched_net")})).plan
    finally:
        sys.path.remove(str(here))
    first, second = sweep.runs
    half = Progress(run=first.id, step=1, steps=2, tokens=first.tokens // 2, tokens_per_second=100.0)
    left = (first.tokens - first.tokens // 2) * first.flops_per_token + second.flops
    assert seconds_left(sweep, set(), [half]) == pytest.approx(left / (100.0 * first.flops_per_token))
    assert seconds_left(sweep, set(), []) is None


# ---------------------------------------------------------------------------- retry


def test_retry_trains_failed_runs_again_as_further_attempts(here, said):
    (here / "broken").touch()
    said("run", "small.json", "-p", "watched_net")
    (here / "broken").unlink()
    status, _, error = said("retry", "runs/small")
    assert status == 0, error
    assert "1 runs to train again" in error
    study = Study.open("runs/small")
    assert [(result.status, result.attempt) for result in study.results] == [("completed", 2), ("completed", 1)]
    assert said("retry", "runs/small")[0] == 2
    assert "has no failed runs" in said("retry", "runs/small")[2]


def test_retry_with_other_settings_puts_a_new_run_in_the_place_of_the_old_one_for_good(here, said):
    (here / "broken").touch()
    said("run", "small.json", "-p", "watched_net")
    (here / "broken").unlink()
    before = Study.open("runs/small").plan.runs
    status, _, error = said("retry", "runs/small", "--set", "optimizer.lr=0.002")
    assert status == 0, error
    after = Study.open("runs/small")
    assert after.plan.runs[1] == before[1], "only the failed run changes"
    assert after.plan.runs[0].optimizer.options["lr"] == 0.002
    assert (after.plan.runs[0].size, after.plan.runs[0].tokens) == (before[0].size, before[0].tokens)
    assert [result.status for result in after.results] == ["completed", "completed"]
    with after.store() as store:
        assert store.get(before[0].id).status == "failed", "the old result stays"
    # The experiment file says nothing of it; the study remembers.
    status, _, error = said("run", "small.json", "-p", "watched_net")
    assert (status, "2 runs, 0 to train" in error) == (0, True)
    assert Study.open("runs/small").plan == after.plan


def test_a_run_may_be_replaced_again(here, said):
    (here / "broken").touch()
    said("run", "small.json", "-p", "watched_net")
    first = Study.open("runs/small").plan.runs[0]
    assert said("retry", "runs/small", "--set", "optimizer.lr=0.002")[0] == 1
    (here / "broken").unlink()
    assert said("retry", "runs/small", "--set", "optimizer.lr=0.003")[0] == 0
    plan = Study.open("runs/small").plan
    assert list(plan.replaced) == [first.id]
    assert plan.runs[0].optimizer.options["lr"] == 0.003
    assert len(plan.runs) == 2


def test_retry_of_one_run_leaves_the_others_alone_and_what_changes_no_result_holds_for_this_try(here, said):
    table = json.loads((here / "small.json").read_text())
    table["sweep"] |= {"seeds": [0, 1], "batch_size": 8, "budgets": [9.437e7]}
    (here / "small.json").write_text(json.dumps(table))
    (here / "broken").touch()
    said("run", "small.json", "-p", "watched_net")
    before = (here / "runs/small/experiment.json").read_text()
    (here / "broken").unlink()
    failed = [result for result in Study.open("runs/small").results if result.status == "failed"]
    assert len(failed) == 2
    options = ["--set", "trainer.micro_batch=3", "--set", "device.devices_per_run=2"]
    status, _, error = said("retry", "runs/small", "--run", failed[0].id[:8], *options)
    assert status == 1, error  # for one is still failed
    results = {result.id: result for result in Study.open("runs/small").results}
    assert (results[failed[0].id].status, results[failed[0].id].attempt) == ("completed", 2)
    assert (results[failed[0].id].micro_batch, results[failed[0].id].run.devices) == (3, 2)
    assert (results[failed[1].id].status, results[failed[1].id].attempt) == ("failed", 1)
    assert (here / "runs/small/experiment.json").read_text() == before


def test_a_diverged_run_needs_other_settings(here, said):
    table = json.loads((here / "small.json").read_text())
    table["optimizer"] = {"name": "sgd", "lr": 1e8}
    (here / "small.json").write_text(json.dumps(table))
    said("run", "small.json", "-p", "watched_net")
    status, _, error = said("retry", "runs/small")
    assert status == 2
    assert "has no failed runs; 2 diverged: --diverged --set optimizer.lr=0.001" in error
    status, _, error = said("retry", "runs/small", "--diverged")
    assert status == 2
    assert "diverged and would do so again: change what it is trained with" in error
    one = Study.open("runs/small").plan.runs[0]
    status, _, error = said("retry", "runs/small", "--diverged", "--run", one.id[:6], "--set", "optimizer.lr=0.1")
    assert status == 0, error
    assert [result.status for result in Study.open("runs/small").results] == ["completed", "diverged"]


# ---------------------------------------------------------------------------- doctor


def test_doctor_tries_a_studys_folder_store_and_executor_and_leaves_nothing(here, said):
    status, output, error = said("doctor", "small.json", "-p", "watched_net")
    assert status == 0, error
    assert "store" in output and "claims work" in output
    assert "a trial job came back in " in output
    assert not Path("runs/small").exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc, a folder in which none can be made")
def test_doctor_says_what_does_not_work(here, said):
    (here / "runs").symlink_to("/proc")
    status, output, _ = said("doctor", "small.json", "-p", "watched_net", "--json")
    assert status == 1
    broken = {one["about"]: one["text"] for one in json.loads(output) if not one["ok"]}
    assert set(broken) == {"folder", "store", "executor executors/local"}
    assert "FileNotFoundError" in broken["folder"]


def test_doctor_names_a_file_in_the_place_of_the_folder(here, said):
    (here / "runs").touch()
    status, _, error = said("doctor", "small.json", "-p", "watched_net")
    assert status == 2
    assert "runs is a file; a study needs a folder" in error


def test_doctor_names_what_an_executor_lacks(said, monkeypatch):
    from flops_fit_core.plugins.registry import offers

    monkeypatch.setattr(offers, "is_installed", lambda requirement: not requirement.startswith("ray"))
    status, output, _ = said("doctor")
    assert status == 0
    assert "pip install 'flops-fit[ray]'" in output
