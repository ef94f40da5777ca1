"""Map, check and divide files of token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flops_fit_core import DataError
from flops_fit_core.data import LanguageTask, TokenDataset, read_multiple_choice
from flops_fit_tokens import TokensOptions

BLOCK = 2**16
"""Bytes per block."""
BLOCKS = 256
"""Number of evenly spaced blocks of a large file that are read. A file of up to 16 MiB is read completely."""


def open_tokens(options: TokensOptions, seed: int) -> TokenDataset:
    """Open the dataset. Raises DataError, which names the file."""
    path = Path(options.path)
    training = read_row(path, options)
    eval_path = Path(options.eval_path) if options.eval_path else path.with_name("val.bin")
    if options.eval_path is None and (eval_path == path or not eval_path.exists()):
        cut = len(training) - round(len(training) * options.eval_share)
        training, eval_data, eval_path = training[:cut], training[cut:], path
    else:
        eval_data = read_eval_file(eval_path, options)
    further = {name: read_eval_file(Path(file), options) for name, file in options.eval_sets.items()}
    check_length(f"the training part, of {path}", training, options)
    check_length(f"the held-out part, of {eval_path}", eval_data, options)
    for name, row in further.items():
        check_length(f"the held-out set {name!r}, of {options.eval_sets[name]}", row, options)
    task = LanguageTask(vocab_size=options.vocab_size, context=options.context)
    evaluations = [
        read_multiple_choice(name, Path(file), task, encode=None, max_questions=options.max_questions)
        for name, file in options.multiple_choice.items()
    ]
    return TokenDataset(
        training,
        eval_data,
        vocab_size=options.vocab_size,
        context=options.context,
        seed=seed,
        fingerprint=fingerprint(training, eval_data, further),
        bytes_per_token=options.bytes_per_token,
        further=further,
        evaluations=evaluations,
    )


def read_eval_file(path: Path, options: TokensOptions) -> NDArray[Any]:
    """Like :func:`read_row`, for a held-out file. Raises DataError for the training file."""
    if path.resolve() == Path(options.path).resolve():
        raise DataError(
            f"dataset 'tokens': {path} is both trained on and held out: write another file, or leave out "
            f"eval_path to hold out the end of the file"
        )
    return read_row(path, options)


def check_length(label: str, row: NDArray[Any], options: TokensOptions) -> None:
    """Raise DataError for a row that is shorter than a window."""
    if len(row) <= options.context:
        raise DataError(
            f"dataset 'tokens': {label}, has {len(row):,} tokens, fewer than one window of context + 1 = "
            f"{options.context + 1:,}: use more data or a smaller dataset.context"
        )


def read_row(path: Path, options: TokensOptions) -> NDArray[Any]:
    """Map the file's ids, after a check of evenly spaced blocks."""
    dtype = np.dtype(options.dtype).newbyteorder("<")
    try:
        size = path.stat().st_size
        if size and size % dtype.itemsize == 0:
            row = np.asarray(np.memmap(path, dtype, mode="r"))
    except OSError as error:
        names = ", ".join(sorted(file.name for file in path.parent.glob("*.bin"))[:8]) or "none"
        raise DataError(
            f"dataset 'tokens': cannot read {path}: {error.strerror}; .bin files in that folder: {names}"
        ) from None
    if not size:
        raise DataError(f"dataset 'tokens': {path} is empty")
    if size % dtype.itemsize:
        raise DataError(
            f"dataset 'tokens': {path} has {size:,} bytes, which is not a multiple of {dtype.itemsize} (the "
            f"size of {options.dtype}): the file is truncated, or has another dtype than dataset.dtype"
        )
    check_ids(path, row, options)
    return row


def check_ids(path: Path, row: NDArray[Any], options: TokensOptions) -> None:
    """Raise DataError for ids beyond the vocabulary, and for a file that appears to have another dtype."""
    largest, largest_odd = 0, 0
    for block in blocks(row):
        largest = max(largest, int(block.max()))
        largest_odd = max(largest_odd, int(block[1::2].max(initial=0)))
    advice = "write the vocabulary's real size, or the dtype of the file"
    if largest >= options.vocab_size:
        raise DataError(
            f"dataset 'tokens': {path} has a token with id {largest:,} when read as {options.dtype}, and "
            f"vocab_size is {options.vocab_size:,}: {advice}"
        )
    if largest_odd == 0 and largest > 0 and len(row) % 2 == 0:
        raise DataError(
            f"dataset 'tokens': in {path} every second token is 0 when read as {options.dtype}: the dtype is "
            f"probably uint{2 * 8 * row.itemsize}; {advice}"
        )


def fingerprint(training: NDArray[Any], eval_data: NDArray[Any], further: Mapping[str, NDArray[Any]]) -> str:
    """A hash of the lengths and contents of all rows; of evenly spaced blocks, for large rows."""
    digest = hashlib.sha256()
    for name, row in (("", training), ("", eval_data), *sorted(further.items())):
        digest.update(name.encode())
        digest.update(f"{row.dtype} {len(row)} ".encode())
        for block in blocks(row):
            digest.update(block.tobytes())
    return digest.hexdigest()[:16]


def blocks(row: NDArray[Any]) -> list[NDArray[Any]]:
    """The complete row, or evenly spaced blocks of 16 MiB in total, which include both ends."""
    length = BLOCK // row.itemsize
    if len(row) <= BLOCKS * length:
        return [row]
    starts = np.linspace(0, len(row) - length, BLOCKS).astype(int)
    # Even starts, so that odd positions in a block are odd positions in the row.
    return [row[start : start + length] for start in starts // 2 * 2]
