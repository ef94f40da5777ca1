"""Options of the trainer ``lightning``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, PositiveInt, model_validator

from flops_fit_core.plugins import ImportPath, Options, Runtime, code_hash


class LightningOptions(Options):
    """Trains your LightningModule with the run's model. Its batches have the plan's order and size. The held-out
    loss is measured as in the trainer ``torch``."""

    module: Annotated[ImportPath, Runtime()]
    """A function or the class of the LightningModule: ``my_package.train:make`` or ``train.py:make``, searched in
    the working directory first. It must have a parameter ``model``, and may have parameters ``task``, ``steps``,
    ``tokens``, ``batch_size``, ``lr`` and ``seed``."""
    arguments: dict[str, JsonValue] = {}
    """Further arguments by name."""
    fingerprint: str = ""
    """Version of the function, part of the run ids. Unset: a hash of its file and of your files that it imports,
    without comments, docstrings and layout. If you set it, change it when the code computes something else."""
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Maximum norm of the gradient. None: no clipping. A module with manual optimization must clip by itself."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``bfloat16``: Lightning's ``bf16-mixed``. ``auto``: float32 on CPUs, bfloat16 on GPUs that support it."""
    eval_tokens: PositiveInt = 131_072
    """Number of held-out tokens (samples) for the loss. All runs use the same tokens."""
    divergence_factor: Annotated[float, Field(gt=1)] = 3.0
    """A run diverges if its training loss is not finite, or its held-out loss is above this multiple of the first
    training loss."""
    eval_batch_tokens: Annotated[PositiveInt, Runtime()] = 16_384
    """Tokens (samples) per forward pass of an evaluation. Halved as often as memory runs out."""
    checkpoint_minutes: Annotated[float, Field(gt=0), Runtime()] = 5.0
    """Minutes between checkpoints. An interrupted run resumes from its last checkpoint."""

    @model_validator(mode="after")
    def _identify(self) -> Self:
        if "fingerprint" not in self.model_fields_set:
            # A missing module is an error only when it is built: results can be read without it.
            self.__dict__["fingerprint"] = code_hash(self.module) or ""
        return self
