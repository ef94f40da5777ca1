"""A file of JSON lines that several processes append to, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from flops_fit_core import StoreError
from flops_fit_stores.checks import START_NEW, damaged, wrong_version
from flops_fit_stores.files import replace_file


class Journal:
    """A file of JSON lines that is read incrementally.

    The first line has ``format``, ``version`` and ``turn`` (number of complete rewrites). A writer must hold a
    lock and call :meth:`read_new` under it. A last line without a newline belongs to a killed writer: it is not
    read, and the next :meth:`append` removes it.

    Every method raises StoreError for a file that is damaged, foreign or of another version. Such a file is never
    replaced.

    Args:
        path: The file; :meth:`replace` creates it.
        format_name: Value of ``format``.
        entry: Type that validates a line.
    """

    VERSION = 1

    def __init__(self, path: Path, format_name: str, entry: Any) -> None:
        self.path, self._format, self._entry = path, format_name, TypeAdapter(entry)
        self.lines = 0
        """Number of lines after the first that this object has read or written."""
        self._turn = 0
        self._head: bytes | None = None
        self._end = 0

    def read_new(self) -> tuple[bool, list[Any]]:
        """Whether the file was rewritten since the last call, and the new lines.

        After a rewrite, and at the first call, these are all lines, and lines read before are no longer valid.
        """
        try:
            with self.path.open("rb") as file:
                head = file.readline()
                rewritten = head != self._head
                turn, start, num_lines = self._turn, self._end, self.lines
                if rewritten:
                    turn, start, num_lines = self._read_turn(head), len(head), 0
                if os.fstat(file.fileno()).st_size < start:
                    raise damaged(self.path, "lines are missing that were read before")
                file.seek(start)
                text = file.read()
        except FileNotFoundError:
            raise StoreError(f"{self.path}: moved or deleted while in use. Put it back and run again") from None
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from None
        complete = text[: text.rfind(b"\n") + 1]
        lines = complete.split(b"\n")[:-1]
        entries = [self._parse(line, number) for number, line in enumerate(lines, num_lines + 2)]
        self._turn, self._head = turn, head
        self._end, self.lines = start + len(complete), num_lines + len(entries)
        return rewritten, entries

    def append(self, entry: Any) -> None:
        """Append a line. A power failure may lose it."""
        line = to_json(entry) + b"\n"
        try:
            with self.path.open("r+b") as file:
                file.seek(self._end)
                file.truncate()
                file.write(line)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot write: {error.strerror}") from None
        self._end += len(line)
        self.lines += 1

    def replace(self, entries: Iterable[Any] = ()) -> None:
        """Rewrite the file with these lines."""
        turn = self._turn + 1
        head = {"format": self._format, "version": self.VERSION, "turn": turn}
        lines = [to_json(line) + b"\n" for line in (head, *entries)]
        replace_file(self.path, b"".join(lines))
        self._turn, self._head = turn, lines[0]
        self._end, self.lines = sum(map(len, lines)), len(lines) - 1

    def _read_turn(self, head: bytes) -> int:
        if not head.endswith(b"\n"):
            raise damaged(self.path, "its first line is incomplete" if head else "it is empty")
        try:
            header = from_json(head)
        except ValueError as error:
            raise damaged(self.path, f"line 1 is not JSON: {error}") from None
        if not isinstance(header, dict) or header.get("format") != self._format:
            raise StoreError(f"{self.path}: a file of another program, not {self._format}. {START_NEW}")
        if header.get("version") != self.VERSION:
            raise wrong_version(self.path, header.get("version"), self.VERSION)
        return int(header.get("turn", 0))

    def _parse(self, line: bytes, number: int) -> Any:
        try:
            return self._entry.validate_python(from_json(line, allow_inf_nan=False))
        except ValidationError as error:
            raise damaged(self.path, f"line {number}: {error.errors(include_url=False)[0]['msg']}") from None
        except ValueError as error:
            raise damaged(self.path, f"line {number} is not JSON: {error}") from None
