"""JSON files with a checksum of their content, so that damage is detected when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from flops_fit_core.errors import ConfigError, DamagedFile
from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.records import Record

R = TypeVar("R", bound=BaseModel)

CHECKSUM = "sha256"
"""The key of the checksum, the first key of the file."""


def write_checked(
    path: Path,
    content: Record | Mapping[str, Any],
    header: Mapping[str, Any] | None = None,
    *,
    durable: bool = True,
) -> None:
    """Replace a file with a JSON object and its checksum.

    Args:
        path: File to replace. Its folder must exist.
        content: A record, or a mapping of JSON values.
        header: Keys before those of ``content``. The checksum does not cover them: the reader checks their values.
        durable: See :func:`flops_fit_core.plugins.replacing`.

    Raises OSError, and leaves the old file as it was.
    """
    values = json.loads(content.model_dump_json()) if isinstance(content, Record) else dict(content)
    complete = {CHECKSUM: _checksum(values), **(header or {}), **values}
    write_atomically(path, json.dumps(complete, indent=1) + "\n", durable=durable)


def read_checked(path: Path, header: str | None = None) -> tuple[dict[str, Any], Any]:
    """The JSON object in a file, without its checksum and its header, and the value of the header.

    A file of an earlier version has no checksum and is accepted.

    Args:
        path: The file.
        header: A key that the checksum does not cover.

    Raises DamagedFile if the file is no JSON object or differs from its checksum, ConfigError if it is unreadable.
    """
    values = read_object(path)
    checksum = values.pop(CHECKSUM, None)
    header_value = values.pop(header, None) if header is not None else None
    if checksum is not None and checksum != _checksum(values):
        raise DamagedFile(path, "its content differs from its checksum")
    return values, header_value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file as it is. Raises DamagedFile if it is no JSON object, ConfigError."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise DamagedFile(path, "it is not a JSON object")
    return values


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises DamagedFile if it is no JSON, ConfigError if it cannot be read."""
    if path.is_fifo() or path.is_char_device():  # reading would never end
        raise DamagedFile(path, "it is not a regular file")
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except RecursionError:
        raise DamagedFile(path, "its values are nested too deeply") from None
    except ValueError as error:  # also bytes that are not UTF-8
        raise DamagedFile(path, f"it is not JSON: {error}") from None


def read_record(kind: type[R], path: Path) -> R:
    """The record in a file. Raises DamagedFile and ConfigError as :func:`read_checked`."""
    return parse_record(kind, read_checked(path)[0], path)


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


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(values).encode()).hexdigest()
