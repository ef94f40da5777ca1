"""The file ``results.json``: a JSON object with all records, which is complete at every moment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json, to_json

from flops_fit_core import StoreError
from flops_fit_stores.checksums import digest, is_intact, sealed
from flops_fit_stores.errors import Damage, newer_version, other_program, summary
from flops_fit_stores.files import replace_file
from flops_fit_stores.records import first_mistake, gc_paused

FORMAT = "flops-fit results"
VERSION = 2
"""Version 1 had no checksums and no log."""
_HEAD_BYTES = 128
"""Bytes at the start of a file that include the field ``writes``."""

Entry = dict[str, Any]


class _Entry(BaseModel):
    """The fields of a record that the store uses. Results are validated completely when they are read."""

    model_config = ConfigDict(strict=True)

    id: str
    attempt: int


class _Content(BaseModel):
    model_config = ConfigDict(strict=True)

    results: list[_Entry]
    writes: int
    log: str = ""


class Document:
    """A JSON object on disk: ``format``, ``version``, ``writes`` (their number), ``log``, ``sha256``, ``results``.

    ``log`` is the id of the journal that this file includes. Each record has a checksum, and ``sha256`` covers the
    other fields and the checksums of all records in their order.

    Args:
        path: The file; :meth:`write` creates it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = VERSION
        self.log = ""
        self.entries: list[Entry] = []
        """All records, each with its checksum."""
        self.size = 0
        """Bytes of the file."""
        self._writes = 0
        self._signature: tuple[object, ...] | None = None

    def read(self) -> bool:
        """Read the file if it has changed. Returns whether it has.

        Raises :class:`Damage`, and StoreError for a file that is missing, foreign or of a newer version.
        """
        try:
            with self.path.open("rb") as file:
                head = file.read(_HEAD_BYTES)
                signature = _signature(os.fstat(file.fileno()), head)
                if signature == self._signature:
                    return False
                text = head + file.read()
        except FileNotFoundError:
            raise StoreError(f"{self.path}: moved or deleted while in use. Put it back and run again") from None
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from None
        with gc_paused():
            data = _parse(self.path, text)
        self.entries, self.version = data["results"], data["version"]
        if self.version == 1:
            self.entries = [sealed(entry) for entry in self.entries]
        self.log, self._writes = data.get("log", ""), data["writes"]
        self.size, self._signature = len(text), signature
        return True

    def is_current(self) -> bool:
        """Whether the file is the one that :meth:`read` has read."""
        try:
            with self.path.open("rb") as file:
                return _signature(os.fstat(file.fileno()), file.read(_HEAD_BYTES)) == self._signature
        except OSError:
            return False

    def write(self, entries: Sequence[Entry], log: str) -> None:
        """Replace the file, durably. The caller holds the lock. Raises StoreError without any change.

        Args:
            entries: All records, each with its checksum.
            log: Id of the journal with records that ``entries`` includes.
        """
        head = {"format": FORMAT, "version": VERSION, "writes": self._writes + 1, "log": log}
        data = {**head, "sha256": _document_digest(head, entries), "results": entries}
        text = to_json(data, indent=2)
        status = replace_file(self.path, text)
        self.entries, self.version, self.log = list(entries), VERSION, log
        self._writes += 1
        self.size, self._signature = len(text), _signature(status, text[:_HEAD_BYTES])


def _document_digest(head: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> str:
    return digest({**head, "results": [entry["sha256"] for entry in entries]})


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    if not text:
        raise Damage("it is empty")
    try:
        data = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise Damage(f"truncated or not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise other_program(path, FORMAT)
    version = data.get("version")
    if data.get("format") != FORMAT or version not in (1, VERSION):
        _refuse_damaged_head(data)
        raise (
            newer_version(path, version, VERSION) if data.get("format") == FORMAT else other_program(path, FORMAT)
        )
    try:
        _Content.model_validate(data)
    except ValidationError as error:
        raise Damage(first_mistake(error)) from None
    if version == VERSION:
        _verify(data)
    return data


def _refuse_damaged_head(data: Mapping[str, Any]) -> None:
    """Raises Damage for a file with our records whose format or version is not that which was written."""
    entries = data.get("results")
    if not isinstance(entries, list) or not any(is_intact(entry) for entry in entries):
        return
    head = {name: data[name] for name in data if name not in ("results", "sha256")}
    digests = [entry.get("sha256") if isinstance(entry, dict) else None for entry in entries]
    if data.get("sha256") != digest({**head, "results": digests}):
        raise Damage("its format or version is damaged")


def _verify(data: Mapping[str, Any]) -> None:
    """Raises Damage for a checksum that does not match."""
    entries = data["results"]
    damaged = [entry for entry in entries if not is_intact(entry)]
    if damaged:
        names = summary([f"run {entry['id']}, attempt {entry['attempt']}" for entry in damaged], most=3)
        raise Damage(f"the checksum of {len(damaged)} of {len(entries)} results does not match: {names}")
    head = {name: data.get(name) for name in ("format", "version", "writes", "log")}
    if data.get("sha256") != _document_digest(head, entries):
        raise Damage("the checksum of its list of results does not match")


def _signature(status: os.stat_result, head: bytes) -> tuple[object, ...]:
    """Equal for two reads only if the content is equal: every write increases the counter in ``head``."""
    return status.st_ino, status.st_mtime_ns, status.st_size, head
