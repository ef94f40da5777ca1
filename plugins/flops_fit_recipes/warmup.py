"""The length of the warmup."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flops_fit_core.plugins import Options, RecipeInput


class WarmupOptions(Options):
    """Length of the warmup as a share of D."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of D over which the learning rate rises."""
    trunk_warmup: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of D for runs with a shared stable phase. The warmup must be short, because it is a far larger share
    of the shortest run. Unset: a fifth of ``warmup``."""


def warmup_tokens(options: WarmupOptions, run: RecipeInput) -> int:
    """Tokens over which the learning rate rises."""
    share = options.warmup
    if run.trunk:
        share = options.warmup / 5 if options.trunk_warmup is None else options.trunk_warmup
    return round(share * run.tokens)
