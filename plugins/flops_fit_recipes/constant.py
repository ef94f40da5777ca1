"""``constant``: the same hyperparameters for every size."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from flops_fit_core import Hyperparameters
from flops_fit_core.plugins import Options, RecipeInput

Beta = Annotated[float, Field(ge=0, lt=1)]


class ConstantOptions(Options):
    """The same values for every N, D and width, and one learning rate for all parameters.

    The best learning rate of most models falls as they grow. Losses of sizes far from the tuned size are then too
    high, and the fitted exponents are biased.
    """

    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate. Unset: the optimizer's default."""
    batch_size: PositiveInt = 32
    """Samples per step."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay. Unset: the optimizer's default."""
    betas: tuple[Beta, Beta] | None = None
    """Betas of an Adam-like optimizer. Unset: the optimizer's default."""
    warmup_tokens: NonNegativeInt = 0
    """Tokens (samples) over which the learning rate rises."""


def constant_recipe(options: ConstantOptions, run: RecipeInput) -> Hyperparameters:
    """The options, for every run."""
    return Hyperparameters(
        lr=options.lr,
        batch_size=options.batch_size,
        weight_decay=options.weight_decay,
        betas=None if run.width_scaling == "none" else options.betas,
        warmup_tokens=options.warmup_tokens,
    )
