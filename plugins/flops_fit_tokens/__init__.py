"""Dataset ``tokens``: files that contain only token ids, as nanoGPT's ``prepare.py`` writes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from flops_fit_core.plugins import Dataset, DatasetSpec, EvalSetName, LocalPath, Options, Runtime, hookimpl


class TokensOptions(Options):
    """The files of tokens, and their format. Files of any size are mapped, not loaded."""

    path: Annotated[LocalPath, Runtime()]
    """The file to train on, such as ``data/train.bin``, relative to the working directory. The content identifies
    the runs, not the path."""
    vocab_size: PositiveInt
    """All ids must be below it: 50257 for GPT-2's tokens. Runs with a rounded-up 50304 have other ids."""
    dtype: Literal["uint8", "uint16", "uint32", "uint64"] = "uint16"
    """Type of an id, little-endian. Signed ids have the same bytes."""
    eval_path: Annotated[LocalPath | None, Runtime()] = None
    """The file to hold out. Unset: ``val.bin`` in the folder of ``path`` if it exists, otherwise the end of
    ``path``."""
    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of ``path`` that is held out if there is no other file: its end, which is then not trained on."""
    eval_sets: Annotated[dict[EvalSetName, LocalPath], Runtime()] = {}
    """Additional files to hold out, by name: ``{ code = "data/code.bin" }``. Each run records its loss on each
    set, and ``flops-fit fit --eval-set code`` fits one of them. The content identifies the runs, not the path."""
    multiple_choice: Annotated[dict[EvalSetName, LocalPath], Runtime()] = {}
    """Files of multiple-choice questions in token ids, by name: ``{ arc = "arc.jsonl" }``. Each run records its
    accuracy and its bits per token on each, as metrics ``arc/acc`` and ``arc/bits_per_token``. The content
    identifies the runs, not the path."""
    max_questions: PositiveInt = 1000
    """Longer files of questions are reduced to this many, evenly spaced."""
    context: PositiveInt = 256
    """Predicted tokens per sample."""
    bytes_per_token: Annotated[float | None, Runtime(), Field(gt=0)] = None
    """Mean bytes of text per held-out token. Results then include bits per byte."""

    @model_validator(mode="after")
    def _ids_fit_the_type(self) -> Self:
        bits = int(self.dtype.removeprefix("uint"))
        if self.vocab_size > 2**bits:
            raise ValueError(
                f"ids of a vocabulary of {self.vocab_size:,} do not fit in dtype {self.dtype}: write the dtype of "
                f"the file"
            )
        return self


def build_tokens(options: TokensOptions, seed: int) -> Dataset:
    """Map the files. Raises DataError for files that are missing, empty, truncated or of another dtype."""
    from flops_fit_tokens.files import open_tokens

    return open_tokens(options, seed)


@hookimpl
def flops_fit_datasets() -> Iterable[DatasetSpec]:
    """Offer ``tokens``."""
    yield DatasetSpec(name="tokens", options=TokensOptions, build=build_tokens)
