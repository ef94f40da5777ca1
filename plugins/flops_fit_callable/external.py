"""Dataset ``external``: data that another program reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field, PositiveInt

from flops_fit_core import DataError
from flops_fit_core.data import LanguageTask
from flops_fit_core.plugins import Batch, Dataset, Options


class ExternalOptions(Options):
    """Text that the training program (trainer ``command``) reads. The dataset has the task for which models are
    counted, but no data."""

    label: Annotated[str, Field(min_length=1)]
    """Name of the data with their version: ``"fineweb-edu 10BT, gpt2 tokens, 2024-06"``. It identifies the data
    instead of their content, so runs with another label have other ids."""
    vocab_size: PositiveInt
    """Number of different tokens."""
    context: PositiveInt
    """Tokens per sequence. The batch size counts sequences."""
    tokens: PositiveInt | None = None
    """Number of distinct training tokens. Unset: unlimited. Otherwise sizes that need more are left out of the
    plan, unless ``sweep.allow_repeat`` is set."""
    bytes_per_token: Annotated[float, Field(gt=0)] | None = None
    """Mean bytes per token of the held-out text, for bits per byte."""


class External(Dataset):
    """A task without data."""

    def __init__(self, options: ExternalOptions) -> None:
        self.task = LanguageTask(vocab_size=options.vocab_size, context=options.context)
        self.num_unique_tokens = options.tokens
        self.bytes_per_token = options.bytes_per_token
        self.fingerprint = f"external {options.label}"

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        raise DataError(_NO_DATA)

    def eval_batches(self, tokens: int, batch_size: int) -> Iterable[Batch]:
        raise DataError(_NO_DATA)


_NO_DATA = (
    "dataset 'external' has no data: use it with trainer 'command', which starts a program that reads the data, "
    "or choose a dataset that has data, such as 'text' or 'tokens'"
)
