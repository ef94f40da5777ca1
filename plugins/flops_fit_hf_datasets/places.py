"""Find the files of documents: a split of a saved dataset, or files. Reads names and bytes, without
``datasets``."""

from __future__ import annotations

import glob
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from flops_fit_hf_datasets import SUFFIXES, HFOptions, unusable

BLOCK = 2**16
"""Bytes per block that is hashed."""
BLOCKS = 16
"""Number of evenly spaced blocks of a large file that are hashed."""


@dataclass(frozen=True)
class Documents:
    """A split that ``save_to_disk`` wrote (one folder), or files of one format."""

    label: str
    """Description for messages."""
    files: tuple[Path, ...]
    format: str | None
    """Name of the format in ``datasets``; None for a saved split."""
    root: Path

    def identity(self) -> list[list[str | int]]:
        """Identifies the content. Changes whenever a file changes, and may change when a file is copied."""
        return [[file.relative_to(self.root).as_posix(), *_hash_blocks(file)] for file in self.files]


def _hash_blocks(file: Path) -> tuple[str, int, int]:
    """A hash of a file (of evenly spaced blocks, if it is large), its size, and its time of change (0 if
    small)."""
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
    """The documents of each part of a dataset."""

    training: Documents
    eval_source: Documents | None
    """None: a share of the documents of ``training``."""
    further: dict[str, Documents]
    """Additional held-out sets, by name."""


def find_places(options: HFOptions) -> Places:
    """Find the documents. Raises DataError if files or splits are missing or are in two parts."""
    path = Path(options.path)
    splits = _splits(path)
    training = _training(path, splits, options.split)
    default = "validation" if "validation" in splits and options.eval_share is None else None
    main = options.eval_source or default
    places = Places(
        training=training,
        eval_source=None if main is None else _eval_documents(path, splits, main),
        further={name: _eval_documents(path, splits, place) for name, place in options.eval_sets.items()},
    )
    eval_parts = [*places.further.values(), *([places.eval_source] if places.eval_source else [])]
    training_files = {file.resolve() for file in training.files}
    for part in eval_parts:
        if shared := training_files & {file.resolve() for file in part.files}:
            raise unusable(
                f"{training.label} is trained on and {part.label} is held out, and both have {sorted(shared)[0]}"
            )
    return places


def _training(path: Path, splits: tuple[str, ...], split: str | None) -> Documents:
    if splits:
        return _saved_split(path, splits, split or "train", "dataset.split")
    if split is not None:
        raise unusable(f"{path} has no splits: leave out dataset.split = {split!r}")
    return _files(path)


def _eval_documents(path: Path, splits: tuple[str, ...], place: str) -> Documents:
    if Path(place).is_absolute():
        inner = _splits(Path(place))
        if inner:
            raise unusable(f"{place} has splits: write the folder of one split, such as {place}/{inner[0]}")
        return _files(Path(place))
    if not splits:
        raise unusable(f"{path} has no splits, so {place!r} can be held out only as a path: write ./{place}")
    return _saved_split(path, splits, place, "dataset.eval_source")


def _splits(path: Path) -> tuple[str, ...]:
    """Splits of a ``DatasetDict`` on disk. Empty for all other paths."""
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


def _saved(folder: Path, label: str) -> Documents:
    # `datasets` may write caches next to the data.
    files = [
        file for file in folder.iterdir() if file.is_file() and not file.name.startswith(("cache-", "tmp", "."))
    ]
    if not any(file.suffix == ".arrow" for file in files):
        raise unusable(f"{label} has no documents")
    return Documents(label, tuple(sorted(files)), None, folder)


def _files(path: Path) -> Documents:
    if (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        return _saved(path, str(path))
    if path.is_dir():
        files, root = [file for file in path.rglob("*") if file.suffix in SUFFIXES], path
    elif path.is_file():
        files, root = [path], path.parent
    else:
        files = [Path(file) for file in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (absolute patterns)
        root = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
    formats = {SUFFIXES.get(file.suffix) for file in files}
    if len(formats) != 1 or None in formats:
        suffixes = ", ".join(sorted({file.suffix or file.name for file in files})) or "nothing"
        raise unusable(
            f"{path}: write a folder that save_to_disk wrote, or files of one kind out of "
            f"{', '.join(SUFFIXES)}; found: {suffixes}"
        )
    return Documents(str(path), tuple(sorted(files)), formats.pop(), root)


def tokenizer_file(path: Path) -> Path:
    """The file, or the ``tokenizer.json`` of a folder. Raises DataError if the folder does not have this file."""
    if not path.is_dir():
        return path
    if (path / "tokenizer.json").is_file():
        return path / "tokenizer.json"
    names = sorted(file.name for file in path.iterdir())
    files = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise unusable(
        f"{path} has no tokenizer.json; it has: {files or 'nothing'}. Save a fast tokenizer of transformers with "
        f"save_pretrained, or write the path of a tokenizer.json"
    )
