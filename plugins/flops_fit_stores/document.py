"""A JSON file that several processes change, one at a time, and that is whole at every moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import BaseFileLock
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from flops_fit_core import StoreError
from flops_fit_stores.checks import START_ANEW, uncollected
from flops_fit_stores.files import locked, replace_file

_HEAD = 128
"""Bytes at the beginning of a file, ``writes`` among them."""


class Document:
    """A JSON object on disk: ``format``, ``version``, ``writes`` (how often it was written) and content.

    Every method raises StoreError for a file that is damaged, not ours or of another version; such a file is
    never replaced.

    Args:
        path: The file; :meth:`create` makes it.
        format_name: What ``format`` says.
        shape: What the content has to look like.
        lock: Held by whoever writes.
    """

    VERSION = 1

    def __init__(self, path: Path, format_name: str, shape: type[BaseModel], lock: BaseFileLock) -> None:
        self.path, self._format, self._shape, self._lock = path, format_name, shape, lock
        self._seen: tuple[object, ...] | None = None
        self._data: dict[str, Any] = {}

    def create(self, **content: Any) -> None:
        """Write the file with this content where there is none."""
        if self.path.exists():
            return
        with locked(self._lock, self.path):
            if not self.path.exists():
                self._write({"format": self._format, "version": self.VERSION, "writes": 0, **content})

    def read(self) -> dict[str, Any]:
        """The whole object, to be looked at only. Parsed again only if the file was written meanwhile."""
        try:
            with self.path.open("rb") as file:
                head = file.read(_HEAD)
                seen = _signature(os.fstat(file.fileno()), head)
                if seen != self._seen:
                    with uncollected():
                        self._data, self._seen = self._parsed(head + file.read()), seen
        except FileNotFoundError:
            raise StoreError(f"{self.path}: moved or deleted while in use. Put it back and run again") from None
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from None
        return self._data

    def change(self, by: Callable[[dict[str, Any]], bool]) -> bool:
        """Let ``by`` change the object as it is now, and write it; or return False and change nothing."""
        with locked(self._lock, self.path):
            data, seen = self.read(), self._seen
            self._seen = None  # what is in memory counts again once it is known to be on disk
            if not by(data):
                self._seen = seen
                return False
            data["writes"] += 1
            self._write(data)
            return True

    def _parsed(self, text: bytes) -> dict[str, Any]:
        if not text:
            raise StoreError(f"{self.path}: empty. {START_ANEW}")
        try:
            data = from_json(text, allow_inf_nan=False)
        except ValueError as error:
            raise self._damaged(f"cut off or no longer JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != self._format:
            raise StoreError(
                f"{self.path}: JSON, but not {self._format}: it belongs to something else. {START_ANEW}"
            )
        if data.get("version") != self.VERSION:
            raise StoreError(
                f"{self.path}: its version is {data.get('version')!r}, and this flops-fit knows {self.VERSION}: "
                f"a newer one wrote it; pip install -U flops-fit"
            )
        try:
            self._shape.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise self._damaged(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return data

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            f"{self.path}: damaged ({what}). It was left as it is: repair it by hand or put a copy back. "
            f"{START_ANEW}"
        )

    def _write(self, data: dict[str, Any]) -> None:
        text = to_json(data, indent=2)
        status = replace_file(self.path, text)
        self._data, self._seen = data, _signature(status, text[:_HEAD])


def _signature(status: os.stat_result, head: bytes) -> tuple[object, ...]:
    """Two files with the same signature have the same content: whoever writes also counts, at the head."""
    return status.st_ino, status.st_mtime_ns, status.st_size, head
