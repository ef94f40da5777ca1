"""Reads ``metrics.csv`` of Lightning's CSVLogger, with ``hparams.yaml``: one run per folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flops_fit_core.plugins import LoggedRun, RunReader, find_run_files
from flops_fit_readers.csv_rows import read_rows
from flops_fit_readers.headers import is_lightning, settings_files


class LightningReader(RunReader):
    """A metric has a value in the rows in which it was logged, and an empty cell in the others."""

    def read(self, path: Path) -> Iterator[LoggedRun]:
        for file in find_run_files(path, "metrics.csv"):
            if is_lightning(file):
                folder = file.parent
                yield LoggedRun(
                    id=folder.name if folder == path else folder.relative_to(path).as_posix(),
                    history=(
                        {name: cell for name, cell in row.items() if cell.strip()} for row in read_rows(file)
                    ),
                    config_files=settings_files(folder),
                    folder=folder,
                )
