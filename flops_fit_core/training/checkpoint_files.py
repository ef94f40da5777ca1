"""The checkpoint files of one trajectory."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path


class TrajectoryFolder:
    """The checkpoints of one trajectory. The trainer writes them, the driver deletes them.

    checkpoints/<trajectory id>/latest.pt          from which an interrupted run is resumed
    checkpoints/<trajectory id>/step-00001234.pt   the shared stable phase at a step where a run branched off
    """

    def __init__(self, study: Path, trajectory: str) -> None:
        self.path = study / "checkpoints" / trajectory

    @property
    def latest(self) -> Path:
        return self.path / "latest.pt"

    @property
    def bytes(self) -> int:
        """Size on disk; 0 for a folder that does not exist."""
        return sum(file.stat().st_size for file in self.path.glob("*") if file.is_file())

    def branch(self, step: int) -> Path:
        return self.path / f"step-{step:08d}.pt"

    def branches(self) -> dict[int, Path]:
        """Step -> file, in the order of the steps."""
        files = {int(file.stem.removeprefix("step-")): file for file in self.path.glob("step-*.pt")}
        return dict(sorted(files.items()))

    def forget_latest(self) -> int:
        """Delete the latest checkpoint, and temporary files of writers that were killed. Keeps branches.

        Returns the number of bytes freed.
        """
        bytes_before = self.bytes
        for file in [self.latest, *self.path.glob(".*.pt.*")]:
            file.unlink(missing_ok=True)
        freed = bytes_before - self.bytes
        with contextlib.suppress(OSError):  # raised if there are branches
            self.path.rmdir()
        return freed

    def remove(self) -> int:
        """Delete the folder. Returns the number of bytes freed."""
        freed = self.bytes
        shutil.rmtree(self.path, ignore_errors=True)
        return freed
