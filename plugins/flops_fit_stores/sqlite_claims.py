"""The claims of the ``sqlite`` store: table ``claims``, one row per claimed run."""

from __future__ import annotations

from dataclasses import asdict

from pydantic import TypeAdapter, ValidationError

from flops_fit_stores.leases import Lease, LeaseObserver
from flops_fit_stores.sqlite_library import Database
from flops_fit_stores.sqlite_transaction import write_transaction

_COLUMNS = ("owner", "token", "seconds", "beat", "machine", "end")
_PUT = (
    'INSERT OR REPLACE INTO claims (id, owner, token, seconds, beat, machine, "end") '
    "VALUES (:id, :owner, :token, :seconds, :beat, :machine, :end)"
)
_LEASE = TypeAdapter(Lease)


class SqliteClaims:
    """The claims in a database.

    Every method raises sqlite3.Error. The caller of :meth:`is_valid` and :meth:`end` has begun a transaction.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._observer = LeaseObserver()

    def take(self, run_id: str, owner: str, seconds: float) -> str | None:
        """Claim a run for ``owner``. Returns the token, or None if another owner holds it."""
        if self._is_held_by_another(run_id, owner):  # without a lock: waiting drivers ask often
            return None
        with write_transaction(self._db):
            if self._is_held_by_another(run_id, owner):
                return None
            lease = Lease.new(owner, seconds)
            self._put(run_id, lease)
        return lease.token

    def extend(self, run_id: str, owner: str, seconds: float) -> bool:
        """Extend the claim of ``owner``. Returns False if ``owner`` does not hold the run."""
        with write_transaction(self._db):
            held = self._read(run_id)
            if held is None or held.owner != owner:
                return False
            self._put(run_id, held.renewed(seconds))
        return True

    def drop(self, run_id: str, owner: str) -> None:
        """Release the run if ``owner`` holds it."""
        self._db.execute("DELETE FROM claims WHERE id = ? AND owner = ?", [run_id, owner])

    def is_valid(self, run_id: str, token: str) -> bool:
        """Whether the run's claim has this token."""
        held = self._read(run_id)
        return held is not None and held.token == token

    def end(self, run_id: str) -> None:
        """End the run's claim, of any owner."""
        self._db.execute("DELETE FROM claims WHERE id = ?", [run_id])

    def _is_held_by_another(self, run_id: str, owner: str) -> bool:
        held = self._read(run_id)
        return held is not None and held.owner != owner and not self._observer.has_ended(run_id, held)

    def _read(self, run_id: str) -> Lease | None:
        columns = ", ".join(f'"{name}"' for name in _COLUMNS)
        row = self._db.execute(f"SELECT {columns} FROM claims WHERE id = ?", [run_id]).fetchone()  # noqa: S608
        if row is None:
            return None
        try:
            return _LEASE.validate_python(dict(zip(_COLUMNS, row, strict=True)))
        except ValidationError:  # a damaged row blocks the run for the duration of a lease only
            return Lease.unknown(str(row[0]))

    def _put(self, run_id: str, lease: Lease) -> None:
        self._db.execute(_PUT, {"id": run_id, **asdict(lease)})
