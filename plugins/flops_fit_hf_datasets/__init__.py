"""Dataset ``hf-dataset``: documents of a Hugging Face ``datasets`` dataset on disk, which are tokenized once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from flops_fit_core import DataError
from flops_fit_core.plugins import Dataset, DatasetSpec, EvalSetName, LocalPath, Options, Runtime, hookimpl

SHARE = 0.05
"""Default share of the documents that is held out."""
SUFFIXES = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".arrow": "arrow"}
"""Suffix of a supported file -> name of its format in ``datasets``."""


def _split_or_path(place: str) -> str:
    """Make a path absolute: a value with a slash or a supported suffix. Any other value is the name of a split."""
    is_path = "/" in place or "\\" in place or Path(place).suffix in SUFFIXES
    return str(Path(place).expanduser().absolute()) if is_path else place


Place = Annotated[str, AfterValidator(_split_or_path)]


def _only_false(value: bool) -> bool:
    if value:
        raise ValueError("true is not a token: write a token, its id, or false for none")
    return value


TokenId = Annotated[int, Field(strict=True, ge=0)]
NoToken = Annotated[bool, Field(strict=True, json_schema_extra={"enum": [False]}), AfterValidator(_only_false)]
"""Both are strict: 0 is an id, false is no token."""


def unusable(reason: str) -> DataError:
    """An error about this dataset's data."""
    return DataError(f"dataset 'hf-dataset': {reason}")


class HFOptions(Options):
    """The documents, their tokenizer, and the held-out documents. The content identifies the runs, not the
    paths."""

    path: Annotated[LocalPath, Runtime()]
    """A folder that ``save_to_disk`` wrote; or Parquet, JSON-lines or Arrow files: a file, a folder (with all
    files below it), or a glob."""
    split: str | None = None
    """Split to train on, for a folder with several splits. Unset: ``train``."""
    column: str = "text"
    """Column of the documents: text, or lists of token ids."""
    tokenizer: Annotated[LocalPath | None, Runtime()] = None
    """A ``tokenizer.json`` of the library tokenizers, or a folder with this file, as ``save_pretrained`` writes
    it. Required for text. Its special tokens are not added."""
    vocab_size: PositiveInt | None = None
    """All ids must be below it. Unset: that of the tokenizer. Required for ids without a tokenizer."""
    end_of_text: TokenId | NoToken | str = "<|endoftext|>"
    """Token that is appended to every document, or its id; ``false`` for none, as for rows that are already
    packed."""
    context: PositiveInt = 256
    """Predicted tokens per sample. Documents are concatenated and cut, so a sample may have parts of several."""
    eval_source: Annotated[Place | None, Runtime()] = None
    """Split to hold out, or files as in ``path``. A value with a slash or a file's suffix is a path. If neither
    this nor ``eval_share`` is set: the split ``validation`` if it exists, otherwise 0.05 of the documents."""
    eval_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the documents to hold out, chosen by a hash of each document. Equal documents are on the same
    side."""
    eval_sets: Annotated[dict[EvalSetName, Place], Runtime()] = {}
    """Additional splits or files to hold out, by name: ``{ test = "test", code = "data/code.jsonl" }``. Each run
    records its loss on each set, and ``flops-fit fit --eval-set code`` fits one of them."""
    multiple_choice: Annotated[dict[EvalSetName, LocalPath], Runtime()] = {}
    """Files of multiple-choice questions, by name: ``{ arc = "arc.jsonl" }``. Each run records its accuracy and
    its bits per byte on each, as metrics ``arc/acc`` and ``arc/bpb``. The content identifies the runs, not the
    path."""
    max_questions: PositiveInt = 1000
    """Longer files of questions are reduced to this many, evenly spaced."""
    cache: Annotated[LocalPath | None, Runtime()] = None
    """Folder for the tokens. All processes that read the same data share it. Unset: ``flops-fit/tokens`` in
    ``$XDG_CACHE_HOME`` or ``~/.cache``. May be deleted at any time."""

    @model_validator(mode="after")
    def _one_way_to_hold_out(self) -> Self:
        if self.eval_source is not None and self.eval_share is not None:
            raise ValueError("eval_source and eval_share cannot be combined: write one of them")
        return self


def build_hf(options: HFOptions, seed: int) -> Dataset:
    """Map the tokens, after creating them if they are not in the cache. Raises DataError for unusable data."""
    from flops_fit_hf_datasets.tokens import open_tokens

    return open_tokens(options, seed)


@hookimpl
def flops_fit_datasets() -> Iterable[DatasetSpec]:
    """Offer ``hf-dataset``."""
    yield DatasetSpec(
        name="hf-dataset",
        options=HFOptions,
        build=build_hf,
        requires=("datasets>=3", "tokenizers>=0.20"),
        extra="hf",
    )
