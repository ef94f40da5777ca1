"""The batches of a run for Lightning's loop, and the callback that follows the loop."""

from __future__ import annotations

import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as Lightning

from flops_fit_core import ClaimLost, Progress, RunFailed, RunSpec
from flops_fit_core.plugins import BuiltRun, TrainContext
from flops_fit_core.training import (
    TrajectoryFolder,
    random_state,
    set_random_state,
    train_mode,
    verify_checkpoint,
)

STEPS_PER_LOSS = 16
"""Steps between two reads of the training loss. Each read waits for the device."""
PROGRESS_SECONDS = 0.5

logger = logging.getLogger("flops_fit")


class Latest:
    """Lightning's checkpoint of a run, at the path where the driver expects it."""

    def __init__(self, run: RunSpec, context: TrainContext, token: str | None) -> None:
        self._folder = TrajectoryFolder(context.checkpoints.parent, run.trajectory, token)
        self.path = self._folder.latest

    def find(self) -> Path | None:
        """Path of the checkpoint. None if it is missing, damaged or unreadable: the run then starts again.

        Raises RunFailed for a checkpoint with objects that only pickle could load: it would run any code that
        another user has put into the file.
        """
        if not self.path.exists():
            return None
        if (damage := verify_checkpoint(self.path)) is not None:
            logger.warning("checkpoint %s is damaged and is not used: %s", self.path, damage)
            return None
        try:
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(self.path)
            if unsafe:
                raise RunFailed(
                    f"checkpoint {self.path} has objects of {', '.join(unsafe)}, which are not loaded because "
                    f"they could run any code. If they are yours, name these classes in your module with "
                    f"torch.serialization.add_safe_globals([...]); or delete {self.path.parent} to train from the "
                    f"start"
                )
            torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except RunFailed:
            raise
        except Exception as error:
            logger.warning("checkpoint %s cannot be read and is not used: %s", self.path, error)
            return None
        return self.path

    def save(self, trainer: Lightning) -> None:
        """Write the checkpoint atomically. A failure is logged, and the run continues.

        Raises ClaimLost if another driver trains the run now.
        """
        try:
            self._folder.write_with(trainer.save_checkpoint, self.path)
        except ClaimLost:
            raise
        except Exception as error:
            logger.warning("checkpoint %s could not be written: %s: %s", self.path, type(error).__name__, error)


class Watch(Callback):  # type: ignore[misc]  # also checked without Lightning installed
    """Sets learning rates, counts steps, reads losses, reports progress, writes checkpoints and stops the run.

    Args:
        run: The run.
        built: Its model, dataset, optimizer and schedule.
        context: The job's context.
        progress: Receives the run's Progress.
        uses_run_optimizer: False if the module has its own optimizer.
        save_seconds: Seconds between checkpoints.
        token: Token of the driver's claim of the run's trajectory; None if the store is not fenced.
    """

    def __init__(
        self,
        run: RunSpec,
        built: BuiltRun,
        context: TrainContext,
        progress: queue.Queue[Any],
        *,
        uses_run_optimizer: bool,
        save_seconds: float,
        token: str | None,
    ) -> None:
        self.run, self.built, self.context, self.progress = run, built, context, progress
        self.uses_run_optimizer = uses_run_optimizer
        self.latest = Latest(run, context, token)
        self.peaks = [float(group["lr"]) for group in built.optimizer.param_groups]
        self.steps = 0
        self.first_loss: float | None = None
        self.last_loss: float | None = None
        self.has_started = self.stopped = self.diverged = False
        self.abandoned = threading.Event()
        """Set when the trainer no longer waits for the run."""
        self._save_seconds = save_seconds
        self._earlier_seconds = 0.0
        """Seconds of training before the last interruption."""
        self._random: dict[str, Any] | None = None
        self._started = self._reported = self._saved = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training, without interruptions."""
        return self._earlier_seconds + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        """State in the checkpoint."""
        return {
            "steps": self.steps,
            "first": self.first_loss,
            "last": self.last_loss,
            "seconds": self.seconds,
            "random": random_state(self.context.device.torch_device),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.first_loss, self.last_loss = (state_dict[name] for name in ("steps", "first", "last"))
        self._earlier_seconds, self._random = state_dict["seconds"], state_dict["random"]

    def on_train_start(self, trainer: Lightning, pl_module: LightningModule) -> None:
        self.has_started = True
        if self.uses_run_optimizer:
            train_mode(self.built.optimizer)
        if self._random is not None:
            set_random_state(self._random, self.context.device.torch_device)
        self._started = self._reported = self._saved = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Lightning, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.uses_run_optimizer:
            multiplier = self.built.schedule(self.steps)
            for group, peak in zip(self.built.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * multiplier

    def on_train_batch_end(
        self, trainer: Lightning, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        now = time.perf_counter()
        if self.steps % STEPS_PER_LOSS == 0 or self.steps in (1, self.run.steps):
            self._read_loss(outputs)
        if now - self._reported > PROGRESS_SECONDS:
            self._reported = now
            self.progress.put(self._create_progress())
        self.stopped = self.abandoned.is_set() or self.context.should_stop()
        # Also after the last step, so that a failure of the evaluation does not lose the training.
        due = self.stopped or self.steps == self.run.steps or now - self._saved > self._save_seconds
        if due and not self.diverged:
            self.latest.save(trainer)
            self._saved = time.perf_counter()
        if self.stopped or self.diverged:
            trainer.should_stop = True

    def _read_loss(self, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is None:
            return  # a module with manual optimization need not return a loss
        value = float(loss)
        self.diverged = not math.isfinite(value)
        self.last_loss = None if self.diverged else value
        self.first_loss = self.last_loss if self.first_loss is None else self.first_loss

    def _create_progress(self) -> Progress:
        tokens = self.steps * self.run.tokens_per_step
        return Progress(
            run=self.run.id,
            step=self.steps,
            steps=self.run.steps,
            tokens=tokens,
            loss=self.last_loss,
            tokens_per_second=tokens / max(self.seconds, 1e-9),
        )


class Batches:
    """The remaining batches of a run, used as Lightning's dataloader."""

    def __init__(self, run: RunSpec, built: BuiltRun, watch: Watch) -> None:
        self._run, self._built, self._watch = run, built, watch
        self._start = 0

    def __iter__(self) -> Iterator[Any]:
        batches = self._built.dataset.batches(self._run.batch_size, self._start * self._run.batch_size)
        return itertools.islice(batches, self._run.steps - self._start)

    def state_dict(self) -> dict[str, Any]:
        """Number of trained steps, not of fetched batches: Lightning prefetches."""
        return {"steps": self._watch.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = state_dict["steps"]
