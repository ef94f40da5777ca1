"""Jobs in a scheduler's queue: the files that the driver and the jobs exchange.

    jobs/<job id>.json          written by the driver: the job, and the ticket of the submission that may train it
    jobs/<job id>.state.json    written by that submission: its progress, and the runs that have results
    outbox/<run id>.*.json      written by that submission: results

Each file is replaced atomically and has a checksum. A damaged file counts as missing and is logged once.
"""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.checked_json import parse_record, read_checked, write_checked
from flops_fit_core.plugins.checkpoint_claim import CheckpointClaim
from flops_fit_core.plugins.outbox import Outbox
from flops_fit_core.records import Job, Progress, RunResult
from flops_fit_core.records.base import Record

M = TypeVar("M", bound=BaseModel)
STATE = ".state.json"

logger = logging.getLogger("flops_fit")


class QueuedJob(Record):
    """A job that has been submitted to a scheduler."""

    ticket: str
    """New for every submission. A worker with another ticket than the file stops."""
    job: Job
    plugins: str
    """A :class:`PluginSetup` as JSON."""
    scheduler_id: str | None = None
    """The scheduler's own id of the job; None until the scheduler has accepted it."""
    driver: str = ""
    """New for the driver that submitted the job and for every driver that takes it over."""


class JobState(BaseModel):
    """How far a queued job is. It is kept when the scheduler runs the job again."""

    model_config = ConfigDict(defer_build=True)  # as in Record: importing the core stays fast

    ticket: str
    done: list[str] = []
    """Ids of the runs that have results, in order. The results are, or were, in the outbox."""
    progress: dict[str, Progress] = {}
    """Run id -> latest progress."""
    ended: bool = False
    """True if the job will not continue."""
    error: str | None = None
    """Why the job ended before all runs had results."""


class QueuedJobs:
    """The queued jobs of one study, read and written by the driver and by workers."""

    def __init__(self, study: Path) -> None:
        self.path = study / "jobs"
        self._outbox = Outbox(study)

    def add(self, job: Job, plugins: str) -> QueuedJob:
        """Write a job with a new ticket, which takes it away from any earlier submission."""
        queued = QueuedJob(ticket=uuid.uuid4().hex, job=job, plugins=plugins, driver=uuid.uuid4().hex)
        self._write(self._job_file(job.id), queued)
        return queued

    def set_scheduler_id(self, job_id: str, scheduler_id: str) -> QueuedJob:
        """Record the scheduler's id, by which a later driver finds the job.

        Raises KeyError if there is no such job.
        """
        queued = self.get(job_id)
        if queued is None:
            raise KeyError(job_id)
        queued = queued.model_copy(update={"scheduler_id": scheduler_id})
        self._write(self._job_file(job_id), queued)
        return queued

    def take_over(self, queued: QueuedJob, claim_tokens: Mapping[str, str]) -> QueuedJob:
        """Take a submission over from another driver. Its worker continues.

        Args:
            queued: The submission.
            claim_tokens: The new driver's ``Job.claim_tokens``. The worker keeps the tokens of the submission, and
                may write checkpoints for this driver.
        """
        queued = queued.model_copy(update={"driver": uuid.uuid4().hex})
        self._write(self._job_file(queued.job.id), queued)
        for trajectory in queued.job.trajectories:
            token, worker_token = claim_tokens.get(trajectory.id), queued.job.claim_tokens.get(trajectory.id)
            if token is not None and worker_token is not None:
                claim = CheckpointClaim(self.path.parent / "checkpoints" / trajectory.id)
                claim.admit(token, worker_token)
        return queued

    def is_owned(self, queued: QueuedJob) -> bool:
        """Whether no other driver has submitted the job again or taken it over."""
        current = self.get(queued.job.id)
        return current is not None and (current.ticket, current.driver) == (queued.ticket, queued.driver)

    def get(self, job_id: str) -> QueuedJob | None:
        """The job; None if its file is missing or damaged."""
        return _read(QueuedJob, self._job_file(job_id))

    def all(self) -> list[QueuedJob]:
        """All queued jobs except those with a damaged file, which their workers cannot read either."""
        files = sorted(file for file in self.path.glob("[!.]*.json") if not file.name.endswith(STATE))
        return [queued for file in files if (queued := _read(QueuedJob, file)) is not None]

    def remove(self, job_id: str) -> None:
        """Delete the files of a job. A worker that still trains it stops."""
        self._job_file(job_id).unlink(missing_ok=True)
        self._state_file(job_id).unlink(missing_ok=True)

    def is_current(self, queued: QueuedJob) -> bool:
        """Whether this submission still has the right to train the job."""
        current = self.get(queued.job.id)
        return current is not None and current.ticket == queued.ticket

    def state(self, queued: QueuedJob) -> JobState:
        """The state that this submission has written; an empty one if there is none."""
        state = _read(JobState, self._state_file(queued.job.id))
        if state is None or state.ticket != queued.ticket:
            return JobState(ticket=queued.ticket)
        return state

    def write_state(self, queued: QueuedJob, state: JobState) -> bool:
        """Write the state, unless another submission has the job. Returns whether it was written."""
        if not self.is_current(queued):
            return False
        self._write(self._state_file(queued.job.id), state)
        return True

    def end(self, queued: QueuedJob, error: str | None) -> None:
        """Mark the job as ended, for a process that outlives the worker."""
        self.write_state(queued, self.state(queued).model_copy(update={"ended": True, "error": error}))

    def result(self, job: Job, run_id: str) -> RunResult | None:
        """The result of the job's attempt at a run, if it is in the outbox."""
        result = self._outbox.get(run_id, job.claim_tokens.get(run_id))
        return result if result is not None and result.attempt >= job.attempts.get(run_id, 1) else None

    def remaining(self, queued: QueuedJob) -> Job | None:
        """The job with the runs that have no result; None if all have one."""
        done = self.state(queued).done
        return queued.job.only(lambda run: run.id not in done and self.result(queued.job, run.id) is None)

    def _job_file(self, job_id: str) -> Path:
        return self.path / f"{job_id}.json"

    def _state_file(self, job_id: str) -> Path:
        return self.path / f"{job_id}{STATE}"

    def _write(self, path: Path, content: BaseModel) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not synced to disk: after a crash, the queue and the outbox still have the information.
        write_checked(path, content.model_dump(mode="json"), durable=False)


