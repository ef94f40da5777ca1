"""Documents as token ids: read by ``datasets``, encoded by a ``tokenizers`` file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flops_fit_hf_datasets import HFOptions, unusable
from flops_fit_hf_datasets.places import Documents, tokenizer_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 256
"""Documents that are encoded together."""


@dataclass(frozen=True)
class Document:
    """An encoded document."""

    content: bytes
    """Identifies the document."""
    ids: NDArray[np.int64]
    """Token ids, with the end of text if the options have one."""
    text_bytes: int | None
    """Bytes of the text in UTF-8; None for a document of ids."""


class Encoder:
    """Encodes documents.

    Raises DataError for a tokenizer that cannot be read or does not have the end of text; and, while documents are
    read, for a column that is missing or has another type.
    """

    def __init__(self, options: HFOptions) -> None:
        self._column = options.column
        self._tokenizer = None if options.tokenizer is None else _read_tokenizer(Path(options.tokenizer))
        self.vocab_size = options.vocab_size or _count_ids(self._tokenizer)
        end = options.end_of_text
        ids = [] if end is False else [_end_of_text_id(end, self._tokenizer, self.vocab_size)]
        self._end = np.array(ids, dtype=np.int64)
        self.end_of_text = ids[0] if ids else None
        """Id of the token after every document; None for none."""

    @property
    def encode_text(self) -> Callable[[str], list[int]] | None:
        """Encodes a text without special tokens; None without a tokenizer."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            return None
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)

    def encode(self, documents: Documents, scratch: Path) -> Iterator[Document]:
        """Encode every document, in order. Converted files are in a temporary folder in ``scratch``."""
        with _quiet(), tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as folder:
            for row, document in enumerate(self._read(documents, Path(folder))):
                # As unsigned numbers, negative ids are beyond any vocabulary, too.
                if document.ids.view("u8").max(initial=0) >= self.vocab_size:
                    invalid = document.ids[document.ids.view("u8") >= self.vocab_size][0]
                    raise unusable(
                        f"row {row} of {documents.label} has id {invalid}, not below vocab_size = "
                        f"{self.vocab_size}"
                    )
                yield Document(document.content, np.concatenate([document.ids, self._end]), document.text_bytes)

    def _read(self, documents: Documents, folder: Path) -> Iterator[Document]:
        import pyarrow.types as kinds

        data = _open(documents, folder)
        columns = ", ".join(data.column_names)
        if self._column not in data.column_names:
            raise unusable(
                f"{documents.label} has no column {self._column!r}; it has: {columns}. Write dataset.column"
            )
        kind = data.features.arrow_schema.field(self._column).type
        data = data.select_columns([self._column])
        if kinds.is_string(kind) or kinds.is_large_string(kind):
            return self._texts(documents, data)
        if (kinds.is_list(kind) or kinds.is_large_list(kind)) and kinds.is_integer(kind.value_type):
            return self._ids(documents, data)
        raise unusable(
            f"column {self._column!r} of {documents.label} holds {kind}, neither text nor lists of ids; columns: "
            f"{columns}"
        )

    def _texts(self, documents: Documents, data: Any) -> Iterator[Document]:
        if self._tokenizer is None:
            raise unusable(
                f"column {self._column!r} of {documents.label} holds text: write "
                f"dataset.tokenizer = 'tokenizer.json'"
            )
        for first, texts in _batches(data, self._column):
            _check_present(documents, first, texts)
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            for text, encoding in zip(texts, encodings, strict=True):
                content = text.encode()
                yield Document(content, np.array(encoding.ids, dtype=np.int64), len(content))

    def _ids(self, documents: Documents, data: Any) -> Iterator[Document]:
        for first, rows in _batches(data.with_format("numpy"), self._column):
            _check_present(documents, first, rows)
            for row in rows:
                ids = np.asarray(row, dtype=np.int64)
                yield Document(ids.tobytes(), ids, None)


def _batches(data: Any, column: str) -> Iterator[tuple[int, Any]]:
    for number, batch in enumerate(data.iter(batch_size=BATCH)):
        yield number * BATCH, batch[column]


def _check_present(documents: Documents, first: int, rows: Any) -> None:
    missing = next((number for number, row in enumerate(rows) if row is None), None)
    if missing is not None:
        raise unusable(f"row {first + missing} of {documents.label} is null: filter such rows out")


def _open(documents: Documents, folder: Path) -> Any:
    """Open a ``datasets.Dataset``. Converted files go to ``folder``."""
    import datasets

    try:
        if documents.format is None:
            return datasets.load_from_disk(str(documents.root))
        files = [str(file) for file in documents.files]
        return datasets.load_dataset(documents.format, data_files=files, split="train", cache_dir=str(folder))
    except Exception as error:
        raise unusable(f"datasets cannot read {documents.label}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Disable the progress bars of ``datasets``."""
    import datasets

    was_enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_enabled:
            datasets.enable_progress_bars()


def _read_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(tokenizer_file(path).read_text(encoding="utf-8"))
    except Exception as error:
        raise unusable(f"{path} is not a tokenizer of the library tokenizers: {error}") from None
    # Truncation, which a tokenizer file may enable for a model, would cut documents off.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _count_ids(tokenizer: Tokenizer | None) -> int:
    if tokenizer is None:
        raise unusable(
            "the vocabulary size is unknown: write dataset.tokenizer = 'tokenizer.json', or for a column of ids "
            "dataset.vocab_size"
        )
    # Ids may have gaps, which get_vocab_size() does not count.
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def _end_of_text_id(end: int | str, tokenizer: Tokenizer | None, vocab_size: int) -> int:
    token_id = end if isinstance(end, int) else tokenizer.token_to_id(end) if tokenizer else None
    if token_id is None and tokenizer is None:
        raise unusable("without a tokenizer, dataset.end_of_text must be an id, or false for none")
    if token_id is None:
        assert tokenizer is not None
        added = tokenizer.get_added_tokens_decoder().values()
        special = [str(token.content) for token in added if token.special]
        raise unusable(
            f"the tokenizer has no token {end!r}; its special tokens are: "
            f"{', '.join(special) or 'none'}. Write dataset.end_of_text, or false for none"
        )
    if token_id >= vocab_size:
        raise unusable(f"the end of text has id {token_id}, not below vocab_size = {vocab_size}")
    return token_id
