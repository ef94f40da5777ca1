"""The kits for executors and loggers find those that break their contract."""

from __future__ import annotations

import pytest
from conftest import Failures

EXECUTOR = """
from collections import deque

from flops_fit_core import RunResult
from flops_fit_core.plugins import Executor, ExecutorSpec, JobEnded, hookimpl
from flops_fit_core.testing import ExecutorConformance

class Broken(Executor):
    def __init__(self, context):
        self.context, self.waiting, self.running, self.cancelled = context, deque(), None, set()

    def submit(self, job):
        SUBMIT

    def events(self, timeout):
        while self.running or self.waiting:
            self.running = self.running or self.work_on(self.waiting.popleft())
            for event in self.running:
                yield event
            self.running = None

    def work_on(self, job):
        BEFORE
        for event in self.context.task(job)(lambda: STOP):
            EVENT
        yield JobEnded(job.id, ERROR)
        AFTER

    def cancel(self, job_id):
        self.cancelled.add(job_id)

class Plugin:
    @hookimpl
    def flops_fit_executors(self):
        yield ExecutorSpec(name="broken", build=lambda options, context: Broken(context))

class TestBroken(ExecutorConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
    isolated = False
"""


@pytest.mark.slow
def test_broken_executors_are_caught(failures: Failures) -> None:
    sound = {
        "SUBMIT": "self.waiting.append(job)",
        "BEFORE": "pass",
        "STOP": "job.id in self.cancelled",
        "EVENT": "yield event",
        "ERROR": "'cancelled' if job.id in self.cancelled else None",
        "AFTER": "pass",
    }
    found = failures(
        EXECUTOR,
        sound,
        {
            "sound": {},
            "returns a job twice": {"SUBMIT": "self.waiting.extend([job, job])"},
            "ends a job twice": {"AFTER": "yield JobEnded(job.id)"},
            "ends a job before its results": {"BEFORE": "yield JobEnded(job.id)", "ERROR": "'again'"},
            "loses results": {"EVENT": "None if isinstance(event, RunResult) else (yield event)"},
            "loses what is submitted later": {"SUBMIT": "self.running or self.waiting.append(job)"},
            "cannot cancel": {"STOP": "False"},
            "gives no error": {"ERROR": "None"},
            "ends a job at its first result": {
                "EVENT": "yield event\n            if isinstance(event, RunResult):\n                break",
            },
            "takes no job twice": {
                "SUBMIT": "known = vars(self).setdefault('known', set())\n"
                "        job.id in known or self.waiting.append(job)\n        known.add(job.id)",
            },
        },
    )
    once = "test_every_job_gives_its_results_and_ends_exactly_once"
    later = "test_jobs_may_be_submitted_while_events_are_read"
    again = "test_a_job_may_be_submitted_again"
    cancelled = "test_a_cancelled_job_ends_and_others_go_on"
    assert found == {
        "sound": set(),
        "returns a job twice": {once, later, cancelled, again},
        "ends a job twice": {once, later, cancelled, again},
        "ends a job before its results": {once, later, cancelled, again},
        "loses results": {once, later, cancelled, again},
        "ends a job at its first result": {once},
        "takes no job twice": {again},
        "loses what is submitted later": {later},
        "cannot cancel": {cancelled},
        "gives no error": {cancelled},
    }


LOGGER = """
import json
import os
import threading

from flops_fit_core.plugins import Logger, LoggerSpec, hookimpl
from flops_fit_core.testing import LoggerConformance

class Lines(Logger):
    def __init__(self, folder):
        self.path = folder / "log.jsonl"
        self.curves = {}
        self.latest = []

    def started(self, plan):
        START
        self.path.touch()

    def progress(self, progress):
        PROGRESS
        key = KEY
        if progress.loss is not None:
            self.curves.setdefault(key, []).append((progress.tokens, progress.loss))

    def finished(self, result):
        FINISH
        row = {"run": result.id, "attempt": result.attempt, "status": result.status, "loss": result.loss,
               "params": result.run.params, "tokens": TOKENS, "flops": result.flops,
               "eval": [(one.tokens, one.loss) for one in result.curve if one.loss is not None],
               "training": self.curves.pop((result.id, result.attempt), []),
               "error": result.error.message if result.error else None}
        self.latest.append(row)
        WRITE

    def write(self, rows):
        with self.path.open("a") as file:
            file.writelines(json.dumps(row) + chr(10) for row in rows)

    def close(self):
        CLOSE

class Plugin:
    @hookimpl
    def flops_fit_loggers(self):
        yield LoggerSpec(name="broken", build=lambda options, folder: Lines(folder))

class TestBroken(LoggerConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
    keeps = ("attempt", "status", "loss", "params", "tokens", "flops", "eval", "error")
    keeps_training = True
    event_timeout = 0.3

    def shown(self, folder):
        return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
"""


