"""The base class of result stores."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property

from flops_fit_core.records import RunResult


class ResultStore(ABC):
    """Base class of result stores, which store every attempt at every run.

    Implement :meth:`add` and :meth:`all_attempts`. Every other method has a default. Override :meth:`attempts` and
    :meth:`get` if the store can read a single run without reading all: the driver calls ``get`` several times per
    run.

    The default claims live in this object, and other processes do not see them. The engine therefore refuses a
    second driver of the same study. A store for several drivers overrides :meth:`claim`, :meth:`renew` and
    :meth:`release`, all three.

    The driver is the only user of a store within a process. Processes: ``add`` is atomic between them, and so is
    ``claim`` if it is overridden. Threads: one. After its process was killed, a store opens again with every
    result for which ``add`` had returned.
    """

    @abstractmethod
    def add(self, result: RunResult) -> None:
        """Store one attempt. The same (run id, attempt) replaces the earlier result.

        Returns when the result survives a crash of this process. Raises ValueError for a number that is not
        finite, because JSON would silently drop it. ``RunResult.model_validate(result.model_dump())`` raises it.
        """

    @abstractmethod
    def all_attempts(self) -> Iterable[RunResult]:
        """Every attempt at every run, in the order in which they were added.

        A replaced attempt appears once, with its new content, in the place of the first ``add`` of its (run id,
        attempt). Every call reads the store again and includes attempts that other processes have added.
        """

    def get(self, run_id: str) -> RunResult | None:
        """The attempt at a run with the highest number, or None."""
        attempts = self.attempts(run_id)
        return attempts[-1] if attempts else None

    def results(self) -> list[RunResult]:
        """The attempt with the highest number at every run, in the order in which the runs were first added."""
        latest: dict[str, RunResult] = {}
        for attempt in self.all_attempts():
            if attempt.attempt >= latest.setdefault(attempt.id, attempt).attempt:
                latest[attempt.id] = attempt
        return list(latest.values())

    def attempts(self, run_id: str) -> list[RunResult]:
        """Every attempt at a run, sorted by number."""
        return group_by_run(result for result in self.all_attempts() if result.id == run_id).get(run_id, [])

    def close(self) -> None:  # noqa: B027  # many stores hold nothing open
        """Close files and connections. No other method is called afterwards."""

    # ------------------------------------------------------------------ claims

    @property
    def shares_claims(self) -> bool:
        """Whether other processes see this store's claims, so that several drivers may train one study."""
        return type(self).claim is not ResultStore.claim

    @cached_property
    def _claims_of_this_object(self) -> dict[str, tuple[str, float]]:
        """Run id -> owner, and end of the claim by ``time.monotonic``."""
        return {}

    def claim(self, run_id: str, owner: str, seconds: float) -> bool:
        """Claim the right to train a run for this many seconds. False while another owner holds the claim."""
        holder, end = self._claims_of_this_object.get(run_id, (owner, 0.0))
        if holder != owner and time.monotonic() < end:
            return False
        self._claims_of_this_object[run_id] = owner, time.monotonic() + seconds
        return True

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        """Extend a claim to this many seconds from now. False if ``owner`` does not hold it."""
        holder, _ = self._claims_of_this_object.get(run_id, (None, 0.0))
        if holder == owner:
            self._claims_of_this_object[run_id] = owner, time.monotonic() + seconds
        return holder == owner

    def release(self, run_id: str, owner: str) -> None:
        """Release a claim. Does nothing if ``owner`` does not hold it."""
        holder, _ = self._claims_of_this_object.get(run_id, (None, 0.0))
        if holder == owner:
            del self._claims_of_this_object[run_id]


def group_by_run(attempts: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    """Run id -> its attempts, sorted by number. Runs keep the order in which they first appear."""
    runs: dict[str, list[RunResult]] = {}
    for attempt in attempts:
        runs.setdefault(attempt.id, []).append(attempt)
    return {run: sorted(group, key=lambda attempt: attempt.attempt) for run, group in runs.items()}
