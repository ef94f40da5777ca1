"""JSON files with a checksum of their content, so that damage is detected when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from flops_fit_core.errors import ConfigError, DamagedFile
from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.records import Record

R = TypeVar("R", bound=Record)

CHECKSUM = "sha256"
"""The key of the checksum, the first key of the file."""


def write_checked(path: Path, content: Record | Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> None:
    """Replace a file with a JSON object and its checksum.

    Args:
        path: File to replace. Its folder must exist.
        content: A record, or a mapping of JSON values.
        extra: Further keys, before those of ``content``.

    Raises OSError, and leaves the old file as it was.
    """
    values = json.loads(content.model_dump_json()) if isinstance(content, Record) else dict(content)
    values = {**(extra or {}), **values}
    write_atomically(path, json.dumps({CHECKSUM: _checksum(_text(values)), **values}, indent=1) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, without its checksum. A file of an earlier version has none and is accepted.

    Raises DamagedFile if the file is no JSON object or differs from its checksum, ConfigError if it is unreadable.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise DamagedFile(path, "it is not a JSON object")
    checksum = values.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(_text(values)):
        raise DamagedFile(path, "its content differs from its checksum")
    return values


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises DamagedFile if it is no JSON, ConfigError if it cannot be read."""
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except RecursionError:
        raise DamagedFile(path, "its values are nested too deeply") from None
    except ValueError as error:  # also bytes that are not UTF-8
        raise DamagedFile(path, f"it is not JSON: {error}") from None


def read_record(kind: type[R], path: Path) -> R:
    """The record in a file. Raises DamagedFile and ConfigError as :func:`read_object`."""
    return parse_record(kind, read_object(path), path)


def parse_record(kind: type[R], values: Mapping[str, Any], path: Path) -> R:
    """A record from the values of a file. Raises DamagedFile, with the keys that are wrong."""
    try:
        return kind.model_validate_json(_text(values))
    except (ValidationError, RecursionError) as error:
        raise DamagedFile(path, f"it is no {kind.__name__} of this version: {_first_mistake(error)}") from None


def has_checksum(path: Path) -> bool:
    """Whether a readable file has a checksum. Raises as :func:`read_json`."""
    values = read_json(path)
    return isinstance(values, dict) and CHECKSUM in values


def _first_mistake(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    line = error.errors(include_url=False)[0]
    place = ".".join(map(str, line["loc"]))
    return f"{place}: {line['msg']}" if place else line["msg"]


def _text(values: Mapping[str, Any]) -> str:
    """JSON text of values as they are in the file: the order of keys counts, layout does not."""
    return json.dumps(values, separators=(",", ":"))


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
