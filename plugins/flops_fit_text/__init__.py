"""Dataset ``text``: the bytes of files, of the Python standard library's sources unless said otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, PositiveInt

from flops_fit_core.data import TokenDataset
from flops_fit_core.plugins import Dataset, DatasetSpec, EvalSetName, LocalPath, Options, Runtime, hookimpl


class TextOptions(Options):
    """Which files, and how they are cut."""

    path: Annotated[LocalPath | None, Runtime()] = None
    """A folder, a file or a glob (``data/**/*.txt``); relative to the working directory. Unset: the sources
    of the Python standard library that runs this (tests, encodings and generated data left out). The content
    identifies the runs, not the path."""
    eval_path: Annotated[LocalPath | None, Runtime()] = None
    """Files to hold out. Unset: a share of the files of ``path``."""
    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the files that is held out, chosen by a hash of their relative path."""
    eval_sets: Annotated[dict[EvalSetName, LocalPath], Runtime()] = {}
    """Further files to hold out, by name: ``{ poems = "data/poems/*.txt" }``. Each run keeps its loss on each set,
    and ``flops-fit fit --eval-set poems`` fits one of them. The content identifies the runs, not the path."""
    context: PositiveInt = 64
    """Tokens (bytes) of a sample."""


def build_text(options: TextOptions, seed: int) -> Dataset:
    """Read the files. Raises DataError where there are none, or none to hold out."""
    from flops_fit_text.corpus import read_corpus

    corpus = read_corpus(options)
    return TokenDataset(
        corpus.training,
        corpus.eval_data,
        vocab_size=256,
        context=options.context,
        seed=seed,
        fingerprint=corpus.fingerprint,
        bytes_per_token=1.0,
        further=corpus.further,
    )


@hookimpl
def flops_fit_datasets() -> Iterable[DatasetSpec]:
    """Offer ``text``."""
    yield DatasetSpec(name="text", options=TextOptions, build=build_text)
