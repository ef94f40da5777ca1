"""What is measured of a run: its held-out loss, whether it diverges, how fast it was, its result."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from flops_fit_core.plugins.protocols import Dataset, TrainContext
from flops_fit_core.records import Evaluation, RunResult
from flops_fit_core.training.checkpoints import Position
from flops_fit_core.training.evaluation import HeldOut, further_losses
from flops_fit_core.training.evaluation import evaluate as heldout_loss
from flops_fit_core.training.optimizer_modes import eval_mode
from flops_fit_core.training.packing import PackedStepper
from flops_fit_core.training.rng import random_state, set_random_state
from flops_fit_core.training.run_state import Pass
from flops_fit_core.training.step import Stepper, autocast

PATIENCE = 3
"""Looks in a row that find the loss above the limit before a run is given up: one bad batch is no divergence."""


class Measuring:
    """How runs are evaluated and judged. The options are those of the plugin ``trainers/torch``."""

    def __init__(self, *, precision: str, heldout_tokens: int, divergence: float, eval_batch_tokens: int) -> None:
        self.precision = precision
        self.heldout_tokens = heldout_tokens
        self.divergence = divergence
        self.eval_batch_tokens = eval_batch_tokens

    def precision_on(self, context: TrainContext) -> str:
        return context.device.precision if self.precision == "auto" else self.precision

    def look(self, group: list[Pass], losses: list[float], counts: list[int], regular: bool) -> None:
        """Only regular looks judge, so that a slow machine judges as a fast one.

        A batch of no tokens has no loss."""
        for one, loss, tokens in zip(group, losses, counts, strict=True):
            if not one.position.diverged and tokens:
                self._judge(one.position, loss, regular)

    def _judge(self, position: Position, loss: float, regular: bool) -> None:
        position.last_loss = loss if math.isfinite(loss) else None
        if not regular:
            return
        if position.first_loss is None:
            position.first_loss = loss
        limit = self.divergence * max(position.first_loss, 1e-9)
        position.above = position.above + 1 if loss > limit else 0
        position.diverged = not math.isfinite(loss) or position.above >= PATIENCE

    def evaluate(self, one: Pass, context: TrainContext) -> HeldOut:
        """On the dataset's main held-out set."""
        with eval_mode(one.parts.optimizer):
            return heldout_loss(*self._where(one), **self._how(one, context))

    def _further(self, one: Pass, context: TrainContext) -> dict[str, float]:
        with eval_mode(one.parts.optimizer):
            return further_losses(*self._where(one), **self._how(one, context))

    def _where(self, one: Pass) -> tuple[nn.Module, Dataset, int]:
        return one.parts.model, one.parts.dataset, self.heldout_tokens

    def _how(self, one: Pass, context: TrainContext) -> dict[str, Any]:
        task = one.parts.dataset.task
        device = context.device.torch_device
        return {
            "device": device,
            "batch_tokens": self.eval_batch_tokens,
            "autocast": autocast(device, self.precision_on(context)),
            "together": context.together,
            "whole": one.run.batch_size if getattr(task, "whole_batches", False) else None,
        }

    def evaluate_on_the_way(self, group: list[Pass], context: TrainContext) -> None:
        """Leaves every random generator as it was."""
        device = context.device.torch_device
        before = random_state(device)
        for one in group:
            if not one.position.diverged:
                loss = self.evaluate(one, context).loss
                one.position.curve.append((one.position.step, loss if math.isfinite(loss) else None))
        set_random_state(before, device)

    def result(
        self,
        one: Pass,
        heldout: HeldOut | None,
        context: TrainContext,
        stepper: Stepper | PackedStepper | None = None,
        packed: int = 1,
    ) -> RunResult:
        losses = self._further(one, context) if heldout is not None else {}
        one.count_time(1 / packed)
        measured = self._measured(one, context)
        if stepper is not None:
            measured |= {"micro_batch": stepper.micro_batch, "compiled": stepper.compiled, "packed": packed}
        curve = [(step, loss) for step, loss in one.position.curve if step in one.own_evaluations]
        if heldout is not None:
            curve.append((one.position.step, heldout.loss if math.isfinite(heldout.loss) else None))
            measured["heldout_tokens"] = heldout.tokens
        per_step = one.run.tokens_per_step
        measured["curve"] = tuple(Evaluation(step=at, tokens=at * per_step, loss=loss) for at, loss in curve)
        if heldout is None or not math.isfinite(heldout.loss) or self._exploded(one.position, heldout):
            return context.result(one.run, "diverged", **measured)
        return context.result(
            one.run,
            "completed",
            losses=losses,
            **heldout.result_fields(one.parts.dataset),
            **measured,
        )

    def _measured(self, one: Pass, context: TrainContext) -> dict[str, Any]:
        position, run = one.position, one.run
        tokens, positions = position.tokens or 0, position.positions or 0
        trained = tokens - position.began_tokens
        share = tokens / positions if positions else 1.0
        precision = self.precision_on(context)
        speed = run.flops_per_position * trained / (share or 1.0) / max(position.train_seconds, 1e-9)
        unique = min(tokens, one.parts.dataset.num_unique_tokens or tokens)
        peak = context.device.peak_flops(precision)
        devices = context.together.size
        return {
            "seconds": position.seconds,
            "tokens": tokens,
            "trained_tokens": trained,
            "flops": run.flops_per_position * positions,
            "unique_tokens": unique,
            "passes": tokens / unique if unique else None,
            "positions": positions if positions != tokens else None,
            "valid_share": share if positions != tokens else None,
            "flops_per_second": speed,
            "mfu": speed / (devices * peak) if peak else None,
            "data_wait": min(1.0, position.wait_seconds / max(position.train_seconds, 1e-9)),
            "precision": precision,
        }

    def _exploded(self, position: Position, heldout: HeldOut) -> bool:
        return position.first_loss is not None and heldout.loss > self.divergence * max(position.first_loss, 1e-9)
