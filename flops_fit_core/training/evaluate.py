"""Held-out loss: the same tokens for every run, no gradient, sums in float64."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from flops_fit_core.contracts import Batch, Dataset, SeveralHeldOutSets, Together
from flops_fit_core.training.batches import length, to_device
from flops_fit_core.training.together import Processes, gather_anew


@dataclass(frozen=True)
class HeldOut:
    """What an evaluation measured."""

    loss: float
    """Nats per prediction; NaN or infinite where the model is broken."""
    tokens: int
    """Predictions that it is the mean of."""
    metrics: dict[str, float]


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
    total, count = 0.0, 0.0
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for batch in _heldout(dataset, tokens, whole or max(1, batch_tokens // task.tokens_per_sample), name):
        samples = length(batch)
        if whole is not None and samples < whole:
            continue
        divided = samples >= together.size
        batch = to_device(together.share(batch, samples) if divided else batch, device)
        with autocast:
            outputs = task.outputs(model, batch)
            loss, number = task.loss(outputs, batch)
        # All go through every batch, for a sharded model needs them all; a whole one counts on the first process.
        counted = divided or together.rank == 0
        total += float(loss) * counted
        count += float(number) * counted
        for metric, (value, among) in task.metrics(outputs, batch).items():
            sums[metric] += value * counted
            counts[metric] += among * counted
    model.train(was_training)
    gather_anew(model)
    if together.size > 1:
        total, count = together.sum(total), together.sum(count)
        sums = {metric: together.sum(value) for metric, value in sums.items()}
        counts = {metric: round(together.sum(value)) for metric, value in counts.items()}
    metrics = {metric: sums[metric] / counts[metric] for metric in sums if counts[metric]}
    return HeldOut(total / count if count else math.nan, round(count), metrics)


def _heldout(dataset: Dataset, tokens: int, batch_size: int, name: str | None) -> Iterable[Batch]:
    if name is None:
        return dataset.heldout(tokens, batch_size)
    return cast("SeveralHeldOutSets", dataset).heldout(tokens, batch_size, name)


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
    names = dataset.heldout_sets if isinstance(dataset, SeveralHeldOutSets) else ()
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
