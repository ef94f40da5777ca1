"""Configurations as a user writes them: a table, or the path of a JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_configuration(value: Any) -> Any:
    """The content of a path's JSON file, or of a folder's ``config.json``. Other values are returned unchanged.

    Raises ValueError for a file that is missing or does not contain a table.
    """
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    file = path / "config.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {file.absolute()}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{file.absolute()} is not JSON: {error}") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{file.absolute()} contains a {kind}, not a table of fields")  # noqa: TRY004
    return content
