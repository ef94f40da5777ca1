"""The right to write the checkpoints of a trajectory: ``checkpoints/<trajectory id>/claim``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from flops_fit_core.plugins.utilities import make_folder, write_atomically

CLAIM, LOCK = "claim", "claim.lock"
LOCK_SECONDS = 10.0
"""The longest wait for another process, which holds the lock for milliseconds unless it is paused."""

logger = logging.getLogger("flops_fit")


class CheckpointClaim:
    """The token of the driver that trains a trajectory, in the folder of its checkpoints.

    The driver writes it before it submits the job. A worker compares it with its own token and replaces the file
    of a checkpoint under the same lock, so that a process that was paused in between replaces nothing. The file
    may hold a second token: that of a queued job that the driver has taken over from another driver.

    On a file system without locks, the token is compared without a lock.

    Args:
        folder: The folder of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = (folder / CLAIM, folder / LOCK)

    def take(self, token: str, holds_claim: Callable[[], bool]) -> bool:
        """Give the trajectory to a driver and its workers.

        Args:
            token: Token of the driver's claim of the trajectory in the store.
            holds_claim: Whether the driver still has that claim. Called under the lock: a driver that was paused
                since it claimed the trajectory takes nothing from the next one.

        Returns whether the driver still has its claim. Raises OSError if the file cannot be written; Timeout, a
        subclass, if a paused process holds the lock.
        """
        make_folder(self.folder)
        with self._locked():
            if not holds_claim():
                return False
            self._write(token)
        return True

    def admit(self, token: str, worker_token: str) -> None:
        """Let a worker with another token write for the driver with ``token``. Raises OSError."""
        with self._locked():
            if self._tokens()[:1] == [token]:
                self._write(f"{token} {worker_token}")

    @contextlib.contextmanager
    def locked_for(self, token: str | None, *, as_driver: bool = False) -> Iterator[bool]:
        """Hold the lock, and yield whether the trajectory belongs to ``token``.

        Args:
            token: None for a store that is not fenced: the answer is True, and no lock is held.
            as_driver: Whether the token must be the driver's, not that of a worker that it has taken over.

        Raises OSError if another process holds the lock.
        """
        if token is None:
            yield True
            return
        with self._locked():
            tokens = self._tokens()
            yield token in (tokens[:1] if as_driver else tokens)

    def _write(self, tokens: str) -> None:
        # Not synced to disk: a power failure also ends the workers, and the next driver writes the file again.
        write_atomically(self.folder / CLAIM, tokens, durable=False)

    def _tokens(self) -> list[str]:
        """The driver's token first. Empty if the file is missing or undecodable: no worker may write then."""
        try:
            return (self.folder / CLAIM).read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            return []

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.folder / LOCK, timeout=LOCK_SECONDS)
        try:
            lock.acquire()
        except Timeout:
            raise
        except (OSError, NotImplementedError) as error:
            logger.debug("%s: no lock: %s", self.folder, error)
            yield
            return
        try:
            yield
        finally:
            lock.release()
