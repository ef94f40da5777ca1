"""Dataset ``tokens``: files of token ids and nothing else, as nanoGPT's ``prepare.py`` writes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from flops_fit_core.plugins import Dataset, DatasetSpec, EvalSetName, LocalPath, Options, Runtime, hookimpl


class TokensOptions(Options):
    """Where the tokens are and what they mean. The files are read in place, however large."""

    path: Annotated[LocalPath, Runtime()]
    """The file to train on, such as ``data/train.bin``; relative to the working directory. The content
    identifies the runs, not the path."""
    vocab_size: PositiveInt
    """Ids are below it: 50257 for GPT-2's tokens (a rounded-up 50304 makes other runs of it)."""
    dtype: Literal["uint8", "uint16", "uint32", "uint64"] = "uint16"
    """Type of an id, least significant byte first. Signed ids are the same bytes."""
    eval_path: Annotated[LocalPath | None, Runtime()] = None
    """The file to hold out. Unset: ``val.bin`` beside ``path``; where there is none, the end of ``path``."""
    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of ``path`` that is held out where no other file is: its end, which is not trained on then."""
    eval_sets: Annotated[dict[EvalSetName, LocalPath], Runtime()] = {}
    """Further files to hold out, by name: ``{ code = "data/code.bin" }``. Each run keeps its loss on each set, and
    ``flops-fit fit --eval-set code`` fits one of them. The content identifies the runs, not the path."""
    context: PositiveInt = 256
    """Tokens of a sample that are predicted."""
    bytes_per_token: Annotated[float | None, Runtime(), Field(gt=0)] = None
    """Mean bytes of text that a held-out token stands for; with it, results tell bits per byte."""

    @model_validator(mode="after")
    def _ids_fit_the_type(self) -> Self:
        bits = int(self.dtype.removeprefix("uint"))
        if self.vocab_size > 2**bits:
            raise ValueError(
                f"ids of a vocabulary of {self.vocab_size:,} do not fit in dtype {self.dtype}; was the file "
                f"written with a larger one?"
            )
        return self


def build_tokens(options: TokensOptions, seed: int) -> Dataset:
    """Map the files. Raises DataError for files that are missing, empty, cut short or of another dtype."""
    from flops_fit_tokens.files import open_tokens

    return open_tokens(options, seed)


@hookimpl
def flops_fit_datasets() -> Iterable[DatasetSpec]:
    """Offer ``tokens``."""
    yield DatasetSpec(name="tokens", options=TokensOptions, build=build_tokens)
