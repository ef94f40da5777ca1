"""Attention heads of a size, and sizes whose heads are alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flops_fit_core.data import LanguageTask
from flops_fit_core.plugins import Ladder, head_ladders
from flops_fit_hf_models import HFOptions, LadderOptions
from flops_fit_hf_models.configuration import Architecture, architecture, made, queries_per_kv

STEP = 16
"""Of fields and architectures without heads."""


def ladders_of(options: HFOptions) -> list[Ladder]:
    """Ways to choose values of the field that scales, the preferred one first. Raises ConfigError."""
    known = architecture(options.architecture)
    if known.own(options.field) != known.own("hidden_size"):
        return [Ladder(multiple_of=1 if "layer" in known.own(options.field) else STEP)]
    fixed = known.named(options.config)
    if not known.has("num_attention_heads"):
        return _state_space_ladders(options, known, fixed)
    if (number := fixed.get(known.own("num_attention_heads"))) is not None:
        # Channels in pairs, for rotary positions.
        return [Ladder(multiple_of=2 * number)]
    if "head_dim" in fixed:
        return [Ladder(multiple_of=fixed["head_dim"])]
    ladders = head_ladders(options, smallest=8)
    shared = (options.queries_per_kv or queries_per_kv(known)) if known.has("num_key_value_heads") else 1
    if shared == 1:
        return ladders
    # Queries that share a head of keys and values come in whole groups, so that their number is the same as well.
    grouped = [replace(ladder, multiple_of=shared * ladder.multiple_of) for ladder in ladders]
    return [*grouped, *ladders]


def _state_space_ladders(options: HFOptions, known: Architecture, fixed: dict[str, Any]) -> list[Ladder]:
    """Mamba2 has ``expand * width`` channels in heads; other models have none."""
    if not {"num_heads", "head_dim", "expand"} <= known.known or "num_heads" in fixed or "head_dim" in fixed:
        return [Ladder(multiple_of=STEP)]
    expand = fixed.get("expand", known.default("expand"))
    ladders = head_ladders(options, smallest=8)
    if not isinstance(expand, int) or any(ladder.multiple_of % expand for ladder in ladders):
        return ladders
    return [replace(ladder, multiple_of=ladder.multiple_of // expand) for ladder in ladders]


def heads_of(options: HFOptions | LadderOptions) -> tuple[int, int] | None:
    """Heads of a block, and channels of each; None for a model without them."""
    config = made(options, LanguageTask(vocab_size=8, context=8), strict=False)
    number = getattr(config, "num_attention_heads", None)
    channels = getattr(config, "head_dim", None)
    if not isinstance(number, int):
        number = getattr(config, "num_heads", None)
        return (number, channels) if isinstance(number, int) and isinstance(channels, int) else None
    return number, channels if isinstance(channels, int) else config.hidden_size // number
