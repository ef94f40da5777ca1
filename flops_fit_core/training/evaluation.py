"""Held-out loss of a model: the same samples for every run, no gradient, sums in float64."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flops_fit_core.errors import RunFailed
from flops_fit_core.plugins.protocols import (
    Batch,
    Dataset,
    DistributedContext,
    MultiEvalDataset,
    Task,
    eval_batches,
)
from flops_fit_core.plugins.utilities import bits_per_byte
from flops_fit_core.training.batches import length, part, to_device
from flops_fit_core.training.distributed import TorchDistributedContext, broadcast_buffers
from flops_fit_core.training.memory import free_cached_memory, is_out_of_memory
from flops_fit_core.training.sharding import is_sharded, reshard

logger = logging.getLogger("flops_fit")


@dataclass(frozen=True)
class EvalResult:
    """The result of an evaluation."""

    loss: float
    """Mean in nats per prediction. NaN or infinite for a model that has diverged."""
    tokens: int
    """Number of predictions."""
    metrics: dict[str, float]

    def result_fields(self, dataset: Dataset) -> dict[str, Any]:
        """``loss``, ``bits_per_byte`` and ``metrics`` of a completed run's RunResult. Metrics that are not finite
        are left out."""
        return {
            "loss": self.loss,
            "bits_per_byte": bits_per_byte(self.loss, dataset.bytes_per_token),
            "metrics": {name: value for name, value in self.metrics.items() if math.isfinite(value)},
        }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    tokens: int,
    *,
    device: str,
    batch_tokens: int,
    autocast: AbstractContextManager[Any],
    name: str | None = None,
    distributed: DistributedContext | None = None,
    full_batch_size: int | None = None,
) -> EvalResult:
    """Mean held-out loss of ``model`` on ``device``.

    Leaves the model in its mode. Draws no random number, unless the model does so in eval mode.

    Args:
        model: Already on ``device``.
        dataset: Returns the same held-out samples at every call.
        tokens: Size of the held-out sample, in tokens (or samples; the dataset defines the unit).
        device: What ``torch.device`` takes.
        batch_tokens: Size of a batch, in the same unit. Halved as often as memory runs out.
        autocast: Precision of the forward passes.
        name: A further held-out set; None for the main one.
        distributed: Processes among which every batch is divided.
        full_batch_size: Samples per batch, for a loss that is defined on batches of this size only. A smaller last
            batch is left out, and no batch is divided to save memory.

    Raises RunFailed if a sharded model runs out of memory.
    """
    distributed = distributed or TorchDistributedContext()
    batch_size = full_batch_size or max(1, batch_tokens // dataset.task.tokens_per_sample)
    was_training = model.training
    model.eval()
    broadcast_buffers(model, distributed.size)
    sums = _LossSums(model, dataset.task, device, autocast, distributed, may_divide=full_batch_size is None)
    for batch in eval_batches(dataset, tokens, batch_size, name):
        samples = length(batch)
        if full_batch_size is not None and samples < full_batch_size:
            continue
        is_divided = samples >= distributed.size
        local_batch = to_device(distributed.local_batch(batch, samples) if is_divided else batch, device)
        # A batch that cannot be divided is computed by every process, because a sharded model needs all of them
        # in every forward pass. The first process counts it.
        sums.add(local_batch, is_counted=is_divided or distributed.rank == 0)
    model.train(was_training)
    reshard(model)
    return sums.result()


def further_losses(
    model: nn.Module,
    dataset: Dataset,
    tokens: int,
    *,
    device: str,
    batch_tokens: int,
    autocast: AbstractContextManager[Any],
    distributed: DistributedContext | None = None,
    full_batch_size: int | None = None,
) -> dict[str, float]:
    """Mean loss on each further held-out set of the dataset, by name. Arguments as for :func:`evaluate`.

    Sets on which the loss is not finite are left out. Empty for a dataset with one held-out set.
    """
    losses = {}
    for name in dataset.eval_sets if isinstance(dataset, MultiEvalDataset) else ():
        result = evaluate(
            model,
            dataset,
            tokens,
            device=device,
            batch_tokens=batch_tokens,
            autocast=autocast,
            name=name,
            distributed=distributed,
            full_batch_size=full_batch_size,
        )
        if math.isfinite(result.loss):
            losses[name] = result.loss
    return losses


class _LossSums:
    """Sums of losses and metrics over held-out batches, in float64.

    Args:
        model: In eval mode.
        task: Of the dataset.
        device: The device of the model.
        autocast: Precision of the forward passes.
        distributed: The processes that evaluate the model.
        may_divide: Whether the losses of the parts of a batch add up to the loss of the batch. Then a batch is
            divided into as few parts as memory allows.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        device: str,
        autocast: AbstractContextManager[Any],
        distributed: DistributedContext,
        *,
        may_divide: bool,
    ) -> None:
        self._model = model
        self._task = task
        self._device = device
        self._autocast = autocast
        self._distributed = distributed
        self._may_divide = may_divide
        self._max_samples: int | None = None
        """Samples of one part; None for the whole batch. Halved when memory runs out, for later batches too."""
        self._loss, self._count = 0.0, 0.0
        self._metrics: dict[str, float] = defaultdict(float)
        self._metric_counts: dict[str, int] = defaultdict(int)

    def add(self, batch: Batch, *, is_counted: bool) -> None:
        """Add a batch. If it is not counted, adds zeros, so that every process has the same metrics."""
        samples = length(batch)
        first = 0
        while first < samples:
            size = min(self._max_samples or samples, samples - first)
            try:
                self._add_part(batch if size == samples else part(batch, first, first + size), is_counted)
                first += size
                continue
            except Exception as error:
                self._halve(size, error)
            # Outside of the handler: inside, the error's traceback keeps the activations in memory.
            free_cached_memory(self._device)

    def _add_part(self, batch: Batch, is_counted: bool) -> None:
        with self._autocast:
            outputs = self._task.outputs(self._model, batch)
            total, num_predictions = self._task.loss(outputs, batch)
        loss, count, metrics = float(total), float(num_predictions), self._task.metrics(outputs, batch)
        self._loss += loss * is_counted
        self._count += count * is_counted
        for name, (value, metric_count) in metrics.items():
            self._metrics[name] += value * is_counted
            self._metric_counts[name] += metric_count * is_counted

    def _halve(self, size: int, error: Exception) -> None:
        """Raises the error if it is not for lack of memory, or if the part cannot be divided."""
        if not is_out_of_memory(error) or size == 1 or not self._may_divide:
            raise error
        if self._distributed.size > 1 and is_sharded(self._model):  # all processes would have to divide alike
            raise RunFailed(
                f"out of memory while evaluating {size} samples on each of {self._distributed.size} devices: "
                f"write a smaller trainer.eval_batch_tokens"
            ) from error
        self._max_samples = -(-size // 2)
        logger.warning("out of memory in an evaluation: going on with batches of %d samples", self._max_samples)

    def result(self) -> EvalResult:
        """The means over all processes."""
        add_up = self._distributed.all_reduce_sum
        loss, count = add_up(self._loss), add_up(self._count)
        metrics = {name: add_up(value) for name, value in self._metrics.items()}
        counts = {name: round(add_up(value)) for name, value in self._metric_counts.items()}
        means = {name: metrics[name] / counts[name] for name in metrics if counts[name]}
        return EvalResult(loss / count if count else math.nan, round(count), means)
