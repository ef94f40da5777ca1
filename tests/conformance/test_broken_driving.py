"""The conformance kits for executors and loggers detect plugins that break their contract."""

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
            self.running = self.running or self.run_job(self.waiting.popleft())
            for event in self.running:
                yield event
            self.running = None

    def run_job(self, job):
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
def test_broken_executors_fail_the_kit(failures: Failures) -> None:
    sound = {
        "SUBMIT": "self.waiting.append(job)",
        "BEFORE": "pass",
        "STOP": "job.id in self.cancelled",
        "EVENT": "yield event",
        "ERROR": "'cancelled' if job.id in self.cancelled else None",
        "AFTER": "pass",
    }
    failed = failures(
        EXECUTOR,
        sound,
        {
            "sound": {},
            "runs a job twice": {"SUBMIT": "self.waiting.extend([job, job])"},
            "ends a job twice": {"AFTER": "yield JobEnded(job.id)"},
            "ends a job before its results": {"BEFORE": "yield JobEnded(job.id)", "ERROR": "'again'"},
            "loses results": {"EVENT": "None if isinstance(event, RunResult) else (yield event)"},
            "loses jobs that are submitted later": {"SUBMIT": "self.running or self.waiting.append(job)"},
            "cannot cancel": {"STOP": "False"},
            "ends a cancelled job without an error": {"ERROR": "None"},
            "ends a job at its first result": {
                "EVENT": "yield event\n            if isinstance(event, RunResult):\n                break",
            },
            "ignores a job that is submitted again": {
                "SUBMIT": "seen = vars(self).setdefault('seen', set())\n"
                "        job.id in seen or self.waiting.append(job)\n        seen.add(job.id)",
            },
        },
    )
    ends_once = "test_every_job_gives_its_results_and_ends_exactly_once"
    submitted_later = "test_jobs_may_be_submitted_while_events_are_read"
    resubmitted = "test_a_job_may_be_submitted_again"
    cancelled = "test_a_cancelled_job_ends_and_others_go_on"
    assert failed == {
        "sound": set(),
        "runs a job twice": {ends_once, submitted_later, cancelled, resubmitted},
        "ends a job twice": {ends_once, submitted_later, cancelled, resubmitted},
        "ends a job before its results": {ends_once, submitted_later, cancelled, resubmitted},
        "loses results": {ends_once, submitted_later, cancelled, resubmitted},
        "ends a job at its first result": {ends_once},
        "ignores a job that is submitted again": {resubmitted},
        "loses jobs that are submitted later": {submitted_later},
        "cannot cancel": {cancelled},
        "ends a cancelled job without an error": {cancelled},
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
               "eval": [(point.tokens, point.loss) for point in result.curve if point.loss is not None],
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


@pytest.mark.slow
def test_broken_loggers_fail_the_kit(failures):
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
    separate = "test_runs_that_train_at_the_same_time_are_kept_apart"
    no_progress = "test_a_result_needs_no_progress_before_it"
    fail = "test_runs_that_fail_or_diverge_are_shown"
    missing = "test_numbers_may_be_missing"
    attempts = "test_every_attempt_at_a_run_is_followed"
    reopened = "test_opening_again_keeps_what_was_there"
    resumes = "test_a_run_that_was_interrupted_goes_on"
    named = "test_metrics_may_be_called_anything"
    closing = "test_closing_twice_leaves_no_thread_and_no_process"
    in_folder = "test_it_writes_into_the_study_s_folder_only"
    no_runs = "test_a_sweep_without_anything_to_train_is_no_error"
    results = {follows, separate, no_progress, fail, missing, attempts, reopened, resumes, named}
    failed = failures(
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
            "mixes runs that train at the same time": {
                "PROGRESS": "self.current = getattr(self, 'current', (progress.run, progress.attempt))",
                "KEY": "self.current",
                "FINISH": "self.__dict__.pop('current', None)",
            },
            "needs progress before a result": {"FINISH": "self.curves[result.id, result.attempt]"},
            "mixes attempts": {"KEY": "(progress.run, 1)"},
            "shows the planned tokens": {"TOKENS": "result.run.tokens"},
            "deletes earlier output": {"START": "self.path.unlink(missing_ok=True)"},
            "needs a new folder": {"START": "self.path.with_suffix('.new').mkdir()"},
            "names a file after a metric": {
                "FINISH": "[(self.path.parent / name).touch() for name in result.metrics]"
            },
            "prints": {"FINISH": "print(result.id)"},
            "writes into the working directory": {"FINISH": "open('latest.txt', 'w').close()"},
            "overwrites files of the study": {
                "START": "[file.write_text('{}') for file in self.path.parent.glob('plan.json')]",
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
    assert failed == {
        "sound": set(),
        "drops the last result": results,
        "fails on a failed run": {fail, attempts},
        "cannot show a run without a loss": {fail, attempts},
        "cannot show progress without a loss": {missing},
        "mixes runs that train at the same time": {separate},
        "needs progress before a result": {no_progress, fail, missing, named, closing},
        "mixes attempts": {attempts},
        "shows the planned tokens": {fail, missing},
        "deletes earlier output": {attempts, reopened},
        "needs a new folder": {attempts, reopened, resumes},
        "names a file after a metric": {named},
        "prints": results | {closing, in_folder},
        "writes into the working directory": {in_folder},
        "overwrites files of the study": {in_folder},
        "leaves a thread behind": {closing},
        "leaves a process behind": {closing},
        "cannot be closed twice": {closing},
        "cannot be closed before it starts": {closing},
    }
    assert no_runs not in set().union(*failed.values())
