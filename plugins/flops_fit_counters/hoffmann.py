"""FLOPs counter ``hoffmann``: the formula of Hoffmann et al. 2022, appendix F."""

from __future__ import annotations

from typing import Literal

from flops_fit_core import ConfigError
from flops_fit_core.plugins import CounterInput, FlopCount, TransformerShape
from flops_fit_counters.size import CounterOptions, params


class HoffmannOptions(CounterOptions):
    """The formula of Hoffmann et al. 2022, appendix F, for families with a ``shape`` (`gpt`): every matrix
    product, attention over the full context, softmax, and the embedding lookup as if it were a product."""

    vocabulary: Literal["both", "head", "none"] = "both"
    """Products with the vocabulary that count. ``both``: the lookup of the input embedding as if it were a
    product, and the output head, as in the appendix. ``none`` reproduces table A4 of the appendix."""


LEFT_OUT: dict[str, tuple[str, ...]] = {"both": (), "head": ("embedding",), "none": ("embedding", "logits")}


def count_hoffmann(options: HoffmannOptions, model: CounterInput) -> FlopCount:
    """Training FLOPs per token by the formula. Raises ConfigError for a family without ``shape``."""
    shape = model.shape
    if shape is None:
        raise ConfigError(
            f"model {model.family!r} does not describe its shape (ModelSpec.shape), which the formula needs: "
            f'write counter = "traced" (what torch counts) or "chinchilla" (6 N D)'
        )
    left_out = LEFT_OUT[options.vocabulary]
    counted = {name: flops for name, flops in terms(shape).items() if name not in left_out}
    name = "Hoffmann et al. 2022, appendix F" + (f", without {' and '.join(left_out)}" if left_out else "")
    n, params_name = params(options, model)
    return FlopCount(sum(counted.values()), n, name, params_name, counted)


def terms(shape: TransformerShape) -> dict[str, float]:
    """Training FLOPs per token of each term of the formula. The backward pass takes twice the FLOPs of the forward
    pass.

    Shared keys and values, and gates in the feed-forward part, are not in the paper. Their matrices count like all
    other matrices.
    """
    d, s = shape.width, shape.context
    query_size = shape.heads * shape.key_size
    kv_size = query_size if shape.kv_heads is None else shape.kv_heads * shape.key_size
    block = {
        "query, key, value": 2 * d * (query_size + 2 * kv_size),
        "scores": 2 * s * query_size,
        "softmax": 3 * s * shape.heads,
        "reduction": 2 * s * query_size,
        "output": 2 * query_size * d,
        "feed-forward": 2 * (3 if shape.gated else 2) * d * shape.hidden,
    }
    vocabulary = 2 * shape.vocabulary * d
    forward = {
        "embedding": vocabulary,
        **{name: shape.depth * flops for name, flops in block.items()},
        "logits": vocabulary,
    }
    return {name: 3.0 * flops for name, flops in forward.items() if flops}
