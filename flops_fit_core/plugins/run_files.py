"""Find and read the files of training runs that another person may have written, within limits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from flops_fit_core.errors import FitError
from flops_fit_core.plugins import limits


def find_run_files(folder: Path, *patterns: str) -> Iterator[Path]:
    """Regular files below ``folder`` with a name that matches one of ``patterns``, in the order of their paths.

    Hidden folders and links to folders are not entered. Raises FitError for a folder with more entries than
    ``limits.READER_ENTRIES``, and for a folder that cannot be listed.
    """
    entries = 0
    for parent, folders, files in os.walk(folder, onerror=_refuse_unreadable if folder.is_dir() else None):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        entries += len(folders) + len(files)
        if entries > limits.READER_ENTRIES:
            raise FitError(
                f"{folder} has more than {limits.READER_ENTRIES:,} files and folders, the limit for logs of runs: "
                "name the folder of the runs"
            )
        for name in sorted(files):
            path = Path(parent, name)
            if any(fnmatch(name, pattern) for pattern in patterns) and path.is_file():
                yield path


def _refuse_unreadable(error: OSError) -> None:
    raise FitError(f"{error.filename}: {error.strerror or error}, so its runs are unknown")


def read_run_file(path: Path, max_bytes: int = limits.TABLE_BYTES) -> bytes:
    """The content of a regular file of at most ``max_bytes``. Raises FitError for any other file."""
    if not path.is_file():
        raise FitError(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            chunks, size = [], 0
            while chunk := file.read(min(1 << 20, max_bytes + 1 - size)):
                chunks.append(chunk)
                size += len(chunk)
                if size > max_bytes:
                    raise FitError(f"{path} has more than {max_bytes:,} bytes, the limit of a log")
    except OSError as error:
        raise FitError(f"{path}: {error.strerror or error}") from None
    return b"".join(chunks)
