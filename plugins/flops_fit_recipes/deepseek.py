"""``deepseek``: learning rate and batch from C (Bi et al. 2024)."""

from __future__ import annotations

from flops_fit_core import Hyperparameters
from flops_fit_core.plugins import RecipeInput
from flops_fit_recipes.published import DecayOptions, Positive, besides_vocabulary, for_adam, with_decay


class DeepSeekOptions(DecayOptions):
    """DeepSeek LLM (Bi et al. 2024, section 3.1): ``lr = 0.3118 C^-0.1250``, a batch of ``0.2920 C^0.3271``
    tokens, where C = M D and M are the training FLOPs a token without those of the vocabulary.

    Fitted at 1e17 to 2e19 FLOPs, with AdamW and a learning rate that falls in steps.
    """

    lr_scale: Positive = 0.3118
    """Factor of the learning rate."""
    lr_flops: float = -0.1250
    """Exponent of C in the learning rate."""
    batch_scale: Positive = 0.2920
    """Factor of the batch, in tokens."""
    batch_flops: float = 0.3271
    """Exponent of C in the batch."""


def deepseek_recipe(options: DeepSeekOptions, about: RecipeInput) -> Hyperparameters:
    """Bi et al. 2024, equation 1, with C as :func:`non_embedding_flops` gives it.

    Raises ConfigError for an optimizer that is not Adam-like.
    """
    for_adam("deepseek", about)
    c = besides_vocabulary(non_embedding_flops(about), "deepseek")
    return with_decay(
        options,
        about,
        lr=options.lr_scale * c**options.lr_flops,
        batch_tokens=options.batch_scale * c**options.batch_flops,
    )


def non_embedding_flops(about: RecipeInput) -> float:
    """Their C = M D, where M = 72 L d^2 + 12 L d s: every matrix of the blocks and the attention, no vocabulary.

    It is the run's FLOPs as the plan counts them, less 6 a parameter of the output head and token: exactly M D
    with a counter that counts the attention (``model``). A counter that leaves the attention or the head out gives
    less, and then it is 6 N D with N without embeddings and head.
    """
    counts = about.parameters
    head = 6.0 * counts.unembedding * about.tokens
    without_attention = 6.0 * (counts.active - counts.lookup_table - counts.unembedding) * about.tokens
    return max(about.flops - head, without_attention)
