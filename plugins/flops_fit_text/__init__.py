"""Dataset ``text``: the bytes of files, of the Python standard library's sources unless said otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt, field_validator

from flops_fit_core import Dataset, DatasetSpec, Options, Runtime, TokenDataset, hookimpl


class TextOptions(Options):
    """Which files, and how they are cut."""

    path: Annotated[str | None, Runtime()] = None
    """A folder, a file or a glob (``data/**/*.txt``); relative to the working directory. Unset: the sources
    of the Python standard library that runs this (tests, encodings and generated data left out). The content
    identifies the runs, not the path."""
    heldout_path: Annotated[str | None, Runtime()] = None
    """Files to hold out. Unset: a share of the files of ``path``."""
    heldout_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the files that is held out, chosen by a hash of their relative path."""
    context: PositiveInt = 64
    """Tokens (bytes) of a sample."""

    @field_validator("path", "heldout_path")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return None if path is None else str(Path(path).expanduser().absolute())


def build_text(options: TextOptions, seed: int) -> Dataset:
    """Read the files. Raises DataError where there are none, or none to hold out."""
    from flops_fit_text.corpus import read_corpus

    corpus = read_corpus(options)
    return TokenDataset(
        corpus.training,
        corpus.heldout,
        vocab_size=256,
        context=options.context,
        seed=seed,
        fingerprint=corpus.fingerprint,
        bytes_per_token=1.0,
    )


@hookimpl
def flops_fit_datasets() -> Iterable[DatasetSpec]:
    """Offer ``text``."""
    yield DatasetSpec(name="text", options=TextOptions, build=build_text)
