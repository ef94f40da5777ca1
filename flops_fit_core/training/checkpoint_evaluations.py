"""Evaluations of a run that has not ended, read from its latest checkpoint without its weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from flops_fit_core.training.checkpoint_files import TrajectoryFolder, verify_checkpoint

logger = logging.getLogger("flops_fit")


@dataclass(frozen=True)
class UnfinishedEvaluations:
    """The position of a trajectory and the held-out losses along it."""

    run: str
    """Id of the run in whose decay the position is; empty in the shared stable phase."""
    step: int
    curve: tuple[tuple[int, float], ...]
    """Step and held-out loss in nats. Evaluations that were not finite are left out."""


def read_evaluations(folder: TrajectoryFolder) -> UnfinishedEvaluations | None:
    """The evaluations in the latest checkpoint of a trajectory; None without an intact checkpoint of the trainer
    ``torch``. Runs no code from the file and leaves the weights on disk."""
    import torch

    file = folder.latest
    if not file.exists():
        return None
    try:
        if (damage := verify_checkpoint(file)) is not None:
            raise ValueError(damage)
        position = torch.load(file, weights_only=True, map_location="cpu", mmap=True)["position"]
        points = tuple((int(step), float(loss)) for step, loss in position["curve"] if loss is not None)
        return UnfinishedEvaluations(str(position["run"]), int(position["step"]), points)
    except Exception as error:  # a file of another trainer, or replaced while it is read
        logger.warning("no evaluations are read from checkpoint %s: %s", file, error)
        return None
