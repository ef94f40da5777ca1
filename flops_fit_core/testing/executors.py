"""The conformance kit for executors, which runs real jobs.

::

    from flops_fit_core.testing import ExecutorConformance

    class TestMyExecutor(ExecutorConformance):
        name = "mine"
        options = {"queue": "debug"}
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.protocols import Executor, JobEnded
from flops_fit_core.plugins.registry import Registry, installed
from flops_fit_core.records import Job, RunResult
from flops_fit_core.testing import tiny
from flops_fit_core.testing.kit import Kit
from flops_fit_core.training.executor_context import StudyExecutorContext

LEARN = ""
RAISE = "raise RuntimeError('this model raises')"
DIE = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
CRAWL = "import time; time.sleep(0.05)"
HANG = "import time; time.sleep(3600)"


@dataclass
class Outcome:
    """Results and error of a job, from an executor's events."""

    results: list[RunResult] = field(default_factory=list)
    error: str | None = None


class ExecutorConformance(Kit):
    """Tests for every executor. Inherit, set ``name``, and run pytest.

    Attributes:
        isolated: False for an executor that trains in the driver's process.
        event_timeout: Seconds without any event after which a test fails. Increase it if jobs wait in a queue.
        daemons_take: Seconds after ``close()`` in which daemons of a cluster may still end processes.
    """

    kind: ClassVar[str] = "executor"
    isolated = True
    event_timeout = 120.0
    daemons_take = 0.0

    # ------------------------------------------------------------------ parts

    @contextmanager
    def executor(self, folder: Path) -> Iterator[Executor]:
        """The executor, for a study in ``folder`` on a machine with two slots."""
        registry = Registry(self.plugins) if self.plugins else installed()
        spec = registry.find(self.kind, self.name).spec
        context = StudyExecutorContext(
            folder=folder,
            plugins=tiny_registry().setup.model_dump_json(),
            live={},
            slots=[{"CUDA_VISIBLE_DEVICES": ""}] * 2,
        )
        executor: Executor = spec.build(spec.options.model_validate(dict(self.options)), context)
        try:
            yield executor
        finally:
            executor.close()

    def outcomes(self, executor: Executor, jobs: Sequence[Job], earlier: Sequence[Any] = ()) -> dict[str, Outcome]:
        """Read events to their end, check them together with ``earlier`` events, and return each job's outcome."""
        outcomes = {job.id: Outcome() for job in jobs}
        job_of = {run.id: job.id for job in jobs for run in job.runs}
        ended: set[str] = set()
        for event in [*earlier, *executor.events(self.event_timeout)]:
            if isinstance(event, JobEnded):
                assert event.job in outcomes, f"JobEnded for {event.job}, which was never submitted"
                assert event.job not in ended, f"a second JobEnded for job {event.job}"
                ended.add(event.job)
                outcomes[event.job].error = event.error
            elif isinstance(event, RunResult):
                job_id = job_of[event.id]
                assert job_id not in ended, f"a result of job {job_id} came after its JobEnded"
                run_ids = {result.id for result in outcomes[job_id].results}
                assert event.id not in run_ids, f"the result of run {event.id} came twice"
                outcomes[job_id].results.append(event)
        lost = sorted(outcomes.keys() - ended)
        assert not lost, f"no JobEnded within {self.event_timeout} seconds for {', '.join(lost)}"
        return outcomes

    def wait_for_start(self, executor: Executor, trace: Path) -> list[Any]:
        """Read events until a job has written its ``trace``. Returns the events."""
        events: list[Any] = []
        deadline = time.monotonic() + self.event_timeout
        while not trace.exists():
            assert time.monotonic() < deadline, f"no job started within {self.event_timeout} seconds"
            for event in executor.events(0.1):
                events.append(event)
                if trace.exists():
                    break
        return events

    # ------------------------------------------------------------------ tests

    def test_every_job_gives_its_results_and_ends_exactly_once(self, tmp_path: Path) -> None:
        *jobs, fourth, fifth = tiny_jobs(LEARN, RAISE, LEARN, LEARN, LEARN)
        jobs.append(fourth.model_copy(update={"trajectories": fourth.trajectories + fifth.trajectories}))
        with self.executor(tmp_path) as executor:
            assert executor.capacity >= 1
            for job in jobs:
                executor.submit(job)
            outcomes = self.outcomes(executor, jobs)
            assert list(executor.events(self.event_timeout)) == [], "events continued after the last JobEnded"
        for job in jobs:
            outcome = outcomes[job.id]
            assert outcome.error is None, (
                f"the worker reached the end of a job that has the error {outcome.error!r}"
            )
            assert [result.run.id for result in outcome.results] == [run.id for run in job.runs], (
                "a job must yield one result for each of its runs, in their order"
            )
        completed, raised = outcomes[jobs[0].id].results[0], outcomes[jobs[1].id].results[0]
        assert completed.status == "completed"
        assert completed.loss == pytest.approx(train_in_process(jobs[0], tmp_path).loss, rel=1e-4)
        assert raised.status == "failed"
        assert raised.error is not None
        assert "this model raises" in raised.error.message

    def test_jobs_may_be_submitted_while_events_are_read(self, tmp_path: Path) -> None:
        first, second, third = jobs = tiny_jobs(LEARN, LEARN, LEARN)
        next_jobs = {first.id: second, second.id: third}
        events = []
        with self.executor(tmp_path) as executor:
            executor.submit(first)
            for event in executor.events(self.event_timeout):
                events.append(event)
                if isinstance(event, JobEnded) and event.job in next_jobs:
                    executor.submit(next_jobs[event.job])
            outcomes = self.outcomes(executor, jobs, earlier=events)
        assert all(len(outcome.results) == 1 for outcome in outcomes.values())

    def test_a_job_may_be_submitted_again(self, tmp_path: Path) -> None:
        """A sweep retries a job with the same id after its worker was lost."""
        (job,) = tiny_jobs(LEARN)
        second = job.model_copy(update={"attempts": {run.id: 2 for run in job.runs}})
        with self.executor(tmp_path) as executor:
            for attempt, submission in enumerate((job, second), 1):
                executor.submit(submission)
                outcome = self.outcomes(executor, [submission])[job.id]
                assert [result.attempt for result in outcome.results] == [attempt]

    def test_a_worker_that_dies_ends_its_job_and_no_other(self, tmp_path: Path) -> None:
        if not self.isolated:
            pytest.skip("trains in this process, which would die")
        surviving, dying, *healthy = tiny_jobs(LEARN, DIE, LEARN, LEARN)
        killed = dying.model_copy(update={"trajectories": surviving.trajectories + dying.trajectories})
        with self.executor(tmp_path) as executor:
            for job in [killed, *healthy]:
                executor.submit(job)
            outcomes = self.outcomes(executor, [killed, *healthy])
        assert outcomes[killed.id].error, "the JobEnded of a job needs an error if its worker was killed"
        delivered = [result.run for result in outcomes[killed.id].results]
        assert delivered == list(surviving.runs), "results that a worker yielded before it died must be delivered"
        for job in healthy:
            assert outcomes[job.id].error is None
            assert [result.status for result in outcomes[job.id].results] == ["completed"]

    def test_a_cancelled_job_ends_and_others_go_on(self, tmp_path: Path) -> None:
        trace = tmp_path / "trace"
        with self.executor(tmp_path) as executor:
            busy = [traced(CRAWL, trace)] * executor.capacity
            *running, waiting, remaining = jobs = tiny_jobs(*busy, LEARN, LEARN)
            for job in jobs:
                executor.submit(job)
            events = self.wait_for_start(executor, trace)
            assert all(executor.is_alive(job.id) for job in jobs), "is_alive is False for a job that has not ended"
            for job in [waiting, *running]:
                executor.cancel(job.id)
            executor.cancel("unknown job")
            outcomes = self.outcomes(executor, jobs, earlier=events)
        for job in [waiting, *running]:
            assert outcomes[job.id].results == []
            assert outcomes[job.id].error, "the JobEnded of a cancelled job needs an error"
        assert [result.status for result in outcomes[remaining.id].results] == ["completed"]

    def test_reading_ends_when_nothing_comes_and_closing_leaves_no_process(self, tmp_path: Path) -> None:
        if not self.isolated:
            pytest.skip("trains in this process, which would hang with the model")
        trace = tmp_path / "trace"
        with self.executor(tmp_path) as executor:
            for job in tiny_jobs(*[traced(HANG, trace)] * 2):
                executor.submit(job)
            self.wait_for_start(executor, trace)
            assert [event for event in executor.events(0.2) if isinstance(event, JobEnded)] == []
            executor.close()
            executor.close()
        workers = [line.split() for line in trace.read_text().splitlines()]
        pids = [int(pid) for host, pid in workers if host == socket.gethostname()]
        deadline = time.monotonic() + self.daemons_take
        while (pids := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert pids == [], "processes with these ids are still running"


def tiny_registry() -> Registry:
    return Registry({"tiny": tiny})


def tiny_jobs(*codes: str) -> list[Job]:
    """One job per code (see :class:`tiny.TinyOptions`), with a single run of 100 to 200 steps."""
    experiment = make_experiment(
        {
            "sweep": {
                "budgets": [500_000],
                "sizes": [{"width": 4 + index, "code": code} for index, code in enumerate(codes)],
                "batch_size": 8,
            },
            "model": "tiny/tiny",
            "dataset": "tiny/majority",
            "optimizer": "tiny/plain",
            "counter": "counters/chinchilla",
            "trainer": {"name": "trainers/torch", "eval_tokens": 256},
            "device": "devices/cpu",
        },
        tiny_registry(),
    )
    plan = make_plan(experiment)
    return sorted(plan.jobs({run.id for run in plan.runs}), key=lambda job: job.runs[0].size)


def traced(code: str, trace: Path) -> str:
    """The code, preceded by code that appends ``host pid`` to the file ``trace`` in the first step."""
    return f"""
import os, socket
if step == 0:
    with open({str(trace)!r}, "a") as file:
        file.write(f"{{socket.gethostname()}} {{os.getpid()}}\\n")
{code}
"""


def train_in_process(job: Job, folder: Path) -> RunResult:
    """Train a job in this process without an executor, and return its first result."""
    setup = tiny_registry().setup.model_dump_json()
    context = StudyExecutorContext(folder=folder, plugins=setup, live={}, slots=[{}])
    records = context.task(job)()
    return next(record for record in records if isinstance(record, RunResult))


def is_running(pid: int) -> bool:
    """Whether a process is alive. A zombie is not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self").exists()
