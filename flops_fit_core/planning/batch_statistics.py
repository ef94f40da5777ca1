"""What a plan notes of models that compute statistics over a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flops_fit_core.config import Experiment
from flops_fit_core.records import RunSpec

if TYPE_CHECKING:
    from torch import nn


def batch_statistics_notes(experiment: Experiment, module: nn.Module | None, runs: Iterable[RunSpec]) -> list[str]:
    """A warning for a BatchNorm in a model whose batches are divided: its mean and variance are of one part of a
    batch, so they depend on how many parts there are.

    Args:
        experiment: With the trainer, which may divide a batch.
        module: A model of the study; None if none was built.
        runs: Of the plan, with their numbers of devices.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    parts = [] if module is None else [part for part in module.modules() if isinstance(part, _BatchNorm)]
    micro_batch = getattr(experiment.trainer.options, "micro_batch", None)
    devices = max((run.devices for run in runs), default=1)
    if not parts or (micro_batch is None and devices == 1):
        return []
    by = f"trainer.micro_batch = {micro_batch}" if micro_batch is not None else f"{devices} devices a run"
    note = (
        f"WARNING: {type(parts[0]).__name__} computes its mean and variance over the samples that are computed "
        f"together, so losses depend on {by}: they are not those of undivided batches"
    )
    return [note]
