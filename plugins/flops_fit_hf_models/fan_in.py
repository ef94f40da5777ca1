"""Initial weights by fan-in, so that one learning rate is good for every width (muP).

Yang et al. 2022, Tensor Programs V, table 3: the recipe scales the learning rates, this module the weights. The
family ``gpt`` uses the same scheme.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

TIED_SCALE = 4.0
"""The input of a tied head is multiplied by this, divided by the width, as in the family ``gpt``."""
POSITIONS = 0.1
"""Standard deviation of learned positions and other tables except that of the tokens, as in the family ``gpt``."""
OWN_FAN_IN = {"mamba": ("dt_proj", "out_proj"), "mamba2": ("out_proj",)}
"""Matrices that an architecture already draws by fan-in. They are not scaled."""


def scale_by_fan_in(lm: Any, kinds: dict[int, str]) -> None:
    """Scale the weights that the architecture has drawn, in place.

    A standard deviation of ``initializer_range`` becomes ``1/sqrt(fan_in)`` in hidden matrices, ``1/fan_in`` in
    an untied head and in routers, 1 in the table of tokens and 0.1 in other tables. A matrix that the architecture
    draws smaller by a factor, such as GPT-2's projections to the residual stream, keeps this factor. Zeros, gains,
    biases, convolutions and ``OWN_FAN_IN`` are not changed. A tied head's input is multiplied by ``4 / width``.

    Args:
        lm: A causal language model of transformers. All its matrices and tables were drawn with the same standard
            deviation.
        kinds: Id of a multiplied parameter -> ``hidden`` or ``head``.
    """
    initial_std = initializer_range(lm.config)
    width = int(lm.config.hidden_size)
    tokens = lm.get_input_embeddings().weight
    unscaled = OWN_FAN_IN.get(lm.config.model_type, ())
    with torch.no_grad():
        for path, module in lm.named_modules():
            for name, param in module.named_parameters(recurse=False):
                if isinstance(module, nn.Embedding):
                    param.mul_((1.0 if param is tokens else POSITIONS) / initial_std)
                elif id(param) in kinds and not path.endswith(unscaled):
                    inputs = fan_in(module, name, param, width)
                    param.mul_(1 / (initial_std * (inputs if kinds[id(param)] == "head" else math.sqrt(inputs))))
    head = lm.get_output_embeddings()
    if head is not None and id(head.weight) not in kinds:
        head.register_forward_pre_hook(partial(_multiply_input, scale=TIED_SCALE / width))


def initializer_range(config: Any) -> float:
    """The standard deviation with which transformers draws the matrices and tables of this configuration."""
    return float(getattr(config, "initializer_range", None) or getattr(config, "init_std", None) or 0.02)


def fan_in(module: nn.Module, name: str, param: Tensor, width: int) -> int:
    """Input channels of a matrix. Matrices of experts are stacked in three dimensions, and some architectures
    transpose them."""
    if param.ndim == 2:
        return param.shape[0] if isinstance(module, Conv1D) else param.shape[1]
    if not name.startswith("down"):
        return width
    rows, columns = param.shape[1:]
    return rows if columns == width else columns


def _multiply_input(module: nn.Module, inputs: tuple[Tensor, ...], *, scale: float) -> tuple[Tensor, ...]:
    return (inputs[0] * scale, *inputs[1:])
