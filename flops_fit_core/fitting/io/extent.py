"""Limits of a table: a small file may hold a table that takes gigabytes of memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flops_fit_core.errors import FitError
from flops_fit_core.plugins import limits

_ADVICE = "Keep the columns of the fit, and one row per run or fewer points of each run"


def check_extent(path: Path, rows: int = 0, columns: int = 0, cells: int = 0) -> None:
    """Raises FitError, with the limit, for more rows, columns or cells than a table may have."""
    for count, limit, unit in (
        (rows, limits.TABLE_ROWS, "rows"),
        (columns, limits.TABLE_COLUMNS, "columns"),
        (cells, limits.TABLE_CELLS, "cells"),
    ):
        if count > limit:
            raise FitError(f"{path} has {count:,} {unit}, and a table has at most {limit:,}. {_ADVICE}")


def check_text(path: Path, size: int) -> None:
    """Raises FitError for a text of more bytes than a table may have."""
    if size > limits.TABLE_BYTES:
        raise FitError(
            f"{path}: its text has more than {limits.TABLE_BYTES:,} bytes, the limit of a table. {_ADVICE}"
        )


def check_names(path: Path, names: Iterable[str]) -> None:
    """Raises FitError for a column with a longer name than a table may have."""
    length, limit = max(map(len, names), default=0), limits.TABLE_NAME_CHARACTERS
    if length > limit:
        raise FitError(
            f"{path} has a column with a name of {length:,} characters, and a name has at most {limit:,}. The "
            "first line must hold the column names"
        )
