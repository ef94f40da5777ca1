"""The checkpoint files of one trajectory."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path


class TrajectoryFolder:
    """The checkpoints of one trajectory. Its trainer writes them; the driver deletes them.

    checkpoints/<trajectory id>/latest.pt          where an interrupted pass goes on
    checkpoints/<trajectory id>/step-00001234.pt   the trunk after so many steps, where a run branched off
    """

    def __init__(self, study: Path, trajectory: str) -> None:
        self.path = study / "checkpoints" / trajectory

    @property
    def latest(self) -> Path:
        return self.path / "latest.pt"

    @property
    def bytes(self) -> int:
        """On disk; 0 where there is nothing."""
        return sum(file.stat().st_size for file in self.path.glob("*") if file.is_file())

    def branch(self, step: int) -> Path:
        return self.path / f"step-{step:08d}.pt"

    def branches(self) -> dict[int, Path]:
        """Step -> file, first step first."""
        found = {int(file.stem.removeprefix("step-")): file for file in self.path.glob("step-*.pt")}
        return dict(sorted(found.items()))

    def forget_latest(self) -> int:
        """Delete what an interrupted pass would need, and what a killed writer left; branches stay.

        Returns the bytes that were freed.
        """
        before = self.bytes
        for file in [self.latest, *self.path.glob(".*.pt.*")]:
            file.unlink(missing_ok=True)
        freed = before - self.bytes
        with contextlib.suppress(OSError):  # branches are left
            self.path.rmdir()
        return freed

    def remove(self) -> int:
        """Delete everything. Returns the bytes that were freed."""
        freed = self.bytes
        shutil.rmtree(self.path, ignore_errors=True)
        return freed
