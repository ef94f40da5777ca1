"""The evaluations during training of a study's runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flops_fit_core.records import RunResult, RunSpec, SweepPlan
from flops_fit_core.training.checkpoint_files import TrajectoryFolder

Points = list[tuple[int, float | None]]
"""(Step, loss) of each evaluation; None for a loss that is not finite."""


def evaluation_points(plan: SweepPlan, results: Sequence[RunResult], folder: Path) -> dict[str, Points]:
    """The evaluations of every run, by run id; those of unfinished runs come from checkpoints in ``folder``.

    In a shared stable phase, evaluations belong to every unfinished run of the trajectory.
    """
    points: dict[str, Points] = {
        result.id: [(item.step, item.loss) for item in result.curve] for result in results
    }
    finished = {result.id for result in results if result.is_finished}
    for trajectory in plan.trajectories:
        files = TrajectoryFolder(folder, trajectory.id)
        if files.bytes:
            points |= {run.id: _unfinished_points(files, run) for run in trajectory.runs if run.id not in finished}
    return points


def _unfinished_points(files: TrajectoryFolder, run: RunSpec) -> Points:
    from flops_fit_core.training.checkpoint_evaluations import read_evaluations

    return read_evaluations(files, run)
