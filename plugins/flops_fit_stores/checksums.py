"""Checksums of JSON objects: the field ``sha256`` of an object covers all its other fields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

FIELD = "sha256"


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 in hex of the object's canonical JSON: sorted keys, ASCII, no spaces, without the field ``sha256``.

    An object has the same digest after it was written to JSON and read back: floats keep all their digits.
    """
    fields = {name: value for name, value in content.items() if name != FIELD}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its checksum as the last field."""
    fields = {name: value for name, value in content.items() if name != FIELD}
    return {**fields, FIELD: digest(fields)}


def is_intact(content: Any) -> bool:
    """Whether it is an object with a checksum that matches."""
    if not isinstance(content, dict) or FIELD not in content:
        return False
    try:
        return bool(content[FIELD] == digest(content))
    except (ValueError, RecursionError):  # a number that is not finite, or deep nesting
        return False
