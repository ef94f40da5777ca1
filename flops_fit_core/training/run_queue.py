"""The order in which the runs of a job are trained, and when their checkpoints are written."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from flops_fit_core.plugins.protocols import TrainContext
from flops_fit_core.records import Job, RunSpec
from flops_fit_core.training.options import TrainOptions
from flops_fit_core.training.run_state import RunState, TrajectoryState
from flops_fit_core.training.step import PlainStep, TrainStep
from flops_fit_core.training.throughput import Throughput
from flops_fit_core.training.vmapped_step import VmappedStep


class RunQueue:
    """The runs of one job that are not finished.

    The runs of a trajectory are trained in the order of their D: each continues the shared stable phase from the
    checkpoint at which the run before it branched off. Trajectories of one shape advance together. Their runs of
    one D form a level, which is trained as one vmapped model if possible, and otherwise run by run.

    The queue keeps no model: the loop owns the runs that :meth:`next_group` builds.
    """

    def __init__(self, job: Job, context: TrainContext, options: TrainOptions) -> None:
        self._context = context
        self._options = options
        trajectories = [
            TrajectoryState(trajectory, context, options, job.claim_tokens.get(trajectory.id))
            for trajectory in job.trajectories
        ]
        self._trajectories = {spec.id: trajectory for trajectory in trajectories for spec in trajectory.specs}
        specs = [trajectory.specs for trajectory in trajectories]
        same_shape = len({trajectory.shape for trajectory in job.trajectories}) == 1
        self._levels: list[list[RunSpec]] = (
            [list(level) for level in zip(*specs, strict=True)]
            if same_shape
            else [[spec] for spec in itertools.chain.from_iterable(specs)]
        )
        self._may_vmap = options.micro_batch is None and not options.compile and context.distributed.size == 1
        self._separated = False
        """Whether the runs of the first level are trained one by one because they cannot be vmapped."""

    def next_group(self) -> tuple[list[RunState], TrainStep] | None:
        """Build the next runs, and the step that trains them. None if every run is finished."""
        while self._levels and not self._levels[0]:
            self._levels.pop(0)
            self._separated = False
        if not self._levels:
            return None
        level = self._levels[0]
        if len(level) > 1 and self._may_vmap and not self._separated:
            runs = [self._begin(spec) for spec in level]
            vmapped_step = VmappedStep.if_possible(runs, self._context.device, self._options)
            if vmapped_step is not None:
                return runs, vmapped_step
            del runs  # frees their memory before the first of them is built again
            self._separated = True
        run = self._begin(level[0])
        return [run], PlainStep(run, self._context, self._options)

    def _begin(self, spec: RunSpec) -> RunState:
        run = self._trajectories[spec.id].begin(spec)
        run.branch_if_due()  # for a run that was stopped exactly at the end of the shared stable phase
        return run

    def separate_runs(self) -> None:
        """Train the runs of the current level one by one, each from its last checkpoint."""
        self._separated = True

    def save(self, runs: Sequence[RunState], throughput: Throughput) -> None:
        """Write the checkpoints from which the runs are resumed."""
        with throughput.saving():
            for run in runs:
                run.save()

    def branch_or_save_if_due(self, runs: Sequence[RunState], step: int, throughput: Throughput) -> None:
        """Write a branch checkpoint at the end of the shared stable phase, and others every few minutes."""
        if any(run.is_branch_due for run in runs):
            with throughput.saving():
                for run in runs:
                    run.branch_if_due()
            return
        # The end of training is saved before the evaluation. Clocks differ, so the first process decides.
        seconds = 60 * self._options.checkpoint_minutes
        if step < runs[0].spec.steps and self._context.distributed.broadcast(throughput.since_save() > seconds):
            self.save(runs, throughput)

    def finish(self, runs: Sequence[RunState]) -> list[RunState]:
        """Remove finished runs. Returns them, and the longer runs of a shared stable phase that diverged."""
        finished = list(runs)
        for run in runs:
            if run.position.diverged and not run.position.run:
                finished += self._trajectories[run.spec.id].continue_diverged(run)
        finished_ids = {run.spec.id for run in finished}
        self._levels = [[spec for spec in level if spec.id not in finished_ids] for level in self._levels]
        return finished
