"""The module of the model family ``surface``. Imported by ``build`` only, so that discovery imports no torch."""

from __future__ import annotations

import torch
from torch import nn

from flops_fit_core import ConfigError


class Flat(nn.Module):
    """A parameter of ``params`` elements, which takes no memory on the meta device."""

    def __init__(self, params: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(params))

    def forward(self, *inputs: object) -> None:
        """Raise ConfigError, because the model cannot compute outputs."""
        raise ConfigError(
            "model 'surface' has only a number of parameters and cannot be trained: use it with dataset "
            "'surface', or choose a family that can be trained, such as 'gpt'"
        )
