"""A warning for models that compute statistics over a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flops_fit_core.config import Experiment
from flops_fit_core.records import RunSpec

if TYPE_CHECKING:
    from torch import nn


def batch_statistics_notes(experiment: Experiment, module: nn.Module | None, runs: Iterable[RunSpec]) -> list[str]:
    """A warning if a batch is split and the model has a BatchNorm layer.

    The layer computes its mean and variance over a part of the batch, so they depend on the number of parts.

    Args:
        experiment: Its trainer may split a batch.
        module: A model of the study; None if no model was built.
        runs: The runs of the plan, with their numbers of devices.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    layers = [] if module is None else [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    micro_batch = getattr(experiment.trainer.options, "micro_batch", None)
    devices = max((run.devices for run in runs), default=1)
    if not layers or (micro_batch is None and devices == 1):
        return []
    split = f"trainer.micro_batch = {micro_batch}" if micro_batch is not None else f"{devices} devices per run"
    note = (
        f"WARNING: {type(layers[0]).__name__} computes its mean and variance over a part of the batch, so losses "
        f"depend on {split} and differ from those of undivided batches"
    )
    return [note]
