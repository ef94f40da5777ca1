"""Tasks and datasets: what is learned, and from what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn


Batch = Any
"""What a dataset yields: a tensor, or a tuple or dict of tensors, samples along the first dimension."""


class Task(Protocol):
    """What a dataset asks of a model. Owns the loss; holds no data and no parameters."""

    @property
    def unit(self) -> str:
        """What D counts: ``"tokens"`` or ``"samples"``."""

    @property
    def tokens_per_sample(self) -> int:
        """Tokens (predictions) in one sample: the context length of a language task, otherwise 1."""

    def example(self, batch_size: int) -> Batch:
        """A batch of the right shapes and types with arbitrary content, on torch's default device."""

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """The model's outputs for a batch."""

    def loss(self, outputs: Any, batch: Batch) -> tuple[Tensor, int]:
        """Loss in nats summed over the batch (a scalar that carries the gradient) and the number of
        predictions it sums over.

        Raises ValueError, naming both shapes, for outputs that do not fit.
        """

    def metrics(self, outputs: Any, batch: Batch) -> Mapping[str, tuple[float, int]]:
        """Further held-out numbers as (sum, count), such as ``{"accuracy": (37, 64)}``. May be empty."""


class BatchCount(NamedTuple):
    """Size of one batch."""

    tokens: int
    """Valid targets, which D counts."""
    positions: int
    """Positions that the model computes, which C counts: padding and masked targets are among them."""


@runtime_checkable
class CountingTask(Protocol):
    """A task whose batches may hold padding or masked targets. Optional.

    A batch of any other task has ``tokens_per_sample`` tokens and positions for each sample.
    """

    def count(self, batch: Batch) -> BatchCount:
        """Size of a batch, before it is moved to a device."""


class SampleSize(NamedTuple):
    """Mean size of one sample of a dataset."""

    tokens: float
    positions: float


@runtime_checkable
class SampledDataset(Protocol):
    """A dataset whose samples may hold padding or masked targets. Optional."""

    def sample_size(self, batch_size: int) -> SampleSize:
        """Mean size of a training sample in batches of ``batch_size``, over a fixed sample of the data."""


@runtime_checkable
class CompletedDataset(Protocol):
    """A dataset with options that depend on a model, such as the form of its loss. Optional."""

    def complete(self, model: nn.Module | None) -> Mapping[str, Any]:
        """Options to set, found by passing a few samples through a model of the study on the CPU. None: all of
        them are too large for that.

        Raises DataError, stating the choices, for data that no option makes right.
        """

    @property
    def notes(self) -> Sequence[str]:
        """Statements about the data for the plan."""


class Dataset(Protocol):
    """Training data in a reproducible order, and a held-out part that shares nothing with it."""

    @property
    def task(self) -> Task: ...

    @property
    def fingerprint(self) -> str:
        """Of the content (training and held-out): no path, no time, no seed."""

    @property
    def tokens(self) -> int | None:
        """Different training tokens (samples) there are; None for an endless stream."""

    @property
    def bytes_per_token(self) -> float | None:
        """Of the held-out text, to give bits per byte; None where tokens are not text."""

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Training batches without end, from sample ``start``; the data repeats in a new order when it is
        used up. The same seed gives the same samples at the same positions whatever the batch size."""

    def heldout(self, tokens: int, batch_size: int) -> Iterable[Batch]:
        """The fixed held-out sample of about ``tokens`` tokens: the same windows at every call, for every
        seed and batch size, not overlapping. Less where there is less.

        Raises DataError where there is none.
        """


@runtime_checkable
class SeveralHeldOutSets(Protocol):
    """A dataset that holds out further sets beside its main one, such as text of other domains. Optional.

    A run's result keeps its loss on each of them, and a fit may choose any. Each is as fixed as the main one
    and shares nothing with the training data; sets may share samples with each other. The fingerprint covers
    them all.
    """

    @property
    def heldout_sets(self) -> Sequence[str]:
        """Names of the further sets; the main one has none."""

    def heldout(self, tokens: int, batch_size: int, name: str | None = None) -> Iterable[Batch]:
        """As of ``Dataset``: of the main set where ``name`` is None, otherwise of that further one."""


@runtime_checkable
class LossSurface(Protocol):
    """A dataset whose runs need no training: it computes their loss from a formula."""

    def synthetic_loss(self, params: float, tokens: float, seed: int) -> float:
        """Held-out loss in nats of the run with N parameters, D tokens and this training seed, noise included."""
