"""The checkpoints of a study: the driver gives them to its workers, and deletes those that no run needs."""

from __future__ import annotations

import logging
import uuid
from functools import partial
from pathlib import Path

from flops_fit_core.errors import ClaimLost
from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.records import Job, SweepPlan
from flops_fit_core.study.claims import Claims, names_to_claim
from flops_fit_core.training.checkpoint_files import TrajectoryFolder

CLAIM_SECONDS = 60.0

logger = logging.getLogger("flops_fit")


def take_checkpoints(job: Job, claims: Claims, folder: Path | None) -> dict[str, str]:
    """Let only workers of this driver write the checkpoints of a job that it has claimed.

    Returns the job's ``claim_tokens``. Checkpoints of a trajectory without a token are not protected: the store is
    not fenced, or the folder cannot be written.

    Raises TimeoutError if a paused process holds a lock, and ClaimLost if this driver was paused and another has
    claimed a trajectory.
    """
    tokens = {name: token for name in names_to_claim(job) if (token := claims.token(name)) is not None}
    for trajectory in (item.id for item in job.trajectories if item.id in tokens):
        if folder is None:
            del tokens[trajectory]
            continue
        try:
            is_taken = TrajectoryFolder(folder, trajectory, tokens[trajectory]).take(
                partial(claims.holds, trajectory)
            )
        except TimeoutError:
            raise
        except OSError as error:
            logger.warning("the checkpoints of trajectory %s cannot be claimed: %s", trajectory, error)
            del tokens[trajectory]
            continue
        if not is_taken:
            raise ClaimLost(f"another driver has claimed the trajectory {trajectory}")
    return tokens


def leave_checkpoints(job: Job, finished: set[str], folder: Path) -> None:
    """At the end of a job, delete what the next driver does not need: the latest checkpoint of trajectories with
    finished runs only, and folders without checkpoints."""
    for trajectory in job.trajectories:
        checkpoints = TrajectoryFolder(folder, trajectory.id, job.claim_tokens.get(trajectory.id))
        if finished.issuperset(run.id for run in trajectory.runs):
            checkpoints.forget_latest()
        else:
            checkpoints.remove_if_empty()


def delete_checkpoints(
    plan: SweepPlan, store: ResultStore, folder: Path, *, branches: bool = True, unfinished: bool = False
) -> int:
    """Delete the checkpoints of trajectories with finished runs only. Returns the bytes freed.

    Trajectories that a driver has claimed are skipped.

    Args:
        plan: The runs.
        store: Their results and claims.
        folder: The study's folder.
        branches: Whether to delete also the checkpoints from which a longer run could branch off.
        unfinished: Whether to delete also the checkpoints of trajectories with unfinished runs.
    """
    finished = {result.id for result in store.results() if result.is_finished}
    claims = Claims(store, f"clean:{uuid.uuid4().hex}", CLAIM_SECONDS)
    freed = 0
    for trajectory in plan.trajectories:
        path = TrajectoryFolder(folder, trajectory.id).path
        done = finished.issuperset(run.id for run in trajectory.runs)
        if not path.exists() or not (done or unfinished) or not claims.take([trajectory.id]):
            continue
        checkpoints = TrajectoryFolder(folder, trajectory.id, claims.token(trajectory.id))
        try:
            if checkpoints.take(partial(claims.holds, trajectory.id)):
                freed += checkpoints.remove() if branches else checkpoints.forget_latest()
        except OSError as error:
            logger.warning("checkpoints in %s are kept: %s", path, error)
        claims.release([trajectory.id])
    return freed
