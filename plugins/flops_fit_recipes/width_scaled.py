"""``width-scaled``: learning rates scaled by the width, with one value for all sizes."""

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
    """Width-scaled learning rates for Adam-like optimizers, and batches that grow with the square root of D."""

    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate. Unset: for a family with a width, 0.008 for AdamW and the corresponding value for
    another Adam-like optimizer; otherwise the optimizer's default."""
    base_width: PositiveInt = 64
    """Width at which matrices have the learning rate ``lr``. At another width they have ``lr * base_width /
    width`` (Yang et al. 2022, Tensor Programs V, table 3), so that one value is good for all sizes."""
    batch_scale: Annotated[float, Field(gt=0)] = 0.9
    """A batch has ``batch_scale * sqrt(D)`` tokens, rounded to complete samples, at least 2."""


def width_scaled_recipe(options: WidthScaledOptions, run: RecipeInput) -> Hyperparameters:
    """Width-scaled learning rates for Adam-like optimizers, and batches that grow with the square root of D.

    Matrices with the width as input size, by the family's parameter groups, have scaled learning rates.
    Embeddings, gains and biases have ``lr`` at every width. Betas 0.9 and 0.95, and the scaling, apply to
    Adam-like optimizers only.
    """
    adam = run.width_scaling != "none"
    scaled = adam and run.width is not None
    samples = options.batch_scale * math.sqrt(run.tokens) / run.task.tokens_per_sample
    return Hyperparameters(
        batch_size=max(2, round(samples)),
        lr=options.lr or (LR * run.lr_relative_to_adamw if scaled else None),
        betas=(0.9, 0.95) if adam else None,
        warmup_tokens=warmup_tokens(options, run),
        base_width=options.base_width if scaled else None,
    )
