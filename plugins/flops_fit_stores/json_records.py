"""The files of the ``json`` store: ``results.json``, a log of newer records, and a lower bound of their number.

A new record is appended to the log, durably, before it is acknowledged. Folding writes all records to
``results.json``, which then names the log that it includes. Readers ignore that log, and the next writer replaces
it. A process may be killed between any two of these steps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flops_fit_core import RunResult, StoreError
from flops_fit_stores.checksums import sealed
from flops_fit_stores.document import Document, Entry
from flops_fit_stores.errors import Damage, DamagedStore, damaged_store
from flops_fit_stores.journal import Journal
from flops_fit_stores.lower_bound import LowerBound

LOG_FORMAT = "flops-fit results log"
LOG_VERSION = 1
_MIN_LOG_BYTES = 65_536
"""The log is folded when it is larger than this and larger than ``results.json``: all writes together are then a
small multiple of the final size."""

logger = logging.getLogger("flops_fit")


def log_path(path: Path) -> Path:
    """The log of the file ``path``: ``results.log.jsonl``."""
    return path.with_suffix(".log.jsonl")


def count_path(path: Path) -> Path:
    """The lower bound of the file ``path``: ``results.json.count``."""
    return path.with_name(f"{path.name}.count")


class JsonRecords:
    """The records of ``results.json`` and its log, in the order in which they were added.

    :meth:`create`, :meth:`put` and :meth:`fold` are called under the lock of the store. :meth:`put` and
    :meth:`fold` follow a :meth:`refresh` under the same lock. Every method raises StoreError for files that are
    damaged, foreign or of a newer version, and changes none of them.

    Args:
        path: ``results.json``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        """All records, which callers must not change."""
        self.places: dict[str, dict[int, int]] = {}
        """Run id -> attempt -> index in ``entries``."""
        self._document = Document(path)
        self._log = Journal(log_path(path), LOG_FORMAT, LOG_VERSION)
        self._log_entries: list[Entry] = []
        self._applied = 0
        """Number of records of the log that are in ``entries``."""
        self._outdated = False
        """Whether files were read that ``entries`` does not include yet: an error may stop :meth:`refresh`."""
        self._bound = LowerBound(count_path(path))
        self._damage: DamagedStore | None = None

    def create(self) -> None:
        """Write an empty file if it does not exist."""
        with self._explain():
            if not self.path.exists():
                self._refuse_other_files()
                self._document.write([], "")

    def refresh(self) -> None:
        """Read what other processes have written. Needs no lock. After damage was found, it is raised again."""
        if self._damage is not None:
            raise self._damage
        with self._explain():
            self._read()

    def put(self, record: Mapping[str, Any]) -> None:
        """Add a record, or replace the record of the same run and attempt. Durable when this returns."""
        entry = sealed(record)
        if self._document.version == 1:
            # An earlier version of flops-fit would not read the log: make it refuse the file.
            self._document.write(self.entries, "")
        if not self._log.id or self._log.id == self._document.log:
            self._log.replace()
            self._log_entries, self._applied = [], 0
        self._log.append(entry, durable=True)
        self._log_entries.append(entry)
        self._apply_log()
        with self._explain():
            self._bound.raise_to(len(self.entries))
        if self._log.size > max(self._document.size, _MIN_LOG_BYTES):
            try:
                self.fold()
            except StoreError as error:
                logger.warning("%s. Its newest results are in %s", error, self._log.path.name)

    def confirm(self) -> None:
        """Make records durable that were added and not acknowledged: a process was killed, or a sync failed.

        They are written again: after a failed sync, the next sync of the same data may succeed without writing it.
        """
        self.fold()
        with self._explain():
            self._bound.raise_to(len(self.entries))

    def fold(self, *, last: bool = False) -> None:
        """Write the records of the log to ``results.json``.

        Args:
            last: Whether to delete the log, and the incomplete files of killed writers.
        """
        if self._log.id and self._log.id != self._document.log:
            self._document.write(self.entries, self._log.id)
        if last:
            self._log.remove()
            self._log_entries, self._applied = [], 0
            for path in (self.path, self._log.path):
                path.with_name(f".{path.name}.new").unlink(missing_ok=True)

    def _read(self) -> None:
        bound = self._bound.read()  # before the results: another process may add a result at any time
        while True:
            self._outdated |= self._document.read()
            new = self._log.read_new()
            if new is not None and new.damage:
                raise Damage(f"{self._log.path.name}: {new.damage[0]}")
            if new is None or new.rewritten:
                self._outdated |= new is not None or bool(self._log_entries)
                self._log_entries = []
            self._log_entries += new.entries if new is not None else []
            # A writer that folds the log replaces results.json first. If it did between the two reads, read again.
            if self._document.is_current():
                break
        if self._outdated:
            self.entries, self.places, self._applied = [], {}, 0
            for entry in self._document.entries:
                self._apply(entry)
        self._apply_log()
        self._outdated = False
        if bound is not None and len(self.entries) < bound:
            raise Damage(f"it has {len(self.entries)} results, but {bound} were stored")

    def _apply_log(self) -> None:
        """Apply the new records of the log, unless ``results.json`` includes it."""
        if self._log.id != self._document.log:
            for entry in self._log_entries[self._applied :]:
                self._apply(entry)
        self._applied = len(self._log_entries)

    def _apply(self, entry: Entry) -> None:
        """Append a record, or replace the record of the same run and attempt."""
        attempts = self.places.setdefault(entry["id"], {})
        place = attempts.setdefault(entry["attempt"], len(self.entries))
        if place == len(self.entries):
            self.entries.append(entry)
        else:
            self.entries[place] = entry

    def _refuse_other_files(self) -> None:
        for other in (self._log.path, self._bound.path):
            if other.exists():
                raise Damage(f"it does not exist, but {other.name} does: delete that too if you deleted it")

    @contextmanager
    def _explain(self) -> Iterator[None]:
        """Convert Damage to StoreError, and remember it."""
        from flops_fit_stores.json_check import read_records

        try:
            yield
        except Damage as damage:
            intact, _ = read_records(self.path)
            self._damage = damaged_store(self.path, str(damage), len(intact))
            raise self._damage from None


def record_of(result: RunResult) -> Entry:
    """The JSON object of a result, without its checksum. The fields that readers look for come first."""
    first = {"id": result.id, "status": result.status, "attempt": result.attempt, "loss": result.loss}
    return {**first, **result.model_dump(mode="json", exclude={"run"}), "run": result.run.model_dump(mode="json")}
