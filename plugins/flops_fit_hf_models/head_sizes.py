"""Attention heads of a size, and ladders of sizes with equal heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flops_fit_core.data import LanguageTask
from flops_fit_core.plugins import Ladder, head_ladders
from flops_fit_hf_models import HFOptions, LadderOptions
from flops_fit_hf_models.configuration import Architecture, architecture, make_config, queries_per_kv

STEP = 16
"""Step of the size for fields and architectures without heads."""


def ladders_of(options: HFOptions) -> list[Ladder]:
    """Ladders for the field that scales, the preferred ladder first. Raises ConfigError."""
    arch = architecture(options.architecture)
    field = arch.field_name(options.field)
    if field != arch.field_name("hidden_size"):
        return [Ladder(multiple_of=1 if "layer" in field else STEP)]
    fixed = arch.rename_fields(options.config)
    if not arch.has("num_attention_heads"):
        return _state_space_ladders(options, arch, fixed)
    if (number := fixed.get(arch.field_name("num_attention_heads"))) is not None:
        # Pairs of channels, for rotary positions.
        return [Ladder(multiple_of=2 * number)]
    if "head_dim" in fixed:
        return [Ladder(multiple_of=fixed["head_dim"])]
    ladders = head_ladders(options, smallest=8)
    group_size = (options.queries_per_kv or queries_per_kv(arch)) if arch.has("num_key_value_heads") else 1
    if group_size == 1:
        return ladders
    # With complete query groups, the number of queries per head of keys and values is the same at every size.
    grouped = [replace(ladder, multiple_of=group_size * ladder.multiple_of) for ladder in ladders]
    return [*grouped, *ladders]


def _state_space_ladders(options: HFOptions, arch: Architecture, fixed: dict[str, Any]) -> list[Ladder]:
    """Mamba2 has heads with ``expand * width`` channels in total. Other state-space models have no heads."""
    if not {"num_heads", "head_dim", "expand"} <= arch.fields or "num_heads" in fixed or "head_dim" in fixed:
        return [Ladder(multiple_of=STEP)]
    expand = fixed.get("expand", arch.default("expand"))
    ladders = head_ladders(options, smallest=8)
    if not isinstance(expand, int) or any(ladder.multiple_of % expand for ladder in ladders):
        return ladders
    return [replace(ladder, multiple_of=ladder.multiple_of // expand) for ladder in ladders]


def heads_of(options: HFOptions | LadderOptions) -> tuple[int, int] | None:
    """Heads per block and channels per head; None for a model without heads."""
    config = make_config(options, LanguageTask(vocab_size=8, context=8), strict=False)
    number = getattr(config, "num_attention_heads", None)
    channels = getattr(config, "head_dim", None)
    if not isinstance(number, int):
        number = getattr(config, "num_heads", None)
        return (number, channels) if isinstance(number, int) and isinstance(channels, int) else None
    return number, channels if isinstance(channels, int) else config.hidden_size // number
