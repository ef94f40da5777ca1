"""The training loop: one run from its seed to its held-out loss."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from flops_fit_core.contracts import Batch, RunParts, TrainContext
from flops_fit_core.records import Evaluation, Job, Progress, RunResult, RunSpec
from flops_fit_core.training.evaluate import HeldOut, evaluate, to_device

PROGRESS_SECONDS = 0.5
LOOKS = 100
"""How many times a run's training loss is looked at. A look waits for the device; the steps between do not."""
PATIENCE = 3
"""Looks in a row that find the loss above the limit before a run is given up: one bad batch is no divergence."""


@dataclass
class _State:
    """Where a run is."""

    step: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    above: int = 0
    """Looks in a row at which the loss was above the limit."""
    diverged: bool = False
    train_seconds: float = 0.0
    curve: list[Evaluation] = field(default_factory=list)


class TorchTrainer:
    """Trains one run after another on one device. The options are those of the plugin ``trainers/torch``."""

    def __init__(
        self,
        *,
        clip: float | None,
        precision: str,
        heldout_tokens: int,
        evaluations: int,
        divergence: float,
        eval_batch_tokens: int,
    ) -> None:
        self.clip = clip
        self.precision = precision
        self.heldout_tokens = heldout_tokens
        self.evaluations = evaluations
        self.divergence = divergence
        self.eval_batch_tokens = eval_batch_tokens

    def train(self, job: Job, context: TrainContext) -> Iterator[Progress | RunResult]:
        """Train the job's runs; an exception ends the job."""
        torch.set_flush_denormal(True)
        for run in job.runs:
            if context.should_stop():
                return
            yield from self._train(run, context)

    def tokens_per_second(self, run: RunSpec, context: TrainContext, seconds: float) -> float:
        """Training throughput of a run on this device, measured over about ``seconds`` of real steps."""
        parts = context.build(run)
        step = self._stepper(parts, context)
        batches = parts.dataset.batches(run.batch_size)
        step(next(batches), 0)
        context.device.synchronize()
        started, steps = time.perf_counter(), 0
        while steps < 2 or time.perf_counter() - started < seconds:
            step(next(batches), 0)
            context.device.synchronize()
            steps += 1
        samples = steps * run.batch_size / (time.perf_counter() - started)
        return samples * parts.dataset.task.tokens_per_sample

    def _train(self, run: RunSpec, context: TrainContext) -> Iterator[Progress | RunResult]:
        parts = context.build(run)
        state = _State()
        yield from self._steps(run, parts, context, state)
        if state.step < run.steps and not state.diverged:
            return  # asked to stop
        heldout = None if state.diverged else self._evaluate(parts, context)
        yield self._result(run, parts, context, state, heldout)

    def _steps(self, run: RunSpec, parts: RunParts, context: TrainContext, state: _State) -> Iterator[Progress]:
        step = self._stepper(parts, context)
        tokens_per_step = run.tokens // run.steps
        look_every = max(1, run.steps // LOOKS)
        evaluate_at = {run.steps * (k + 1) // (self.evaluations + 1) for k in range(self.evaluations)}
        batches = itertools.islice(parts.dataset.batches(run.batch_size), run.steps)
        parts.model.train()
        started = spoken = time.perf_counter()
        for index, batch in enumerate(batches):
            if context.should_stop():
                break
            loss = step(batch, index)
            state.step = index + 1
            if index % look_every == 0 or state.step == run.steps:
                self._look(state, float(loss))
                now = time.perf_counter()
                if state.diverged:
                    break
                if now - spoken > PROGRESS_SECONDS:
                    spoken = now
                    yield Progress(
                        run=run.id,
                        step=state.step,
                        steps=run.steps,
                        tokens=state.step * tokens_per_step,
                        loss=state.last_loss,
                        tokens_per_second=state.step * tokens_per_step / (now - started),
                    )
            if state.step in evaluate_at and state.step < run.steps:
                paused = time.perf_counter()
                self._record(state, tokens_per_step, self._evaluate(parts, context))
                started += time.perf_counter() - paused
        context.device.synchronize()
        state.train_seconds = time.perf_counter() - started

    def _stepper(self, parts: RunParts, context: TrainContext) -> Any:
        """One optimizer step as a function of (batch, step), with everything looked up beforehand.

        Returns the mean training loss as a tensor, so that only a look at it waits for the device.
        """
        model, task, optimizer, schedule = parts.model, parts.dataset.task, parts.optimizer, parts.schedule
        device, clip = context.device.torch_device, self.clip
        peaks = [(group, float(group["lr"])) for group in optimizer.param_groups]
        parameters = list(model.parameters())
        autocast = self._autocast(context)

        def step(batch: Batch, index: int) -> torch.Tensor:
            multiplier = schedule(index)
            for group, peak in peaks:
                group["lr"] = peak * multiplier
            batch = to_device(batch, device)
            with autocast:
                total, count = task.loss(task.outputs(model, batch), batch)
            loss = total / count
            loss.backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return step

    def _autocast(self, context: TrainContext) -> AbstractContextManager[Any]:
        if self._precision(context) == "float32":
            return nullcontext()
        return torch.autocast(torch.device(context.device.torch_device).type, dtype=torch.bfloat16)

    def _precision(self, context: TrainContext) -> str:
        return context.device.precision if self.precision == "auto" else self.precision

    def _look(self, state: _State, loss: float) -> None:
        if state.first_loss is None:
            state.first_loss = loss
        state.last_loss = loss if math.isfinite(loss) else None
        limit = self.divergence * max(state.first_loss, 1e-9)
        state.above = state.above + 1 if loss > limit else 0
        state.diverged = not math.isfinite(loss) or state.above >= PATIENCE

    def _evaluate(self, parts: RunParts, context: TrainContext) -> HeldOut:
        return evaluate(
            parts.model,
            parts.dataset,
            self.heldout_tokens,
            device=context.device.torch_device,
            batch_tokens=self.eval_batch_tokens,
            autocast=self._autocast(context),
        )

    def _record(self, state: _State, tokens_per_step: int, heldout: HeldOut) -> None:
        loss = heldout.loss if math.isfinite(heldout.loss) else None
        state.curve.append(Evaluation(step=state.step, tokens=state.step * tokens_per_step, loss=loss))

    def _result(
        self, run: RunSpec, parts: RunParts, context: TrainContext, state: _State, heldout: HeldOut | None
    ) -> RunResult:
        tokens_per_step = run.tokens // run.steps
        tokens = state.step * tokens_per_step
        measured: dict[str, Any] = {
            "tokens": tokens,
            "unique_tokens": min(tokens, parts.dataset.tokens or tokens),
            "flops_per_second": run.flops_per_token * tokens / max(state.train_seconds, 1e-9),
            "precision": self._precision(context),
        }
        if heldout is not None:
            self._record(state, tokens_per_step, heldout)
            measured["heldout_tokens"] = heldout.tokens
        measured["curve"] = tuple(state.curve)
        if heldout is None or not math.isfinite(heldout.loss) or self._exploded(state, heldout):
            return context.result(run, "diverged", **measured)
        per_byte = parts.dataset.bytes_per_token
        return context.result(
            run,
            "completed",
            loss=heldout.loss,
            bits_per_byte=heldout.loss / math.log(2) / per_byte if per_byte else None,
            metrics={name: value for name, value in heldout.metrics.items() if math.isfinite(value)},
            **measured,
        )

    def _exploded(self, state: _State, heldout: HeldOut) -> bool:
        return state.first_loss is not None and heldout.loss > self.divergence * max(state.first_loss, 1e-9)
