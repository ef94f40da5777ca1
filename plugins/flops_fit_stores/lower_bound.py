"""A durable lower bound of the number of results in a store file.

Truncation, deletion and lost pages can remove complete results, and no checksum of a result detects this. A store
therefore writes the number of its results to a small separate file before ``add`` returns. A store with fewer
results than its bound is damaged. More results are normal: a process was killed between the two writes.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from flops_fit_core import StoreError
from flops_fit_stores.errors import Damage
from flops_fit_stores.files import open_to_change, replace_file

_sync = getattr(os, "fdatasync", os.fsync)
"""The size of the file does not change, so only its content must reach the disk."""
_SLOT_BYTES = 96
"""Size of a slot: a count of 20 digits, a SHA-256 in hex, spaces and a newline."""


class LowerBound:
    """A file with two slots. Each slot has a count and its SHA-256, in one line of text.

    :meth:`raise_to` overwrites the slot with the lower count, so a torn write leaves the other slot intact. The
    larger intact count is the bound. Two stores in one folder need two files, for example ``results.json.count``
    and ``results.sqlite.count``.

    Args:
        path: The file. It may not exist: then no bound was ever written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> int | None:
        """The bound, or None if the file does not exist.

        Raises Damage if no slot is intact, StoreError if the file cannot be read. Needs no lock. To compare it
        with a store, read the bound first: another process may add results between the two.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from None
        return max(self._intact_counts(content))

    def raise_to(self, count: int) -> None:
        """Raise the bound to ``count``, durably. Does nothing if the bound is that high already.

        The caller holds the store's lock. Raises Damage if no slot is intact, StoreError if the file cannot be
        written.
        """
        try:
            with open_to_change(self.path) as file:
                counts = self._intact_counts(file.read())
                if count <= max(counts):
                    return
                file.seek(counts.index(min(counts)) * _SLOT_BYTES)
                file.write(_slot(count))
                _sync(file.fileno())
        except FileNotFoundError:
            self.reset(count)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot write: {error.strerror}") from None

    def reset(self, count: int) -> None:
        """Write a new file with this bound, which may be lower than the present bound. Repairs a damaged file.

        The caller holds the store's lock. Raises StoreError.
        """
        replace_file(self.path, 2 * _slot(count))

    def _intact_counts(self, content: bytes) -> list[int]:
        """The counts of both slots, -1 for a damaged slot. Raises Damage if both are damaged."""
        counts = [_count(content[start : start + _SLOT_BYTES]) for start in (0, _SLOT_BYTES)]
        if max(counts) < 0:
            raise Damage(f"{self.path.name}: both counts are damaged")
        return counts


def _slot(count: int) -> bytes:
    text = f"{count:020d}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text} {digest}".ljust(_SLOT_BYTES - 1).encode() + b"\n"


def _count(slot: bytes) -> int:
    """The count in a slot; -1 if the slot is damaged."""
    digits = slot[:20]
    return int(digits) if digits.isdigit() and slot == _slot(int(digits)) else -1
