"""The module of the model family ``surface``. Imported by ``build`` only, so that discovery imports no torch."""

from __future__ import annotations

import torch
from torch import nn

from flops_fit_core import ConfigError


class Flat(nn.Module):
    """One parameter of ``params`` elements, which on the meta device takes no memory."""

    def __init__(self, params: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(params))

    def forward(self, *inputs: object) -> None:
        """Raises ConfigError: there is nothing to compute."""
        raise ConfigError(
            "model 'surface' is a number of parameters and computes nothing: use it with dataset "
            "'surface', or choose a family that can be trained, such as 'gpt'"
        )
