"""Dataset ``hf-dataset``: documents of a Hugging Face ``datasets`` dataset on disk, tokenized once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from flops_fit_core import DataError
from flops_fit_core.plugins import Dataset, DatasetSpec, EvalSetName, LocalPath, Options, Runtime, hookimpl

SHARE = 0.05
"""Of the documents that is held out where nothing says otherwise."""
SUFFIXES = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".arrow": "arrow"}
"""Files that are read, and what ``datasets`` calls their format."""


def _split_or_path(place: str) -> str:
    """Whatever has a slash or one of our endings is a path; anything else names a split."""
    is_path = "/" in place or "\\" in place or Path(place).suffix in SUFFIXES
    return str(Path(place).expanduser().absolute()) if is_path else place


Place = Annotated[str, AfterValidator(_split_or_path)]


def _only_false(value: bool) -> bool:
    if value:
        raise ValueError("true names no token: give a token, its id, or false for none")
    return value


TokenId = Annotated[int, Field(strict=True, ge=0)]
NoToken = Annotated[bool, Field(strict=True, json_schema_extra={"enum": [False]}), AfterValidator(_only_false)]
"""Strict, both: 0 is an id, and false is none."""


def unusable(why: str) -> DataError:
    """An error of this dataset's data."""
    return DataError(f"dataset 'hf-dataset': {why}")


class HFOptions(Options):
    """Which documents, how they become tokens, and which are held out. The content identifies the runs, not the
    place."""

    path: Annotated[LocalPath, Runtime()]
    """A folder that ``save_to_disk`` wrote; or Parquet, JSON-lines or Arrow files: one, a folder of them (all that
    is below it), or a glob."""
    split: str | None = None
    """Split to train on, of a folder with several. Unset: ``train``."""
    column: str = "text"
    """Column of the documents: text, or lists of ids that are tokens already."""
    tokenizer: Annotated[LocalPath | None, Runtime()] = None
    """A ``tokenizer.json`` of the library tokenizers, or a folder that has one, as ``save_pretrained`` writes;
    text needs it. It adds no special tokens of its own."""
    vocab_size: PositiveInt | None = None
    """Ids are below it. Unset: the tokenizer's; ids without a tokenizer need it."""
    end_of_text: TokenId | NoToken | str = "<|endoftext|>"
    """Token that is put behind every document, or its id; ``false`` for none, as for rows that are packed
    already."""
    context: PositiveInt = 256
    """Tokens of a sample that are predicted. Documents are joined and cut: a sample may hold parts of several."""
    eval_source: Annotated[Place | None, Runtime()] = None
    """Split, or files as in ``path``, to hold out; what has a slash or a file's ending is a path. Unset, and no
    ``eval_share`` either: the split ``validation`` where there is one, otherwise 0.05 of the documents."""
    eval_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the documents to hold out, chosen by a hash of each: equal documents are on one side."""
    eval_sets: Annotated[dict[EvalSetName, Place], Runtime()] = {}
    """Further splits or files to hold out, by name: ``{ test = "test", code = "data/code.jsonl" }``. Each run
    keeps its loss on each set, and ``flops-fit fit --eval-set code`` fits one of them."""
    cache: Annotated[LocalPath | None, Runtime()] = None
    """Folder for the tokens, which every process that reads the same data then shares. Unset: ``flops-fit/tokens``
    in ``$XDG_CACHE_HOME`` or ``~/.cache``. May be deleted at any time."""

    @model_validator(mode="after")
    def _one_way_to_hold_out(self) -> Self:
        if self.eval_source is not None and self.eval_share is not None:
            raise ValueError("eval_source and eval_share are two ways to hold out: give one")
        return self


def build_hf(options: HFOptions, seed: int) -> Dataset:
    """Map the tokens, made now where the cache has none. Raises DataError for data that cannot be used."""
    from flops_fit_hf.tokens import open_tokens

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
