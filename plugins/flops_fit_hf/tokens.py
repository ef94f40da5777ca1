"""Documents to rows of ids: found, encoded, split, kept, mapped."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flops_fit_core.data import TokenDataset
from flops_fit_core.plugins import content_hash
from flops_fit_hf import SHARE, HFOptions, unusable
from flops_fit_hf.cache import RowWriter, TokenCache, default_folder, map_row
from flops_fit_hf.places import Documents, Places, find_places, tokenizer_file

if TYPE_CHECKING:
    from flops_fit_hf.encoding import Document

logger = logging.getLogger("flops_fit")

FORMAT = 1
"""Raise it when the same documents would become other tokens, or lie in other files."""
TRAINING, EVAL, FURTHER = "training", "eval", "eval "
"""Names of the rows; that of a further set stands behind the last."""


def open_tokens(options: HFOptions, seed: int) -> TokenDataset:
    """The dataset, from the cache where it is there. Raises DataError."""
    places = find_places(options)
    cache = TokenCache(Path(options.cache) if options.cache else default_folder())
    folder, about = cache.get(_key(options, places), lambda folder: _make(folder, options, places))
    rows = {name: map_row(folder / file) for name, file in about["files"].items()}
    return TokenDataset(
        rows.pop(TRAINING),
        rows.pop(EVAL),
        vocab_size=about["vocab_size"],
        context=options.context,
        seed=seed,
        fingerprint=about["fingerprint"],
        bytes_per_token=about["bytes_per_token"],
        further={name.removeprefix(FURTHER): row for name, row in rows.items()},
    )


def _key(options: HFOptions, places: Places) -> str:
    """Of everything that the rows depend on."""
    tokenizer = None
    if options.tokenizer is not None:
        try:
            tokenizer = hashlib.sha256(tokenizer_file(Path(options.tokenizer)).read_bytes()).hexdigest()
        except OSError as error:
            raise unusable(f"cannot read {options.tokenizer}: {error.strerror}") from None
    return content_hash(
        [
            FORMAT,
            places.training.identity(),
            (options.eval_share or SHARE) if places.eval_source is None else places.eval_source.identity(),
            {name: documents.identity() for name, documents in places.further.items()},
            tokenizer,
            [options.column, options.end_of_text, options.vocab_size],
        ]
    )


def _make(folder: Path, options: HFOptions, places: Places) -> dict[str, Any]:
    """Write every row into ``folder``, and say what they are."""
    from flops_fit_hf.encoding import Encoder

    logger.info("tokenizing %s, once, for all that read it", places.training.what)
    encoder = Encoder(options)
    dtype = np.dtype("<u2" if encoder.vocab_size <= 2**16 else "<u4")
    names = [TRAINING, EVAL, *(f"{FURTHER}{name}" for name in places.further)]
    files = {name: f"{number}.npy" for number, name in enumerate(names)}
    writers = {name: RowWriter(folder / file, dtype) for name, file in files.items()}

    def write(documents: Documents, row: str | None) -> None:
        """Into this row; None: into the training or the held-out row, by share."""
        for one in encoder.encode(documents, folder):
            chosen = row or (EVAL if _is_held_out(one, options.eval_share or SHARE) else TRAINING)
            writers[chosen].append(one.ids, one.text_bytes)

    try:
        write(places.training, TRAINING if places.eval_source else None)
        if places.eval_source:
            write(places.eval_source, EVAL)
        for name, documents in places.further.items():
            write(documents, f"{FURTHER}{name}")
    finally:
        for writer in writers.values():
            writer.close()
    _check_not_empty(writers, places)
    eval_source = writers[EVAL]
    contents = {name: [writer.count, writer.fingerprint] for name, writer in writers.items()}
    return {
        "files": files,
        "vocab_size": encoder.vocab_size,
        "fingerprint": content_hash([encoder.vocab_size, contents]),
        "bytes_per_token": eval_source.text_bytes / eval_source.count if eval_source.text_bytes else None,
    }


def _is_held_out(document: Document, share: float) -> bool:
    digest = hashlib.sha256(document.content).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _check_not_empty(writers: dict[str, RowWriter], places: Places) -> None:
    further = {f"{FURTHER}{name}": documents for name, documents in places.further.items()}
    sources = {TRAINING: places.training, EVAL: places.eval_source or places.training, **further}
    for name, writer in writers.items():
        if writer.count == 0 and places.eval_source is None and name in (TRAINING, EVAL):
            raise unusable(
                f"the documents of {places.training.what} leave nothing to "
                f"{'train on' if name == TRAINING else 'hold out'}: give more, another dataset.eval_share, or "
                f"dataset.eval_source"
            )
        if writer.count == 0:
            raise unusable(f"{sources[name].what} has no documents")
