"""Checkpoints of a trajectory: written atomically, and read without running code from the file."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from flops_fit_core.errors import ClaimLost, RunFailed
from flops_fit_core.plugins.protocols import BuiltRun, DistributedContext
from flops_fit_core.records import RunSpec
from flops_fit_core.training.checkpoint_files import CHECKSUM_MARK, TrajectoryFolder, verify_checkpoint
from flops_fit_core.training.rng import random_state, set_random_state
from flops_fit_core.training.sharding import gather_state, is_sharded, shard_optimizer_state, shard_state

FORMAT = 1

logger = logging.getLogger("flops_fit")


@dataclass
class TrainPosition:
    """How far a run is trained, and the measurements so far. The field names are keys in checkpoint files."""

    step: int = 0
    """Number of steps taken."""
    tokens: int | None = None
    """Valid targets trained on. None if the checkpoint does not contain it."""
    positions: int | None = None
    """Positions computed, padding included. None if the checkpoint does not contain it."""
    began_tokens: int = 0
    """``tokens`` at step ``began``."""
    run: str = ""
    """Id of the run in whose decay the position is; empty in the shared stable phase."""
    first_loss: float | None = None
    """Training loss at the first check."""
    last_loss: float | None = None
    """Training loss that was read last."""
    above: int = 0
    """Checks in a row at which the loss was above the limit."""
    diverged: bool = False
    began: int = 0
    """Step after which the run's own result counts the training. The steps before it belong to a shorter run."""
    seconds: float = 0.0
    """Wall time since ``began``."""
    train_seconds: float = 0.0
    """The part of ``seconds`` in training steps, including the wait for data."""
    wait_seconds: float = 0.0
    """The part of ``train_seconds`` spent waiting for data."""
    curve: list[tuple[int, float | None]] = field(default_factory=list)
    """Step and held-out loss of each evaluation during training. The loss is None if it is not finite."""


class Checkpoints:
    """The checkpoints of one trajectory.

    Every process of a run must call the methods: sharded weights are gathered from all. The first process writes.
    A checkpoint that cannot be written or read, or is damaged, is logged as a warning, and the run continues
    without it. Writing raises ClaimLost if another driver has taken the trajectory over.
    """

    def __init__(self, folder: TrajectoryFolder, device: str, distributed: DistributedContext) -> None:
        self.folder = folder
        self.device = device
        self.distributed = distributed
        self._intact: dict[Path, tuple[int, int, int]] = {}
        """File -> inode, size and time of the content that matched its checksum."""

    def save_latest(self, parts: BuiltRun, position: TrainPosition) -> None:
        """Replace the checkpoint from which an interrupted run is resumed."""
        self._write(self.folder.latest, parts, position)

    def save_branch(self, parts: BuiltRun, position: TrainPosition) -> None:
        """Write a checkpoint of the shared stable phase, from which longer runs continue."""
        self._write(self.folder.branch(position.step), parts, position)

    def restore(self, spec: RunSpec, parts: BuiltRun) -> TrainPosition:
        """Load the furthest checkpoint on the path of a run into parts that were just built.

        Returns its position, or a new position at step 0. Raises RunFailed for a checkpoint that does not fit.
        """
        self.distributed.barrier()  # the first process may still be writing
        for file in self._candidates(spec):
            content = self._read(file)
            if content is None:
                continue
            try:
                position = self._load(content, parts)
            except (KeyError, ValueError, RuntimeError, TypeError) as error:
                raise RunFailed(
                    f"checkpoint {file} does not fit the model or the optimizer, whose code has changed since "
                    f"it was written: delete {file.parent} to train from the start ({error})"
                ) from error
            if file != self.folder.latest and position.step < (spec.branch_step or 0):
                # The branch of a shorter run, which counts the steps so far. This run counts those after it.
                position.began, position.began_tokens = position.step, position.tokens or 0
                position.seconds = position.train_seconds = position.wait_seconds = 0.0
            return position
        return TrainPosition()

    def _candidates(self, spec: RunSpec) -> list[Path]:
        """The checkpoints on the path of a run, furthest first."""
        branch_step = spec.branch_step or 0
        candidates = [(step, file) for step, file in self.folder.branches().items() if step <= branch_step]
        latest = self._read(self.folder.latest, peek=True) if self.folder.latest.exists() else None
        if latest is not None:
            run_id, step = latest["position"]["run"], latest["position"]["step"]
            in_shared_phase = not run_id and step <= (spec.branch_step or spec.steps)
            if run_id == spec.id or in_shared_phase:
                candidates.append((step, self.folder.latest))
        return [file for _, file in sorted(candidates, reverse=True)]

    def _read(self, file: Path, *, peek: bool = False) -> dict[str, Any] | None:
        """``peek`` leaves the weights on disk. Do not use them then: the file may be replaced at any time."""
        if (damage := self._verify(file)) is not None:
            logger.warning("checkpoint %s is damaged and is not used: %s", file, damage)
            return None
        try:
            content: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu", mmap=peek)
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, not {FORMAT}")
        except Exception as error:
            logger.warning("checkpoint %s cannot be read and is not used: %s", file, error)
            return None
        return content

    def _verify(self, file: Path) -> str | None:
        """Why the file is damaged, or None. A file that has not changed since is read only once."""
        try:
            status = file.stat()
        except OSError as error:
            return error.strerror or str(error)
        version = status.st_ino, status.st_size, status.st_mtime_ns
        if self._intact.get(file) == version:
            return None
        damage = verify_checkpoint(file)
        if damage is None:
            self._intact[file] = version
        return damage

    def _load(self, content: dict[str, Any], parts: BuiltRun) -> TrainPosition:
        if is_sharded(parts.model):
            content["model"] = shard_state(content["model"], parts.model.state_dict())
            content["optimizer"] = shard_optimizer_state(content["optimizer"], parts.optimizer.param_groups)
        parts.model.load_state_dict(content["model"])
        parts.optimizer.load_state_dict(content["optimizer"])
        set_random_state(content["random"], self.device)
        position = TrainPosition(**content["position"])
        position.curve = [(int(step), loss) for step, loss in position.curve]
        return position

    def _write(self, file: Path, parts: BuiltRun, position: TrainPosition) -> None:
        is_writer = self.distributed.rank == 0
        model = gather_state(parts.model.state_dict(), keep=is_writer)
        optimizer = gather_state(parts.optimizer.state_dict(), keep=is_writer)
        if not is_writer:
            return
        try:
            content = {
                "format": FORMAT,
                CHECKSUM_MARK: True,
                "position": asdict(position),
                "model": model,
                "optimizer": optimizer,
                "random": random_state(self.device),
            }
            with self.folder.writing(file) as stream:
                torch.save(content, stream)
        except ClaimLost:
            raise
        except Exception as error:
            logger.warning("checkpoint %s could not be written: %s: %s", file, type(error).__name__, error)
