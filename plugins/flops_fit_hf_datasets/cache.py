"""Rows of ids on disk, made once by whoever needs them first and mapped by everybody else."""

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

ABOUT = "about.json"


def default_folder() -> Path:
    """``flops-fit/tokens`` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "flops-fit" / "tokens"


class RowWriter:
    """Appends ids to an ``.npy`` file, whatever their number; its header is written when it is closed."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.count = 0
        """Ids so far."""
        self.text_bytes = 0
        """Bytes of the text they stand for."""
        self._dtype = dtype
        self._digest = hashlib.sha256()
        self._file: BinaryIO = path.open("wb")
        self._write_header()

    def append(self, ids: NDArray[np.int64], text_bytes: int | None) -> None:
        """Ids that fit the type."""
        data = ids.astype(self._dtype).tobytes()
        self._digest.update(ids.astype("<i8").tobytes())
        self._file.write(data)
        self.count += len(ids)
        self.text_bytes += text_bytes or 0

    @property
    def fingerprint(self) -> str:
        """Of the ids, whatever type holds them."""
        return self._digest.hexdigest()[:16]

    def close(self) -> None:
        """Make the file whole."""
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write_header(self) -> None:
        # numpy leaves room in a header for the first dimension to grow, so it is as long for 0 as for 10^20.
        self._file.seek(0)
        shape = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.count,)}
        np.lib.format.write_array_header_1_0(self._file, shape)


class TokenCache:
    """A folder of folders, one a content.

    Processes: any number may ask for the same content at once; one makes it, the others wait. A folder appears
    whole or not at all, also where its maker is killed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str, make: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
        """The folder of a content, and what its maker said of it.

        ``make(folder)`` writes the files and returns something that goes to JSON; called where there is none.
        Raises DataError for a cache that cannot be written or read.
        """
        target = self.folder / key
        if not target.exists():
            try:
                self._make(target, make)
            except OSError as error:
                raise unusable(
                    f"cannot keep tokens in {self.folder} ({error}): write dataset.cache = 'a folder'"
                ) from error
        try:
            return target, json.loads((target / ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise unusable(f"{target} is damaged ({error}): delete it") from None

    def _make(self, target: Path, make: Callable[[Path], dict[str, Any]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{target.name}.lock"):
            if target.exists():
                return
            with self._temporary(target.name) as folder:
                about = make(folder)
                (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
                folder.rename(target)

    @contextlib.contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        folder = self.folder / f".{key}"
        shutil.rmtree(folder, ignore_errors=True)  # of a maker that was killed: we hold its lock
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def map_row(path: Path) -> NDArray[Any]:
    """The ids of a file, on disk. Raises DataError for a damaged one."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise unusable(f"{path} is damaged ({error}): delete {path.parent}") from None
