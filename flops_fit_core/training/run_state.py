"""Runs on their way: what each is made of, where it is, and which trajectory it belongs to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from flops_fit_core.plugins.protocols import Batch, RunParts, TrainContext
from flops_fit_core.records import RunSpec, Trajectory
from flops_fit_core.training.checkpoint_files import TrajectoryFolder
from flops_fit_core.training.checkpoints import Checkpoints, Position
from flops_fit_core.training.optimizer_modes import train_mode


@dataclass
class Pass:
    """One run being trained."""

    run: RunSpec
    parts: RunParts
    peaks: Sequence[float]
    """Peak learning rate of each of the optimizer's groups."""
    position: Position
    checkpoints: Checkpoints
    own_evaluations: frozenset[int]
    """Steps on the way at which this run is evaluated."""
    trunk_evaluations: frozenset[int]
    """Those of all runs of its trajectory."""
    since: float = field(default_factory=time.perf_counter)
    """When ``position.seconds`` was last brought up to date."""

    @classmethod
    def begin(
        cls,
        run: RunSpec,
        folder: TrajectoryFolder,
        context: TrainContext,
        own_evaluations: frozenset[int],
        trunk_evaluations: frozenset[int],
        *,
        shard: Callable[[nn.Module], bool] | None,
    ) -> Pass:
        """Build a run and put it as far on its way as its checkpoints tell."""
        since = time.perf_counter()
        parts = context.build(run, shard=shard)
        # Before anything is restored: a checkpoint has the learning rates of its moment.
        peaks = [float(group["lr"]) for group in parts.optimizer.param_groups]
        checkpoints = Checkpoints(folder, context.device.torch_device, context.together)
        position = checkpoints.restore(run, parts)
        if position.tokens is None or position.positions is None:
            position.tokens = position.step * run.tokens_per_step
            position.positions = position.step * run.positions_per_step
        train_mode(parts.optimizer)
        context.together.seed(run.seed, position.step)
        return cls(run, parts, peaks, position, checkpoints, own_evaluations, trunk_evaluations, since)

    @property
    def branch(self) -> int:
        """Step at which the run leaves its trunk; its last step where it shares nothing."""
        return self.run.branch_step or self.run.steps

    def count_batch(self, batch: Batch) -> int:
        """Add a batch that is trained on to the tokens and positions. Returns its tokens."""
        if self.position.diverged:
            return 0
        count = self.parts.dataset.task.count(batch)
        self.position.tokens = (self.position.tokens or 0) + count.tokens
        self.position.positions = (self.position.positions or 0) + count.positions
        return count.tokens

    def count_time(self, share: float) -> None:
        """Add its share of the wall time since this was last called."""
        before, self.since = self.since, time.perf_counter()
        self.position.seconds += share * (self.since - before)

    def set_learning_rates(self, step: int) -> None:
        """What the schedule says for a step, counted from 0."""
        multiplier = self.parts.schedule(step)
        for group, peak in zip(self.parts.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * multiplier


class Track:
    """One trajectory, whose runs are trained in the order of their D."""

    def __init__(
        self,
        trajectory: Trajectory,
        evaluations: int,
        context: TrainContext,
        *,
        shard: Callable[[nn.Module], bool] | None = None,
    ) -> None:
        self.runs = sorted(trajectory.runs, key=lambda run: run.tokens)
        self._folder = TrajectoryFolder(context.checkpoints.parent, trajectory.id)
        self._evaluations = {run.id: _evaluations(run, evaluations) for run in self.runs}
        self._context = context
        self._shard = shard
        self._latest: Pass | None = None

    def begin(self, run: RunSpec) -> Pass:
        """Build a run and put it as far on its way as its checkpoints tell."""
        every = frozenset[int]().union(*self._evaluations.values())
        own = self._evaluations[run.id]
        self._latest = Pass.begin(run, self._folder, self._context, own, every, shard=self._shard)
        return self._latest

    def drop(self) -> None:
        """Give up what :meth:`begin` has built; the next call builds again, from the last checkpoint."""
        self._latest = None

    @property
    def dead(self) -> Pass | None:
        """The pass whose trunk diverged: longer runs would diverge at the same step of the same trunk."""
        one = self._latest
        return one if one is not None and one.position.diverged and not one.position.run else None

    def ended(self, run: RunSpec) -> Pass:
        """A longer run of the dead trunk, at its end, for which nothing has been trained."""
        assert self.dead is not None
        dead = self.dead.position
        position = replace(dead, began=dead.step, began_tokens=dead.tokens or 0, seconds=0.0)
        return replace(
            self.dead,
            run=run,
            position=position,
            own_evaluations=self._evaluations[run.id],
            since=time.perf_counter(),
        )


def _evaluations(run: RunSpec, count: int) -> frozenset[int]:
    """Steps on the way at which a run is evaluated."""
    parts = count + 1
    return frozenset(run.steps * k // parts for k in range(1, parts)) - {run.steps}
