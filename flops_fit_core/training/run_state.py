"""The state of runs during training, and of the trajectories to which they belong."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flops_fit_core.plugins.protocols import Batch, BuiltRun, TrainContext
from flops_fit_core.records import RunSpec, Trajectory
from flops_fit_core.training.checkpoint_files import TrajectoryFolder
from flops_fit_core.training.checkpoints import Checkpoints, TrainPosition
from flops_fit_core.training.optimizer_modes import train_mode
from flops_fit_core.training.options import TrainOptions
from flops_fit_core.training.sharding import should_shard


@dataclass(eq=False)  # a run is equal to itself only; comparing fields would compare weights
class RunState:
    """One run during training: its model and data, its position and its checkpoints."""

    spec: RunSpec
    parts: BuiltRun
    peak_lrs: Sequence[float]
    """Peak learning rate of each parameter group of the optimizer."""
    position: TrainPosition
    checkpoints: Checkpoints
    own_evaluation_steps: frozenset[int]
    """Steps after which this run is evaluated during training."""
    shared_evaluation_steps: frozenset[int]
    """The same for all runs of the trajectory."""
    last_batch_tokens: int = 0
    """Valid targets of the last batch."""

    @property
    def branch_step(self) -> int:
        """Step at which the run leaves the shared stable phase. Its last step if it shares none."""
        return self.spec.branch_step or self.spec.steps

    @property
    def evaluation_steps(self) -> frozenset[int]:
        """The shared stable phase is evaluated for all runs of the trajectory, the decay for this run only."""
        return self.own_evaluation_steps if self.position.run else self.shared_evaluation_steps

    @property
    def is_finished(self) -> bool:
        return self.position.diverged or self.position.step == self.spec.steps

    def set_learning_rates(self, step: int) -> None:
        """Set the schedule's learning rates for a step, counted from 0."""
        multiplier = self.parts.schedule(step)
        for group, peak_lr in zip(self.parts.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak_lr * multiplier

    def count_step(self, batch: Batch) -> None:
        """Advance the position by a step on a batch. A diverged run stays at its step."""
        if self.position.diverged:
            self.last_batch_tokens = 0
            return
        count = self.parts.dataset.task.count(batch)
        self.position.step += 1
        self.position.tokens = (self.position.tokens or 0) + count.tokens
        self.position.positions = (self.position.positions or 0) + count.positions
        self.last_batch_tokens = count.tokens

    def save(self) -> None:
        """Write the checkpoint from which the run is resumed. A diverged run is not resumed and writes none."""
        if not self.position.diverged:
            self.checkpoints.save_latest(self.parts, self.position)

    @property
    def is_branch_due(self) -> bool:
        return not (self.position.run or self.position.diverged or self.position.step < self.branch_step)

    def branch_if_due(self) -> None:
        """Leave the shared stable phase at its end. Writes the checkpoint from which longer runs continue."""
        if not self.is_branch_due:
            return
        if self.spec.branch_step is not None:
            self.checkpoints.save_branch(self.parts, self.position)
        self.position.run = self.spec.id


def all_diverged(runs: Sequence[RunState]) -> bool:
    return all(run.position.diverged for run in runs)


def all_finished(runs: Sequence[RunState]) -> bool:
    return all(run.is_finished for run in runs)


class TrajectoryState:
    """One trajectory: its runs in the order of their D, and the folder of their checkpoints.

    Args:
        trajectory: The runs.
        context: The context of their job.
        options: The options of the trainer.
        token: Token of the driver's claim of the trajectory; None if the store is not fenced.
    """

    def __init__(
        self, trajectory: Trajectory, context: TrainContext, options: TrainOptions, token: str | None = None
    ) -> None:
        self.specs = sorted(trajectory.runs, key=lambda spec: spec.tokens)
        self._folder = TrajectoryFolder(context.checkpoints.parent, trajectory.id, token)
        self._context = context
        self._options = options

    def begin(self, spec: RunSpec) -> RunState:
        """Build a run and continue from its furthest checkpoint.

        Raises RunFailed for a checkpoint that does not fit the model or the optimizer.
        """
        started = time.perf_counter()
        context = self._context
        device, distributed = context.device.torch_device, context.distributed
        parts = context.build(
            spec, shard=lambda model: should_shard(model, device, distributed.size, self._options.parallel)
        )
        # Read before the checkpoint is loaded: it contains the learning rates of the step of the checkpoint.
        peak_lrs = [float(group["lr"]) for group in parts.optimizer.param_groups]
        checkpoints = Checkpoints(self._folder, device, distributed)
        position = checkpoints.restore(spec, parts)
        if position.tokens is None or position.positions is None:
            position.tokens = position.step * spec.tokens_per_step
            position.positions = position.step * spec.positions_per_step
        parts.model.train()
        train_mode(parts.optimizer)
        distributed.seed(spec.seed, position.step)
        position.seconds += time.perf_counter() - started
        own_steps = self._evaluation_steps(spec)
        shared_steps = own_steps.union(*map(self._evaluation_steps, self.specs))
        return RunState(spec, parts, peak_lrs, position, checkpoints, own_steps, shared_steps)

    def continue_diverged(self, run: RunState) -> list[RunState]:
        """The longer runs of a shared stable phase in which ``run`` diverged, in the same final state.

        They are not trained: each would diverge at the same step.
        """
        position = replace(
            run.position, began=run.position.step, began_tokens=run.position.tokens or 0, seconds=0.0
        )
        ids = [spec.id for spec in self.specs]
        longer_specs = self.specs[ids.index(run.spec.id) + 1 :]
        return [
            replace(run, spec=spec, position=replace(position), own_evaluation_steps=self._evaluation_steps(spec))
            for spec in longer_specs
        ]

    def _evaluation_steps(self, spec: RunSpec) -> frozenset[int]:
        """Evenly spaced steps after which a run is evaluated. The evaluation at its end is not among them."""
        intervals = self._options.num_evals + 1
        return frozenset(spec.steps * k // intervals for k in range(1, intervals)) - {spec.steps}
