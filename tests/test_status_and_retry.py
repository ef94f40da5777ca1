"""``status``, ``retry`` and ``doctor``."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from driver_process import net_plugin, start_driver
from small import text_table, write_text

from flops_fit_core import Progress, Study
from flops_fit_core.study.heartbeat import Heartbeat, drivers

FAIL_IF_BROKEN = """
if os.path.exists("broken") and options.width == 8 and self.calls > 20:
    raise RuntimeError("the disk is full\\nof dust")
"""


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text", words=200)
    (tmp_path / "watched_net.py").write_text(net_plugin("net", FAIL_IF_BROKEN))
    table = text_table(tmp_path / "text", model="net", counter="chinchilla", sweep={"budgets": [4e7]})
    (tmp_path / "small.json").write_text(json.dumps(table))
    yield tmp_path
    sys.modules.pop("watched_net", None)


def test_status_shows_failures_with_reasons_and_the_flops_left(workdir, call):
    (workdir / "broken").touch()
    assert call("run", "small.json", "-p", "watched_net")[0] == 1
    status, output, _ = call("status", "runs/small")
    assert status == 0
    assert "1 completed, 1 failed of 2 runs" in output
    failure = (
        r"1 run failed:\n  RuntimeError: the disk is full\n    raised in .*watched_net.*, in \w+\n    1 run: "
    )
    assert re.search(failure, output), output
    assert "  in full: flops-fit show runs/small " in output
    assert "no process trains it now. To continue: 'flops-fit run runs/small'" in output
    summary = json.loads(call("status", "runs/small", "--json")[1])
    assert summary["runs"] == {"running": 0, "waiting": 0, "completed": 1, "diverged": 0, "failed": 1}
    assert summary["flops_left"] == pytest.approx(4e7, rel=0.01)
    assert summary["drivers"] == []


def test_a_running_sweep_is_visible_from_another_terminal_and_leaves_no_driver_file(workdir, call):
    table = json.loads((workdir / "small.json").read_text())
    table["name"] = "long"
    table["sweep"] |= {"budgets": [1e11], "sizes": [{"width": 12}]}
    (workdir / "long.json").write_text(json.dumps(table))
    sweep = start_driver("run", "long.json", "-p", "watched_net")
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            summary = {}
            if Path("runs/long").exists():
                summary = json.loads(call("status", "long.json", "--json")[1] or "{}")
            if summary.get("runs", {}).get("running"):
                break
            time.sleep(0.2)
        assert summary["runs"] == {"running": 1, "waiting": 0, "completed": 0, "diverged": 0, "failed": 0}
        assert summary["seconds_left"] > 0
        (driver,) = summary["drivers"]
        assert driver["pid"] == sweep.pid
        output = call("status", "runs/long")[1]
        assert f"trained by process {sweep.pid} on " in output
        assert "  C 1e11, size 12, seed 0: step " in output
        assert re.search(r"left, about .+ remaining", output)
    finally:
        sweep.terminate()
        sweep.wait(30)
    assert not Path("runs/long/drivers").exists()


def test_files_of_dead_drivers_of_this_machine_are_ignored_and_runs_of_silent_drivers_elsewhere_too(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    note = Heartbeat(tmp_path, "me", "executors/local")
    note.started(None)
    assert [driver.pid for driver in drivers(tmp_path)] == [os.getpid()]
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
    present = drivers(tmp_path)
    assert sorted(driver.host for driver in present) == sorted([mine.host, *["another-machine"] * 2])
    assert sorted(driver.is_recent for driver in present) == [False, True, True]
    note.close()
    assert not (folder / f"{mine.host}-{mine.pid}.json").exists()


def test_a_failed_run_in_a_further_attempt_counts_as_running(workdir, call):
    (workdir / "broken").touch()
    call("run", "small.json", "-p", "watched_net")
    failed = next(result for result in Study.open("runs/small").results if result.status == "failed")
    note = Heartbeat(workdir / "runs/small", "me", "executors/local")
    note.started(None)
    note.progress(Progress(run=failed.id, step=1, steps=2, tokens=1))
    note.write()
    summary = json.loads(call("status", "runs/small", "--json")[1])
    note.close()
    assert summary["runs"] == {"running": 1, "waiting": 0, "completed": 1, "diverged": 0, "failed": 0}


# ---------------------------------------------------------------------------- retry


def test_retry_trains_failed_runs_again_as_further_attempts(workdir, call):
    (workdir / "broken").touch()
    call("run", "small.json", "-p", "watched_net")
    (workdir / "broken").unlink()
    status, _, error = call("retry", "runs/small")
    assert status == 0, error
    assert "1 runs to train again" in error
    study = Study.open("runs/small")
    assert [(result.status, result.attempt) for result in study.results] == [("completed", 2), ("completed", 1)]
    assert call("retry", "runs/small")[0] == 2
    assert "has no failed runs" in call("retry", "runs/small")[2]


def test_retry_with_changed_settings_replaces_the_run_permanently(workdir, call):
    (workdir / "broken").touch()
    call("run", "small.json", "-p", "watched_net")
    (workdir / "broken").unlink()
    before = Study.open("runs/small").plan.runs
    status, _, error = call("retry", "runs/small", "--set", "optimizer.lr=0.002")
    assert status == 0, error
    after = Study.open("runs/small")
    assert after.plan.runs[1] == before[1], "only the failed run changes"
    assert after.plan.runs[0].optimizer.options["lr"] == 0.002
    assert (after.plan.runs[0].size, after.plan.runs[0].tokens) == (before[0].size, before[0].tokens)
    assert [result.status for result in after.results] == ["completed", "completed"]
    with after.store() as store:
        assert store.get(before[0].id).status == "failed", "the old result stays"
    # The experiment file is unchanged; the replacement is in the plan.
    status, _, error = call("run", "small.json", "-p", "watched_net")
    assert (status, "2 runs, 0 to train" in error) == (0, True)
    assert Study.open("runs/small").plan == after.plan


def test_a_replaced_run_can_be_replaced_again(workdir, call):
    (workdir / "broken").touch()
    call("run", "small.json", "-p", "watched_net")
    first = Study.open("runs/small").plan.runs[0]
    assert call("retry", "runs/small", "--set", "optimizer.lr=0.002")[0] == 1
    (workdir / "broken").unlink()
    assert call("retry", "runs/small", "--set", "optimizer.lr=0.003")[0] == 0
    plan = Study.open("runs/small").plan
    assert list(plan.replaced) == [first.id]
    assert plan.runs[0].optimizer.options["lr"] == 0.003
    assert len(plan.runs) == 2


def test_retry_of_one_run_keeps_the_others_and_runtime_options_apply_to_this_attempt_only(workdir, call):
    table = json.loads((workdir / "small.json").read_text())
    table["sweep"] |= {"seeds": [0, 1], "batch_size": 8, "budgets": [9.437e7]}
    (workdir / "small.json").write_text(json.dumps(table))
    (workdir / "broken").touch()
    call("run", "small.json", "-p", "watched_net")
    before = (workdir / "runs/small/experiment.json").read_text()
    (workdir / "broken").unlink()
    failed = [result for result in Study.open("runs/small").results if result.status == "failed"]
    assert len(failed) == 2
    options = ["--set", "trainer.micro_batch=3", "--set", "device.devices_per_run=2"]
    status, _, error = call("retry", "runs/small", "--run", failed[0].id[:8], *options)
    assert status == 1, error  # for one is still failed
    results = {result.id: result for result in Study.open("runs/small").results}
    assert (results[failed[0].id].status, results[failed[0].id].attempt) == ("completed", 2)
    assert (results[failed[0].id].micro_batch, results[failed[0].id].run.devices) == (3, 2)
    assert (results[failed[1].id].status, results[failed[1].id].attempt) == ("failed", 1)
    assert (workdir / "runs/small/experiment.json").read_text() == before


def test_a_diverged_run_needs_changed_settings(workdir, call):
    table = json.loads((workdir / "small.json").read_text())
    table["optimizer"] = {"name": "sgd", "lr": 1e8}
    (workdir / "small.json").write_text(json.dumps(table))
    call("run", "small.json", "-p", "watched_net")
    status, _, error = call("retry", "runs/small")
    assert status == 2
    assert "has no failed runs; 2 diverged: retry them with --diverged --set optimizer.lr=0.001" in error
    status, _, error = call("retry", "runs/small", "--diverged")
    assert status == 2
    assert "diverged and would diverge again with the same settings" in error
    run_id = Study.open("runs/small").plan.runs[0].id
    status, _, error = call("retry", "runs/small", "--diverged", "--run", run_id[:6], "--set", "optimizer.lr=0.1")
    assert status == 0, error
    assert [result.status for result in Study.open("runs/small").results] == ["completed", "diverged"]


# ---------------------------------------------------------------------------- doctor


def test_doctor_tries_the_folder_store_and_executor_of_a_study_and_leaves_no_files(workdir, call):
    status, output, error = call("doctor", "small.json", "-p", "watched_net")
    assert status == 0, error
    assert "store" in output and "claims work" in output
    assert "a trial job took " in output
    assert not Path("runs/small").exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc, a folder in which none can be made")
def test_doctor_reports_failures(workdir, call):
    (workdir / "runs").symlink_to("/proc")
    status, output, _ = call("doctor", "small.json", "-p", "watched_net", "--json")
    assert status == 1
    broken = {item["about"]: item["text"] for item in json.loads(output) if not item["ok"]}
    assert set(broken) == {"folder", "store", "executor executors/local"}
    assert "FileNotFoundError" in broken["folder"]


def test_doctor_names_a_file_with_the_path_of_the_folder(workdir, call):
    (workdir / "runs").touch()
    status, _, error = call("doctor", "small.json", "-p", "watched_net")
    assert status == 2
    assert "runs is a file; a study needs a folder" in error


def test_doctor_names_the_missing_extra_of_an_executor(call, monkeypatch):
    from flops_fit_core.plugins.registry import offers

    monkeypatch.setattr(offers, "is_installed", lambda requirement: not requirement.startswith("ray"))
    status, output, _ = call("doctor")
    assert status == 0
    assert "pip install 'flops-fit[ray]'" in output
