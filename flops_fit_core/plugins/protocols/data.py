"""Base classes of tasks and datasets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn


Batch = Any
"""A batch of a dataset: a tensor, or a tuple or dict of tensors, with samples along the first dimension."""


class BatchCount(NamedTuple):
    """Size of one batch."""

    tokens: int
    """Number of valid targets, for D."""
    positions: int
    """Number of positions that the model computes, for C. Includes padding and masked targets."""


class SampleSize(NamedTuple):
    """Mean size of one sample of a dataset."""

    tokens: float
    positions: float


def num_samples(batch: Batch) -> int:
    """Number of samples in a batch: the length of its first tensor. Raises ValueError for a batch without
    tensors."""
    from torch import Tensor

    if isinstance(batch, Tensor) and batch.ndim:
        return len(batch)
    items = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    for item in items:
        with suppress(ValueError):
            return num_samples(item)
    raise ValueError("this batch holds no tensor")


class Task(ABC):
    """Base class of tasks. A task defines the loss. It holds no data and no parameters."""

    unit: str
    """Unit of D: ``"tokens"`` or ``"samples"``."""
    tokens_per_sample: int = 1
    """Tokens (predictions) in one sample: the context length of a language task, otherwise 1."""
    whole_batches: bool = False
    """Set it if the loss of a batch is not a sum over its samples. Batches are then never divided."""

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


class ModelEvaluation(ABC):
    """Base class of evaluations: metrics of a trained model on a task, such as accuracy on questions."""

    name: str
    """Its metrics are ``NAME/METRIC`` in a run's result."""

    @abstractmethod
    def metrics(self, model: nn.Module, device: str, batch_tokens: int) -> Mapping[str, float]:
        """Metrics of a model, the same at every call. Values that are not finite are left out of the result.

        Args:
            model: On ``device``, in eval mode, without gradients and in the precision of the run.
            device: What ``torch.device`` takes.
            batch_tokens: Largest number of tokens per forward pass. If memory runs out, the method is called again
                with half of it.
        """


class Dataset(ABC):
    """Base class of datasets: training data in a reproducible order, and disjoint held-out data.

    Set ``task`` and ``fingerprint`` in the class or in ``__init__``.
    """

    task: Task
    fingerprint: str
    """Identifies the content (training and held-out data). Must not depend on a path, the time or the seed."""
    num_unique_tokens: int | None = None
    """Number of distinct training tokens (samples); None for an endless stream."""
    bytes_per_token: float | None = None
    """Mean bytes of held-out text per token, for bits per byte; None if tokens are not text."""
    notes: Sequence[str] = ()
    """Statements about the data, which the plan shows."""
    evaluations: Sequence[ModelEvaluation] = ()
    """Evaluations of every model at the end of its run. ``fingerprint`` must identify their content."""

    @abstractmethod
    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """An endless iterator of training batches that starts at sample ``start``. Each epoch has a new order.

        The samples at each position depend on the seed only, not on the batch size.
        """

    @abstractmethod
    def eval_batches(self, tokens: int, batch_size: int) -> Iterable[Batch]:
        """The fixed held-out sample of about ``tokens`` tokens, or all held-out data if there is less.

        The windows do not overlap. They are the same at every call, for every seed and every batch size.

        Raises DataError if there is no held-out data.
        """

    def sample_size(self, batch_size: int) -> SampleSize:
        """Mean size of a training sample in batches of ``batch_size``, over a fixed sample of the data.

        By default ``tokens_per_sample`` tokens and positions. Override this, and the task's :meth:`Task.count`,
        if batches hold padding or masked targets.
        """
        return SampleSize(self.task.tokens_per_sample, self.task.tokens_per_sample)


class MultiEvalDataset(Dataset):
    """A dataset with additional held-out sets, such as text of other domains.

    A run's result has its loss on each of them, and a fit may use any. Each set is as fixed as the main set and
    disjoint from the training data. Sets may share samples with each other. The fingerprint covers all sets.
    """

    eval_sets: Sequence[str]
    """Names of the additional sets. The main set has no name."""

    @abstractmethod
    def eval_batches(self, tokens: int, batch_size: int, name: str | None = None) -> Iterable[Batch]:
        """Like :meth:`Dataset.eval_batches`, for the set called ``name``, or the main set for None."""


class LossSurface(Dataset):
    """A dataset without data, which computes the loss of a run from a formula. Its runs need no training."""

    @abstractmethod
    def synthetic_loss(self, params: float, tokens: float, seed: int) -> float:
        """Held-out loss in nats, with noise, of the run with N parameters, D tokens and this training seed."""


class CompletedDataset(Dataset):
    """A dataset with options that depend on a model, such as the form of its loss."""

    @abstractmethod
    def complete(self, model: nn.Module | None) -> Mapping[str, Any]:
        """Options to set, from the outputs of a model of the study for a few samples on the CPU.

        ``model`` is None if all models of the study are too large for that.

        Raises DataError, which lists the choices, if no option suits the data.
        """


def eval_batches(dataset: Dataset, tokens: int, batch_size: int, name: str | None) -> Iterable[Batch]:
    """Batches of the held-out set called ``name``, or of the main set for None."""
    if name is None:
        return dataset.eval_batches(tokens, batch_size)
    if not isinstance(dataset, MultiEvalDataset):
        raise TypeError(f"{type(dataset).__name__} has no held-out set {name!r}: it is not a MultiEvalDataset")
    return dataset.eval_batches(tokens, batch_size, name)
