"""A model family that is nothing but a number of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveInt

from flops_fit_core import ConfigError
from flops_fit_core.plugins import Options, Task

if TYPE_CHECKING:
    from torch import nn


class FlatOptions(Options):
    """``params`` is N itself, so that a sweep can have exactly the sizes that one wants."""

    params: PositiveInt = 1_000_000
    """N. This is what scales."""


def build_flat(options: FlatOptions, task: Task) -> nn.Module:
    """One flat parameter of ``options.params`` elements, which on the meta device takes no memory."""
    import torch
    from torch import nn

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(options.params))

        def forward(self, *inputs: object) -> None:
            raise ConfigError(
                "model 'surface' is a number of parameters and computes nothing: use it with dataset "
                "'surface', or choose a family that can be trained, such as 'gpt'"
            )

    return Flat()
