"""``power-lines``: batch from D, weight decay from D / N (Bergsma et al. 2025)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from flops_fit_core import ConfigError, Hyperparameters
from flops_fit_core.plugins import RecipeInput
from flops_fit_recipes.published import AdamOptions, Positive, in_samples, require_adam
from flops_fit_recipes.warmup import warmup_tokens
from flops_fit_recipes.width_scaled import LR


class PowerLinesOptions(AdamOptions):
    """Power Lines (Bergsma et al. 2025): a batch of ``0.0306 D^0.383`` sequences of 2,048 tokens, and the weight
    decay at which AdamW's timescale ``B / (lr wd D)`` is ``1.084 (D / N)^-0.527``; learning rates scaled by width.

    Fitted to models of 111 million to 3.3 billion parameters. N is that of the plan.
    """

    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate, for which there is no law. Unset: 0.008 for a family with a width."""
    base_width: PositiveInt = 64
    """Width at which matrices have the learning rate ``lr``, as in ``width-scaled``."""
    batch_scale: Positive = 0.0306
    """Factor of the batch, in sequences."""
    batch_tokens: float = 0.383
    """Exponent of D in the batch."""
    sequence: PositiveInt = 2048
    """Tokens per sequence in the law."""
    timescale_scale: Positive = 1.084
    """Factor of the timescale, as a share of the run."""
    timescale_ratio: float = -0.527
    """Exponent of D / N in the timescale."""


def power_lines_recipe(options: PowerLinesOptions, run: RecipeInput) -> Hyperparameters:
    """Bergsma et al. 2025, "Power Lines": the batch B law, and ``wd = B / (timescale lr D)``, B and D in tokens.

    A learning rate and a batch size that the user has fixed enter the formula. With learning rates scaled by
    width, ``wd`` is computed from the unscaled learning rate; AdamW keeps ``lr wd`` of a matrix at every width.

    Raises ConfigError for an optimizer that is not Adam-like, or without a learning rate.
    """
    require_adam("power-lines", run)
    lr = run.lr or options.lr or (LR * run.lr_relative_to_adamw if run.width is not None else None)
    if lr is None:
        raise ConfigError(
            "recipe 'power-lines' computes the weight decay from the learning rate, and has no default for a "
            "family without a width: write optimizer.lr or recipe.lr"
        )
    batch_tokens = options.batch_scale * options.sequence * run.tokens**options.batch_tokens
    samples = run.batch_size or in_samples(batch_tokens, run)
    timescale = options.timescale_scale * (run.tokens / run.params) ** options.timescale_ratio
    return Hyperparameters(
        lr=lr,
        batch_size=samples,
        weight_decay=samples * run.task.tokens_per_sample / (timescale * lr * run.tokens),
        betas=options.betas,
        warmup_tokens=warmup_tokens(options, run),
        base_width=options.base_width if run.width is not None else None,
    )
