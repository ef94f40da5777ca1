"""Where documents lie: a saved dataset's split, or files. Looks at names and bytes only, without ``datasets``."""

from __future__ import annotations

import glob
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from flops_fit_hf import SUFFIXES, HFOptions, unusable

BLOCK = 2**16
"""Bytes that are looked at in one place of a file."""
BLOCKS = 16
"""Places at which a larger file is looked at."""


@dataclass(frozen=True)
class Documents:
    """A split that ``save_to_disk`` wrote (one folder), or files of one format."""

    what: str
    """For messages."""
    files: tuple[Path, ...]
    format: str | None
    """What ``datasets`` calls it; None for a saved split."""
    root: Path

    def identity(self) -> list[list[str | int]]:
        """Of the content: changes whenever a file does, may change when it is copied."""
        return [[file.relative_to(self.root).as_posix(), *_look(file)] for file in self.files]


def _look(file: Path) -> tuple[str, int, int]:
    """A hash of a small file, and of evenly spaced places of a large one, with its size and time of change."""
    try:
        status = file.stat()
        digest = hashlib.sha256()
        with file.open("rb") as opened:
            if status.st_size <= BLOCK * BLOCKS:
                return hashlib.sha256(opened.read()).hexdigest(), status.st_size, 0
            for number in range(BLOCKS):
                opened.seek(number * (status.st_size - BLOCK) // (BLOCKS - 1))
                digest.update(opened.read(BLOCK))
    except OSError as error:
        raise unusable(f"cannot read {file}: {error.strerror}") from None
    return digest.hexdigest(), status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Places:
    """Where each part of a dataset lies."""

    training: Documents
    eval_source: Documents | None
    """None: a share of the documents of ``training``."""
    further: dict[str, Documents]


def find_places(options: HFOptions) -> Places:
    """Raises DataError for what is not there."""
    path = Path(options.path)
    splits = _splits(path)
    training = _training(path, splits, options.split)
    usual = "validation" if "validation" in splits and options.eval_share is None else None
    main = options.eval_source or usual
    places = Places(
        training=training,
        eval_source=None if main is None else _eval_documents(path, splits, main),
        further={name: _eval_documents(path, splits, place) for name, place in options.eval_sets.items()},
    )
    others = [*places.further.values(), *([places.eval_source] if places.eval_source else [])]
    taken = {file.resolve() for file in training.files}
    for other in others:
        if both := taken & {file.resolve() for file in other.files}:
            raise unusable(
                f"{training.what} is trained on and {other.what} is held out, and both have {sorted(both)[0]}"
            )
    return places


def _training(path: Path, splits: tuple[str, ...], split: str | None) -> Documents:
    if splits:
        return _saved_split(path, splits, split or "train", "dataset.split")
    if split is not None:
        raise unusable(f"{path} has no splits: leave dataset.split = {split!r} out")
    return _files(path)


def _eval_documents(path: Path, splits: tuple[str, ...], place: str) -> Documents:
    if Path(place).is_absolute():
        inner = _splits(Path(place))
        if inner:
            raise unusable(f"{place} has splits: name the folder of one, such as {place}/{inner[0]}")
        return _files(Path(place))
    if not splits:
        raise unusable(f"{path} has no splits, so {place!r} can be held out only as a path: write ./{place}")
    return _saved_split(path, splits, place, "dataset.eval_source")


def _splits(path: Path) -> tuple[str, ...]:
    """Of a ``DatasetDict`` on disk; none for anything else."""
    file = path / "dataset_dict.json"
    if not file.is_file():
        return ()
    try:
        return tuple(json.loads(file.read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unusable(f"{file} is damaged: {type(error).__name__}: {error}") from None


def _saved_split(path: Path, splits: tuple[str, ...], split: str, option: str) -> Documents:
    if split not in splits:
        raise unusable(f"{path} has no split {split!r}; it has: {', '.join(splits)}. Write {option}")
    return _saved(path / split, f"split {split!r} of {path}")


def _saved(folder: Path, what: str) -> Documents:
    # Beside the data, `datasets` may keep what it computed from them.
    found = [
        file for file in folder.iterdir() if file.is_file() and not file.name.startswith(("cache-", "tmp", "."))
    ]
    if not any(file.suffix == ".arrow" for file in found):
        raise unusable(f"{what} has no documents")
    return Documents(what, tuple(sorted(found)), None, folder)


def _files(path: Path) -> Documents:
    if (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        return _saved(path, str(path))
    if path.is_dir():
        found, root = [file for file in path.rglob("*") if file.suffix in SUFFIXES], path
    elif path.is_file():
        found, root = [path], path.parent
    else:
        found = [Path(file) for file in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (absolute patterns)
        root = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
    formats = {SUFFIXES.get(file.suffix) for file in found}
    if len(formats) != 1 or None in formats:
        there = ", ".join(sorted({file.suffix or file.name for file in found})) or "nothing"
        raise unusable(
            f"{path}: give a folder that save_to_disk wrote, or files of one kind out of "
            f"{', '.join(SUFFIXES)}; there is: {there}"
        )
    return Documents(str(path), tuple(sorted(found)), formats.pop(), root)


def tokenizer_file(path: Path) -> Path:
    """The file itself, or the ``tokenizer.json`` of a folder. Raises DataError where the folder has none."""
    if not path.is_dir():
        return path
    if (path / "tokenizer.json").is_file():
        return path / "tokenizer.json"
    names = sorted(file.name for file in path.iterdir())
    files = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise unusable(
        f"{path} has no tokenizer.json; it has: {files or 'nothing'}. Save a fast tokenizer of transformers with "
        f"save_pretrained, or name a tokenizer.json"
    )
