"""Slurm jobs that an earlier driver of the study has left in the queue."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from flops_fit_core import ConfigError, Job
from flops_fit_core.plugins import QueuedJob, QueuedJobs
from flops_fit_executors.slurm_commands import ALIVE, Slurm

logger = logging.getLogger("flops_fit")


class LeftBehind:
    """Looked for when the first job is submitted: its driver has claimed its runs by then, so that no other driver
    waits for what is found."""

    def __init__(self, jobs: QueuedJobs, slurm: Slurm) -> None:
        self._jobs = jobs
        self._slurm = slurm
        self._by_trajectory: dict[str, QueuedJob] | None = None
        self._states: Mapping[str, str] = {}

    def taken_over(self, job: Job) -> QueuedJob | None:
        """What is in the queue and trains this job; what stands in its way is cancelled.

        Raises ConfigError where Slurm does not say what lives.
        """
        for one in self._in_the_way_of(job):
            if one.scheduler_id is not None and covers(one, job) and self._lives(one):
                logger.info("job %s goes on as Slurm job %s", job.id, one.scheduler_id)
                return one
            self._jobs.remove(one.job.id)
            if one.scheduler_id is not None:
                self._slurm.cancel([one.scheduler_id])
        return None

    def _in_the_way_of(self, job: Job) -> list[QueuedJob]:
        """What trains one of the job's trajectories; told of once."""
        behind = self._look()
        found = {one.job.id: one for own in job.trajectories if (one := behind.get(own.id)) is not None}
        for one in found.values():
            for trajectory in one.job.trajectories:
                behind.pop(trajectory.id, None)
        return list(found.values())

    def _look(self) -> dict[str, QueuedJob]:
        if self._by_trajectory is None:
            there = self._jobs.all()
            states = self._slurm.queue() if there else {}
            if states is None:
                raise ConfigError(
                    "executor 'slurm': squeue does not answer, so that nobody can tell whether jobs of an earlier "
                    "run are still in the queue: try again when it does"
                )
            self._states = states
            self._by_trajectory = {trajectory.id: one for one in there for trajectory in one.job.trajectories}
        return self._by_trajectory

    def _lives(self, one: QueuedJob) -> bool:
        return self._states.get(one.scheduler_id or "") in ALIVE and not self._jobs.state(one).ended


def covers(queued: QueuedJob, job: Job) -> bool:
    """Whether a job that was submitted before does everything that is asked for now, in the same way."""
    before = queued.job
    same = (before.id, before.device, before.runtime) == (job.id, job.device, job.runtime)
    there = {run.id: before.attempts.get(run.id, 1) for run in before.runs}
    return same and all(there.get(run.id) == job.attempts.get(run.id, 1) for run in job.runs)