class QueuedJobReader:
    """Reads the events of a queued job, each once. Used by the driver."""

    def __init__(self, jobs: QueuedJobs, queued: QueuedJob, job: Job | None = None) -> None:
        """``job`` restricts the events to its runs; by default, all runs of the queued job."""
        self.queued = queued
        self.job = queued.job if job is None else job
        self.missing = {run.id for run in self.job.runs}
        """Ids of the runs with results that have not been read."""
        self.state = JobState(ticket=queued.ticket)
        """The state that was read last."""
        self._jobs = jobs
        self._progress: dict[str, Progress] = {}

    def read(self) -> list[Progress | RunResult]:
        """New results, then new progress."""
        self.state = self._jobs.state(self.queued)
        results = self._results(lambda run_id: run_id in self.state.done)
        progress = [
            event
            for run_id, event in self.state.progress.items()
            if run_id in self.missing and self._progress.get(run_id) != event
        ]
        self._progress |= {event.run: event for event in progress}
        return [*results, *progress]

    def read_outbox(self) -> list[RunResult]:
        """New results that the state may not list, because the worker died between the two writes."""
        return self._results(lambda run_id: True)

    def _results(self, is_selected: Callable[[str], bool]) -> list[RunResult]:
        runs = [run.id for run in self.job.runs if run.id in self.missing and is_selected(run.id)]
        results = [result for run in runs if (result := self._jobs.result(self.job, run)) is not None]
        self.missing -= {result.id for result in results}
        return results


def _read(kind: type[M], path: Path) -> M | None:
    try:
        return parse_record(kind, read_checked(path)[0], path)
    except ConfigError as error:
        if path.exists():
            _report_damage(path, str(error))
        return None


@functools.lru_cache(maxsize=1000)
def _report_damage(path: Path, damage: str) -> None:
    """Cached: a driver reads the file again and again, and reports the damage once."""
    logger.warning("%s. It is not used, and its job is submitted again if runs are missing", damage)
