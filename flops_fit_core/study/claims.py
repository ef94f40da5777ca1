"""The claims of one driver, and the thread that renews them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.records import Job

logger = logging.getLogger("flops_fit")


def names_to_claim(job: Job) -> list[str]:
    """Ids of a job's runs, and of its trajectories, which own the checkpoints."""
    return [name for item in job.trajectories for name in (item.id, *(run.id for run in item.runs))]


class Claims:
    """Claims of runs and trajectories in the driver's store, with their tokens. Used by the driver's thread."""

    def __init__(self, store: ResultStore, owner: str, seconds: float) -> None:
        self.owner = owner
        self.seconds = seconds
        self._store = store
        self._tokens: dict[str, str | None] = {}
        """Claimed name -> token; None if the store is not fenced."""

    @property
    def held(self) -> list[str]:
        """The claimed names that are not released yet."""
        return list(self._tokens)

    def take(self, names: Sequence[str]) -> bool:
        """Claim all names, or none of them and return False."""
        for count, name in enumerate(names):
            token = self._store.claim(name, self.owner, self.seconds)
            if token is False:
                self.release(names[:count])
                return False
            self._tokens[name] = token if self._store.fenced and isinstance(token, str) else None
        return True

    def holds(self, name: str) -> bool:
        """Whether this driver still has the claim, which is renewed."""
        return self._store.renew(name, self.owner, self.seconds)

    def token(self, name: str) -> str | None:
        """Token of the latest claim; None if the store is not fenced, or after the release."""
        return self._tokens.get(name)

    def release(self, names: Iterable[str]) -> None:
        for name in names:
            self._store.release(name, self.owner)
            self._tokens.pop(name, None)

    def release_of(self, owners: Iterable[str], names: Collection[str]) -> None:
        """Release the claims of other drivers, which are dead."""
        for owner in owners:
            for name in names:
                self._store.release(name, owner)


class ClaimRenewal:
    """Renews the claims of jobs while they are trained.

    A thread does it, so that no claim expires while the driver waits for an event, a logger or the store. A store
    serves one thread: the thread opens a store object for itself. A store that cannot be opened twice is renewed
    by the driver between events.

    Args:
        owner: The owner of the claims.
        seconds: Duration of a claim.
        is_alive: Whether a job is still trained. Otherwise its claims are left to expire. Thread-safe.
        open_store: Opens the store; None if it cannot be opened twice.
        beat: Called by the thread at every turn. Thread-safe.
    """

    def __init__(
        self,
        owner: str,
        seconds: float,
        is_alive: Callable[[str], bool],
        open_store: Callable[[], ResultStore] | None,
        beat: Callable[[], None] | None,
    ) -> None:
        self.lost: set[str] = set()
        """Names that a store has not renewed."""
        self._owner, self._seconds, self._is_alive = owner, seconds, is_alive
        self._open_store, self._beat = open_store, beat
        self._held: dict[str, Sequence[str]] = {}
        self._renewed = time.monotonic()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, job_id: str, names: Sequence[str]) -> None:
        """Renew these claims until :meth:`drop`. Also changes the names of a job."""
        self._held[job_id] = names

    def drop(self, job_id: str) -> None:
        self._held.pop(job_id, None)

    def renew(self, store: ResultStore) -> None:
        """Renew the claims of all jobs that are trained. Raises StoreError."""
        for job_id, names in list(self._held.items()):
            if not self._is_alive(job_id):
                continue
            self.lost.update(name for name in names if not store.renew(name, self._owner, self._seconds))
        self._renewed = time.monotonic()

    def renew_if_due(self, store: ResultStore) -> None:
        """Renew in the driver's thread, without a thread or when the thread is late. Raises StoreError."""
        interval = self._seconds / (2 if self._thread is not None and self._open_store is not None else 4)
        if time.monotonic() - self._renewed >= interval:
            self.renew(store)

    def start(self) -> None:
        """Start the thread, if it has anything to do."""
        if self._open_store is not None or self._beat is not None:
            # A daemon: a store that never answers must not keep a driver that exits.
            self._thread = threading.Thread(target=self._work, name="claim-renewal", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread, and close its store. Waits for a call of the store to return, at most for a claim's
        duration."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(self._seconds)
            if self._thread.is_alive():
                logger.warning("the thread that renews claims still waits for the store")
            self._thread = None

    def _work(self) -> None:
        store: ResultStore | None = None
        failed = False
        try:
            while not self._stopping.wait(self._seconds / (12 if failed else 4)):
                try:
                    if store is None and self._open_store is not None:
                        store = self._open_store()
                    if store is not None:
                        self.renew(store)
                    failed = False
                except Exception as error:
                    if not failed:
                        logger.warning("claims cannot be renewed now, will retry: %s", error)
                    failed = True
                    _close(store)
                    store = None
                if self._beat is not None:
                    self._beat()
        except BaseException:
            logger.exception("the thread that renews claims has ended; the driver renews them between events")
            raise
        finally:
            _close(store)


def _close(store: ResultStore | None) -> None:
    if store is not None:
        with contextlib.suppress(Exception):
            store.close()
