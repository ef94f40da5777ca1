"""Slurm jobs that an earlier driver of the study left in the queue."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from flops_fit_core import ConfigError, Job
from flops_fit_core.plugins import QueuedJob, QueuedJobs
from flops_fit_executors.slurm_commands import ALIVE, Slurm

logger = logging.getLogger("flops_fit")


class PreviousJobs:
    """Finds jobs of earlier drivers. They are read when the first job is submitted: by then this driver has
    claimed the job's runs, so no other driver waits for these jobs."""

    def __init__(self, jobs: QueuedJobs, slurm: Slurm) -> None:
        self._jobs = jobs
        self._slurm = slurm
        self._by_trajectory: dict[str, QueuedJob] | None = None
        self._states: Mapping[str, str] = {}

    def take_over(self, job: Job) -> QueuedJob | None:
        """The live job that trains this job. Other jobs that train its trajectories are cancelled.

        Raises ConfigError if Slurm does not report which jobs are alive.
        """
        for queued in self._pop_overlapping(job):
            if queued.scheduler_id is not None and covers(queued, job) and self._is_alive(queued):
                logger.info("job %s continues as Slurm job %s", job.id, queued.scheduler_id)
                return queued
            self._jobs.remove(queued.job.id)
            if queued.scheduler_id is not None and queued.scheduler_id in self._states:
                # A changed file may have the id of another job of the user, or an option of scancel.
                self._slurm.cancel([queued.scheduler_id])
        return None

    def _pop_overlapping(self, job: Job) -> list[QueuedJob]:
        """Jobs that train a trajectory of this job. Each is returned only once."""
        by_trajectory = self._load()
        overlapping = {
            queued.job.id: queued
            for trajectory in job.trajectories
            if (queued := by_trajectory.get(trajectory.id)) is not None
        }
        for queued in overlapping.values():
            for trajectory in queued.job.trajectories:
                by_trajectory.pop(trajectory.id, None)
        return list(overlapping.values())

    def _load(self) -> dict[str, QueuedJob]:
        if self._by_trajectory is None:
            jobs = self._jobs.all()
            states = self._slurm.queue() if jobs else {}
            if states is None:
                raise ConfigError(
                    "executor 'slurm': squeue does not answer, and jobs of an earlier run may still be in the "
                    "queue: try again when squeue works"
                )
            self._states = states
            self._by_trajectory = {
                trajectory.id: queued for queued in jobs for trajectory in queued.job.trajectories
            }
        return self._by_trajectory

    def _is_alive(self, queued: QueuedJob) -> bool:
        return self._states.get(queued.scheduler_id or "") in ALIVE and not self._jobs.state(queued).ended


def covers(queued: QueuedJob, job: Job) -> bool:
    """Whether a job of an earlier driver trains all runs of this job, with the same attempts and settings."""
    previous = queued.job
    same = (previous.id, previous.device, previous.runtime) == (job.id, job.device, job.runtime)
    attempts = {run.id: previous.attempts.get(run.id, 1) for run in previous.runs}
    return same and all(attempts.get(run.id) == job.attempts.get(run.id, 1) for run in job.runs)
