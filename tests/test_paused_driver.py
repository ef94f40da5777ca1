"""Whole drivers: one is paused (SIGSTOP) beyond its lease, and continues after another driver has finished."""

import os
import signal
import subprocess
import sys
import time

import pytest

from flops_fit_core.study import Study

DRIVER = """
from flops_fit_core.study import sweep
sweep.LEASE_SECONDS = 3.0
from flops_fit_core.cli import main
main()
"""
TRAINER = """
import random, time
from flops_fit_core import Progress
from flops_fit_core.plugins import Options, Trainer, TrainerSpec, hookimpl

class Slow(Trainer):
    def train(self, job, context):
        for run in job.runs:
            started = time.monotonic()
            while time.monotonic() - started < 2.0:
                if context.should_stop():
                    return
                time.sleep(0.05)
                yield Progress(run=run.id, step=1, steps=2, tokens=1)
            loss = context.dataset(run).synthetic_loss(run.params, run.tokens, run.id)
            loss *= random.SystemRandom().uniform(0.999, 1.001)  # as a GPU, which repeats no loss
            yield context.result(run, "completed", loss=loss, tokens=run.tokens, unique_tokens=run.tokens,
                                 synthetic=True)

@hookimpl
def flops_fit_trainers():
    yield TrainerSpec(name="slow", options=Options, build=lambda options: Slow())
"""
EXPERIMENT = """
name = "law"
[sweep]
budgets = [1e17, 1e18]
sizes = 2
[model]
name = "surface"
[dataset]
name = "surface"
[trainer]
name = "slow"
[executor]
name = "processes"
workers = 1
"""


def start(folder, store, name):
    (folder / "slow_trainer.py").write_text(TRAINER)
    (folder / "law.toml").write_text(EXPERIMENT)
    arguments = ["run", "law.toml", "-p", "slow_trainer", "--out", "law", "--store", store]
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(folder)},
        )


def wait_for(is_true, process, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "timed out"
        assert process.poll() in (None, 0)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "json"])
def test_a_driver_that_was_paused_beyond_its_lease_changes_no_acknowledged_result(tmp_path, store):
    first_log, second_log = tmp_path / "first.log", tmp_path / "second.log"
    first = start(tmp_path, store, "first")
    try:
        wait_for(lambda: "[1/4]" in first_log.read_text(), first)
        time.sleep(0.5)  # its worker has begun the next run
        first.send_signal(signal.SIGSTOP)
        second = start(tmp_path, store, "second")
        assert second.wait(120) == 0
        acknowledged = {result.id: result for result in Study.open(tmp_path / "law").results}
        assert len(acknowledged) == 4
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait(120) == 0
    study = Study.open(tmp_path / "law")
    assert {result.id: result for result in study.results} == acknowledged
    superseded = [attempt for attempt in study.attempts if attempt.superseded]
    assert len(superseded) == 1
    assert "so this result (completed) does not count; attempt 1 counts" in first_log.read_text()
    assert "Traceback" not in first_log.read_text() + second_log.read_text()
