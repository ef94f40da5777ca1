"""Recipes: the hyperparameters of runs of every size, where the user left them unset."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, PositiveInt

from flops_fit_core import Hyperparameters, Options, RecipeInput, RecipeSpec, hookimpl


class DefaultOptions(Options):
    """Width-scaled learning rates for Adam-like optimizers, batches that grow with the root of D."""

    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; unset: 0.008 for an Adam-like optimizer on a family with a width, otherwise the
    optimizer's own default."""
    base_width: PositiveInt = 64
    """Width at which matrices get ``lr`` itself; at another width they get ``lr * base_width / width``
    (Yang et al. 2022, Tensor Programs V, table 3), so that one value serves all sizes."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of D over which the learning rate rises."""
    batch_scale: Annotated[float, Field(gt=0)] = 0.9
    """A batch is ``batch_scale * sqrt(D)`` tokens, in whole samples, at least 2."""


def default_recipe(options: DefaultOptions, about: RecipeInput) -> Hyperparameters:
    """Betas 0.9 and 0.95, and width scaling, apply to Adam-like optimizers only."""
    scaled = about.adam_like and about.width is not None
    samples = options.batch_scale * math.sqrt(about.tokens) / about.task.tokens_per_sample
    return Hyperparameters(
        batch_size=max(2, round(samples)),
        lr=options.lr or (0.008 if scaled else None),
        betas=(0.9, 0.95) if about.adam_like else None,
        warmup_tokens=round(options.warmup * about.tokens),
        base_width=options.base_width if scaled else None,
    )


@hookimpl
def flops_fit_recipes() -> Iterable[RecipeSpec]:
    """Offer ``default``."""
    yield RecipeSpec(name="default", options=DefaultOptions, build=default_recipe)
