"""FLOPs counter ``hoffmann``: the formula of Hoffmann et al. 2022, appendix F."""

from __future__ import annotations

from typing import Literal

from flops_fit_core import ConfigError
from flops_fit_core.plugins import CounterInput, FlopCount, TransformerShape
from flops_fit_counters.size import CounterOptions, params


class HoffmannOptions(CounterOptions):
    """The formula of Hoffmann et al. 2022, appendix F, for families that describe their shape (`gpt`): every
    matrix product, attention over the full context, softmax, and the embedding as if it were a product too."""

    vocabulary: Literal["both", "head", "none"] = "both"
    """Which products with the vocabulary count. ``both``: the lookup of the input embedding as if it were one, and
    the output head, as in the appendix. ``none`` is how the appendix's own table A4 comes out."""


LEFT_OUT: dict[str, tuple[str, ...]] = {"both": (), "head": ("embedding",), "none": ("embedding", "logits")}


def count_hoffmann(options: HoffmannOptions, measured: CounterInput) -> FlopCount:
    """Training FLOPs a token by the formula. Raises ConfigError for a family that does not describe its shape."""
    shape = measured.shape
    if shape is None:
        raise ConfigError(
            f"model {measured.family!r} does not describe its shape (ModelSpec.shape), which the formula needs: "
            f'write counter = "traced" (what torch counts) or "chinchilla" (6 N D)'
        )
    left_out = LEFT_OUT[options.vocabulary]
    found = {name: flops for name, flops in terms(shape).items() if name not in left_out}
    name = "Hoffmann et al. 2022, appendix F" + (f", without {' and '.join(left_out)}" if left_out else "")
    n, params_name = params(options, measured)
    return FlopCount(sum(found.values()), n, name, params_name, found)


def terms(shape: TransformerShape) -> dict[str, float]:
    """Training FLOPs a token of each term of the formula, which is of the forward pass of a sequence; the backward
    pass takes twice as much.

    Queries that share keys and values, and a gate in the feed-forward part, are not in the paper: their matrices
    count like the others.
    """
    d, s = shape.width, shape.context
    attended = shape.heads * shape.key_size
    shared = attended if shape.kv_heads is None else shape.kv_heads * shape.key_size
    block = {
        "query, key, value": 2 * d * (attended + 2 * shared),
        "scores": 2 * s * attended,
        "softmax": 3 * s * shape.heads,
        "reduction": 2 * s * attended,
        "output": 2 * attended * d,
        "feed-forward": 2 * (3 if shape.gated else 2) * d * shape.hidden,
    }
    vocabulary = 2 * shape.vocabulary * d
    forward = {
        "embedding": vocabulary,
        **{name: shape.depth * flops for name, flops in block.items()},
        "logits": vocabulary,
    }
    return {name: 3.0 * flops for name, flops in forward.items() if flops}
