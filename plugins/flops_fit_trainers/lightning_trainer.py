"""The trainer that leaves the steps to Lightning."""

from __future__ import annotations

import logging
import math
import queue
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as Lightning
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.environments import LightningEnvironment

from flops_fit_core import Job, Progress, RunFailed, RunResult, RunSpec
from flops_fit_core.plugins import TrainContext, Trainer
from flops_fit_core.training import EvalResult, eval_mode, evaluate, further_losses
from flops_fit_trainers.lightning_module import give_optimizer, make_module, optimizes_itself
from flops_fit_trainers.lightning_options import LightningOptions
from flops_fit_trainers.lightning_watch import Batches, Watch


class LightningTrainer(Trainer):
    """One run after another. One that was interrupted goes on from Lightning's checkpoint of it."""

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
        save_seconds = 60 * self.options.checkpoint_minutes
        watch = Watch(run, parts, context, said, ours=ours, save_seconds=save_seconds)
        yield from self._fitted(module, watch)
        trained_seconds = watch.seconds
        parts.model.to(context.device.torch_device)
        if watch.stopped and watch.steps < run.steps:
            return
        if watch.steps < run.steps and not watch.diverged:
            raise RunFailed(
                f"{self.options.module} ended its training after {watch.steps} of {run.steps} steps (early "
                f"stopping?): every run of a sweep has the tokens of its plan"
            )
        with eval_mode(parts.optimizer) if ours else nullcontext():
            yield self._result(watch, trained_seconds)

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
                plugins=[OneProcess()],
                max_epochs=1,
                limit_train_batches=watch.run.steps,
                limit_val_batches=0,
                num_sanity_val_steps=0,
                gradient_clip_val=self.options.grad_clip if module.automatic_optimization else None,
                callbacks=[watch],
                logger=DummyLogger(),  # for modules and callbacks that ask for one
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
            batches, latest = Batches(watch.run, watch.parts, watch), watch.latest.found()
            try:
                trainer.fit(module, train_dataloaders=batches, ckpt_path=latest, weights_only=False)
            except Exception as error:
                if latest is None or watch.began:
                    raise
                raise RunFailed(
                    f"checkpoint {latest} does not fit the module, whose code has changed since it was written: "
                    f"delete {latest.parent} to train from the start ({error})"
                ) from error

    def _precision(self, context: TrainContext) -> str:
        return context.device.precision if self.options.precision == "auto" else self.options.precision

    def _result(self, watch: Watch, trained_seconds: float) -> RunResult:
        run, parts, context = watch.run, watch.parts, watch.context
        tokens = watch.steps * run.tokens_per_step
        measured: dict[str, Any] = {
            "tokens": tokens,
            "unique_tokens": min(tokens, parts.dataset.num_unique_tokens or tokens),
            "flops_per_second": run.flops_per_token * tokens / max(trained_seconds, 1e-9),
            "precision": self._precision(context),
        }
        if watch.diverged:
            return context.result(run, "diverged", seconds=watch.seconds, **measured)
        how = self._how(context)
        evaluation: EvalResult = evaluate(parts.model, parts.dataset, self.options.eval_tokens, **how)
        limit = math.inf if watch.first is None else self.options.divergence_factor * max(watch.first, 1e-9)
        if not math.isfinite(evaluation.loss) or evaluation.loss > limit:
            return context.result(run, "diverged", seconds=watch.seconds, **measured)
        return context.result(
            run,
            "completed",
            losses=further_losses(parts.model, parts.dataset, self.options.eval_tokens, **how),
            eval_tokens=evaluation.tokens,
            seconds=watch.seconds,
            **evaluation.result_fields(parts.dataset),
            **measured,
        )

    def _how(self, context: TrainContext) -> dict[str, Any]:
        device = context.device.torch_device
        mixed: AbstractContextManager[Any] = nullcontext()
        if self._precision(context) != "float32":
            mixed = torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
        return {"device": device, "batch_tokens": self.options.eval_batch_tokens, "autocast": mixed}


class OneProcess(LightningEnvironment):  # type: ignore[misc]  # checked where Lightning is not installed, too
    """The process that trains a run by itself, whatever allocation surrounds it.

    Without it, Lightning takes variables of Slurm, LSF, MPI or torchrun for a request to train with all processes
    of the allocation: it raises, waits for them, or mutes what only the first process should do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_global_rank(0)  # Lightning has read another one from the variables when it was imported.

    def local_rank(self) -> int:
        """The first."""
        return 0

    def node_rank(self) -> int:
        """The first."""
        return 0


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
