"""The dataset's evaluations of a trained model, such as multiple-choice questions."""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from flops_fit_core.errors import RunFailed
from flops_fit_core.plugins.protocols import Dataset, ModelEvaluation
from flops_fit_core.training.memory import free_cached_memory, is_out_of_memory
from flops_fit_core.training.rng import random_state, set_random_state
from flops_fit_core.training.sharding import is_sharded, reshard

logger = logging.getLogger("flops_fit")


@torch.no_grad()
def evaluation_metrics(
    model: nn.Module,
    dataset: Dataset,
    *,
    device: str,
    batch_tokens: int,
    autocast: AbstractContextManager[Any],
) -> dict[str, float]:
    """The metrics of all evaluations of the dataset, as ``NAME/METRIC``, without metrics that are not finite.

    Leaves the model in its mode and random generators in their state. If several processes train one run, all must
    call it, and each computes everything.

    Args:
        model: Already on ``device``.
        dataset: The dataset with the evaluations.
        device: What ``torch.device`` takes.
        batch_tokens: Largest number of tokens per forward pass. Halved as often as memory runs out.
        autocast: Precision of the forward passes.

    Raises RunFailed if two evaluations have the same name, or if a sharded model runs out of memory.
    """
    names = [evaluation.name for evaluation in dataset.evaluations]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise RunFailed(f"the dataset has several evaluations with the name {repeated[0]!r}: rename all but one")
    if not names:
        return {}
    was_training, random = model.training, random_state(device)
    model.eval()
    metrics: dict[str, float] = {}
    for evaluation in dataset.evaluations:
        values = _evaluate(evaluation, model, device, batch_tokens, dataset.task.tokens_per_sample, autocast)
        metrics |= {f"{evaluation.name}/{metric}": float(value) for metric, value in values.items()}
    model.train(was_training)
    reshard(model)
    set_random_state(random, device)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _evaluate(
    evaluation: ModelEvaluation,
    model: nn.Module,
    device: str,
    batch_tokens: int,
    smallest: int,
    autocast: AbstractContextManager[Any],
) -> dict[str, float]:
    """The metrics of one evaluation, with batches that fit into memory; ``smallest``: tokens of one sample."""
    while True:
        try:
            with autocast:
                return dict(evaluation.metrics(model, device, batch_tokens))
        except Exception as error:
            if not is_out_of_memory(error) or batch_tokens <= smallest:
                raise
            if is_sharded(model):  # all processes would have to retry together
                raise RunFailed(
                    f"out of memory in evaluation {evaluation.name!r}: write a smaller trainer.eval_batch_tokens"
                ) from error
        # Outside of the handler: inside, the error's traceback keeps the activations in memory.
        free_cached_memory(device)
        batch_tokens //= 2
        logger.warning("out of memory in evaluation %r: batches of %d tokens", evaluation.name, batch_tokens)
