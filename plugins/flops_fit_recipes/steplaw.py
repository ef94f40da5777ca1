"""``steplaw``: learning rate from N and D, batch from D (Li et al. 2025)."""

from __future__ import annotations

from flops_fit_core import Hyperparameters
from flops_fit_core.plugins import RecipeInput
from flops_fit_recipes.published import DecayOptions, Positive, require_adam, require_positive, with_decay


class StepLawOptions(DecayOptions):
    """Step Law (Li et al. 2025, "Predictable Scale: Part I"): ``lr = 1.79 N^-0.713 D^0.307``, a batch of
    ``0.58 D^0.571`` tokens, where N is without embeddings and output head.

    Fitted to language models of at least 60 million parameters, trained with AdamW on a cosine schedule. For far
    smaller models the law extrapolates (0.2 for 10,000 parameters and a million tokens): use ``flops-fit tune``.
    """

    lr_scale: Positive = 1.79
    """Factor of the learning rate."""
    lr_params: float = -0.713
    """Exponent of N in the learning rate."""
    lr_tokens: float = 0.307
    """Exponent of D in the learning rate."""
    batch_scale: Positive = 0.58
    """Factor of the batch, in tokens."""
    batch_tokens: float = 0.571
    """Exponent of D in the batch."""


def steplaw_recipe(options: StepLawOptions, run: RecipeInput) -> Hyperparameters:
    """Li et al. 2025, equation 1. N: ``non_embedding``; D in tokens; the batch in tokens.

    Raises ConfigError for an optimizer that is not Adam-like.
    """
    require_adam("steplaw", run)
    n, d = require_positive(run.parameters.non_embedding, "steplaw"), run.tokens
    return with_decay(
        options,
        run,
        lr=options.lr_scale * n**options.lr_params * d**options.lr_tokens,
        batch_tokens=options.batch_scale * d**options.batch_tokens,
    )
