"""Reads CSV files of loggers."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from flops_fit_core import FitError
from flops_fit_core.plugins import read_run_file


def read_rows(file: Path) -> Iterator[dict[str, str]]:
    """The rows under the header, as text. Raises FitError for a file that is no CSV."""
    lines = read_run_file(file).decode("utf-8-sig", errors="replace").splitlines()
    reader = csv.reader(lines)
    try:
        header = [name.strip() for name in next(reader, [])]
        for cells in reader:
            if len(cells) > len(header):
                raise FitError(
                    f"{file}, row {reader.line_num}: {len(cells)} cells, but the header has {len(header)} names"
                )
            yield dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise FitError(f"{file}, row {reader.line_num}: {error}") from None
