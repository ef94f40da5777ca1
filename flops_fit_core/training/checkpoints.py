"""A trajectory's checkpoints: written at once or not at all, read without running any code of theirs."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from flops_fit_core.errors import RunFailed
from flops_fit_core.plugins.protocols import RunParts, Together
from flops_fit_core.plugins.utilities import replacing
from flops_fit_core.records import RunSpec
from flops_fit_core.training.checkpoint_files import TrajectoryFolder
from flops_fit_core.training.distributed import Processes, is_sharded, spread, spread_moments, whole
from flops_fit_core.training.rng import random_state, set_random_state

FORMAT = 1

logger = logging.getLogger("flops_fit")


@dataclass
class Position:
    """Where a pass over a trajectory is, beside its weights."""

    step: int = 0
    tokens: int | None = None
    """Valid targets trained on so far; None in a checkpoint that did not keep them."""
    positions: int | None = None
    """Positions computed so far."""
    began_tokens: int = 0
    """Valid targets trained on at ``began``."""
    run: str = ""
    """The run in whose decay it is; empty on the trunk."""
    first_loss: float | None = None
    last_loss: float | None = None
    above: int = 0
    """Looks in a row at which the loss was above the limit."""
    diverged: bool = False
    began: int = 0
    """Step from which on this run's own result counts what was trained."""
    seconds: float = 0.0
    """Wall time since ``began``."""
    train_seconds: float = 0.0
    """Of these, in training steps, waiting for data included."""
    wait_seconds: float = 0.0
    """Of these, waiting for data."""
    curve: list[tuple[int, float | None]] = field(default_factory=list)
    """Step and held-out loss of each evaluation on the way."""


class Checkpoints:
    """Those of one trajectory. What cannot be written or read costs time, not the run: the log says so."""

    def __init__(self, folder: TrajectoryFolder, device: str, together: Together | None = None) -> None:
        self.folder = folder
        self.device = device
        self.together = together or Processes()

    def save_latest(self, parts: RunParts, position: Position) -> None:
        """Replace what an interrupted pass goes on from."""
        self._write(self.folder.latest, parts, position)

    def save_branch(self, parts: RunParts, position: Position) -> None:
        """Keep the trunk where a run branches off."""
        self._write(self.folder.branch(position.step), parts, position)

    def restore(self, run: RunSpec, parts: RunParts) -> Position:
        """Put parts that were just built to the furthest point on the way of ``run``; a new Position at its start
        where there is none."""
        self.together.wait()  # for what the first process has still to write
        for file in self._candidates(run):
            found = self._read(file)
            if found is None:
                continue
            try:
                position = self._load(found, parts)
            except (KeyError, ValueError, RuntimeError, TypeError) as error:
                raise RunFailed(
                    f"checkpoint {file} does not fit the model or the optimizer, whose code has changed since "
                    f"it was written: delete {file.parent} to train from the start ({error})"
                ) from error
            if file != self.folder.latest and position.step < (run.branch_step or 0):
                # Another run's trunk: what this one adds begins here.
                position.began, position.began_tokens = position.step, position.tokens or 0
                position.seconds = position.train_seconds = position.wait_seconds = 0.0
            return position
        return Position()

    def _candidates(self, run: RunSpec) -> list[Path]:
        """What is on the run's way, furthest first."""
        found = [(step, file) for step, file in self.folder.branches().items() if step <= (run.branch_step or 0)]
        if self.folder.latest.exists() and (latest := self._read(self.folder.latest, peek=True)) is not None:
            where, step = latest["position"]["run"], latest["position"]["step"]
            if where == run.id or (not where and step <= (run.branch_step or run.steps)):
                found.append((step, self.folder.latest))
        return [file for _, file in sorted(found, reverse=True)]

    def _read(self, file: Path, *, peek: bool = False) -> dict[str, Any] | None:
        """``peek``: leave the weights on disk. They must not be used so: the file may be replaced."""
        try:
            found: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu", mmap=peek)
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']}, not {FORMAT}")
        except Exception as error:
            logger.warning("checkpoint %s cannot be read and is not used: %s", file, error)
            return None
        return found

    def _load(self, found: dict[str, Any], parts: RunParts) -> Position:
        if is_sharded(parts.model):
            found["model"] = spread(found["model"], parts.model.state_dict())
            found["optimizer"] = spread_moments(found["optimizer"], parts.optimizer.param_groups)
        parts.model.load_state_dict(found["model"])
        parts.optimizer.load_state_dict(found["optimizer"])
        set_random_state(found["random"], self.device)
        position = Position(**found["position"])
        position.curve = [(int(step), loss) for step, loss in position.curve]
        return position

    def _write(self, file: Path, parts: RunParts, position: Position) -> None:
        first = self.together.rank == 0
        model, optimizer = (whole(one.state_dict(), keep=first) for one in (parts.model, parts.optimizer))
        if not first:
            return
        try:
            content = {
                "format": FORMAT,
                "position": asdict(position),
                "model": model,
                "optimizer": optimizer,
                "random": random_state(self.device),
            }
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as stream:
                torch.save(content, stream)
        except Exception as error:
            logger.warning("checkpoint %s could not be written: %s: %s", file, type(error).__name__, error)
