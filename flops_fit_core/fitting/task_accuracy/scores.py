"""The runs of a forecast as arrays: N, D, C, the loss of step 1, and accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Bools, Floats, Ints


@dataclass(frozen=True)
class TaskScores:
    """Trained models with their loss and their accuracy, one per array entry."""

    task: str
    """Name of the accuracy: a column of a table, or a metric of the runs."""
    via: str
    """Name of the loss of step 1."""
    ids: tuple[str, ...]
    params: Floats
    tokens: Floats
    flops: Floats
    loss: Floats
    """Loss of step 1; positive, in any unit."""
    accuracy: Floats
    """Between 0 and 1."""
    trajectories: tuple[str, ...]
    """Runs with equal entries have correlated errors."""
    main_loss: Floats
    """Main held-out loss, which chooses N and D for a budget."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Ints | Bools) -> TaskScores:
        """Select runs by row number or by mask."""
        index = np.arange(len(self))[rows]
        return TaskScores(
            task=self.task,
            via=self.via,
            ids=tuple(self.ids[row] for row in index),
            params=self.params[index],
            tokens=self.tokens[index],
            flops=self.flops[index],
            loss=self.loss[index],
            accuracy=self.accuracy[index],
            trajectories=tuple(self.trajectories[row] for row in index),
            main_loss=self.main_loss[index],
        )

    @property
    def clusters(self) -> Ints:
        """The number of each run's trajectory, from 0."""
        return np.unique(np.array(self.trajectories), return_inverse=True)[1]
