"""Held-out loss: the same tokens for every run, no gradient, sums in float64."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from flops_fit_core.errors import RunFailed
from flops_fit_core.plugins.protocols import Batch, Dataset, MultiEvalDataset, Together, heldout_batches
from flops_fit_core.plugins.utilities import bits_per_byte
from flops_fit_core.training.batches import length, part, to_device
from flops_fit_core.training.distributed import Processes, gather_anew, is_sharded, share_buffers
from flops_fit_core.training.memory import free_cached_memory, is_out_of_memory

R = TypeVar("R")

logger = logging.getLogger("flops_fit")


@dataclass(frozen=True)
class HeldOut:
    """What an evaluation measured."""

    loss: float
    """Nats per prediction; NaN or infinite where the model is broken."""
    tokens: int
    """Predictions that it is the mean of."""
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
    together: Together | None = None,
    whole: int | None = None,
) -> HeldOut:
    """Mean held-out loss of ``model`` over the dataset's fixed sample of ``tokens`` tokens: of its main
    held-out set, or of the further one that is named. Each process of ``together`` takes its share of every batch.
    ``whole``: samples of every batch, for a loss of whole batches; a last one of fewer is left out.

    Leaves the model in the mode it was in and draws no random number.
    """
    task = dataset.task
    together = together or Processes()
    was_training = model.training
    model.eval()
    share_buffers(model, together.size)
    total, count = 0.0, 0.0
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)

    def measure(batch: Batch) -> tuple[float, float, Mapping[str, tuple[float, int]]]:
        with autocast:
            outputs = task.outputs(model, batch)
            loss, number = task.loss(outputs, batch)
        return float(loss), float(number), task.metrics(outputs, batch)

    in_parts = _PartsThatFit(measure, device, together.size if is_sharded(model) else 1, whole is not None)
    for batch in heldout_batches(dataset, tokens, whole or max(1, batch_tokens // task.tokens_per_sample), name):
        samples = length(batch)
        if whole is not None and samples < whole:
            continue
        divided = samples >= together.size
        batch = to_device(together.share(batch, samples) if divided else batch, device)
        # All go through every batch, for a sharded model needs them all; a whole one counts on the first process.
        counted = divided or together.rank == 0
        for loss, number, metrics in in_parts(batch):
            total += loss * counted
            count += number * counted
            for metric, (value, among) in metrics.items():
                sums[metric] += value * counted
                counts[metric] += among * counted
    model.train(was_training)
    gather_anew(model)
    if together.size > 1:
        total, count = together.sum(total), together.sum(count)
        sums = {metric: together.sum(value) for metric, value in sums.items()}
        counts = {metric: round(together.sum(value)) for metric, value in counts.items()}
    means = {metric: sums[metric] / counts[metric] for metric in sums if counts[metric]}
    return HeldOut(total / count if count else math.nan, round(count), means)


class _PartsThatFit(Generic[R]):
    """Calls ``measure`` on batches, in parts of as many samples as memory allows.

    Args:
        measure: A function of a batch; its results for the parts of a batch add up to that of the batch.
        device: Where the model is.
        devices: Devices that must all make the same forward passes, because each has a part of the weights.
        whole: Whether the results for parts do not add up, so that a batch must not be divided.
    """

    def __init__(self, measure: Callable[[Batch], R], device: str, devices: int, whole: bool) -> None:
        self._measure = measure
        self._device = device
        self._devices = devices
        self._whole = whole
        self._most: int | None = None
        """Samples of one part; None for all of a batch. Halved when memory runs out, for all later batches too."""

    def __call__(self, batch: Batch) -> Iterator[R]:
        samples = length(batch)
        first = 0
        while first < samples:
            size = min(self._most or samples, samples - first)
            try:
                result = self._measure(batch if size == samples else part(batch, first, first + size))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(size, error)
            else:
                yield result
                first += size
                continue
            # After the handler: the error's traceback holds the activations.
            free_cached_memory(self._device)

    def _halve(self, size: int, error: Exception) -> None:
        """Raises the error for what cannot be divided, and RunFailed where several devices would have to agree."""
        if size == 1 or self._whole:
            raise error
        if self._devices > 1:
            raise RunFailed(
                f"out of memory while evaluating {size} samples on each of {self._devices} devices: write a "
                f"smaller trainer.eval_batch_tokens"
            ) from error
        self._most = -(-size // 2)
        logger.warning("out of memory in an evaluation: going on with batches of %d samples", self._most)


def further_losses(
    model: nn.Module,
    dataset: Dataset,
    tokens: int,
    *,
    device: str,
    batch_tokens: int,
    autocast: AbstractContextManager[Any],
    together: Together | None = None,
    whole: int | None = None,
) -> dict[str, float]:
    """Mean loss on each of the dataset's further held-out sets, by name: ``RunResult.losses``.

    Empty where it has none; without those on which the loss is not finite.
    """
    names = dataset.heldout_sets if isinstance(dataset, MultiEvalDataset) else ()
    found = {
        name: evaluate(
            model,
            dataset,
            tokens,
            device=device,
            batch_tokens=batch_tokens,
            autocast=autocast,
            name=name,
            together=together,
            whole=whole,
        ).loss
        for name in names
    }
    return {name: loss for name, loss in found.items() if math.isfinite(loss)}
