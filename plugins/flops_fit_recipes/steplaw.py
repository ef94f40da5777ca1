"""``steplaw``: learning rate from N and D, batch from D (Li et al. 2025)."""

from __future__ import annotations

from flops_fit_core import Hyperparameters
from flops_fit_core.plugins import RecipeInput
from flops_fit_recipes.published import DecayOptions, Positive, besides_vocabulary, for_adam, with_decay


class StepLawOptions(DecayOptions):
    """Step Law (Li et al. 2025, "Predictable Scale: Part I"): ``lr = 1.79 N^-0.713 D^0.307``, a batch of
    ``0.58 D^0.571`` tokens, where N is without embeddings and output head.

    Fitted to language models of 60 million parameters and more, trained with AdamW on a cosine schedule. Far below
    that it is an extrapolation (0.2 for ten thousand parameters and a million tokens): ``flops-fit tune`` first.
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


def steplaw_recipe(options: StepLawOptions, about: RecipeInput) -> Hyperparameters:
    """Li et al. 2025, equation 1. N: ``non_embedding``; D in tokens; the batch in tokens.

    Raises ConfigError for an optimizer that is not Adam-like.
    """
    for_adam("steplaw", about)
    n, d = besides_vocabulary(about.parameters.non_embedding, "steplaw"), about.tokens
    return with_decay(
        options,
        about,
        lr=options.lr_scale * n**options.lr_params * d**options.lr_tokens,
        batch_tokens=options.batch_scale * d**options.batch_tokens,
    )
