"""Running out of memory: the errors that indicate it, and how a step that failed half-way is undone."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from flops_fit_core.plugins.protocols import BuiltRun
from flops_fit_core.training.rng import random_state, set_random_state

MESSAGES = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_SUPPORTED",  # reported by cuDNN for a batch whose workspace does not fit
    "MPS backend out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)
"""Parts of the messages of a plain RuntimeError with which torch reports a failed allocation."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or one of its libraries, could not allocate memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def free_cached_memory(device: str) -> None:
    """Return the memory that torch caches to a GPU.

    Call it outside of the ``except`` block: inside, the error's traceback keeps the tensors of the failed step.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


class Snapshot:
    """A copy, in CPU memory, of everything that a training step changes.

    An optimizer allocates its state in its first step, group by group, and kernels of several tensors allocate
    more in between. A step that runs out of memory may therefore have updated a part of the weights and moments.

    Args:
        parts: Model and optimizer of the run. Gradients are not copied.
        device: The device of the model.
        weights: Whether to copy weights, buffers and optimizer state. Random generators are always copied.
    """

    def __init__(self, parts: BuiltRun, device: str, *, weights: bool = True) -> None:
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
        """Restore everything, bit for bit, and drop the gradients."""
        optimizer = self._parts.optimizer
        optimizer.zero_grad(set_to_none=True)
        if self._state is not None:
            optimizer.state.clear()  # frees its memory before the copies are loaded
            free_cached_memory(self._device)
            # Copy again: an optimizer on the CPU keeps the tensors that it loads, and the next try may fail, too.
            optimizer.load_state_dict(tree_map(_copied, self._state))
        with torch.no_grad():
            for tensor, value in self._tensors:
                tensor.copy_(value)
        set_random_state(self._random, self._device)


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
