"""Configurations as they are written: a table, or a file of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_configuration(written: Any) -> Any:
    """A table as it is; of a path, what the JSON file or the folder's ``config.json`` holds.

    Raises ValueError for a file that is not there, or holds something else.
    """
    if not isinstance(written, str):
        return written
    path = Path(written).expanduser()
    file = path / "config.json" if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {file.absolute()}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{file.absolute()} is no JSON: {error}") from None
    if not isinstance(found, dict):
        held = type(found).__name__
        raise ValueError(f"{file.absolute()} holds a {held}, not a table of fields")  # noqa: TRY004
    return found
