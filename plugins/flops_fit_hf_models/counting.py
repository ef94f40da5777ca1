"""FLOPs of decoder-only transformers, from their configurations."""

from __future__ import annotations

from typing import Any

from flops_fit_core.data import LanguageTask
from flops_fit_core.plugins import TransformerShape

GATED = frozenset(
    (
        *("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo", "olmo2"),
        *("phi3", "qwen2", "qwen3", "smollm3", "stablelm"),
    )
)
PLAIN = frozenset(("gpt2", "gpt_neox", "opt", "phi", "starcoder2"))
"""Architectures whose blocks are attention and a feed-forward part of three matrices, or of two. The tests compare
each with torch's count; others are left to the counter ``traced``."""


def shape_of(config: Any, task: LanguageTask) -> TransformerShape | None:
    """None for an architecture that is not known to have this shape."""
    if config.model_type not in GATED | PLAIN:
        return None
    width, heads = config.hidden_size, config.num_attention_heads
    sizes = (getattr(config, field, None) for field in ("intermediate_size", "ffn_dim", "n_inner"))
    return TransformerShape(
        vocabulary=task.vocab_size,
        context=task.context,
        width=width,
        depth=config.num_hidden_layers,
        heads=heads,
        key_size=getattr(config, "head_dim", None) or width // heads,
        hidden=next((size for size in sizes if size), 4 * width),
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        kv_heads=getattr(config, "num_key_value_heads", None),
        gated=config.model_type in GATED,
    )


def flops_of(it: TransformerShape) -> float:
    """Training FLOPs a token: every matrix product and the attention over the full context, 3 x forward.

    With width d, h heads of k channels, g heads of keys and values, f hidden units, m matrices of a feed-forward
    part (3 where it is gated, otherwise 2), depth L, context s, vocabulary V:
    ``3 (L (4 d k (h + g) + 2 m d f + 4 s h k) + 2 d V)``. A multiply-add is two FLOPs; backward is twice forward;
    softmax, norms, activations, rotary positions and the lookup are not counted; neither causal masking nor a
    sliding window is exploited.
    """
    keys = it.heads if it.kv_heads is None else it.kv_heads
    attention = 4 * it.width * it.key_size * (it.heads + keys) + 4 * it.context * it.heads * it.key_size
    feed_forward = 2 * (3 if it.gated else 2) * it.width * it.hidden
    return 3.0 * (it.depth * (attention + feed_forward) + 2 * it.width * it.vocabulary)
