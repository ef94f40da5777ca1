"""Running out of memory: which errors mean it, and how a step that failed half-way is taken back."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from flops_fit_core.plugins.protocols import RunParts
from flops_fit_core.training.rng import random_state, set_random_state

MESSAGES = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_SUPPORTED",  # what cuDNN reports for batches whose workspace does not fit
    "MPS backend out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)
"""Parts of messages of errors that torch raises as a plain RuntimeError when an allocation fails."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or one of its libraries, could not allocate memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def free_cached_memory(device: str) -> None:
    """Return the memory that torch caches to a GPU.

    Call it outside of the ``except`` block: the error's traceback keeps the failed step's tensors alive.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


class Snapshot:
    """What an optimizer step changes, as it was before the step: in the processor's memory.

    An optimizer allocates its state in its first step, group by group, and kernels of several tensors allocate
    more in between. A step that runs out of memory may therefore have updated a part of the weights and moments.

    Args:
        parts: Of the run that takes the step. Its gradients are not kept.
        device: Where the run is.
        weights: False to keep the random generators only.
    """

    def __init__(self, parts: RunParts, device: str, *, weights: bool = True) -> None:
        self._parts = parts
        self._device = device
        self._random = random_state(device)
        self._tensors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._state: dict[str, Any] | None = None
        if weights:
            model = parts.model
            self._tensors = [(tensor, _copied(tensor)) for tensor in (*model.parameters(), *model.buffers())]
            self._state = tree_map(_copied, parts.optimizer.state_dict())

    def restore(self) -> None:
        """Put everything back, bit for bit, and drop the gradients."""
        optimizer = self._parts.optimizer
        optimizer.zero_grad(set_to_none=True)
        if self._state is not None:
            optimizer.state.clear()  # before the copies are loaded, which would not fit beside it
            free_cached_memory(self._device)
            # Copies again: an optimizer on the CPU takes the tensors themselves, and may fail a second time.
            optimizer.load_state_dict(tree_map(_copied, self._state))
        with torch.no_grad():
            for tensor, value in self._tensors:
                tensor.copy_(value)
        set_random_state(self._random, self._device)


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
