"""Add a driver's results to its store, so that no result of a driver that lost its claim replaces another."""

from __future__ import annotations

import logging

from flops_fit_core.plugins.outbox import Outbox, OutboxEntry
from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.records import RunResult
from flops_fit_core.study.claims import Claims

NO_CLAIM = "no claim"
"""A token that no claim ever has."""

logger = logging.getLogger("flops_fit")


class ResultWriter:
    """Adds results to the store, and deletes them from the outbox.

    A fenced store compares the token of the claim under which a run was trained with the present claim. For any
    other store, the writer checks the claim and the present result before it adds. These are several calls: a
    result that another driver adds between them may be replaced.

    Args:
        store: The store.
        claims: The driver's claims in it.
        outbox: The study's outbox; None without a folder.
    """

    def __init__(self, store: ResultStore, claims: Claims, outbox: Outbox | None) -> None:
        self._store = store
        self._claims = claims
        self._outbox = outbox

    def add(self, result: RunResult, collected: OutboxEntry | None = None) -> RunResult | None:
        """Store a result of this driver's job, or one that was collected from the outbox.

        Returns the result as it is stored. None if it does not count, because another driver trains or has
        finished the run: that is logged. Raises StoreError.
        """
        stored = self._add_fenced(result, collected) if self._store.fenced else self._add(result, collected)
        if self._outbox is not None:
            self._outbox.remove_result(result)
        if stored is not None and not stored.superseded:
            return stored
        present = self._store.get(result.id)
        counts = "no attempt counts yet" if present is None else f"attempt {present.attempt} counts"
        logger.warning(
            "run %s: another driver took the run over, so this result (%s) does not count; %s",
            result.id,
            result.status,
            counts,
        )
        return None

    def _add_fenced(self, result: RunResult, collected: OutboxEntry | None) -> RunResult | None:
        if collected is not None:
            return self._store.add(result, collected.token or NO_CLAIM)
        # A failure of a driver that has lost its claim must not end the training of the present driver.
        if not result.is_finished and not self._claims.holds(result.id):
            return None
        return self._store.add(result, self._claims.token(result.id) or NO_CLAIM)

    def _add(self, result: RunResult, collected: OutboxEntry | None) -> RunResult | None:
        if collected is not None or not self._claims.holds(result.id):
            present = self._store.get(result.id)
            if present is not None and present.is_finished and present.attempt >= result.attempt:
                return present if present == result else None
        self._store.add(result)
        return result
