"""A model family with only a number of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveInt

from flops_fit_core.plugins import Options, Task

if TYPE_CHECKING:
    from torch import nn


class FlatOptions(Options):
    """``params`` equals N, so that a sweep can have any sizes."""

    params: PositiveInt = 1_000_000
    """N. This is what scales."""


def build_flat(options: FlatOptions, task: Task) -> nn.Module:
    """A module with a single parameter of ``options.params`` elements."""
    from flops_fit_surface.flat import Flat

    return Flat(options.params)
