"""Training FLOPs of any module, counted by torch while the module runs without values."""

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
"""In the traced batch: batch norm refuses a single one. A product of two weights, which has no batch, is shared
by so many."""
NO_VALUES = (
    "Tensor.item() cannot",
    "Cannot copy out of meta tensor",
    "can't convert meta device",
    "function for torch.nonzero()",
)
"""How torch says so where no operation is to blame."""
_READS = "it reads the values of a tensor"


class Untraceable(ConfigError):
    """A model whose FLOPs cannot be traced.

    Attributes:
        reason: Why, without the model's name.
        reads_values: Whether its way depends on the values of tensors.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.reads_values = reason.startswith(_READS)


@dataclass(frozen=True)
class Trace:
    """Training FLOPs a token (sample)."""

    forward: float
    backward: float
    operations: Mapping[str, float]
    """By torch's operation, forward and backward together: ``mm``, ``bmm``, ``convolution``, ..."""

    @property
    def flops_per_token(self) -> float:
        return self.forward + self.backward


def trace_flops(module: nn.Module, task: Task, name: str, *, limit: float = math.inf) -> Trace:
    """Count one forward and one backward pass of a module with torch's own formulas.

    Every matrix product and every convolution that is run counts, a multiply-add as two FLOPs: a tied head as a
    product, a lookup and everything elementwise as nothing, recomputation as often as it is done, and no gradient
    for the inputs of the first layer, which torch does not compute. Attention is taken apart into matrix products
    over the full context (the kernel ``MATH``), whatever kernel would train: fused ones are counted by formulas
    of their own, or not at all.

    Args:
        module: On the meta device, as a counter gets it, or on another, where it really computes. Runs in the mode
            it is in; afterwards it has no gradients.
        task: Gives the batch and the loss.
        name: Of the model, for messages.
        limit: FLOPs of both passes from which on TraceTooLarge is raised.

    On the meta device, a loss that needs values (CTC, a teacher on the CPU) is left out: the sum of the
    outputs has the same backward pass through the model.

    Raises ConfigError, naming the operation, for a model that reads values of tensors, that uses an operation
    without a kernel for the meta device, or one that multiplies and has no formula, and for one whose attention
    came out as nothing.
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
        raise _refusal(name, _reason(error, counter.failed)) from error
    finally:
        module.zero_grad(set_to_none=True)
    if uncounted := _uncounted(counter, attention):
        raise _refusal(name, uncounted)
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


def _uncounted(counter: OperationCounter, attention: AttentionCalls) -> str | None:
    if counter.reads:
        return f"{_READS} ({', '.join(sorted(counter.reads))}), so other data may take another way"
    kernels = ", ".join(sorted(counter.unknown))
    if attention.missed:
        return (
            f"{attention.missed} of its {attention.calls} calls of scaled_dot_product_attention were counted as "
            f"nothing{f' ({kernels})' if kernels else ''}"
        )
    if kernels:
        return (
            f"torch has no formula for {kernels} (torch.utils.flop_counter.register_flop_formula gives it one, "
            f"which may be 0)"
        )
    return None


def _reason(error: Exception, failed: tuple[Exception, str] | None) -> str:
    message = (str(error).splitlines() or [""])[0].rstrip(".! ")
    operation = failed[1] if failed is not None and str(failed[0]) == str(error) else None
    if operation in READS_VALUES or any(text in message for text in NO_VALUES):
        return f"{_READS} ({operation or message}), and here are shapes without values"
    if control := re.search(r"HigherOrderOperator (\w+)", message):
        return (
            f"it leaves a decision to torch ({control[1]}), which needs values, and here are shapes without values"
        )
    if operation and isinstance(error, NotImplementedError):
        return f"the operation {operation} has no kernel for the meta device"
    where = f"{operation}: " if operation else ""
    return f"{where}{type(error).__name__}: {message}"


def _refusal(name: str, reason: str) -> Untraceable:
    advice = (
        'Write flops = "model" if the family counts its own FLOPs, or flops = "chinchilla" (6 N D) if every token '
        "is multiplied by every matrix once"
    )
    if reason.startswith(_READS):
        advice += (
            ": 6 N D counts all experts of a mixture unless parameter_groups() states the share that a token uses "
            "(ParameterGroup.active)"
        )
    return Untraceable(f"{name} cannot be traced: {reason}. {advice}", reason)
