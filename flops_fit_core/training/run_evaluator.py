"""The evaluation of runs: divergence, held-out loss during and after training, and the result."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flops_fit_core.plugins.protocols import TrainContext
from flops_fit_core.records import Evaluation, RunResult
from flops_fit_core.training.checkpoints import TrainPosition
from flops_fit_core.training.evaluation import EvalResult, evaluate, further_losses
from flops_fit_core.training.memory import is_out_of_memory
from flops_fit_core.training.model_evaluations import evaluation_metrics
from flops_fit_core.training.optimizer_modes import eval_mode
from flops_fit_core.training.options import TrainOptions
from flops_fit_core.training.rng import random_state, set_random_state
from flops_fit_core.training.run_state import RunState
from flops_fit_core.training.step import TrainStep, autocast
from flops_fit_core.training.throughput import Throughput

logger = logging.getLogger("flops_fit")

CHECK_EVERY = 16
"""Steps between two checks of the training loss. A check waits for the device; the steps between do not."""
CHECKS_TO_DIVERGE = 3
"""Checks in a row with a loss above the limit before a run has diverged: one bad batch is not a divergence."""


class RunEvaluator:
    """Evaluates the runs of one job."""

    def __init__(self, context: TrainContext, options: TrainOptions) -> None:
        self._context = context
        self._options = options
        self._precision = options.precision_on(context.device)

    # ------------------------------------------------------------------------ during training

    def check_losses_if_due(
        self, runs: Sequence[RunState], losses: Tensor, step: int, throughput: Throughput
    ) -> None:
        """Read the training losses and mark diverged runs.

        Due at the first, the last and every 16th step. The losses are also read for a report, but then no run is
        marked: reports depend on the clock, and a slow machine must judge a run as a fast one does.

        Args:
            runs: Runs that have just been trained by a step.
            losses: Their mean losses, of shape (runs,) or () for one run.
            step: Number of steps taken.
            throughput: Times the reports.
        """
        is_check = step % CHECK_EVERY == 0 or step in (1, runs[0].spec.steps)
        if not (is_check or throughput.should_report()):
            return
        for run, loss in zip(runs, losses.reshape(-1).tolist(), strict=True):
            # A batch without valid targets has no loss.
            if run.position.diverged or not run.last_batch_tokens:
                continue
            run.position.last_loss = loss if math.isfinite(loss) else None
            if is_check:
                self._mark_if_diverged(run.position, loss)

    def _mark_if_diverged(self, position: TrainPosition, loss: float) -> None:
        if position.first_loss is None:
            position.first_loss = loss
        position.above = position.above + 1 if self._is_above_limit(position, loss) else 0
        position.diverged = not math.isfinite(loss) or position.above >= CHECKS_TO_DIVERGE

    def _is_above_limit(self, position: TrainPosition, loss: float) -> bool:
        return position.first_loss is not None and loss > self._options.divergence_factor * max(
            position.first_loss, 1e-9
        )

    def evaluate_if_due(self, runs: Sequence[RunState], step: int, throughput: Throughput) -> bool:
        """Append the held-out loss to the curve of every run that is evaluated after this step.

        Every random generator keeps its state, so evaluations do not change the training.

        Returns False if there are several runs and one sample does not fit into memory next to all their models.
        """
        due_runs = [run for run in runs if step in run.evaluation_steps and not run.position.diverged]
        if not due_runs:
            return True
        device = self._context.device.torch_device
        with throughput.paused():
            random = random_state(device)
            try:
                for run in due_runs:
                    with eval_mode(run.parts.optimizer):
                        loss = self._evaluate(run).loss
                    run.position.curve.append((step, loss if math.isfinite(loss) else None))
            except Exception as error:
                if len(runs) == 1 or not is_out_of_memory(error):
                    raise
                logger.warning("out of memory in an evaluation with %d runs side by side: one by one", len(runs))
                return False
            set_random_state(random, device)
        return True

    def _evaluate(self, run: RunState) -> EvalResult:
        arguments = self._arguments(run)
        return evaluate(run.parts.model, run.parts.dataset, self._options.eval_tokens, **arguments)

    def _further_losses(self, run: RunState) -> dict[str, float]:
        arguments = self._arguments(run)
        return further_losses(run.parts.model, run.parts.dataset, self._options.eval_tokens, **arguments)

    def _evaluation_metrics(self, run: RunState) -> dict[str, float]:
        device = self._context.device.torch_device
        return evaluation_metrics(
            run.parts.model,
            run.parts.dataset,
            device=device,
            batch_tokens=self._options.eval_batch_tokens,
            autocast=autocast(device, self._precision),
        )

    def _arguments(self, run: RunState) -> dict[str, Any]:
        device = self._context.device.torch_device
        needs_whole_batches = run.parts.dataset.task.whole_batches
        return {
            "device": device,
            "batch_tokens": self._options.eval_batch_tokens,
            "autocast": autocast(device, self._precision),
            "distributed": self._context.distributed,
            "full_batch_size": run.spec.batch_size if needs_whole_batches else None,
        }

    # ------------------------------------------------------------------------ after training

    def result(self, run: RunState, train_step: TrainStep | None) -> RunResult:
        """Evaluate a finished run. A run that diverged in training is not evaluated.

        Args:
            run: At its last step, or diverged.
            train_step: The step that trained it. None for a longer run of a shared phase that diverged.
        """
        position = run.position
        evaluation, losses, metrics = None, {}, {}
        if not position.diverged:
            started = time.perf_counter()
            with eval_mode(run.parts.optimizer):
                evaluation = self._evaluate(run)
                losses = self._further_losses(run)
                metrics = self._evaluation_metrics(run)
            position.seconds += time.perf_counter() - started
        fields = {**self._training_fields(run), **_step_fields(train_step), "curve": _curve(run, evaluation)}
        if evaluation is not None:
            fields["eval_tokens"] = evaluation.tokens
        if (
            evaluation is None
            or not math.isfinite(evaluation.loss)
            or self._is_above_limit(position, evaluation.loss)
        ):
            return self._context.result(run.spec, "diverged", **fields)
        fields |= evaluation.result_fields(run.parts.dataset)
        fields["metrics"] = {**fields["metrics"], **metrics}
        return self._context.result(run.spec, "completed", losses=losses, **fields)

    def _training_fields(self, run: RunState) -> dict[str, Any]:
        position, spec = run.position, run.spec
        tokens, positions = position.tokens or 0, position.positions or 0
        trained_tokens = tokens - position.began_tokens
        valid_share = tokens / positions if positions else 1.0
        unique_tokens = min(tokens, run.parts.dataset.num_unique_tokens or tokens)
        train_seconds = max(position.train_seconds, 1e-9)
        flops_per_second = spec.flops_per_position * trained_tokens / (valid_share or 1.0) / train_seconds
        peak_flops = self._context.device.peak_flops(self._precision)
        return {
            "seconds": position.seconds,
            "tokens": tokens,
            "trained_tokens": trained_tokens,
            "flops": spec.flops_per_position * positions,
            "unique_tokens": unique_tokens,
            "passes": tokens / unique_tokens if unique_tokens else None,
            "positions": positions if positions != tokens else None,
            "valid_share": valid_share if positions != tokens else None,
            "flops_per_second": flops_per_second,
            "mfu": flops_per_second / (self._context.distributed.size * peak_flops) if peak_flops else None,
            "data_wait": min(1.0, position.wait_seconds / train_seconds),
            "precision": self._precision,
        }


def _step_fields(train_step: TrainStep | None) -> dict[str, Any]:
    if train_step is None:
        return {}
    return {
        "micro_batch": train_step.micro_batch,
        "compiled": train_step.compiled,
        "vmap_runs": train_step.num_runs,
    }


def _curve(run: RunState, evaluation: EvalResult | None) -> tuple[Evaluation, ...]:
    """The run's own evaluations. The shared stable phase is evaluated for other runs, too."""
    points = [(step, loss) for step, loss in run.position.curve if step in run.own_evaluation_steps]
    if evaluation is not None:
        points.append((run.position.step, evaluation.loss if math.isfinite(evaluation.loss) else None))
    return tuple(Evaluation(step=step, tokens=step * run.spec.tokens_per_step, loss=loss) for step, loss in points)
