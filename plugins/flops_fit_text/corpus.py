"""Files to rows of bytes, split by file into a training and a held-out part."""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flops_fit_core import DataError

if TYPE_CHECKING:
    from flops_fit_text import TextOptions

END_OF_FILE = b"\0"
NOT_SOURCES = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "lib2to3",
    "pydoc_data",
}
"""Folders of the standard library that are left out: tests, and tables of data in the form of code."""

Files = list[tuple[str, Path]]
"""(Name relative to the folder that was given, path), in order of the names."""


@dataclass(frozen=True)
class Corpus:
    """Rows of bytes: files in order of their names, each followed by a zero byte."""

    training: NDArray[np.uint8]
    eval_data: NDArray[np.uint8]
    further: dict[str, NDArray[np.uint8]]
    """Further held-out rows by name."""

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.training.data)
        digest.update(b"held out")
        digest.update(self.eval_data.data)
        for name, row in sorted(self.further.items()):
            digest.update(f"held out {name}".encode())
            digest.update(row.data)
        return digest.hexdigest()[:16]


def read_corpus(options: TextOptions) -> Corpus:
    """Raises DataError where a part is empty or a file cannot be read."""
    files = _standard_library() if options.path is None else _find(options.path)
    where = options.path or "the Python standard library"
    further = {name: _find(path) for name, path in options.eval_sets.items()}
    files = _without(files, [one for found in further.values() for one in found])
    if options.eval_path is None:
        training = [(name, path) for name, path in files if not _is_held_out(name, options.eval_share)]
        eval_data = [(name, path) for name, path in files if _is_held_out(name, options.eval_share)]
        if not training or not eval_data:
            raise DataError(
                f"dataset 'text': {len(files)} files in {where} leave nothing to "
                f"{'hold out' if training else 'train on'}: a file is held out as a whole. Give more files, "
                f"another dataset.eval_share, or dataset.eval_path"
            )
    else:
        eval_data = _find(options.eval_path)
        training = _without(files, eval_data)
        if not training:
            raise DataError(f"dataset 'text': every file of {where} is also held out; nothing to train on")
    corpus = Corpus(_read(training), _read(eval_data), {name: _read(found) for name, found in further.items()})
    parts = {f"held-out part {name!r}": row for name, row in corpus.further.items()}
    for part, row in {"training part": corpus.training, "held-out part": corpus.eval_data, **parts}.items():
        if len(row) <= options.context:
            raise DataError(
                f"dataset 'text': the {part} of {where} has {len(row)} bytes, fewer than one window of "
                f"context + 1 = {options.context + 1}"
            )
    return corpus


def _without(files: Files, others: Files) -> Files:
    """The files that are not among the others, wherever links to them lie."""
    taken = {path.resolve() for _, path in others}
    return [(name, path) for name, path in files if path.resolve() not in taken] if taken else files


def _is_held_out(name: str, share: float) -> bool:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _standard_library() -> Files:
    root = Path(sysconfig.get_paths()["stdlib"])
    found: Files = []
    for folder, inner, files in os.walk(root):
        # Not even entered: site-packages may hold more files than all the rest.
        inner[:] = [name for name in inner if name not in NOT_SOURCES]
        paths = [Path(folder, name) for name in files if name.endswith(".py")]
        found += [(path.relative_to(root).as_posix(), path) for path in paths]
    return sorted(found)


def _find(path: str) -> Files:
    root = Path(path)
    if root.is_dir():
        found = [one for one in root.rglob("*") if one.is_file()]
    elif root.is_file():
        found, root = [root], root.parent
    else:
        found = [one for one in map(Path, glob.glob(path, recursive=True)) if one.is_file()]  # noqa: PTH207 (absolute patterns)
        root = _fixed_part(root)
    if not found:
        raise DataError(f"dataset 'text': no file matches {path!r}: give a folder, a file or a glob")
    return sorted((one.relative_to(root).as_posix(), one) for one in found)


def _fixed_part(pattern: Path) -> Path:
    """The folders of a glob before its first wildcard."""
    return next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))


def _read(files: Files) -> NDArray[np.uint8]:
    try:
        text = b"".join(path.read_bytes() + END_OF_FILE for _, path in files)
    except OSError as error:
        raise DataError(f"dataset 'text': cannot read {error.filename}: {error.strerror}") from None
    return np.frombuffer(text, dtype=np.uint8)
