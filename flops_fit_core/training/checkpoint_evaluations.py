"""Evaluations of runs that have not ended, read from their checkpoints without the weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from flops_fit_core.records import RunSpec
from flops_fit_core.training.checkpoint_files import TrajectoryFolder, verify_checkpoint

logger = logging.getLogger("flops_fit")

Evaluations = list[tuple[int, float | None]]
"""Step and held-out loss in nats; None if the loss was not finite."""


def read_evaluations(folder: TrajectoryFolder, run: RunSpec) -> Evaluations:
    """The evaluations up to the furthest checkpoint on the path of a run; empty without an intact checkpoint.

    Checkpoints of the shared stable phase also have evaluations for other runs of the trajectory. Runs no code
    from the files, and leaves the weights on disk.
    """
    end = run.branch_step or 0
    files = [folder.latest, *(file for step, file in folder.branches().items() if step <= end)]
    furthest: tuple[int, Evaluations] = 0, []
    for file in files:
        position = _read_position(file)
        if position is None:
            continue
        is_shared = not position["run"] and position["step"] <= (run.branch_step or run.steps)
        if (position["run"] == run.id or is_shared) and position["step"] > furthest[0]:
            furthest = position["step"], [(int(step), loss) for step, loss in position["curve"]]
    return furthest[1]


def _read_position(file: Path) -> dict[str, Any] | None:
    """The position in a checkpoint of the trainer ``torch``; None for any other file."""
    import torch

    if not file.exists():
        return None
    try:
        if (damage := verify_checkpoint(file)) is not None:
            raise ValueError(damage)
        position = torch.load(file, weights_only=True, map_location="cpu", mmap=True)["position"]
        return {key: position[key] for key in ("run", "step", "curve")}
    except Exception as error:  # a file of another trainer, or replaced while it is read
        logger.warning("no evaluations are read from checkpoint %s: %s", file, error)
        return None
