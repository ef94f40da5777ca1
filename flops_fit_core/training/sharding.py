"""FSDP2: models whose weights are divided among several processes, and their state dicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.utils._pytree import tree_map

# ---------------------------------------------------------------------------- models


def should_shard(model: nn.Module, device: str, num_processes: int, parallel: str) -> bool:
    """Whether a model is sharded. ``parallel`` is the option of ``trainers/torch``.

    ``auto`` shards if weights, gradients and two moments, in float32, take more than half of the GPU's memory.
    """
    if num_processes == 1:
        return False
    if parallel != "auto" or not device.startswith("cuda"):
        return parallel == "fsdp"
    state_bytes = 4 * 4 * sum(param.numel() for param in model.parameters())
    return state_bytes > torch.cuda.get_device_properties(device).total_memory / 2


def shard_model(model: nn.Module, device: str, num_processes: int) -> None:
    """Give every process a part of each weight. A forward pass gathers one block at a time.

    Blocks are those of :func:`outermost_blocks`. Afterwards, optimizers and gradient norms get DTensors.
    """
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh(torch.device(device).type, (num_processes,))
    for block in without_shared_weights(model, outermost_blocks(model)):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether any weight is divided among processes."""
    return any(_is_dtensor(param) for param in model.parameters())


def reshard(model: nn.Module) -> None:
    """Free the gathered weights of a sharded model, so that its next forward pass gathers them again.

    After a forward pass without a backward pass, a model would otherwise use weights from before the last step of
    the optimizer.
    """
    if not is_sharded(model):
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


# ---------------------------------------------------------------------------- blocks


def outermost_blocks(module: nn.Module) -> list[nn.Module]:
    """Parts of a model that are called one after another, so that each can be gathered separately.

    They are the items of a ``ModuleList``, and those items of a ``Sequential`` or ``ModuleDict`` that have
    matrices and share their class with another item. A container within a container is replaced by its blocks.
    Modules inside a block are not blocks.
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
        inner_blocks = list(_blocks_in(child)) if isinstance(child, nn.Sequential) else []
        # A Sequential of whole blocks is a stage and not a block; a feed-forward part of a few layers is a block.
        is_stage = any(_has_children(block) for block in inner_blocks)
        yield from inner_blocks if is_stage else [child]


def _is_block(child: nn.Module, parent: nn.Module) -> bool:
    if type(child).forward is nn.Module.forward:
        return False  # it is never called, so nothing would gather its weights
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
    return any(param.dim() > 1 for param in module.parameters())


def without_shared_weights(model: nn.Module, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The blocks whose weights are used inside of them only.

    A tied weight must be gathered for all modules that use it, so it is gathered with the whole model.
    """
    owners: dict[nn.Parameter, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        for param in module.parameters(recurse=False):
            owners[param].append(module)

    def is_separate(block: nn.Module) -> bool:
        inside = set(block.modules())
        return all(owner in inside for param in block.parameters() for owner in owners[param])

    return [block for block in blocks if is_separate(block)]


# ---------------------------------------------------------------------------- state dicts


def gather_state(state: Any, *, keep: bool) -> Any:
    """A state dict with every sharded tensor replaced by the full tensor on the CPU. Gathers one at a time.

    Every process must call it. A process that does not ``keep`` the tensors gets None in their places.
    """

    def gather(value: Any) -> Any:
        if not _is_dtensor(value):
            return value
        full = value.full_tensor()
        return full.cpu() if keep else None

    return tree_map(gather, state)


def shard_state(state: dict[str, Any], sharded_state: dict[str, Any]) -> dict[str, Any]:
    """Full weights, sharded in the way of the weights of the same name in ``sharded_state``."""
    return {
        name: _shard_like(value, sharded_state[name]) if name in sharded_state else value
        for name, value in state.items()
    }


def shard_optimizer_state(state: dict[str, Any], groups: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """An optimizer's state dict of full tensors, sharded in the way of the weights in its parameter groups.

    Tensors of another shape than their weight are kept whole.
    """
    weights = [weight for group in groups for weight in group["params"]]
    sharded = {
        index: {name: _shard_like(value, weights[index]) for name, value in moments.items()}
        for index, moments in state["state"].items()
    }
    return {**state, "state": sharded}


def _shard_like(value: Any, weight: Any) -> Any:
    if not _is_dtensor(weight) or not isinstance(value, torch.Tensor) or value.shape != weight.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)


def _is_dtensor(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)
