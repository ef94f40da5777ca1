"""Files that several processes share: whole at every moment, and changed by one of them at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, Timeout

from flops_fit_core import StoreError


@contextmanager
def locked(lock: BaseFileLock, path: Path) -> Iterator[None]:
    """Hold the lock of what is at ``path``. Raises StoreError where another process keeps it too long."""
    try:
        lock.acquire()
    except Timeout:
        raise StoreError(
            f"{path}: another process has held {Path(lock.lock_file).name} for {lock.timeout:g} seconds. "
            f"Wait for it, or stop it"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise StoreError(f"{path}: cannot lock {lock.lock_file}: {error}") from None
    try:
        yield
    finally:
        lock.release()


def replace_file(path: Path, content: bytes) -> os.stat_result:
    """Put a file with this content in the place of ``path``, on disk when it returns. Only with the lock held.

    A killed writer leaves ``.NAME.new``, which the next one overwrites. Raises StoreError, having changed nothing.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            status = os.fstat(file.fileno())
        new.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: cannot write: {error.strerror}. It was left as it was") from None
    return status


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure. Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
