"""The base class of result stores."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
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

    A driver that was paused may add a result after another driver has taken over its claim. A store that prevents
    that this result replaces another one is fenced: it sets :attr:`fenced`, its :meth:`claim` returns tokens, and
    its :meth:`add` compares the token with the claim in the same transaction.

    The driver is the only user of a store within a process. Processes: ``add`` is atomic between them, and so is
    ``claim`` if it is overridden. Threads: one. After its process was killed, a store opens again with every
    result for which ``add`` had returned.
    """

    fenced: bool = False
    """Whether :meth:`claim` returns tokens and :meth:`add` accepts and checks them."""
    shared_between_machines: bool = False
    """Whether drivers on several machines may use the store at once. Such a store overrides the claims."""

    @abstractmethod
    def add(self, result: RunResult, token: str | None = None) -> RunResult | None:
        """Store one attempt.

        Args:
            result: The attempt. Without a token, it replaces an earlier result of the same (run id, attempt).
            token: The token of the claim under which the run was trained. A fenced store replaces nothing then: it
                stores :func:`settle_result` of the result. If a finished result counts without a valid token, the
                store also ends the present claim of the run. A store that is not fenced never receives a token and
                needs no such parameter.

        Returns the result as it is stored; None from a store that is not fenced. Returns when the result survives
        a crash of this process. Raises ValueError for a number that is not finite, because JSON would silently
        drop it. ``RunResult.model_validate(result.model_dump())`` raises it.
        """

    @abstractmethod
    def all_attempts(self) -> Iterable[RunResult]:
        """Every attempt at every run, in the order in which they were added.

        A replaced attempt appears once, with its new content, in the place of the first ``add`` of its (run id,
        attempt). Every call reads the store again and includes attempts that other processes have added.
        """

    def get(self, run_id: str) -> RunResult | None:
        """The attempt at a run with the highest number that is not superseded, or None."""
        attempts = [attempt for attempt in self.attempts(run_id) if not attempt.superseded]
        return attempts[-1] if attempts else None

    def results(self) -> list[RunResult]:
        """:meth:`get` of every run, in the order in which the runs were first added."""
        return latest_attempts(self.all_attempts())

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

    def claim(self, run_id: str, owner: str, seconds: float) -> str | bool:
        """Claim the right to train a run for this many seconds.

        Returns a token that no other claim ever has, from a fenced store; True from any other store; False while
        another owner holds the claim. The same owner may claim again: only the latest token is valid then.
        """
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


def settle_result(result: RunResult, attempts: Sequence[RunResult], *, holds_claim: bool) -> RunResult:
    """The form in which a fenced store adds a result.

    A driver without a valid claim may add a result. It counts if the run has no finished result. Otherwise it is
    stored as superseded. The result gets a new number if another attempt has its number.

    Args:
        result: The result to add.
        attempts: The stored attempts at the same run.
        holds_claim: Whether the driver's token is that of the present claim of the run.

    Returns the stored attempt if the result was added before: a driver repeats an ``add`` after it lost the
    connection to a server.
    """
    for attempt in attempts:
        if attempt.model_copy(update={"attempt": result.attempt, "superseded": result.superseded}) == result:
            return attempt
    numbers = {attempt.attempt for attempt in attempts}
    has_finished = any(attempt.is_finished and not attempt.superseded for attempt in attempts)
    return result.model_copy(
        update={
            "attempt": max(numbers) + 1 if result.attempt in numbers else result.attempt,
            "superseded": has_finished and not holds_claim,
        }
    )


def latest_attempts(attempts: Iterable[RunResult]) -> list[RunResult]:
    """Of each run, the attempt with the highest number that is not superseded, in the order of the first attempts.

    A run with superseded attempts only is left out.
    """
    latest: dict[str, RunResult | None] = {}
    for attempt in attempts:
        present = latest.setdefault(attempt.id, None)
        if not attempt.superseded and (present is None or attempt.attempt >= present.attempt):
            latest[attempt.id] = attempt
    return [attempt for attempt in latest.values() if attempt is not None]


def group_by_run(attempts: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    """Run id -> its attempts, sorted by number. Runs keep the order in which they first appear."""
    runs: dict[str, list[RunResult]] = {}
    for attempt in attempts:
        runs.setdefault(attempt.id, []).append(attempt)
    return {run: sorted(group, key=lambda attempt: attempt.attempt) for run, group in runs.items()}
