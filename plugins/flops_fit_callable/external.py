"""Data that a program of the user's reads by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field, PositiveInt

from flops_fit_core import DataError
from flops_fit_core.data import LanguageTask
from flops_fit_core.plugins import Batch, Dataset, Options


class ExternalOptions(Options):
    """Text that the program which trains (trainer ``command``) reads by itself. It poses the task that models are
    counted for, and has no data."""

    label: Annotated[str, Field(min_length=1)]
    """What the data are, with their version: ``"fineweb-edu 10BT, gpt2 tokens, 2024-06"``. It identifies them in
    the place of their content, so another label makes other runs."""
    vocab_size: PositiveInt
    """Different tokens."""
    context: PositiveInt
    """Tokens of one sequence; a batch is so many sequences."""
    tokens: PositiveInt | None = None
    """Different training tokens there are. Unset: as many as are wanted; otherwise sizes that would need more are
    left out of the plan, unless ``sweep.allow_repeat`` is set."""
    bytes_per_token: Annotated[float, Field(gt=0)] | None = None
    """Of the held-out text, for bits per byte."""


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
    "dataset 'external' has no data here: use it with trainer 'command', whose program reads its own, or choose a "
    "dataset that has data, such as 'text' or 'tokens'"
)