def test_broken_loggers_are_caught(failures):
    sound = {
        "START": "pass",
        "PROGRESS": "pass",
        "KEY": "(progress.run, progress.attempt)",
        "FINISH": "pass",
        "TOKENS": "result.tokens",
        "WRITE": "self.write([row])",
        "CLOSE": "pass",
    }
    follows = "test_it_follows_a_sweep_from_its_start_to_its_end"
    apart = "test_runs_that_train_at_the_same_time_are_kept_apart"
    unseen = "test_a_result_needs_no_progress_before_it"
    fail = "test_runs_that_fail_or_diverge_are_shown"
    missing = "test_numbers_may_be_missing"
    attempts = "test_every_attempt_at_a_run_is_followed"
    again = "test_opening_again_keeps_what_was_there"
    goes_on = "test_a_run_that_was_interrupted_goes_on"
    named = "test_metrics_may_be_called_anything"
    closing = "test_closing_twice_leaves_no_thread_and_no_process"
    within = "test_it_writes_into_the_study_s_folder_only"
    nothing = "test_a_sweep_without_anything_to_train_is_no_error"
    results = {follows, apart, unseen, fail, missing, attempts, again, goes_on, named}
    found = failures(
        LOGGER,
        sound,
        {
            "sound": {},
            "drops the last result": {
                "WRITE": "self.write(self.latest[:-1]); self.latest = self.latest[-1:]",
            },
            "fails on a failed run": {"FINISH": "result.status == 'failed' and result.cause"},
            "cannot show a run without a loss": {"FINISH": "f'{result.loss:.3f}'"},
            "cannot show progress without a loss": {"PROGRESS": "f'{progress.loss:.3f}'"},
            "mixes up runs that train at the same time": {
                "PROGRESS": "self.current = getattr(self, 'current', (progress.run, progress.attempt))",
                "KEY": "self.current",
                "FINISH": "self.__dict__.pop('current', None)",
            },
            "needs progress before a result": {"FINISH": "self.curves[result.id, result.attempt]"},
            "mixes up attempts": {"KEY": "(progress.run, 1)"},
            "shows the tokens that were planned": {"TOKENS": "result.run.tokens"},
            "deletes what was there": {"START": "self.path.unlink(missing_ok=True)"},
            "wants a new folder": {"START": "self.path.with_suffix('.new').mkdir()"},
            "names a file like a metric": {
                "FINISH": "[(self.path.parent / name).touch() for name in result.metrics]"
            },
            "prints": {"FINISH": "print(result.id)"},
            "writes into the working directory": {"FINISH": "open('latest.txt', 'w').close()"},
            "writes over the study's own files": {
                "START": "[one.write_text('{}') for one in self.path.parent.glob('plan.json')]",
            },
            "leaves a thread behind": {
                "START": "threading.Thread(target=threading.Event().wait, daemon=True).start()",
            },
            "leaves a process behind": {
                "START": "os.posix_spawn('/bin/sleep', ['sleep', '5'], {})",
            },
            "cannot be closed twice": {"CLOSE": "del self.latest"},
            "cannot be closed before it starts": {"START": "self.plan = plan", "CLOSE": "self.plan"},
        },
    )
    assert found == {
        "sound": set(),
        "drops the last result": results,
        "fails on a failed run": {fail, attempts},
        "cannot show a run without a loss": {fail, attempts},
        "cannot show progress without a loss": {missing},
        "mixes up runs that train at the same time": {apart},
        "needs progress before a result": {unseen, fail, missing, named, closing},
        "mixes up attempts": {attempts},
        "shows the tokens that were planned": {fail, missing},
        "deletes what was there": {attempts, again},
        "wants a new folder": {attempts, again, goes_on},
        "names a file like a metric": {named},
        "prints": results | {closing, within},
        "writes into the working directory": {within},
        "writes over the study's own files": {within},
        "leaves a thread behind": {closing},
        "leaves a process behind": {closing},
        "cannot be closed twice": {closing},
        "cannot be closed before it starts": {closing},
    }
    assert nothing not in set().union(*found.values())
