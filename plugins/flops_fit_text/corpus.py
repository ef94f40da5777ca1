"""Read files as rows of bytes, divided by file into a training and a held-out part."""

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
"""(name relative to the root folder, path), sorted by name."""


@dataclass(frozen=True)
class Corpus:
    """Rows of bytes: files sorted by name, each followed by a zero byte."""

    training: NDArray[np.uint8]
    eval_data: NDArray[np.uint8]
    further: dict[str, NDArray[np.uint8]]
    """Additional held-out rows by name."""

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
    """Read all parts. Raises DataError if a part is too small or a file cannot be read."""
    files = _standard_library() if options.path is None else _find(options.path)
    source = options.path or "the Python standard library"
    further = {name: _find(path) for name, path in options.eval_sets.items()}
    files = _without(files, [file for eval_set in further.values() for file in eval_set])
    if options.eval_path is None:
        training = [(name, path) for name, path in files if not _is_held_out(name, options.eval_share)]
        eval_data = [(name, path) for name, path in files if _is_held_out(name, options.eval_share)]
        if not training or not eval_data:
            raise DataError(
                f"dataset 'text': {len(files)} files in {source} leave nothing to "
                f"{'hold out' if training else 'train on'}, because files are not divided. Use more files, "
                f"another dataset.eval_share, or dataset.eval_path"
            )
    else:
        eval_data = _find(options.eval_path)
        training = _without(files, eval_data)
        if not training:
            raise DataError(
                f"dataset 'text': every file of {source} is held out, so there is no training data: write another "
                f"dataset.path or dataset.eval_path"
            )
    further_rows = {name: _read(eval_set) for name, eval_set in further.items()}
    corpus = Corpus(_read(training), _read(eval_data), further_rows)
    parts = {f"held-out part {name!r}": row for name, row in corpus.further.items()}
    for part, row in {"training part": corpus.training, "held-out part": corpus.eval_data, **parts}.items():
        if len(row) <= options.context:
            raise DataError(
                f"dataset 'text': the {part} of {source} has {len(row)} bytes, fewer than one window of "
                f"context + 1 = {options.context + 1}"
            )
    return corpus


def _without(files: Files, excluded: Files) -> Files:
    """The files without the excluded files, after links are resolved."""
    targets = {path.resolve() for _, path in excluded}
    return [(name, path) for name, path in files if path.resolve() not in targets] if targets else files


def _is_held_out(name: str, share: float) -> bool:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _standard_library() -> Files:
    root = Path(sysconfig.get_paths()["stdlib"])
    sources: Files = []
    for folder, inner, files in os.walk(root):
        # os.walk does not enter removed folders. site-packages may have very many files.
        inner[:] = [name for name in inner if name not in NOT_SOURCES]
        paths = [Path(folder, name) for name in files if name.endswith(".py")]
        sources += [(path.relative_to(root).as_posix(), path) for path in paths]
    return sorted(sources)


def _find(path: str) -> Files:
    root = Path(path)
    if root.is_dir():
        files = [file for file in root.rglob("*") if file.is_file()]
    elif root.is_file():
        files, root = [root], root.parent
    else:
        matches = map(Path, glob.glob(path, recursive=True))  # noqa: PTH207 (absolute patterns)
        files = [file for file in matches if file.is_file()]
        root = _fixed_part(root)
    if not files:
        raise DataError(f"dataset 'text': no file matches {path!r}: write a folder, a file or a glob")
    return sorted((file.relative_to(root).as_posix(), file) for file in files)


def _fixed_part(pattern: Path) -> Path:
    """The folders of a glob before its first wildcard."""
    return next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))


def _read(files: Files) -> NDArray[np.uint8]:
    try:
        text = b"".join(path.read_bytes() + END_OF_FILE for _, path in files)
    except OSError as error:
        raise DataError(f"dataset 'text': cannot read {error.filename}: {error.strerror}") from None
    return np.frombuffer(text, dtype=np.uint8)
