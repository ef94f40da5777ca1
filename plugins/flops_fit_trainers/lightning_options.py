"""Options of the trainer ``lightning``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, PositiveInt, model_validator

from flops_fit_core.plugins import ImportPath, Options, Runtime, code_hash


class LightningOptions(Options):
    """A LightningModule of your own around the run's model. It gets the run's data in the plan's order and batch
    size; its held-out loss is measured as the trainer ``torch`` measures it."""

    module: Annotated[ImportPath, Runtime()]
    """``my_package.train:make`` or ``train.py:make``, looked for in the working directory first: a function, or
    the LightningModule's class, that gets the ``model``, and what else it asks for by name of ``task``, ``steps``,
    ``tokens``, ``batch_size``, ``lr`` and ``seed``."""
    arguments: dict[str, JsonValue] = {}
    """Further arguments by name."""
    fingerprint: str = ""
    """What identifies the function in a run. Unset: a hash of its file and of your own files that it imports,
    without comments, docstrings and layout. Written by hand, edits are yours to account for."""
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the whole gradient. None: no clipping. A module that optimizes by hand clips by itself."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``bfloat16``: Lightning's ``bf16-mixed``. ``auto``: float32 on CPUs, bfloat16 on GPUs that have it."""
    eval_tokens: PositiveInt = 131_072
    """Held-out tokens (samples) that the loss is measured on; the same ones for every run."""
    divergence_factor: Annotated[float, Field(gt=1)] = 3.0
    """A run has diverged when its training loss is not finite, or its held-out loss is above this many times the
    first training loss."""
    eval_batch_tokens: Annotated[PositiveInt, Runtime()] = 16_384
    """Tokens (samples) in one forward pass of an evaluation; halved as often as memory runs out."""

    checkpoint_minutes: Annotated[float, Field(gt=0), Runtime()] = 5.0
    """Minutes between checkpoints, from which a run that was interrupted goes on."""

    @model_validator(mode="after")
    def _identify(self) -> Self:
        if "fingerprint" not in self.model_fields_set:
            # What cannot be found is said when it is built; a study's results can be read without it.
            self.__dict__["fingerprint"] = code_hash(self.module) or ""
        return self
