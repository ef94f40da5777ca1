"""How long the learning rate rises."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flops_fit_core.plugins import Options, RecipeInput


class WarmupOptions(Options):
    """A share of D."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of D over which the learning rate rises."""
    trunk_warmup: Annotated[float, Field(ge=0, lt=1)] | None = None
    """The same where runs of many D share a trunk: short, since for the shortest it is a far larger share.
    Unset, a fifth of ``warmup``."""


def warmup_tokens(options: WarmupOptions, about: RecipeInput) -> int:
    """Over which the learning rate rises."""
    share = options.warmup
    if about.trunk:
        share = options.warmup / 5 if options.trunk_warmup is None else options.trunk_warmup
    return round(share * about.tokens)
