"""What a driver and its Slurm jobs say to each other: files in the study's folder.

    slurm/jobs/<job id>.json         written by the driver: which Slurm job has the right to train this job
    slurm/jobs/<job id>.state.json   written by that Slurm job: how far it is
    slurm/logs/                      submitit's scripts and pickles; what jobs, and user code in them, print

Each is replaced at once, so that whoever reads it sees the old content or the new.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from flops_fit_core import Job, Progress
from flops_fit_core.plugins import read_log_tail, write_atomically

M = TypeVar("M", bound=BaseModel)
STATE = ".state.json"
TAIL = 2_000
"""Bytes at the end of a log that are quoted."""


class Submission(BaseModel):
    """A job that is in Slurm's hands."""

    ticket: str
    """New for every submission. A Slurm job whose ticket is not the one on disk stops."""
    slurm: str | None = None
    """Slurm's id, such as ``1234_5``; None until sbatch has answered."""
    job: Job


class State(BaseModel):
    """How far a Slurm job is; kept when it is requeued."""

    ticket: str
    done: list[str] = []
    """Ids of the runs whose results are, or were, in the outbox, first one first."""
    progress: dict[str, Progress] = {}
    """The latest of each run."""
    ended: bool = False
    """Whether it has come to its end and will not go on."""
    reason: str | None = None
    """Why, where it is not that everything was trained."""


class SlurmFiles:
    """The files of one study."""

    def __init__(self, study: Path) -> None:
        self.jobs = study / "slurm" / "jobs"
        self.logs = study / "slurm" / "logs"

    def submissions(self) -> list[Submission]:
        """All there are. One that cannot be read is left out: its Slurm job will find that it has no ticket."""
        files = sorted(file for file in self.jobs.glob("[!.]*.json") if not file.name.endswith(STATE))
        found = (_read(Submission, file) for file in files)
        return [one for one in found if one is not None]

    def submission(self, job_id: str) -> Submission | None:
        return _read(Submission, self._submission(job_id))

    def submit(self, submission: Submission) -> None:
        _write(self._submission(submission.job.id), submission)

    def state(self, job_id: str, ticket: str) -> State | None:
        """What the Slurm job with this ticket has said; None where it has said nothing."""
        state = _read(State, self._state(job_id))
        return state if state is not None and state.ticket == ticket else None

    def say(self, job_id: str, state: State) -> None:
        _write(self._state(job_id), state)

    def forget(self, job_id: str) -> None:
        """Take the right to go on from whatever Slurm job has it."""
        self._submission(job_id).unlink(missing_ok=True)
        self._state(job_id).unlink(missing_ok=True)

    def last_words(self, slurm: str) -> str:
        """The end of what Slurm kept of a job's standard error, or that there is none."""
        log = self.logs / f"{slurm}_0_log.err"
        if not log.exists():
            return f"there is no {log}: does the node see the study's folder?"
        return read_log_tail(log, TAIL).strip() or f"nothing in {log}"

    def _submission(self, job_id: str) -> Path:
        return self.jobs / f"{job_id}.json"

    def _state(self, job_id: str) -> Path:
        return self.jobs / f"{job_id}{STATE}"


def _read(kind: type[M], path: Path) -> M | None:
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def _write(path: Path, content: BaseModel) -> None:
    """Not forced to disk: what a crash of the machine takes is found out from the queue and the outbox."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.model_dump_json(), durable=False)
