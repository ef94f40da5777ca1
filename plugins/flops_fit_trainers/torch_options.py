"""Options of the trainer ``torch``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from flops_fit_core.plugins import Options, Runtime


class TorchOptions(Options):
    """How a run is trained and evaluated."""

    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Maximum norm of the gradient; larger gradients are scaled down to it. None: no clipping."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``bfloat16``: matrix products in bfloat16 (autocast) with float32 weights. ``auto``: float32 on CPUs,
    bfloat16 on GPUs that support it."""
    eval_tokens: PositiveInt = 131_072
    """Number of held-out tokens (samples) for the loss. All runs use the same tokens."""
    num_evals: NonNegativeInt = 0
    """Number of evaluations during training, evenly spaced, in addition to the final evaluation."""
    divergence_factor: Annotated[float, Field(gt=1)] = 3.0
    """A run diverges if its training loss is not finite or stays above this multiple of its first value. Training
    then stops."""
    eval_batch_tokens: Annotated[PositiveInt, Runtime()] = 16_384
    """Tokens (samples) per forward pass of an evaluation. Halved as often as memory runs out."""
    micro_batch: Annotated[PositiveInt | None, Runtime()] = None
    """Samples per forward and backward pass; gradients accumulate over the passes of a batch. Unset: the complete
    batch, halved as often as memory runs out."""
    compile: Annotated[bool, Runtime()] = False
    """Train with ``torch.compile``. If compilation fails, the run trains without it; its result records that."""
    vmap_runs: Annotated[PositiveInt, Runtime()] = 1
    """Number of runs that train as one model. They have equal shapes and may differ in seed, learning rate and
    weight decay. Useful for small models, where most of a step is overhead. Losses are equal up to rounding.
    Cannot be combined with ``micro_batch`` or ``compile``."""
    parallel: Annotated[Literal["auto", "ddp", "fsdp"], Runtime()] = "auto"
    """Method for several devices per run (``device.devices_per_run``). ``ddp``: each device has a copy of the
    model. ``fsdp``: each device has a part of every weight. ``auto``: ``fsdp`` if weights, gradients and optimizer
    state need more than half of a GPU's memory, else ``ddp``."""
    checkpoint_minutes: Annotated[float, Field(gt=0), Runtime()] = 5.0
    """Minutes between checkpoints. An interrupted run resumes from its last checkpoint."""
