"""A disk that loses power: what survives of logged calls.

The model is stricter than ext4. A write survives a power loss if an fsync of the same file follows. Otherwise each
512-byte sector of it may survive or not, in any order. The name of a file, a rename or a removal survives if an
fsync of the folder follows. Otherwise it may survive or not, each for itself. Folders survive when they are made:
journaling file systems write them with the first fsync below them. After a failed fsync of a file, its unwritten
changes are lost, as on Linux: the next fsync succeeds without writing them (https://lwn.net/Articles/752063/).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from torture.shim import CREATED, FAILED, FOLDER, TRUNCATED, Record

SECTOR = 512
Change = tuple[int, bytes | None]
"""An offset and the bytes written there; a new size and None."""


def apply(content: bytearray, change: Change) -> None:
    """Write bytes at an offset, with zeros before it where the file ends earlier; or set the size."""
    offset, data = change
    end = offset if data is None else offset + len(data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset:end] = data


@dataclass
class File:
    """An inode: its content on the disk, and the changes that no fsync has forced to the disk."""

    stored: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)

    def sync(self) -> None:
        self.stored, self.pending = self.content(), []

    def content(self, keep: float = 1.0, draw: random.Random | None = None) -> bytearray:
        """The content after a power loss that keeps each pending sector with a probability."""
        content = bytearray(self.stored)
        for change in self.pending:
            for piece in sectors(change):
                if keep == 1.0 or (draw is not None and draw.random() < keep):
                    apply(content, piece)
        return content


def sectors(change: Change) -> Iterable[Change]:
    """The parts of a change that a disk writes at once."""
    offset, data = change
    if data is None:
        yield change
        return
    while data:
        size = SECTOR - offset % SECTOR
        yield offset, data[:size]
        offset, data = offset + size, data[size:]


@dataclass(frozen=True)
class Entry:
    """A change of a folder: a name gets a file, or loses it. ``old`` is the former name of a renamed file."""

    name: str
    file: File | None
    old: str | None = None

    def apply(self, names: dict[str, File]) -> None:
        if self.old is not None:
            names.pop(self.old, None)
        if self.file is None:
            names.pop(self.name, None)
        else:
            names[self.name] = self.file


class Disk:
    """The disk after a prefix of a log.

    Args:
        lies: The disk reports every fsync without doing it.
    """

    def __init__(self, lies: bool = False) -> None:
        self.lies = lies
        self.names: dict[str, File] = {}
        self._stored_names: dict[str, File] = {}
        self._pending: list[Entry] = []
        self._inodes: dict[int, File] = {}

    def replay(self, record: Record) -> None:
        """Execute one call."""
        if record.operation == "fsync":
            self._sync(record)
            return
        path = record.path
        if record.operation == "open" and record.flags & CREATED:
            self._inodes[record.inode] = File()
            self._change(Entry(path, self._inodes[record.inode]))
        elif record.operation == "rename" and record.second in self.names:
            self._change(Entry(path, self.names[record.second], record.second))
        elif record.operation == "link" and record.second in self.names:
            self._change(Entry(path, self.names[record.second]))
        elif record.operation == "unlink":
            self._change(Entry(path, None))
        file = self._inodes.get(record.inode)
        if file is None:
            return
        if record.operation == "write":
            file.pending.append((record.offset, record.content))
        elif record.operation == "truncate" or (record.operation == "open" and record.flags & TRUNCATED):
            file.pending.append((record.size, None))

    def _sync(self, record: Record) -> None:
        if self.lies:
            return
        file = self._inodes.get(record.inode)
        if record.flags & FAILED:
            if file is not None:
                file.pending.clear()
        elif record.flags & FOLDER:
            self._sync_folder(record.path)
        elif file is not None:
            file.sync()

    def _change(self, entry: Entry) -> None:
        entry.apply(self.names)
        self._pending.append(entry)

    def _sync_folder(self, path: str) -> None:
        for entry in [entry for entry in self._pending if str(PurePath(entry.name).parent) == path]:
            entry.apply(self._stored_names)
            self._pending.remove(entry)

    def read(self, path: Path) -> str:
        """The content of a file before the power loss."""
        file = self.names.get(str(path))
        return file.content().decode() if file else ""

    def lose_power(self, below: Path, contents: float, names: float, draw: random.Random) -> dict[str, bytes]:
        """The files below a folder afterwards, by relative path.

        Args:
            below: The folder.
            contents: Probability that a sector without fsync survives.
            names: Probability that a change of a folder without fsync survives.
            draw: Source of randomness.
        """
        surviving = dict(self._stored_names)
        for entry in self._pending:
            if draw.random() < names:
                entry.apply(surviving)
        return {
            str(PurePath(path).relative_to(below)): bytes(file.content(contents, draw))
            for path, file in surviving.items()
            if PurePath(path).is_relative_to(below)
        }
