"""What goes along with Lightning's loop: the plan's batches, and a callback that watches the run."""

from __future__ import annotations

import itertools
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as Lightning

from flops_fit_core import Progress, RunSpec
from flops_fit_core.plugins import BuiltRun, TrainContext
from flops_fit_core.training import random_state, set_random_state, train_mode

LOOK_EVERY = 16
"""Steps between two looks at the training loss, which wait for the device."""
PROGRESS_SECONDS = 0.5

logger = logging.getLogger("flops_fit")


class Latest:
    """The checkpoint of an interrupted run: Lightning's own, in the place where the driver looks for it."""

    def __init__(self, run: RunSpec, context: TrainContext) -> None:
        self.path = context.checkpoints / run.trajectory / "latest.pt"

    def found(self) -> Path | None:
        """None where there is none, or one that cannot be read: that costs time, not the run."""
        if not self.path.exists():
            return None
        try:
            # It is of the user's own module, which may keep whatever it likes in it.
            torch.load(self.path, map_location="cpu", weights_only=False, mmap=True)
        except Exception as error:
            logger.warning("checkpoint %s cannot be read and is not used: %s", self.path, error)
            return None
        return self.path

    def save(self, trainer: Lightning) -> None:
        """At once or not at all. One that cannot be written costs time, not the run."""
        whole = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(whole)
            whole.replace(self.path)
        except Exception as error:
            whole.unlink(missing_ok=True)
            logger.warning("checkpoint %s could not be written: %s: %s", self.path, type(error).__name__, error)


class Watch(Callback):  # type: ignore[misc]  # checked where Lightning is not installed, too
    """Sets learning rates, counts steps, looks at losses, tells where the run is, keeps it, and stops it."""

    def __init__(
        self,
        run: RunSpec,
        parts: BuiltRun,
        context: TrainContext,
        said: queue.Queue[Any],
        *,
        ours: bool,
        save_seconds: float,
    ) -> None:
        self.run, self.parts, self.context, self.said, self.ours = run, parts, context, said, ours
        self.latest = Latest(run, context)
        self.peaks = [float(group["lr"]) for group in parts.optimizer.param_groups]
        self.steps = 0
        self.first: float | None = None
        self.last: float | None = None
        self.began = self.stopped = self.diverged = False
        self.abandoned = threading.Event()
        """Nobody waits for the run any more."""
        self._save_seconds = save_seconds
        self._before = 0.0
        """Seconds that the run was trained for before it was interrupted."""
        self._random: dict[str, Any] | None = None
        self._started = self._spoken = self._saved = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the run began, without the time in which nobody trained it."""
        return self._before + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "steps": self.steps,
            "first": self.first,
            "last": self.last,
            "seconds": self.seconds,
            "random": random_state(self.context.device.torch_device),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.steps, self.first, self.last = (state_dict[name] for name in ("steps", "first", "last"))
        self._before, self._random = state_dict["seconds"], state_dict["random"]

    def on_train_start(self, trainer: Lightning, pl_module: LightningModule) -> None:
        self.began = True
        if self.ours:
            train_mode(self.parts.optimizer)
        if self._random is not None:
            set_random_state(self._random, self.context.device.torch_device)
        self._started = self._spoken = self._saved = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Lightning, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.ours:
            multiplier = self.parts.schedule(self.steps)
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
            self.said.put(self._progress())
        self.stopped = self.abandoned.is_set() or self.context.should_stop()
        # After the last step, so that what fails in the evaluation does not cost the steps.
        due = self.stopped or self.steps == self.run.steps or now - self._saved > self._save_seconds
        if due and not self.diverged:
            self.latest.save(trainer)
            self._saved = time.perf_counter()
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

    def _progress(self) -> Progress:
        tokens = self.steps * self.run.tokens_per_step
        return Progress(
            run=self.run.id,
            step=self.steps,
            steps=self.run.steps,
            tokens=tokens,
            loss=self.last,
            tokens_per_second=tokens / max(self.seconds, 1e-9),
        )


class Batches:
    """The run's batches, once through, from where the run is: what Lightning takes for a dataloader."""

    def __init__(self, run: RunSpec, parts: BuiltRun, watch: Watch) -> None:
        self._run, self._parts, self._watch = run, parts, watch
        self._start = 0

    def __iter__(self) -> Iterator[Any]:
        batches = self._parts.dataset.batches(self._run.batch_size, self._start * self._run.batch_size)
        return itertools.islice(batches, self._run.steps - self._start)

    def state_dict(self) -> dict[str, Any]:
        """Lightning fetches ahead; what counts is what was trained on."""
        return {"steps": self._watch.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin with the step after these."""
        self._start = state_dict["steps"]
