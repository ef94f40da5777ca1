"""Tasks and datasets: what is learned, and from what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn


Batch = Any
"""What a dataset yields: a tensor, or a tuple or dict of tensors, samples along the first dimension."""


class BatchCount(NamedTuple):
    """Size of one batch."""

    tokens: int
    """Valid targets, which D counts."""
    positions: int
    """Positions that the model computes, which C counts: padding and masked targets are among them."""


class SampleSize(NamedTuple):
    """Mean size of one sample of a dataset."""

    tokens: float
    positions: float


def num_samples(batch: Batch) -> int:
    """Samples in a batch: the length of its first tensor. Raises ValueError for a batch without tensors."""
    from torch import Tensor

    if isinstance(batch, Tensor) and batch.ndim:
        return len(batch)
    items = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    for item in items:
        with suppress(ValueError):
            return num_samples(item)
    raise ValueError("this batch holds no tensor")


class Task(ABC):
    """Base class of tasks: what a dataset asks of a model. Owns the loss; holds no data and no parameters."""

    unit: str
    """What D counts: ``"tokens"`` or ``"samples"``."""
    tokens_per_sample: int = 1
    """Tokens (predictions) in one sample: the context length of a language task, otherwise 1."""
    whole_batches: bool = False
    """Whether the loss of a batch is not a sum over its samples, so that no batch may be divided."""

    @abstractmethod
    def example(self, batch_size: int) -> Batch:
        """A batch of the right shapes and types with arbitrary content, on torch's default device."""

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """The model's outputs for a batch."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> tuple[Tensor, int]:
        """Loss in nats summed over the batch (a scalar that carries the gradient) and the number of
        predictions it sums over.

        Raises ValueError, naming both shapes, for outputs that do not fit.
        """

    def metrics(self, outputs: Any, batch: Batch) -> Mapping[str, tuple[float, int]]:
        """Further held-out numbers as (sum, count), such as ``{"accuracy": (37, 64)}``. By default none."""
        return {}

    def count(self, batch: Batch) -> BatchCount:
        """Size of a batch, before it is moved to a device.

        By default every sample has ``tokens_per_sample`` tokens and positions. Override this, and the dataset's
        :meth:`Dataset.sample_size`, if batches hold padding or masked targets.
        """
        tokens = num_samples(batch) * self.tokens_per_sample
        return BatchCount(tokens, tokens)


class Dataset(ABC):
    """Base class of datasets: training data in a reproducible order, and a held-out part that shares nothing
    with it.

    Set ``task`` and ``fingerprint`` in the class or in ``__init__``.
    """

    task: Task
    fingerprint: str
    """Identifies the content (training and held-out data). Depends on no path, no time and no seed."""
    num_unique_tokens: int | None = None
    """Different training tokens (samples); None for an endless stream."""
    bytes_per_token: float | None = None
    """Mean bytes of held-out text per token, for bits per byte; None if tokens are not text."""
    notes: Sequence[str] = ()
    """Statements about the data, which the plan shows."""

    @abstractmethod
    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Training batches without end, from sample ``start``; the data repeats in a new order when it is
        used up. The same seed gives the same samples at the same positions whatever the batch size."""

    @abstractmethod
    def eval_batches(self, tokens: int, batch_size: int) -> Iterable[Batch]:
        """The fixed held-out sample of about ``tokens`` tokens: the same windows at every call, for every
        seed and batch size, not overlapping. Fewer if the held-out data are fewer.

        Raises DataError if there are none.
        """

    def sample_size(self, batch_size: int) -> SampleSize:
        """Mean size of a training sample in batches of ``batch_size``, over a fixed sample of the data.

        By default ``tokens_per_sample`` tokens and positions. Override this, and the task's :meth:`Task.count`,
        if batches hold padding or masked targets.
        """
        return SampleSize(self.task.tokens_per_sample, self.task.tokens_per_sample)


class MultiEvalDataset(Dataset):
    """A dataset with further held-out sets, such as text of other domains.

    A run's result keeps its loss on each of them, and a fit may choose any. Each is as fixed as the main set
    and shares nothing with the training data; sets may share samples with each other. The fingerprint covers
    them all.
    """

    eval_sets: Sequence[str]
    """Names of the further sets; the main set has no name."""

    @abstractmethod
    def eval_batches(self, tokens: int, batch_size: int, name: str | None = None) -> Iterable[Batch]:
        """As :meth:`Dataset.eval_batches`, of the set called ``name``; of the main set for None."""


class LossSurface(Dataset):
    """A dataset without data, for runs that need no training: it computes their loss from a formula."""

    @abstractmethod
    def synthetic_loss(self, params: float, tokens: float, seed: int) -> float:
        """Held-out loss in nats of the run with N parameters, D tokens and this training seed, noise included."""


class CompletedDataset(Dataset):
    """A dataset with options that depend on a model, such as the form of its loss."""

    @abstractmethod
    def complete(self, model: nn.Module | None) -> Mapping[str, Any]:
        """Options to set, found by passing a few samples through a model of the study on the CPU. None: all of
        them are too large for that.

        Raises DataError, stating the choices, for data that no option makes right.
        """


def eval_batches(dataset: Dataset, tokens: int, batch_size: int, name: str | None) -> Iterable[Batch]:
    """Batches of the held-out set called ``name``, of the main set for None."""
    if name is None:
        return dataset.eval_batches(tokens, batch_size)
    if not isinstance(dataset, MultiEvalDataset):
        raise TypeError(f"{type(dataset).__name__} has no held-out set {name!r}: it is no MultiEvalDataset")
    return dataset.eval_batches(tokens, batch_size, name)
