"""Delete the checkpoints that no run needs."""

from __future__ import annotations

import logging
import uuid
from functools import partial
from pathlib import Path

from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.records import SweepPlan
from flops_fit_core.study.claims import Claims
from flops_fit_core.training.checkpoint_files import TrajectoryFolder

CLAIM_SECONDS = 60.0

logger = logging.getLogger("flops_fit")


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
