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
"""Architectures with blocks of attention and a feed-forward part: three matrices in ``GATED``, two in ``PLAIN``.
The tests compare each with torch's count. The counter ``traced`` counts all other architectures."""


def shape_of(config: Any, task: LanguageTask) -> TransformerShape | None:
    """The transformer's dimensions; None for an architecture that is not in ``GATED`` or ``PLAIN``."""
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


def flops_of(shape: TransformerShape) -> float:
    """Training FLOPs per token: every matrix product and the attention over the full context, 3 x forward.

    With width d, h heads of k channels, g heads of keys and values, f hidden units, m matrices of a feed-forward
    part (3 if it is gated, otherwise 2), depth L, context s, vocabulary V:
    ``3 (L (4 d k (h + g) + 2 m d f + 4 s h k) + 2 d V)``. A multiply-add is two FLOPs. Backward is twice forward.
    Softmax, norms, activations, rotary positions and the lookup are not counted. Neither causal masking nor a
    sliding window is exploited.
    """
    kv_heads = shape.heads if shape.kv_heads is None else shape.kv_heads
    projections = 4 * shape.width * shape.key_size * (shape.heads + kv_heads)
    attention = projections + 4 * shape.context * shape.heads * shape.key_size
    feed_forward = 2 * (3 if shape.gated else 2) * shape.width * shape.hidden
    return 3.0 * (shape.depth * (attention + feed_forward) + 2 * shape.width * shape.vocabulary)
