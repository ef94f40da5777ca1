"""``width-scaled``: one learning rate that serves every width."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, PositiveInt

from flops_fit_core import Hyperparameters
from flops_fit_core.plugins import RecipeInput
from flops_fit_recipes.warmup import WarmupOptions, warmup_tokens

LR = 0.008
"""Good for byte-level transformers of width 16 to 64 trained with Adam on a million tokens."""


class WidthScaledOptions(WarmupOptions):
    """Width-scaled learning rates for Adam-like optimizers, batches that grow with the root of D."""

    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; unset: on a family with a width, 0.008 for AdamW and what corresponds to it for another
    Adam-like optimizer; otherwise the optimizer's own default."""
    base_width: PositiveInt = 64
    """Width at which matrices get ``lr`` itself; at another width they get ``lr * base_width / width``
    (Yang et al. 2022, Tensor Programs V, table 3), so that one value serves all sizes."""
    batch_scale: Annotated[float, Field(gt=0)] = 0.9
    """A batch is ``batch_scale * sqrt(D)`` tokens, in whole samples, at least 2."""


def width_scaled_recipe(options: WidthScaledOptions, about: RecipeInput) -> Hyperparameters:
    """Width-scaled learning rates for Adam-like optimizers, batches that grow with the root of D.

    The family's parameter groups say which parameters are matrices that the width feeds; embeddings, gains and
    biases get ``lr`` at every width. Betas 0.9 and 0.95, and the scaling, apply to Adam-like optimizers only.
    """
    adam = about.width_scaling != "none"
    scaled = adam and about.width is not None
    samples = options.batch_scale * math.sqrt(about.tokens) / about.task.tokens_per_sample
    return Hyperparameters(
        batch_size=max(2, round(samples)),
        lr=options.lr or (LR * about.lr_relative_to_adamw if scaled else None),
        betas=(0.9, 0.95) if adam else None,
        warmup_tokens=warmup_tokens(options, about),
        base_width=options.base_width if scaled else None,
    )
