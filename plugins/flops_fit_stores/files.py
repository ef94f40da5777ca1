"""Locking and atomic replacement of files that several processes share."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from filelock import BaseFileLock, Timeout

from flops_fit_core import StoreError


def make_folder(folder: Path) -> None:
    """Create the study's folder. Raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot create this folder for the results: {error.strerror}") from None


@contextmanager
def locked(lock: BaseFileLock, path: Path) -> Iterator[None]:
    """Hold the lock of the file ``path``. Raises StoreError if another process holds it until the timeout."""
    try:
        lock.acquire()
    except Timeout:
        raise StoreError(
            f"{path}: {Path(lock.lock_file).name} held by another process for {lock.timeout:g} seconds. "
            f"Wait for that process, or stop it"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise StoreError(f"{path}: cannot lock {lock.lock_file}: {error}") from None
    try:
        yield
    finally:
        lock.release()


def replace_file(path: Path, content: bytes) -> os.stat_result:
    """Replace ``path`` atomically and force it to disk. The caller must hold the lock.

    A killed writer leaves ``.NAME.new``, which the next writer deletes. Raises StoreError without any change.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        with new.open("xb") as file:  # not through a symbolic link, which another user may have put there
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            status = os.fstat(file.fileno())
        new.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: cannot write: {error.strerror}. The file is unchanged") from None
    return status


def open_to_change(path: Path) -> FileIO:
    """Open an existing file, unbuffered, to change it in place. Raises OSError, also for a symbolic link: in a
    folder from another user, it may lead to a file of another study."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return FileIO(os.open(path, flags), "r+")


def sync_folder(folder: Path) -> None:
    """Make a rename or a deletion survive a power failure. Windows cannot fsync a folder, and need not."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unused_name(path: Path) -> str:
    """A name for a damaged file, ``results.sqlite.damaged-20260131T093000``, with which no file's name starts."""
    first = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}"
    taken = {file.name for file in path.parent.iterdir()}
    names = itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not any(other.startswith(name) for other in taken))
