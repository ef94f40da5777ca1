"""Result stores."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from flops_fit_core.records import RunResult


@runtime_checkable
class ResultStore(Protocol):
    """Keeps every attempt at every run. The driver is its only user within a process.

    Processes: any number of drivers may have one store open; ``add`` and ``claim`` are atomic between
    them. Threads: one. A store that was opened by a process that was killed opens again, with every
    result whose ``add`` had returned.
    """

    def add(self, result: RunResult) -> None:
        """Keep one attempt. Adding the same (run id, attempt) again replaces it. Returns once it is safe
        from a crash of this process.

        Raises ValueError for a number that is not finite, which JSON would silently drop.
        """

    def get(self, run_id: str) -> RunResult | None:
        """The latest attempt, or None."""

    def results(self) -> list[RunResult]:
        """The latest attempt at every run, in the order in which the runs were first added."""

    def attempts(self, run_id: str) -> list[RunResult]:
        """Every attempt, first to last."""

    def claim(self, run_id: str, owner: str, seconds: float) -> bool:
        """Take the right to train a run for that long; False while somebody else holds it."""

    def renew(self, run_id: str, owner: str, seconds: float) -> bool:
        """Hold a claim for that long from now; False where it has been lost."""

    def release(self, run_id: str, owner: str) -> None:
        """Give a claim back. Nothing happens where ``owner`` does not hold it."""

    def close(self) -> None: ...
