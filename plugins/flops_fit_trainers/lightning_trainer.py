"""The trainer ``lightning``: train a LightningModule with Lightning's loop."""

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
from flops_fit_core.training import EvalResult, eval_mode, evaluate, evaluation_metrics, further_losses
from flops_fit_trainers.lightning_module import build_module, has_optimizer, set_optimizer
from flops_fit_trainers.lightning_options import LightningOptions
from flops_fit_trainers.lightning_watch import Batches, Watch


class LightningTrainer(Trainer):
    """Trains the runs of a job one after another. An interrupted run resumes from Lightning's checkpoint."""

    def __init__(self, options: LightningOptions) -> None:
        self.options = options

    def train(self, job: Job, context: TrainContext) -> Iterator[Progress | RunResult]:
        """Any exception ends the job, including exceptions of the user's module."""
        for run in job.runs:
            if context.should_stop():
                return
            yield from self._run(run, context, job.claim_tokens.get(run.trajectory))

    def _run(self, run: RunSpec, context: TrainContext, token: str | None) -> Iterator[Progress | RunResult]:
        built = context.build(run)
        module = build_module(self.options, run, built, context)
        uses_run_optimizer = not has_optimizer(module)
        if uses_run_optimizer:
            set_optimizer(module, built)
        watch = Watch(
            run,
            built,
            context,
            queue.Queue(),
            uses_run_optimizer=uses_run_optimizer,
            save_seconds=60 * self.options.checkpoint_minutes,
            token=token,
        )
        yield from self._fit_in_thread(module, watch)
        trained_seconds = watch.seconds
        built.model.to(context.device.torch_device)
        if watch.stopped and watch.steps < run.steps:
            return
        if watch.steps < run.steps and not watch.diverged:
            raise RunFailed(
                f"{self.options.module} ended its training after {watch.steps} of {run.steps} steps (early "
                f"stopping?): a run must train on all tokens of its plan"
            )
        with eval_mode(built.optimizer) if uses_run_optimizer else nullcontext():
            yield self._result(watch, trained_seconds)

    def _fit_in_thread(self, module: LightningModule, watch: Watch) -> Iterator[Progress]:
        """Lightning's loop blocks until it ends, so it runs in a thread and sends progress through a queue."""
        errors: list[BaseException] = []

        def fit() -> None:
            try:
                self._fit(module, watch)
            except BaseException as error:
                errors.append(error)
            finally:
                watch.progress.put(None)

        thread = threading.Thread(target=fit, name="lightning")
        thread.start()
        try:
            while (progress := watch.progress.get()) is not None:
                yield progress
        finally:
            watch.abandoned.set()
            thread.join()
        watch.abandoned.clear()
        if errors:
            raise errors[0]

    def _fit(self, module: LightningModule, watch: Watch) -> None:
        torch.set_flush_denormal(True)  # a setting of the current thread
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
            batches, latest = Batches(watch.run, watch.built, watch), watch.latest.find()
            try:
                trainer.fit(module, train_dataloaders=batches, ckpt_path=latest, weights_only=True)
            except Exception as error:
                if latest is None or watch.has_started:
                    raise
                raise RunFailed(
                    f"checkpoint {latest} does not fit the module, because its code has changed: delete "
                    f"{latest.parent} to train from the start ({error})"
                ) from error

    def _precision(self, context: TrainContext) -> str:
        return context.device.precision if self.options.precision == "auto" else self.options.precision

    def _result(self, watch: Watch, trained_seconds: float) -> RunResult:
        run, built, context = watch.run, watch.built, watch.context
        tokens = watch.steps * run.tokens_per_step
        measured: dict[str, Any] = {
            "tokens": tokens,
            "unique_tokens": min(tokens, built.dataset.num_unique_tokens or tokens),
            "flops_per_second": run.flops_per_token * tokens / max(trained_seconds, 1e-9),
            "precision": self._precision(context),
        }
        if watch.diverged:
            return context.result(run, "diverged", seconds=watch.seconds, **measured)
        settings = self._eval_settings(context)
        evaluation: EvalResult = evaluate(built.model, built.dataset, self.options.eval_tokens, **settings)
        limit = (
            math.inf if watch.first_loss is None else self.options.divergence_factor * max(watch.first_loss, 1e-9)
        )
        if not math.isfinite(evaluation.loss) or evaluation.loss > limit:
            return context.result(run, "diverged", seconds=watch.seconds, **measured)
        fields = evaluation.result_fields(built.dataset)
        fields["metrics"] = {**fields["metrics"], **evaluation_metrics(built.model, built.dataset, **settings)}
        return context.result(
            run,
            "completed",
            losses=further_losses(built.model, built.dataset, self.options.eval_tokens, **settings),
            eval_tokens=evaluation.tokens,
            seconds=watch.seconds,
            **fields,
            **measured,
        )

    def _eval_settings(self, context: TrainContext) -> dict[str, Any]:
        device = context.device.torch_device
        autocast: AbstractContextManager[Any] = nullcontext()
        if self._precision(context) != "float32":
            autocast = torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
        return {"device": device, "batch_tokens": self.options.eval_batch_tokens, "autocast": autocast}


class OneProcess(LightningEnvironment):  # type: ignore[misc]  # also checked without Lightning installed
    """An environment of one process, inside any allocation.

    Without it, Lightning reads variables of Slurm, LSF, MPI or torchrun as a request to train with all processes
    of the allocation: it raises, waits for them, or skips work of the first process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_global_rank(0)  # At import, Lightning may have read another rank from the variables.

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return 0


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Lightning's messages about devices, loggers and data loaders."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
