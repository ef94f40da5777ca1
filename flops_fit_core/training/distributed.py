"""Several processes that train one run: which samples each computes, and how they exchange values."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from flops_fit_core.errors import RunFailed
from flops_fit_core.plugins.protocols import Batch
from flops_fit_core.training.batches import length, part
from flops_fit_core.training.sharding import is_sharded


class TorchDistributedContext:
    """Implements ``DistributedContext`` with torch.distributed. Without arguments: a process that trains alone.

    Args:
        rank: Of this process, counted from 0.
        size: Number of processes.
        cpu_group: Process group for values that are not tensors of the model. It exchanges them on the CPU, so
            that waiting for them does not hold up a GPU.
    """

    def __init__(self, rank: int = 0, size: int = 1, cpu_group: dist.ProcessGroup | None = None) -> None:
        self.rank = rank
        self.size = size
        self._cpu_group = cpu_group

    def broadcast(self, decision: bool) -> bool:
        """The decision of the first process."""
        if self.size == 1:
            return decision
        value = torch.tensor([decision], dtype=torch.uint8)
        dist.broadcast(value, 0, group=self._cpu_group)
        return bool(value.item())

    def all_reduce_sum(self, value: float) -> float:
        """The sum over all processes, in float64."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total, group=self._cpu_group)
        return total.item()

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            dist.barrier(group=self._cpu_group)

    def local_batch(self, batch: Batch, samples: int) -> Batch:
        """The samples of a batch of ``samples`` for this process: contiguous, in order, as even as possible.

        Raises RunFailed for fewer samples than processes, and for a batch whose rows are not samples.
        """
        if self.size == 1:
            return batch
        if samples < self.size:
            raise RunFailed(f"a batch of {samples} samples cannot be divided among {self.size} devices")
        if (rows := length(batch)) != samples:  # packed, by a collate function
            raise RunFailed(
                f"a batch of {samples} samples has {rows} {'row' if rows == 1 else 'rows'}, so it cannot be "
                f"divided among {self.size} devices: leave out devices_per_run, or the packing"
            )
        return part(batch, self.rank * samples // self.size, (self.rank + 1) * samples // self.size)

    def local_samples(self, samples: int) -> int:
        """Number of samples that :meth:`local_batch` returns."""
        return (self.rank + 1) * samples // self.size - self.rank * samples // self.size

    def wrap_model(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes. A sharded model averages them already."""
        if self.size == 1 or is_sharded(model):
            return model
        from torch.nn.parallel import DistributedDataParallel

        # A step may leave out parameters: experts that no token goes to, a head that another task uses.
        return DistributedDataParallel(model, find_unused_parameters=True)

    def seed(self, run_seed: int, step: int) -> None:
        """Seed torch differently on every further process, so that dropout masks differ."""
        if self.rank:
            torch.manual_seed(hash((run_seed, step, self.rank)) % 2**63)


def without_averaging(model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Context of a micro-batch. Gradients are averaged over the processes after the ``last`` micro-batch only."""
    from torch.distributed.fsdp import FSDPModule
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    elif isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def broadcast_buffers(model: nn.Module, num_processes: int) -> None:
    """Give every process the buffers of the first, such as the running statistics of a BatchNorm.

    Each process has computed its own in the last step. Checkpoints contain those of the first process.
    """
    if num_processes == 1:
        return
    for buffer in model.buffers():
        # Gloo does not send booleans.
        value = buffer.detach().to(torch.uint8 if buffer.dtype == torch.bool else buffer.dtype).contiguous()
        dist.broadcast(value, 0)
        buffer.copy_(value)
