"""``muon``: orthogonalized momentum for hidden matrices, AdamW for all other parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from flops_fit_core import ConfigError
from flops_fit_core.plugins import Options, ParameterGroup, RunInfo
from flops_fit_optim.options import Decay, Momentum, Rate
from flops_fit_optim.placement import fused

if TYPE_CHECKING:
    from torch import nn, optim


class MuonOptions(Options):
    """Muon (Jordan et al. 2024) for the matrices between a model's first and last layer; AdamW for embeddings, the
    output head, gains, biases, convolution kernels and experts that are stacked in three dimensions."""

    lr: Rate = 0.001
    """Peak learning rate. With ``match_rms_adamw`` it is that of AdamW, for all parameters, at the recipe's base
    width. The recipe ``width-scaled`` then sets 0.008 for families with a width."""
    adam_ratio: Rate = 1.0
    """Learning rate of AdamW's parameters, divided by ``lr``."""
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Size of a step for a matrix with A rows and B columns. ``match_rms_adamw``: entries with a root mean square
    of 0.2 ``lr``, like AdamW's (Liu et al. 2025, "Muon is scalable for LLM training"), and ``lr`` scales with
    ``sqrt(base_width / width)``. ``original``: singular values of ``lr * sqrt(max(1, A / B))`` at every width. It
    needs a different ``lr`` (0.02 in Jordan et al. 2024) and ``adam_ratio``: set both."""
    momentum: Momentum = 0.95
    """Momentum of Muon."""
    nesterov: bool = True
    """Whether Muon uses Nesterov momentum."""
    ns_steps: PositiveInt = 5
    """Newton-Schulz iterations that orthogonalize the momentum."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Betas of AdamW. The recipe ``width-scaled`` sets 0.9 and 0.95."""
    eps: Rate = 1e-8
    """Epsilon of AdamW."""
    weight_decay: Decay = 0.0
    """Decoupled weight decay of matrices: a step shrinks them by their ``lr * weight_decay`` at every width."""
    hidden: Literal["family", "linear"] = "family"
    """Matrices that count as hidden. ``family``: as the model's family declares. ``linear``: the weights of its
    ``nn.Linear`` layers, except the last layer and layers with one output per row of an embedding."""


def build_muon(options: MuonOptions, model: nn.Module, run: RunInfo) -> optim.Optimizer:
    """Build Muon and AdamW as one optimizer. Raises ConfigError if the hidden matrices are unknown."""
    from flops_fit_optim.muon_and_adamw import MuonAndAdamW

    hidden, rest = split(run.groups(model), _hidden_ids(options, model, run))
    lr, decay = options.lr, options.weight_decay
    adamw_lr, adamw_decay = options.adam_ratio * lr, decay / options.adam_ratio
    return MuonAndAdamW(
        [group.torch_group(lr, decay, lr_scale=width_scale(options, run, group)) for group in hidden],
        [group.torch_group(adamw_lr, adamw_decay, lr_scale=run.lr_scale(group)) for group in rest],
        muon={
            "adjust_lr_fn": options.adjust_lr_fn,
            "momentum": options.momentum,
            "nesterov": options.nesterov,
            "ns_steps": options.ns_steps,
        },
        adamw={"betas": options.betas, "eps": options.eps, "fused": fused(model)},
    )


def width_scale(options: MuonOptions, run: RunInfo, group: ParameterGroup) -> float:
    """Factor of a hidden matrix's learning rate. It keeps the spectral norm of a step the same at every width, as
    feature learning requires (Yang, Simon & Bernstein 2023, "A spectral condition for feature learning").

    The norm of an orthogonalized step (``original``) does not depend on the width. With a fixed root mean square
    of the entries, it grows with the square root of the width.
    """
    return math.sqrt(run.lr_scale(group)) if options.adjust_lr_fn == "match_rms_adamw" else 1.0


def split(groups: Sequence[ParameterGroup], hidden: set[int]) -> tuple[list[ParameterGroup], list[ParameterGroup]]:
    """Groups of the hidden parameters and groups of all others. ``hidden`` has the ids of parameters."""
    parts: tuple[list[ParameterGroup], list[ParameterGroup]] = ([], [])
    for group in groups:
        for part, is_hidden in zip(parts, (True, False), strict=True):
            if members := [param for param in group.parameters if (id(param) in hidden) == is_hidden]:
                part.append(replace(group, parameters=members))
    return parts


def _hidden_ids(options: MuonOptions, model: nn.Module, run: RunInfo) -> set[int]:
    groups = run.groups(model)
    if options.hidden == "linear":
        hidden = linear_weights(model)
    elif all(group.hidden is None for group in groups):
        raise ConfigError(
            "optimizer 'muon' needs the hidden matrices, and this model's family does not declare them: write "
            'optimizer.hidden = "linear" for the weights of its nn.Linear layers except the output head, or set '
            "ParameterGroup.hidden in the family's parameter_groups"
        )
    else:
        # Kernels of convolutions and stacked experts have more axes, but torch's Muon accepts matrices only.
        hidden = {id(param) for group in groups if group.hidden for param in group.parameters if param.ndim == 2}
    if not hidden:
        raise ConfigError(
            "optimizer 'muon' is for hidden matrices, and this model has none: choose a deeper model, or "
            'optimizer "adamw"'
        )
    return hidden


def linear_weights(model: nn.Module) -> set[int]:
    """Ids of the weights of ``nn.Linear`` layers, without probable output heads and embeddings."""
    from torch import nn

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    rows = {table.num_embeddings for table in tables}
    shared = {id(table.weight) for table in tables} | {id(layer.weight) for layer in layers[-1:]}
    return {id(layer.weight) for layer in layers if layer.out_features not in rows} - shared
