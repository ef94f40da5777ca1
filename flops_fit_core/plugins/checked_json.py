"""JSON files with a checksum: a flipped bit or a missing part is noticed when the file is read."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)

_START, _MIDDLE, _END = '{"sha256": "', '", "content": ', "}\n"
_ENVELOPE = re.compile(f"{re.escape(_START)}([0-9a-f]{{64}}){re.escape(_MIDDLE)}(.*){re.escape(_END)}", re.DOTALL)


def add_checksum(content: str) -> str:
    """JSON text in an envelope, which is JSON too: ``{"sha256": "...", "content": ...}``."""
    return f"{_START}{_digest(content)}{_MIDDLE}{content}{_END}"


def remove_checksum(text: str) -> str:
    """The content of an envelope. Text without an envelope is returned unchanged: an earlier version wrote it.

    Raises ValueError if the content does not match its checksum.
    """
    match = _ENVELOPE.fullmatch(text)
    if match is None:
        return text
    if _digest(match[2]) != match[1]:
        raise ValueError("its content does not match its checksum")
    return match[2]


def read_checked(kind: type[M], file: Path) -> M:
    """The record in a file.

    Raises FileNotFoundError for a missing file, and OSError or ValueError for a file that cannot be read, whatever
    its bytes are.
    """
    try:
        return kind.model_validate_json(remove_checksum(file.read_text(encoding="utf-8")))
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def describe_damage(error: OSError | ValueError) -> str:
    """The reason of :func:`read_checked`, in one line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    lines = str(error).splitlines()
    return "; ".join(line.strip() for line in lines[:3])


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
