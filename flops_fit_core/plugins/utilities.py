"""Helpers that plugins share."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from flops_fit_core.records import content_hash as content_hash


def write_atomically(path: Path, text: str, *, sync: bool = True) -> None:
    """Replace a file at once: whoever reads it sees the old content or the new, never a part.

    ``sync=False`` does not wait until the text is on disk.
    """
    with replacing(path, sync=sync) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` at once, when nothing is raised and, with ``sync``, all is
    on disk."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:  # a write does not name its file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
