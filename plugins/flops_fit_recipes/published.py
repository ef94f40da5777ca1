"""Options and helpers that the published laws share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flops_fit_core import ConfigError, Hyperparameters
from flops_fit_core.plugins import RecipeInput
from flops_fit_recipes.warmup import WarmupOptions, warmup_tokens

Positive = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamOptions(WarmupOptions):
    """Other hyperparameters with which a law for AdamW was measured. The published warmup is a number of steps,
    which may exceed a short run; the recipes use a share of D."""

    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Betas of AdamW."""


class DecayOptions(AdamOptions):
    """Options of a law without weight decay."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Weight decay with which the law was measured."""


def require_adam(name: str, run: RecipeInput) -> None:
    """Raise ConfigError for an optimizer that is not Adam-like, to which the laws do not apply."""
    if run.width_scaling == "none":
        raise ConfigError(
            f"recipe {name!r} is a law for AdamW and does not apply to this optimizer: write "
            f'[optimizer] name = "adamw", or choose recipe "width-scaled" or "constant"'
        )


def require_positive(value: float, name: str) -> float:
    """N or C without embeddings and head. Raises ConfigError if it is 0, because the laws are power laws."""
    if value <= 0:
        raise ConfigError(
            f"recipe {name!r} counts parameters except embeddings and output head, and this model has no others: "
            f'choose recipe "width-scaled" or "constant"'
        )
    return value


def in_samples(tokens: float, run: RecipeInput) -> int:
    """Size of a batch of this many tokens in samples, at least 1."""
    return max(1, round(tokens / run.task.tokens_per_sample))


def with_decay(options: DecayOptions, run: RecipeInput, *, lr: float, batch_tokens: float) -> Hyperparameters:
    """Hyperparameters with a law's learning rate and batch. All parameters have the same learning rate.

    For an Adam-like optimizer with other step sizes, the learning rate is multiplied by ``lr_relative_to_adamw``
    and the weight decay is divided by it, so that the product stays the same.
    """
    return Hyperparameters(
        lr=lr * run.lr_relative_to_adamw,
        batch_size=in_samples(batch_tokens, run),
        weight_decay=options.weight_decay / run.lr_relative_to_adamw,
        betas=options.betas,
        warmup_tokens=warmup_tokens(options, run),
    )
