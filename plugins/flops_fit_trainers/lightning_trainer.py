"""The trainer that leaves the steps to Lightning."""

from __future__ import annotations

import itertools
import logging
import math
import queue
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as Lightning
from lightning.pytorch.loggers.logger import DummyLogger

from flops_fit_core import Job, Progress, RunFailed, RunParts, RunResult, RunSpec, TrainContext
from flops_fit_core.training import HeldOut, eval_mode, evaluate, further_losses, train_mode
from flops_fit_trainers.lightning_module import give_optimizer, make_module, optimizes_itself
from flops_fit_trainers.lightning_options import LightningOptions

LOOK_EVERY = 16
"""Steps between two looks at the training loss, which wait for the device."""
PROGRESS_SECONDS = 0.5


class Batches:
    """The run's batches, once through: what Lightning takes for a dataloader."""

    def __init__(self, run: RunSpec, parts: RunParts) -> None:
        self._run, self._parts = run, parts

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self._parts.dataset.batches(self._run.batch_size), self._run.steps)


class Watch(Callback):  # type: ignore[misc]  # checked where Lightning is not installed, too
    """Sets learning rates, counts steps, looks at losses, tells where the run is, and stops it."""

    def __init__(
        self, run: RunSpec, parts: RunParts, context: TrainContext, said: queue.Queue[Any], ours: bool
    ) -> None:
        self.run, self.parts, self.context, self.said, self.ours = run, parts, context, said, ours
        self.peaks = [float(group["lr"]) for group in parts.optimizer.param_groups]
        self.steps = 0
        self.first: float | None = None
        self.last: float | None = None
        self.stopped = self.diverged = False
        self.abandoned = threading.Event()
        """Nobody waits for the run any more."""
        self._started = self._spoken = time.perf_counter()

    def on_train_start(self, trainer: Lightning, pl_module: LightningModule) -> None:
        if self.ours:
            train_mode(self.parts.optimizer)

    def on_train_batch_start(
        self, trainer: Lightning, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.ours:
            multiplier = self.parts.schedule(batch_idx)
            for group, peak in zip(self.parts.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * multiplier

    def on_train_batch_end(
        self, trainer: Lightning, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        now = time.perf_counter()
        if self.steps % LOOK_EVERY == 0 or self.steps in (1, self.run.steps):
            self._look(outputs)
        if now - self._spoken > PROGRESS_SECONDS:
            self._spoken = now
            self.said.put(self._progress(now))
        self.stopped = self.abandoned.is_set() or self.context.should_stop()
        if self.stopped or self.diverged:
            trainer.should_stop = True

    def _look(self, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is None:
            return  # a module that optimizes by hand need not tell
        value = float(loss)
        self.diverged = not math.isfinite(value)
        self.last = None if self.diverged else value
        self.first = self.last if self.first is None else self.first

    def _progress(self, now: float) -> Progress:
        per_step = self.run.tokens_per_step
        return Progress(
            run=self.run.id,
            step=self.steps,
            steps=self.run.steps,
            tokens=self.steps * per_step,
            loss=self.last,
            tokens_per_second=self.steps * per_step / max(now - self._started, 1e-9),
        )


class LightningTrainer:
    """One run after another, each from its start to its end: there are no checkpoints."""

    def __init__(self, options: LightningOptions) -> None:
        self.options = options

    def train(self, job: Job, context: TrainContext) -> Iterator[Progress | RunResult]:
        """An exception, of the user's module too, ends the job."""
        for run in job.runs:
            if context.should_stop():
                return
            yield from self._run(run, context)

    def _run(self, run: RunSpec, context: TrainContext) -> Iterator[Progress | RunResult]:
        parts = context.build(run)
        module = make_module(self.options, run, parts, context)
        ours = not optimizes_itself(module)
        if ours:
            give_optimizer(module, parts)
        said: queue.Queue[Any] = queue.Queue()
        watch = Watch(run, parts, context, said, ours)
        started = time.perf_counter()
        yield from self._fitted(module, watch)
        seconds = time.perf_counter() - started
        parts.model.to(context.device.torch_device)
        if watch.stopped and watch.steps < run.steps:
            return
        if watch.steps < run.steps and not watch.diverged:
            raise RunFailed(
                f"{self.options.module} ended its training after {watch.steps} of {run.steps} steps (early "
                f"stopping?): every run of a sweep has the tokens of its plan"
            )
        with eval_mode(parts.optimizer) if ours else nullcontext():
            yield self._result(watch, seconds)

    def _fitted(self, module: LightningModule, watch: Watch) -> Iterator[Progress]:
        """Lightning's loop gives nothing away before its end, so it has a thread, and tells by a queue."""
        failed: list[BaseException] = []

        def fit() -> None:
            try:
                self._fit(module, watch)
            except BaseException as error:
                failed.append(error)
            finally:
                watch.said.put(None)

        thread = threading.Thread(target=fit, name="lightning")
        thread.start()
        try:
            while (progress := watch.said.get()) is not None:
                yield progress
        finally:
            watch.abandoned.set()
            thread.join()
        watch.abandoned.clear()
        if failed:
            raise failed[0]

    def _fit(self, module: LightningModule, watch: Watch) -> None:
        torch.set_flush_denormal(True)  # of each thread
        device = torch.device(watch.context.device.torch_device)
        with quiet(), tempfile.TemporaryDirectory() as folder:
            trainer = Lightning(
                accelerator="gpu" if device.type == "cuda" else device.type,
                devices=[device.index or 0] if device.type == "cuda" else 1,
                precision="32-true" if self._precision(watch.context) == "float32" else "bf16-mixed",
                max_epochs=1,
                limit_train_batches=watch.run.steps,
                limit_val_batches=0,
                num_sanity_val_steps=0,
                gradient_clip_val=self.options.clip if module.automatic_optimization else None,
                callbacks=[watch],
                logger=DummyLogger(),  # for modules and callbacks that ask for one
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
            trainer.fit(module, train_dataloaders=Batches(watch.run, watch.parts))

    def _precision(self, context: TrainContext) -> str:
        return context.device.precision if self.options.precision == "auto" else self.options.precision

    def _result(self, watch: Watch, seconds: float) -> RunResult:
        run, parts, context = watch.run, watch.parts, watch.context
        tokens = watch.steps * run.tokens_per_step
        measured: dict[str, Any] = {
            "tokens": tokens,
            "unique_tokens": min(tokens, parts.dataset.tokens or tokens),
            "flops_per_second": run.flops_per_token * tokens / max(seconds, 1e-9),
            "precision": self._precision(context),
        }
        if watch.diverged:
            return context.result(run, "diverged", **measured)
        how = self._how(context)
        heldout: HeldOut = evaluate(parts.model, parts.dataset, self.options.heldout_tokens, **how)
        limit = math.inf if watch.first is None else self.options.divergence * max(watch.first, 1e-9)
        if not math.isfinite(heldout.loss) or heldout.loss > limit:
            return context.result(run, "diverged", **measured)
        per_byte = parts.dataset.bytes_per_token
        return context.result(
            run,
            "completed",
            loss=heldout.loss,
            bits_per_byte=heldout.loss / math.log(2) / per_byte if per_byte else None,
            losses=further_losses(parts.model, parts.dataset, self.options.heldout_tokens, **how),
            metrics={name: value for name, value in heldout.metrics.items() if math.isfinite(value)},
            heldout_tokens=heldout.tokens,
            **measured,
        )

    def _how(self, context: TrainContext) -> dict[str, Any]:
        device = context.device.torch_device
        mixed: AbstractContextManager[Any] = nullcontext()
        if self._precision(context) != "float32":
            mixed = torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
        return {"device": device, "batch_tokens": self.options.eval_batch_tokens, "autocast": mixed}


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's remarks on devices, loggers and data loaders."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)
