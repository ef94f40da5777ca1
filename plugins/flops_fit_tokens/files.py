"""Token files as rows of ids: mapped, looked through, split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flops_fit_core import DataError
from flops_fit_core.data import TokenDataset
from flops_fit_tokens import TokensOptions

BLOCK = 2**16
"""Bytes that are looked at in one place."""
BLOCKS = 256
"""Places at which a large file is looked at; a file of up to 16 MiB is looked through as a whole."""


def open_tokens(options: TokensOptions, seed: int) -> TokenDataset:
    """Raises DataError, naming the file."""
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
    return TokenDataset(
        training,
        eval_data,
        vocab_size=options.vocab_size,
        context=options.context,
        seed=seed,
        fingerprint=fingerprint(training, eval_data, further),
        bytes_per_token=options.bytes_per_token,
        further=further,
    )


def read_eval_file(path: Path, options: TokensOptions) -> NDArray[Any]:
    """As :func:`read_row`, of another file than the one that is trained on."""
    if path.resolve() == Path(options.path).resolve():
        raise DataError(
            f"dataset 'tokens': {path} is trained on and held out at once: give another file, or no eval_path, "
            f"which holds out the end of it"
        )
    return read_row(path, options)


def check_length(what: str, row: NDArray[Any], options: TokensOptions) -> None:
    """Raises DataError for a row without one window."""
    if len(row) <= options.context:
        raise DataError(
            f"dataset 'tokens': {what}, has {len(row):,} tokens, fewer than one window of context + 1 = "
            f"{options.context + 1:,}: give more data or a smaller dataset.context"
        )


def read_row(path: Path, options: TokensOptions) -> NDArray[Any]:
    """The file's ids, on disk, after a look at evenly spaced places of it."""
    dtype = np.dtype(options.dtype).newbyteorder("<")
    try:
        size = path.stat().st_size
        if size and size % dtype.itemsize == 0:
            row = np.asarray(np.memmap(path, dtype, mode="r"))
    except OSError as error:
        there = ", ".join(sorted(one.name for one in path.parent.glob("*.bin"))[:8]) or "none"
        raise DataError(
            f"dataset 'tokens': cannot read {path}: {error.strerror}; .bin files in that folder: {there}"
        ) from None
    if not size:
        raise DataError(f"dataset 'tokens': {path} is empty")
    if size % dtype.itemsize:
        raise DataError(
            f"dataset 'tokens': {path} has {size:,} bytes, which is no whole number of {options.dtype} "
            f"({dtype.itemsize} bytes each): it is cut short, or dataset.dtype is not what it was written with"
        )
    check_ids(path, row, options)
    return row


def check_ids(path: Path, row: NDArray[Any], options: TokensOptions) -> None:
    """Raises DataError where ids are beyond the vocabulary, or are really ids of half or twice the size."""
    largest, odd = 0, 0
    for block in blocks(row):
        largest = max(largest, int(block.max()))
        odd = max(odd, int(block[1::2].max(initial=0)))
    advice = "give the vocabulary's real size, or the dtype that the file was written with"
    if largest >= options.vocab_size:
        raise DataError(
            f"dataset 'tokens': {path} has a token with id {largest:,} when read as {options.dtype}, and "
            f"vocab_size is {options.vocab_size:,}: {advice}"
        )
    if odd == 0 and largest > 0 and len(row) % 2 == 0:
        raise DataError(
            f"dataset 'tokens': in {path} every second token is 0 when read as {options.dtype}: its ids are "
            f"larger, uint{2 * 8 * row.itemsize} perhaps; {advice}"
        )


def fingerprint(training: NDArray[Any], eval_data: NDArray[Any], further: Mapping[str, NDArray[Any]]) -> str:
    """Of the length of all rows and of their content: all of a small one, evenly spaced places of a large."""
    digest = hashlib.sha256()
    for name, row in (("", training), ("", eval_data), *sorted(further.items())):
        digest.update(name.encode())
        digest.update(f"{row.dtype} {len(row)} ".encode())
        for block in blocks(row):
            digest.update(block.tobytes())
    return digest.hexdigest()[:16]


def blocks(row: NDArray[Any]) -> list[NDArray[Any]]:
    """The whole row, or as many evenly spaced stretches of it as make 16 MiB, its ends among them."""
    length = BLOCK // row.itemsize
    if len(row) <= BLOCKS * length:
        return [row]
    starts = np.linspace(0, len(row) - length, BLOCKS).astype(int)
    # Even, so that every second token is the same one in all stretches.
    return [row[start : start + length] for start in starts // 2 * 2]
