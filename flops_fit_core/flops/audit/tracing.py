"""Training FLOPs of any module, counted while torch runs it on the meta device or on the CPU."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops_fit_core.data.tasks import LanguageTask
from flops_fit_core.errors import ConfigError, UserError
from flops_fit_core.flops.audit.counting import READS_VALUES, AttentionCalls, OperationCounter
from flops_fit_core.flops.parameter_usage import TraceTooLarge
from flops_fit_core.plugins.protocols import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flops_fit_core.plugins.protocols import Batch

SAMPLES = 2
"""Samples in the traced batch. Batch norm needs more than one. FLOPs of a product of two weights, which has no
batch, are divided by this number."""
NO_VALUES_MESSAGES = (
    "Tensor.item() cannot",
    "Cannot copy out of meta tensor",
    "can't convert meta device",
    "function for torch.nonzero()",
)
"""Parts of torch's error messages for values that are missing, if no operation failed."""
_READS_VALUES = "it reads the values of a tensor"


class Untraceable(ConfigError):
    """A model whose FLOPs cannot be traced.

    Attributes:
        reason: The reason, without the model's name.
        reads_values: Whether control flow depends on the values of tensors.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.reads_values = reason.startswith(_READS_VALUES)


@dataclass(frozen=True)
class Trace:
    """Training FLOPs per token (or sample)."""

    forward: float
    backward: float
    operations: Mapping[str, float]
    """Operation (``mm``, ``bmm``, ``convolution``, ...) to FLOPs per token, forward and backward together."""

    @property
    def flops_per_token(self) -> float:
        return self.forward + self.backward


def trace_flops(module: nn.Module, task: Task, name: str, *, limit: float = math.inf) -> Trace:
    """Count one forward and one backward pass of a module with torch's formulas.

    Matrix products and convolutions count as they are executed, with two FLOPs per multiply-add. A tied head
    counts as a product, recomputation counts each time, and lookups and elementwise operations count as zero. The
    gradient of the first layer's inputs does not count, because torch does not compute it. Attention is
    decomposed into matrix products over the full context (the kernel ``MATH``), independent of the kernel used in
    training: fused kernels have other formulas, or none.

    Args:
        module: The module, on the meta device (as counters receive it) or on another device, where it computes
            values. It runs in its current mode. Its gradients are set to None afterwards.
        task: The task: it provides the batch and the loss.
        name: The model's name, for messages.
        limit: Above this many FLOPs of both passes, TraceTooLarge is raised.

    On the meta device, a loss that needs values (CTC, a teacher on the CPU) is replaced by the sum of the
    outputs, which has the same backward pass through the model.

    Raises ConfigError, naming the operation, if the model reads values of tensors, uses an operation without a
    kernel for the meta device, uses a product without a formula, or if its attention was counted as zero.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    counter = OperationCounter(limit)
    attention = AttentionCalls(counter)
    device = next((parameter.device for parameter in module.parameters()), torch.device("meta"))
    try:
        with device, sdpa_kernel(SDPBackend.MATH), counter.mode(), attention.mode():
            batch = task.example(SAMPLES)
            loss = _loss(task, task.outputs(module, batch), batch, counter)
            forward = counter.total
            loss.backward()  # type: ignore[no-untyped-call]
    except (UserError, TraceTooLarge):
        raise
    except Exception as error:
        raise _untraceable(name, _describe_error(error, counter.failed)) from error
    finally:
        module.zero_grad(set_to_none=True)
    if uncounted := _find_uncounted(counter, attention):
        raise _untraceable(name, uncounted)
    tokens = SAMPLES * task.tokens_per_sample
    return Trace(
        forward=forward / tokens,
        backward=(counter.total - forward) / tokens,
        operations={operation: flops / tokens for operation, flops in counter.flops.items()},
    )


def _loss(task: Task, outputs: Any, batch: Batch, counter: OperationCounter) -> Tensor:
    """The task's loss, or the sum of the outputs if these are on the meta device and the loss fails there."""
    import torch
    from torch.utils._pytree import tree_leaves

    tensors = [item for item in tree_leaves(outputs) if isinstance(item, torch.Tensor) and item.requires_grad]
    before = counter.flops.copy(), set(counter.unknown), set(counter.reads)
    try:
        return task.loss(outputs, batch)[0]
    except (UserError, TraceTooLarge):
        raise
    except Exception:
        if not tensors or not all(item.is_meta for item in tensors) or isinstance(task, LanguageTask):
            raise
    counter.flops, counter.unknown, counter.reads = before
    return torch.stack([item.sum() for item in tensors]).sum()


def _find_uncounted(counter: OperationCounter, attention: AttentionCalls) -> str | None:
    if counter.reads:
        return f"{_READS_VALUES} ({', '.join(sorted(counter.reads))}), so other data may take another path"
    kernels = ", ".join(sorted(counter.unknown))
    if attention.missed:
        return (
            f"{attention.missed} of its {attention.calls} calls of scaled_dot_product_attention were counted as "
            f"zero{f' ({kernels})' if kernels else ''}"
        )
    if kernels:
        return (
            f"torch has no formula for {kernels} (register one with "
            f"torch.utils.flop_counter.register_flop_formula; it may return 0)"
        )
    return None


def _describe_error(error: Exception, failed: tuple[Exception, str] | None) -> str:
    message = (str(error).splitlines() or [""])[0].rstrip(".! ")
    operation = failed[1] if failed is not None and str(failed[0]) == str(error) else None
    if operation in READS_VALUES or any(text in message for text in NO_VALUES_MESSAGES):
        return f"{_READS_VALUES} ({operation or message}), but a trace has shapes without values"
    if control := re.search(r"(?:HigherOrderOperator|rule registered for HOP) (\w+)", message):
        return f"it uses torch's control flow ({control[1]}), which needs values, but a trace has only shapes"
    if operation and isinstance(error, NotImplementedError):
        return f"the operation {operation} has no kernel for the meta device"
    prefix = f"{operation}: " if operation else ""
    return f"{prefix}{type(error).__name__}: {message}"


def _untraceable(name: str, reason: str) -> Untraceable:
    advice = (
        'Set counter = "model" if the family counts its FLOPs, or counter = "chinchilla" (6 N D) if every matrix '
        "multiplies every token once"
    )
    if reason.startswith(_READS_VALUES):
        advice += (
            ": for mixtures of experts, 6 N D counts all experts unless parameter_groups() states the share that "
            "is active per token (ParameterGroup.active)"
        )
    return Untraceable(f"{name} cannot be traced: {reason}. {advice}", reason)
