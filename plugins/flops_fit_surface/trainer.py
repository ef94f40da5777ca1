"""The trainer for loss surfaces, which computes losses from a formula."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flops_fit_core import ConfigError, Job, RunResult
from flops_fit_core.plugins import LossSurface, TrainContext, Trainer


class SurfaceTrainer(Trainer):
    """Computes each run's loss from its dataset's formula, and marks every result as synthetic.

    N is ``run.params`` (by the plan's FLOPs counter), D is ``run.tokens``. The curve is empty, because nothing is
    trained.
    """

    def train(self, job: Job, context: TrainContext) -> Iterator[RunResult]:
        for run in job.runs:
            if context.should_stop():
                return
            started = time.monotonic()
            surface = context.dataset(run)
            if not isinstance(surface, LossSurface):
                raise ConfigError(
                    f"trainer 'surface' computes losses from a formula, but dataset {run.dataset.name!r} has no "
                    "formula: choose dataset 'surface', or another trainer, such as 'torch'"
                )
            loss = surface.synthetic_loss(run.params, run.tokens, run.seed)
            yield context.result(
                run,
                "completed",
                loss=loss,
                tokens=run.tokens,
                unique_tokens=run.tokens,
                seconds=time.monotonic() - started,
                synthetic=True,
            )
