"""A JSON file that several processes change, one at a time. It is complete at every moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import BaseFileLock
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from flops_fit_core import StoreError
from flops_fit_stores.checks import START_NEW, damaged, gc_paused, wrong_version
from flops_fit_stores.files import locked, replace_file

_HEAD = 128
"""Bytes at the start of a file that include the field ``writes``."""


class Document:
    """A JSON object on disk: ``format``, ``version``, ``writes`` (number of writes) and content.

    Every method raises StoreError for a file that is damaged, foreign or of another version. Such a file is never
    replaced.

    Args:
        path: The file; :meth:`create` makes it.
        format_name: Value of ``format``.
        shape: Model that validates the content.
        lock: Lock of the writers.
    """

    VERSION = 1

    def __init__(self, path: Path, format_name: str, shape: type[BaseModel], lock: BaseFileLock) -> None:
        self.path, self._format, self._shape, self._lock = path, format_name, shape, lock
        self._last_signature: tuple[object, ...] | None = None
        self._data: dict[str, Any] = {}

    def create(self, **content: Any) -> None:
        """Write the file with this content if it does not exist."""
        if self.path.exists():
            return
        with locked(self._lock, self.path):
            if not self.path.exists():
                self._write({"format": self._format, "version": self.VERSION, "writes": 0, **content})

    def read(self) -> dict[str, Any]:
        """The object, which the caller must not change. The file is parsed again only if it has changed."""
        try:
            with self.path.open("rb") as file:
                head = file.read(_HEAD)
                signature = _signature(os.fstat(file.fileno()), head)
                if signature != self._last_signature:
                    with gc_paused():
                        self._data, self._last_signature = self._parse(head + file.read()), signature
        except FileNotFoundError:
            raise StoreError(f"{self.path}: moved or deleted while in use. Put it back and run again") from None
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from None
        return self._data

    def change(self, edit: Callable[[dict[str, Any]], bool]) -> bool:
        """Apply ``edit`` to the current object and write it. If ``edit`` returns False, write nothing and return
        False."""
        with locked(self._lock, self.path):
            data, signature = self.read(), self._last_signature
            self._last_signature = None  # if the write fails, the next read parses the file again
            if not edit(data):
                self._last_signature = signature
                return False
            data["writes"] += 1
            self._write(data)
            return True

    def _parse(self, text: bytes) -> dict[str, Any]:
        if not text:
            raise StoreError(f"{self.path}: empty. {START_NEW}")
        try:
            data = from_json(text, allow_inf_nan=False)
        except ValueError as error:
            raise damaged(self.path, f"truncated or not valid JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != self._format:
            raise StoreError(f"{self.path}: JSON of another program, not {self._format}. {START_NEW}")
        if data.get("version") != self.VERSION:
            raise wrong_version(self.path, data.get("version"), self.VERSION)
        try:
            self._shape.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise damaged(self.path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return data

    def _write(self, data: dict[str, Any]) -> None:
        text = to_json(data, indent=2)
        status = replace_file(self.path, text)
        self._data, self._last_signature = data, _signature(status, text[:_HEAD])


def _signature(status: os.stat_result, head: bytes) -> tuple[object, ...]:
    """Equal for two reads only if the content is equal: every write increases the counter in ``head``."""
    return status.st_ino, status.st_mtime_ns, status.st_size, head
