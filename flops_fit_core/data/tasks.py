"""Tasks for most datasets. A dataset plugin returns one of these, or another ``Task``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flops_fit_core.plugins.protocols import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LanguageTask(Task):
    """Predict the next token. A batch is a tensor of ids, shape (batch, context + 1).

    The model receives the first ``context`` ids, shape (batch, context), and returns logits, shape
    (batch, context, vocab_size), or an object with these ``.logits``.
    """

    vocab_size: int
    context: int
    unit: str = "tokens"

    @property
    def tokens_per_sample(self) -> int:  # type: ignore[override]  # read-only, as the fields of this class
        return self.context

    def example(self, batch_size: int) -> Tensor:
        import torch

        return torch.zeros(batch_size, self.context + 1, dtype=torch.long)

    def outputs(self, model: nn.Module, batch: Tensor) -> Any:
        return model(batch[:, :-1])

    def loss(self, outputs: Any, batch: Tensor) -> tuple[Tensor, int]:
        """Cross-entropy in nats summed over (batch x context) predictions, computed in float32."""
        from torch.nn import functional

        logits = getattr(outputs, "logits", outputs)
        targets = batch[:, 1:]
        expected = (*targets.shape, self.vocab_size)
        if tuple(logits.shape) != expected:
            raise ValueError(
                f"the model returned outputs of shape {tuple(logits.shape)}; this task needs logits of shape "
                f"{expected}: (batch, context, vocabulary)"
            )
        flat = logits.float().flatten(0, 1)
        return functional.cross_entropy(flat, targets.flatten(), reduction="sum"), targets.numel()


@dataclass(frozen=True)
class SupervisedTask(Task):
    """Predict a target from an input. A batch is a pair (inputs, targets), samples first.

    ``loss="cross_entropy"``: outputs (batch, outputs), targets class numbers (batch,).
    ``loss="mse"``: outputs and targets of the same shape; half the squared error, summed over features (the
    negative log-likelihood of a unit Gaussian in nats, without its constant).
    """

    inputs: tuple[int, ...]
    """Shape of an input, without the batch dimension."""
    outputs_size: int
    """Number of classes, or of features of a target."""
    kind: Literal["cross_entropy", "mse"] = "cross_entropy"
    unit: str = "samples"
    tokens_per_sample: int = 1

    def example(self, batch_size: int) -> tuple[Tensor, Tensor]:
        import torch

        inputs = torch.zeros(batch_size, *self.inputs)
        if self.kind == "cross_entropy":
            return inputs, torch.zeros(batch_size, dtype=torch.long)
        return inputs, torch.zeros(batch_size, self.outputs_size)

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        return model(batch[0])

    def loss(self, outputs: Any, batch: Batch) -> tuple[Tensor, int]:
        from torch.nn import functional

        targets = batch[1]
        expected = (len(targets), self.outputs_size)
        if tuple(outputs.shape) != expected:
            raise ValueError(
                f"the model returned outputs of shape {tuple(outputs.shape)}; this task needs {expected}: "
                f"(batch, {'classes' if self.kind == 'cross_entropy' else 'features'})"
            )
        if self.kind == "cross_entropy":
            return functional.cross_entropy(outputs.float(), targets, reduction="sum"), len(targets)
        error = functional.mse_loss(outputs.float(), targets.float().reshape(expected), reduction="sum")
        return 0.5 * error, len(targets)

    def metrics(self, outputs: Any, batch: Batch) -> Mapping[str, tuple[float, int]]:
        if self.kind != "cross_entropy":
            return {}
        return {"accuracy": (int((outputs.argmax(-1) == batch[1]).sum()), len(batch[1]))}
