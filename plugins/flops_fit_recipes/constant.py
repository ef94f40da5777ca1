"""``constant``: what is written, for every size."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from flops_fit_core import Hyperparameters
from flops_fit_core.plugins import Options, RecipeInput

Beta = Annotated[float, Field(ge=0, lt=1)]


class ConstantOptions(Options):
    """The same values for every N, D and width, and one learning rate for all parameters.

    The best learning rate of most models falls as they grow, so that sizes far from the one it was tuned for come
    out worse than they could, and the fitted exponents with them.
    """

    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; unset: the optimizer's own default."""
    batch_size: PositiveInt = 32
    """Samples a step."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Unset: the optimizer's own default."""
    betas: tuple[Beta, Beta] | None = None
    """Of an Adam-like optimizer; unset: its own default."""
    warmup_tokens: NonNegativeInt = 0
    """Tokens (samples) over which the learning rate rises."""


def constant_recipe(options: ConstantOptions, about: RecipeInput) -> Hyperparameters:
    """The options, whatever the run."""
    return Hyperparameters(
        lr=options.lr,
        batch_size=options.batch_size,
        weight_decay=options.weight_decay,
        betas=None if about.width_scaling == "none" else options.betas,
        warmup_tokens=options.warmup_tokens,
    )
