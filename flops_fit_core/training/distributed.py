"""Several processes that train one run: who they are, what each does of a batch, on what they must agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.utils._pytree import tree_map

from flops_fit_core.errors import RunFailed
from flops_fit_core.plugins.protocols import Batch
from flops_fit_core.training.batches import length, part


class Processes:
    """Implements ``contracts.Together`` with torch.distributed; ``Processes()`` is one that trains alone.

    All of them go through the same steps. What depends on a clock, a signal or a file is the first one's to
    decide (:meth:`agree`).

    Args:
        rank: Which one this is, counted from 0.
        size: How many there are.
        control: Group for what is no tensor of the model; on the CPU, where waiting for it holds up no GPU.
    """

    def __init__(self, rank: int = 0, size: int = 1, control: dist.ProcessGroup | None = None) -> None:
        self.rank = rank
        self.size = size
        self._control = control

    def agree(self, decision: bool) -> bool:
        """What the first process has decided."""
        if self.size == 1:
            return decision
        value = torch.tensor([decision], dtype=torch.uint8)
        dist.broadcast(value, 0, group=self._control)
        return bool(value.item())

    def sum(self, value: float) -> float:
        """Over all processes, in float64."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total, group=self._control)
        return total.item()

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier(group=self._control)

    def share(self, batch: Batch, samples: int) -> Batch:
        """The samples of a batch that are this process's: in order, as even as they can be.

        Raises RunFailed where there are fewer samples than processes, or rows that are no samples.
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

    def samples(self, samples: int) -> int:
        """How many :meth:`share` gives this process."""
        return (self.rank + 1) * samples // self.size - self.rank * samples // self.size

    # ------------------------------------------------------------------ the model

    def shard(self, model: nn.Module, device: str) -> None:
        """Give every process a part of each weight (FSDP2), block by block: at most one is whole at a time.

        Blocks are those of :func:`outermost_blocks`. Optimizers and gradient norms see DTensors after this.
        """
        from torch.distributed.fsdp import fully_shard

        mesh = dist.device_mesh.init_device_mesh(torch.device(device).type, (self.size,))
        for block in without_shared_weights(model, outermost_blocks(model)):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes: itself where it trains alone or is sharded."""
        if self.size == 1 or is_sharded(model):
            return model
        from torch.nn.parallel import DistributedDataParallel

        # A step may leave out parameters: experts that no token goes to, a head that another task uses.
        return DistributedDataParallel(model, find_unused_parameters=True)

    def seed(self, run_seed: int, step: int) -> None:
        """So that no two drop out the same."""
        if self.rank:
            torch.manual_seed(hash((run_seed, step, self.rank)) % 2**63)


def outermost_blocks(module: nn.Module) -> list[nn.Module]:
    """Parts of a model that are called one after another, each of which can be gathered by itself.

    They are the items of a ``ModuleList``, and those items of a ``Sequential`` or ``ModuleDict`` that have
    matrices and of whose class there are at least two. A container within a container is replaced by its blocks.
    What is inside a block is no block.
    """
    blocks: dict[nn.Module, None] = {}  # a module that is used several times is one block
    for block in _blocks_in(module):
        blocks.setdefault(block)
    return list(blocks)


def _blocks_in(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if not _is_block(child, module):
            yield from _blocks_in(child)
            continue
        inner = list(_blocks_in(child)) if isinstance(child, nn.Sequential) else []
        # A stage of blocks is no block; a feed-forward part of a few layers is.
        yield from inner if any(_has_children(block) for block in inner) else [child]


def _is_block(child: nn.Module, parent: nn.Module) -> bool:
    if type(child).forward is nn.Module.forward:
        return False  # nothing calls it, so nothing would gather its weights
    if isinstance(parent, nn.ModuleList):
        return True
    if isinstance(parent, nn.ModuleDict) and not _has_children(child):
        return False  # embeddings and heads by name
    if not isinstance(parent, nn.Sequential | nn.ModuleDict):
        return False
    return sum(type(item) is type(child) and _has_matrix(item) for item in parent.children()) > 1


def _has_children(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())


def without_shared_weights(model: nn.Module, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The blocks none of whose weights is used outside of them, too: what gathers a tied weight must gather it for
    all that use it, and the whole model does."""
    owners: dict[nn.Parameter, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[parameter].append(module)

    def is_separate(block: nn.Module) -> bool:
        inside = set(block.modules())
        return all(owner in inside for parameter in block.parameters() for owner in owners[parameter])

    return [block for block in blocks if is_separate(block)]


def is_sharded(model: nn.Module) -> bool:
    """Whether any weight is spread over several processes."""
    return any(_is_dtensor(parameter) for parameter in model.parameters())


def gather_anew(model: nn.Module) -> None:
    """Let the next forward pass gather a sharded model's weights again: after one without a backward pass it would
    use those that it has, whatever the optimizer has done to the shards since."""
    if not is_sharded(model):
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def share_buffers(model: nn.Module, processes: int) -> None:
    """Give every process the first one's buffers, such as the running statistics of a BatchNorm: each process has
    computed its own in the last step, and those of the first are kept in checkpoints."""
    if processes == 1:
        return
    for buffer in model.buffers():
        # Gloo sends no booleans.
        value = buffer.detach().to(torch.uint8 if buffer.dtype == torch.bool else buffer.dtype).contiguous()
        dist.broadcast(value, 0)
        buffer.copy_(value)


def without_averaging(model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """For the backward pass of a part of a batch: gradients are averaged over the processes after the last one."""
    from torch.distributed.fsdp import FSDPModule
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    elif isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def whole(state: Any, *, keep: bool) -> Any:
    """A state dict with every sharded tensor as a whole one in the processor's memory, one gathered after another.

    All processes must call it; one that does not ``keep`` them gets None in their places.
    """

    def gathered(value: Any) -> Any:
        if not _is_dtensor(value):
            return value
        full = value.full_tensor()
        return full.cpu() if keep else None

    return tree_map(gathered, state)


def spread(state: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Whole weights, sharded as those in ``like`` are."""
    return {name: _spread(value, like[name]) if name in like else value for name, value in state.items()}


def spread_moments(state: dict[str, Any], groups: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """An optimizer's state dict of whole tensors, those of a weight's shape sharded as the weight is."""
    weights = [weight for group in groups for weight in group["params"]]
    moments = {
        index: {name: _spread(value, weights[index]) for name, value in kept.items()}
        for index, kept in state["state"].items()
    }
    return {**state, "state": moments}


def _spread(value: Any, like: Any) -> Any:
    if not _is_dtensor(like) or not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _is_dtensor(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)
