"""Options of the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from flops_fit_core.plugins.protocols import Device


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How runs are trained and evaluated. The trainer plugin ``torch`` documents each option."""

    grad_clip: float | None
    precision: str
    eval_tokens: int
    num_evals: int
    divergence_factor: float
    eval_batch_tokens: int
    micro_batch: int | None = None
    compile: bool = False
    checkpoint_minutes: float = 5.0
    parallel: str = "auto"

    def precision_on(self, device: Device) -> str:
        """``float32`` or ``bfloat16``: ``auto`` is the device's choice."""
        return device.precision if self.precision == "auto" else self.precision
