"""What the published laws have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flops_fit_core import ConfigError, Hyperparameters
from flops_fit_core.plugins import RecipeInput
from flops_fit_recipes.warmup import WarmupOptions, warmup_tokens

Positive = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamOptions(WarmupOptions):
    """The rest of what a law for AdamW was measured with. Its warmup is a number of steps that short runs do
    not have; here it is a share of D."""

    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Of AdamW."""


class DecayOptions(AdamOptions):
    """The same, for a law that says nothing of weight decay."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """What the law was measured with."""


def for_adam(name: str, about: RecipeInput) -> None:
    """Raises ConfigError for an optimizer whose steps such a law says nothing about."""
    if about.width_scaling == "none":
        raise ConfigError(
            f"recipe {name!r} is a law for AdamW, and this optimizer is not of its kind: write "
            f'[optimizer] name = "adamw", or choose recipe "width-scaled" or "constant"'
        )


def besides_vocabulary(value: float, name: str) -> float:
    """N or C without embeddings and head. Raises ConfigError where nothing else is there to scale a law by."""
    if value <= 0:
        raise ConfigError(
            f"recipe {name!r} counts what is neither embedding nor output head, and this model has nothing else: "
            f'choose recipe "width-scaled" or "constant"'
        )
    return value


def in_samples(tokens: float, about: RecipeInput) -> int:
    """A batch of this many tokens, in whole samples, at least one."""
    return max(1, round(tokens / about.task.tokens_per_sample))


def with_decay(options: DecayOptions, about: RecipeInput, *, lr: float, batch_tokens: float) -> Hyperparameters:
    """A law's learning rate and batch, completed. One learning rate for all parameters.

    For an Adam-like optimizer of other step sizes, the learning rate is the one that corresponds to AdamW's, and
    the weight decay what keeps their product.
    """
    return Hyperparameters(
        lr=lr * about.lr_relative_to_adamw,
        batch_size=in_samples(batch_tokens, about),
        weight_decay=options.weight_decay / about.lr_relative_to_adamw,
        betas=options.betas,
        warmup_tokens=warmup_tokens(options, about),
    )
