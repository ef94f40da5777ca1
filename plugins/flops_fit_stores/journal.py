"""A file of JSON lines with checksums that several processes append to, one at a time."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from flops_fit_core import StoreError
from flops_fit_stores.checksums import is_intact, sealed
from flops_fit_stores.errors import newer_version, other_program
from flops_fit_stores.files import open_to_change, replace_file, sync_folder

Entry = dict[str, Any]


@dataclass(frozen=True)
class NewLines:
    """Lines that were appended since the last call of :meth:`Journal.read_new`."""

    rewritten: bool
    """Whether the file was rewritten. Then these are all its lines."""
    entries: list[Entry]
    """The intact lines."""
    damage: list[str]
    """Descriptions of the damaged lines."""


class Journal:
    """A file of JSON objects, one per line, that is read incrementally.

    The first line has ``format``, ``version`` and ``id``, a random name of this content that a rewrite changes.
    A writer must hold a lock and call :meth:`read_new` under it. A last line without a newline belongs to a killed
    writer: it is not read, and the next :meth:`append` removes it.

    Args:
        path: The file; :meth:`replace` creates it.
        format_name: Value of ``format``.
        version: Value of ``version``.
    """

    def __init__(self, path: Path, format_name: str, version: int) -> None:
        self.path, self._format, self._version = path, format_name, version
        self.id = ""
        """The present ``id``; empty if the file does not exist or its first line is damaged."""
        self.lines = 0
        """Number of lines after the first that this object has read or written."""
        self.size = 0
        """Bytes of the complete lines that this object has read or written."""
        self._head: bytes | None = None

    def read_new(self) -> NewLines | None:
        """The new lines, or None if the file does not exist. Raises StoreError for a file of another program or of
        a newer version."""
        try:
            with self.path.open("rb") as file:
                head = file.readline()
                shorter = head == self._head and os.fstat(file.fileno()).st_size < self.size
                rewritten = shorter or head != self._head
                file.seek(len(head) if rewritten else self.size)
                text = file.read()
        except FileNotFoundError:
            self._start(None, "")
            return None
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from None
        damage = ["lines are missing that were read before"] if shorter else []
        if rewritten:
            name = self._read_head(head)
            self._start(head, name or "")
            damage += [] if name else ["line 1 is damaged"]
        complete = text[: text.rfind(b"\n") + 1]
        entries = [_parse(line) for line in complete.split(b"\n")[:-1]]
        start = self.lines + 2
        damage += [f"line {number} is damaged" for number, entry in enumerate(entries, start) if entry is None]
        self.lines += len(entries)
        self.size += len(complete)
        return NewLines(rewritten, [entry for entry in entries if entry is not None], damage)

    def append(self, entry: Mapping[str, Any], *, durable: bool = False) -> None:
        """Append a line, or raise StoreError. A power failure may lose the line, unless it is ``durable``."""
        line = to_json(sealed(entry)) + b"\n"
        try:
            with BufferedRandom(open_to_change(self.path)) as file:
                file.seek(self.size)
                file.truncate()
                file.write(line)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            # After a failed fsync, the line may be in memory only, and the next fsync would not write it.
            with contextlib.suppress(OSError), open_to_change(self.path) as end:
                end.truncate(self.size)
            raise StoreError(f"{self.path}: cannot write: {error.strerror}") from None
        self.size += len(line)
        self.lines += 1

    def replace(self, entries: Iterable[Mapping[str, Any]] = ()) -> None:
        """Rewrite the file with these lines, durably."""
        name = secrets.token_hex(8)
        header = {"format": self._format, "version": self._version, "id": name}
        lines = [to_json(sealed(line)) + b"\n" for line in (header, *entries)]
        replace_file(self.path, b"".join(lines))
        self._start(lines[0], name)
        self.lines, self.size = len(lines) - 1, sum(map(len, lines))

    def remove(self) -> None:
        """Delete the file, durably."""
        try:
            self.path.unlink(missing_ok=True)
            sync_folder(self.path.parent)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot delete: {error.strerror}") from None
        self._start(None, "")

    def _start(self, head: bytes | None, name: str) -> None:
        self._head, self.id = head, name
        self.lines, self.size = 0, len(head or b"")

    def _read_head(self, head: bytes) -> str | None:
        """The ``id``, or None if the line is damaged."""
        header = _parse(head.removesuffix(b"\n"))
        if header is None or not head.endswith(b"\n"):
            return None
        if header.get("format") != self._format:
            raise other_program(self.path, self._format)
        if header.get("version") != self._version:
            raise newer_version(self.path, header.get("version"), self._version)
        return str(header["id"])


def _parse(line: bytes) -> Entry | None:
    """The object of a line, or None if it is damaged."""
    try:
        entry = from_json(line, allow_inf_nan=False)
    except ValueError:
        return None
    return entry if is_intact(entry) else None
