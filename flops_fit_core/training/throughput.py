"""Training throughput: the time that runs take, and the progress that is reported."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flops_fit_core.plugins.protocols import Batch, Device, TrainContext
from flops_fit_core.records import Progress, RunSpec, Trajectory
from flops_fit_core.training.options import TrainOptions
from flops_fit_core.training.run_state import RunState, TrajectoryState
from flops_fit_core.training.step import PlainStep

PROGRESS_SECONDS = 0.5
"""Seconds between two reports of progress."""


class Throughput:
    """Times the steps of runs that are trained together. Each run is charged an equal share of the time.

    The time of an evaluation or a checkpoint is part of a run's ``seconds``, but not of its ``train_seconds``.
    """

    def __init__(self, runs: Sequence[RunState], device: Device) -> None:
        self._runs = runs
        self._device = device
        self._steps = 0
        self._wait_seconds = 0.0
        self._excluded_seconds = 0.0
        self._now = time.perf_counter()
        """When the last step was counted. Read once per step: the queries below use it."""
        self._charged = self._reported = self._saved = self._now

    def count_step(self, batches: Sequence[Batch], wait_seconds: float) -> None:
        """Advance every run by a step. ``wait_seconds``: time that the step waited for its batches."""
        for run, batch in zip(self._runs, batches, strict=True):
            run.count_step(batch)
        self._steps += 1
        self._wait_seconds += wait_seconds
        self._now = time.perf_counter()

    def should_report(self) -> bool:
        """Whether the last report is more than PROGRESS_SECONDS old and there are steps to report."""
        return self._steps > 0 and self._now - self._reported > PROGRESS_SECONDS

    def report(self) -> list[Progress]:
        """The progress of every run. Its speed is the mean since the last checkpoint."""
        self._reported = self._now
        steps_per_second = self._steps / max(self._now - self._charged - self._excluded_seconds, 1e-9)
        return [
            Progress(
                run=run.spec.id,
                step=run.position.step,
                steps=run.spec.steps,
                tokens=run.position.step * run.spec.tokens_per_step,
                loss=run.position.last_loss,
                tokens_per_second=steps_per_second * run.spec.tokens_per_step,
            )
            for run in self._runs
        ]

    def since_save(self) -> float:
        """Seconds since the last checkpoint, or since training began."""
        return self._now - self._saved

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the ``with`` block from the training time."""
        started = time.perf_counter()
        yield
        self._excluded_seconds += time.perf_counter() - started

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Charge the runs up to now, before their checkpoints are written. Exclude the time of writing them."""
        self._charge()
        with self.paused():
            yield
        self._saved = time.perf_counter()

    def _charge(self) -> None:
        self._device.synchronize()  # steps that are submitted and not finished belong to this time
        now = time.perf_counter()
        seconds = (now - self._charged) / len(self._runs)
        for run in self._runs:
            run.position.seconds += seconds
            run.position.train_seconds += seconds - self._excluded_seconds / len(self._runs)
            run.position.wait_seconds += self._wait_seconds / len(self._runs)
        self._charged = now
        self._steps, self._wait_seconds, self._excluded_seconds = 0, 0.0, 0.0


def measure_tokens_per_second(
    spec: RunSpec, context: TrainContext, options: TrainOptions, seconds: float
) -> float:
    """Training throughput of a run on this device, measured over about ``seconds`` of real steps."""
    trajectory = TrajectoryState(Trajectory(id=spec.trajectory, runs=(spec,)), context, options)
    run = trajectory.begin(spec)
    train_step = PlainStep(run, context, options)
    batches = run.parts.dataset.batches(spec.batch_size)
    train_step([next(batches)], 0)  # the first step also allocates memory and compiles
    context.device.synchronize()
    started, steps = time.perf_counter(), 0
    while steps < 2 or time.perf_counter() - started < seconds:
        train_step([next(batches)], 0)
        context.device.synchronize()
        steps += 1
    return steps * spec.tokens_per_step / (time.perf_counter() - started)
