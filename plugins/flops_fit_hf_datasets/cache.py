"""Rows of token ids on disk. The first process that needs them creates them, all processes map them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from flops_fit_hf_datasets import unusable

METADATA = "about.json"


def default_folder() -> Path:
    """``flops-fit/tokens`` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "flops-fit" / "tokens"


class RowWriter:
    """Appends any number of ids to an ``.npy`` file. The header is written when the file is closed."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.count = 0
        """Number of ids."""
        self.text_bytes = 0
        """Bytes of the text that the ids encode."""
        self._dtype = dtype
        self._digest = hashlib.sha256()
        self._file: BinaryIO = path.open("wb")
        self._write_header()

    def append(self, ids: NDArray[np.int64], text_bytes: int | None) -> None:
        """Append ids that fit the type."""
        data = ids.astype(self._dtype).tobytes()
        self._digest.update(ids.astype("<i8").tobytes())
        self._file.write(data)
        self.count += len(ids)
        self.text_bytes += text_bytes or 0

    @property
    def fingerprint(self) -> str:
        """A hash of the ids, which does not depend on their type on disk."""
        return self._digest.hexdigest()[:16]

    def close(self) -> None:
        """Write the header and close the file."""
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write_header(self) -> None:
        # numpy pads a header so that the first dimension can grow. Its length is the same for 0 and for 10^20.
        self._file.seek(0)
        shape = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.count,)}
        np.lib.format.write_array_header_1_0(self._file, shape)


class TokenCache:
    """A folder with one folder per key.

    Any number of processes may request the same key at the same time. One process creates the content, the others
    wait. A folder appears complete or not at all, even if the process is killed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str, make: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
        """The folder of a key, and its metadata.

        If the folder does not exist, ``make(folder)`` is called. It writes the files and returns metadata that can
        be written as JSON.

        Raises DataError for a cache that cannot be written or read.
        """
        target = self.folder / key
        if not target.exists():
            try:
                self._make(target, make)
            except OSError as error:
                raise unusable(
                    f"cannot write tokens to {self.folder} ({error}): write dataset.cache = 'a folder'"
                ) from error
        try:
            return target, json.loads((target / METADATA).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise unusable(f"{target} is damaged ({error}): delete it") from None

    def _make(self, target: Path, make: Callable[[Path], dict[str, Any]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{target.name}.lock"):
            if target.exists():
                return
            with self._temporary(target.name) as folder:
                metadata = make(folder)
                (folder / METADATA).write_text(json.dumps(metadata), encoding="utf-8")
                folder.rename(target)

    @contextlib.contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        folder = self.folder / f".{key}"
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed process, because this process has the lock
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def map_row(path: Path) -> NDArray[Any]:
    """Map the ids of a file. Raises DataError for a damaged file."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise unusable(f"{path} is damaged ({error}): delete {path.parent}") from None
