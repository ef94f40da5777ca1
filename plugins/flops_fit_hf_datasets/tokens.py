"""Documents to rows of token ids: find, encode, split, cache and map them."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flops_fit_core.data import LanguageTask, MultipleChoice, TokenDataset, read_multiple_choice
from flops_fit_core.plugins import content_hash
from flops_fit_hf_datasets import SHARE, HFOptions, unusable
from flops_fit_hf_datasets.cache import RowWriter, TokenCache, default_folder, map_row
from flops_fit_hf_datasets.places import Documents, Places, find_places, tokenizer_file

if TYPE_CHECKING:
    from flops_fit_hf_datasets.encoding import Document

logger = logging.getLogger("flops_fit")

FORMAT = 1
"""Increase it when the same documents get other tokens or other files."""
# The fingerprint includes these names: other names would change the ids of all runs.
TRAINING, EVAL, FURTHER = "training", "heldout", "heldout "
"""Names of the rows in the cache. The last is a prefix of the name of an additional held-out set."""


def open_tokens(options: HFOptions, seed: int) -> TokenDataset:
    """The dataset, from the cache if it has the tokens. Raises DataError."""
    places = find_places(options)
    cache = TokenCache(Path(options.cache) if options.cache else default_folder())
    folder, metadata = cache.get(_key(options, places), lambda folder: _write_rows(folder, options, places))
    if not {TRAINING, EVAL} <= metadata["files"].keys():
        raise unusable(f"{folder} is damaged (its rows are {', '.join(metadata['files'])}): delete it")
    rows = {name: map_row(folder / file) for name, file in metadata["files"].items()}
    evaluations = _read_questions(options, metadata["vocab_size"]) if options.multiple_choice else []
    return TokenDataset(
        rows.pop(TRAINING),
        rows.pop(EVAL),
        vocab_size=metadata["vocab_size"],
        context=options.context,
        seed=seed,
        fingerprint=metadata["fingerprint"],
        bytes_per_token=metadata["bytes_per_token"],
        further={name.removeprefix(FURTHER): row for name, row in rows.items()},
        evaluations=evaluations,
    )


def _read_questions(options: HFOptions, vocab_size: int) -> list[MultipleChoice]:
    """The multiple-choice questions, encoded as the documents are."""
    from flops_fit_hf_datasets.encoding import Encoder

    encoder = Encoder(options)
    task = LanguageTask(vocab_size=vocab_size, context=options.context)
    return [
        read_multiple_choice(
            name,
            Path(path),
            task,
            encode=encoder.encode_text,
            start=encoder.end_of_text,
            max_questions=options.max_questions,
        )
        for name, path in options.multiple_choice.items()
    ]


def _key(options: HFOptions, places: Places) -> str:
    """A hash of all inputs of the rows."""
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


def _write_rows(folder: Path, options: HFOptions, places: Places) -> dict[str, Any]:
    """Write every row to ``folder``. Returns their metadata."""
    from flops_fit_hf_datasets.encoding import Encoder

    logger.info("tokenizing %s; later runs use the cache", places.training.label)
    encoder = Encoder(options)
    dtype = np.dtype("<u2" if encoder.vocab_size <= 2**16 else "<u4")
    names = [TRAINING, EVAL, *(f"{FURTHER}{name}" for name in places.further)]
    files = {name: f"{number}.npy" for number, name in enumerate(names)}
    writers = {name: RowWriter(folder / file, dtype) for name, file in files.items()}

    def write(documents: Documents, row: str | None) -> None:
        """Append documents to a row; for None, to the training or the held-out row, by share."""
        for document in encoder.encode(documents, folder):
            target = row or (EVAL if _is_held_out(document, options.eval_share or SHARE) else TRAINING)
            writers[target].append(document.ids, document.text_bytes)

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
    eval_row = writers[EVAL]
    contents = {name: [writer.count, writer.fingerprint] for name, writer in writers.items()}
    return {
        "files": files,
        "vocab_size": encoder.vocab_size,
        "fingerprint": content_hash([encoder.vocab_size, contents]),
        "bytes_per_token": eval_row.text_bytes / eval_row.count if eval_row.text_bytes else None,
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
                f"the documents of {places.training.label} leave nothing to "
                f"{'train on' if name == TRAINING else 'hold out'}: use more documents, another "
                f"dataset.eval_share, or dataset.eval_source"
            )
        if writer.count == 0:
            raise unusable(f"{sources[name].label} has no documents")
