"""Options of the trainer ``torch``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from flops_fit_core.plugins import Options, Runtime


class TorchOptions(Options):
    """How a run is trained and evaluated."""

    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the whole gradient; longer ones are scaled down to it. None: no clipping."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``bfloat16``: matrix products in bfloat16 (autocast) on float32 weights. ``auto``: what the device
    prefers: float32 on CPUs, bfloat16 on GPUs that have it."""
    eval_tokens: PositiveInt = 131_072
    """Held-out tokens (samples) that the loss is measured on; the same ones for every run."""
    num_evals: NonNegativeInt = 0
    """Evaluations on the way, evenly spaced, beside the one at the end."""
    divergence_factor: Annotated[float, Field(gt=1)] = 3.0
    """A run is given up as diverged when its training loss is not finite, or stays above this many times
    its first value."""
    eval_batch_tokens: Annotated[PositiveInt, Runtime()] = 16_384
    """Tokens (samples) in one forward pass of an evaluation; halved as often as memory runs out."""
    micro_batch: Annotated[PositiveInt | None, Runtime()] = None
    """Samples of one forward and backward pass; the gradients of a batch are accumulated over such parts.
    Unset: the whole batch, halved as often as memory runs out."""
    compile: Annotated[bool, Runtime()] = False
    """Train the model as ``torch.compile`` makes it. Where that fails (no compiler), as it is; the result says."""
    vmap_runs: Annotated[PositiveInt, Runtime()] = 1
    """Runs of one shape that are trained side by side as one model: those that differ in seed, learning rate and
    weight decay. Pays for small models, whose steps are mostly overhead; losses are equal within rounding.
    Not with ``micro_batch`` or ``compile``."""
    parallel: Annotated[Literal["auto", "ddp", "fsdp"], Runtime()] = "auto"
    """How several devices train one run (``device.devices_per_run``). ``ddp``: each has a copy of the model;
    ``fsdp``: each has a part of every weight. ``auto``: ``fsdp`` where weights, gradients and optimizer take more
    than half of a GPU's memory."""
    checkpoint_minutes: Annotated[float, Field(gt=0), Runtime()] = 5.0
    """Minutes between checkpoints, from which a run that was interrupted goes on."""
