"""``deepseek``: learning rate and batch from C (Bi et al. 2024)."""

from __future__ import annotations

from flops_fit_core import Hyperparameters
from flops_fit_core.plugins import RecipeInput
from flops_fit_recipes.published import DecayOptions, Positive, require_adam, require_positive, with_decay


class DeepSeekOptions(DecayOptions):
    """DeepSeek LLM (Bi et al. 2024, section 3.1): ``lr = 0.3118 C^-0.1250``, a batch of ``0.2920 C^0.3271``
    tokens, where C = M D and M is the training FLOPs per token without those of the vocabulary.

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


def deepseek_recipe(options: DeepSeekOptions, run: RecipeInput) -> Hyperparameters:
    """Bi et al. 2024, equation 1, with C by :func:`non_embedding_flops`.

    Raises ConfigError for an optimizer that is not Adam-like.
    """
    require_adam("deepseek", run)
    c = require_positive(non_embedding_flops(run), "deepseek")
    return with_decay(
        options,
        run,
        lr=options.lr_scale * c**options.lr_flops,
        batch_tokens=options.batch_scale * c**options.batch_flops,
    )


def non_embedding_flops(run: RecipeInput) -> float:
    """C = M D of Bi et al. 2024, where M = 72 L d^2 + 12 L d s: all matrices of the blocks and the attention,
    without the vocabulary.

    Returns the run's FLOPs by the plan's counter, minus 6 per parameter of the output head and token. This equals
    M D with a counter that includes the attention (``model``). With a counter that leaves out the attention or the
    head, returns at least 6 N D with N without embeddings and head.
    """
    counts = run.parameters
    head = 6.0 * counts.unembedding * run.tokens
    without_attention = 6.0 * (counts.active - counts.lookup_table - counts.unembedding) * run.tokens
    return max(run.flops - head, without_attention)
