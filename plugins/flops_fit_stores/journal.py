"""A file of JSON lines that several processes append to, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from flops_fit_core import StoreError
from flops_fit_stores.checks import START_ANEW
from flops_fit_stores.files import replace_file


class Journal:
    """Lines of JSON, of which only those are read that have not been read before.

    The first line has ``format``, ``version`` and ``turn`` (how often the file was written anew). A writer holds a
    lock and has called :meth:`news` under it. A last line without an end was never finished, because its writer
    was killed: it is not read, and the next :meth:`append` cuts it off.

    Every method raises StoreError for a file that is damaged, not ours or of another version; such a file is never
    replaced.

    Args:
        path: The file; :meth:`replace` makes it.
        format_name: What ``format`` says.
        entry: What a line has to look like.
    """

    VERSION = 1

    def __init__(self, path: Path, format_name: str, entry: Any) -> None:
        self.path, self._format, self._entry = path, format_name, TypeAdapter(entry)
        self.lines = 0
        """How many there are after the first, as far as they have been read or written here."""
        self._turn = 0
        self._head: bytes | None = None
        self._end = 0

    def news(self) -> tuple[bool, list[Any]]:
        """The lines since the last call. True before them: the file was written anew (or is read for the first
        time), these are all of its lines, and what was read before counts no more."""
        try:
            with self.path.open("rb") as file:
                head = file.readline()
                anew = head != self._head
                turn, start, known = self._turn, self._end, self.lines
                if anew:
                    turn, start, known = self._read_turn(head), len(head), 0
                if os.fstat(file.fileno()).st_size < start:
                    raise self.damaged("lines that were there are gone")
                file.seek(start)
                text = file.read()
        except FileNotFoundError:
            raise StoreError(f"{self.path}: moved or deleted while in use. Put it back and run again") from None
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from None
        whole = text[: text.rfind(b"\n") + 1]
        entries = [self._parsed(line, number) for number, line in enumerate(whole.split(b"\n")[:-1], known + 2)]
        self._turn, self._head, self._end, self.lines = turn, head, start + len(whole), known + len(entries)
        return anew, entries

    def append(self, entry: Any) -> None:
        """Add a line. A power failure may lose it."""
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
        """Write the file anew with these lines."""
        turn = self._turn + 1
        head = {"format": self._format, "version": self.VERSION, "turn": turn}
        lines = [to_json(line) + b"\n" for line in (head, *entries)]
        replace_file(self.path, b"".join(lines))
        self._turn, self._head = turn, lines[0]
        self._end, self.lines = sum(map(len, lines)), len(lines) - 1

    def damaged(self, what: str) -> StoreError:
        """What to say of a file that cannot be read."""
        return StoreError(
            f"{self.path}: damaged ({what}). It was left as it is: repair it by hand or put a copy back. "
            f"{START_ANEW}"
        )

    def _read_turn(self, head: bytes) -> int:
        if not head.endswith(b"\n"):
            raise self.damaged("its first line is cut off" if head else "it is empty")
        try:
            about = from_json(head)
        except ValueError as error:
            raise self.damaged(f"line 1 is no JSON: {error}") from None
        if not isinstance(about, dict) or about.get("format") != self._format:
            raise StoreError(f"{self.path}: not {self._format}: it belongs to something else. {START_ANEW}")
        if about.get("version") != self.VERSION:
            raise StoreError(
                f"{self.path}: its version is {about.get('version')!r}, and this flops-fit knows {self.VERSION}: "
                f"a newer one wrote it; pip install -U flops-fit"
            )
        return int(about.get("turn", 0))

    def _parsed(self, line: bytes, number: int) -> Any:
        try:
            return self._entry.validate_python(from_json(line, allow_inf_nan=False))
        except ValidationError as error:
            raise self.damaged(f"line {number}: {error.errors(include_url=False)[0]['msg']}") from None
        except ValueError as error:
            raise self.damaged(f"line {number} is no JSON: {error}") from None
