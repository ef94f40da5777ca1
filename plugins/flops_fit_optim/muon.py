"""``muon``: orthogonalized momentum for hidden matrices, AdamW for everything else."""

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
    """Peak learning rate. With ``match_rms_adamw`` it is AdamW's, for all parameters, at the recipe's base width;
    the default recipe says 0.008 for families that name their width."""
    adam_ratio: Rate = 1.0
    """Learning rate of what AdamW trains, over ``lr``."""
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """How large the step of a matrix of A rows and B columns is. ``match_rms_adamw``: entries of root mean square
    0.2 ``lr``, as AdamW's (Liu et al. 2025, "Muon is scalable for LLM training"), and ``lr`` goes with
    ``sqrt(base_width / width)``. ``original``: singular values of ``lr * sqrt(max(1, A / B))`` at every width, and
    an ``lr`` of its own (0.02 in Jordan et al. 2024): set it, and ``adam_ratio`` with it."""
    momentum: Momentum = 0.95
    """Of Muon."""
    nesterov: bool = True
    """Whether a step of Muon looks ahead along its momentum."""
    ns_steps: PositiveInt = 5
    """Newton-Schulz iterations that orthogonalize the momentum."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Of AdamW; the default recipe says 0.9 and 0.95."""
    eps: Rate = 1e-8
    """Of AdamW."""
    weight_decay: Decay = 0.0
    """Of matrices, decoupled: a step shrinks them by their ``lr * weight_decay``, at every width."""
    hidden: Literal["family", "linear"] = "family"
    """Which matrices are hidden: what the model's family says, or the weights of its ``nn.Linear`` layers but the
    last one and those with an output for every row of an embedding."""


def build_muon(options: MuonOptions, model: nn.Module, run: RunInfo) -> optim.Optimizer:
    """One optimizer of both. Raises ConfigError where nothing says which matrices are hidden."""
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
    """What keeps the spectral norm of a hidden matrix's step the same at every width, which is what features need
    (Yang, Simon & Bernstein 2023, "A spectral condition for feature learning").

    An orthogonalized step has it at ``original``. Entries of one root mean square give a norm that grows with the
    root of the width.
    """
    return math.sqrt(run.lr_scale(group)) if options.adjust_lr_fn == "match_rms_adamw" else 1.0


def split(groups: Sequence[ParameterGroup], hidden: set[int]) -> tuple[list[ParameterGroup], list[ParameterGroup]]:
    """Groups of what is hidden and of the rest; ``hidden`` has the ids of parameters."""
    parts: tuple[list[ParameterGroup], list[ParameterGroup]] = ([], [])
    for group in groups:
        for part, wanted in zip(parts, (True, False), strict=True):
            if chosen := [it for it in group.parameters if (id(it) in hidden) == wanted]:
                part.append(replace(group, parameters=chosen))
    return parts


def _hidden_ids(options: MuonOptions, model: nn.Module, run: RunInfo) -> set[int]:
    groups = run.groups(model)
    if options.hidden == "linear":
        found = linear_weights(model)
    elif all(group.hidden is None for group in groups):
        raise ConfigError(
            "optimizer 'muon' has to know which matrices are hidden, and this model's family does not say: write "
            'optimizer.hidden = "linear" for the weights of its nn.Linear layers but the output head, or set '
            "ParameterGroup.hidden in the family's parameter_groups"
        )
    else:
        # Kernels of convolutions and stacked experts have more axes, and torch's Muon takes matrices.
        found = {id(it) for group in groups if group.hidden for it in group.parameters if it.ndim == 2}
    if not found:
        raise ConfigError(
            "optimizer 'muon' is for hidden matrices, and this model has none: choose a deeper one, or optimizer "
            '"adamw"'
        )
    return found


def linear_weights(model: nn.Module) -> set[int]:
    """Ids of the weights of ``nn.Linear`` layers, without what looks like an output head or is an embedding."""
    from torch import nn

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    rows = {table.num_embeddings for table in tables}
    shared = {id(table.weight) for table in tables} | {id(layer.weight) for layer in layers[-1:]}
    return {id(layer.weight) for layer in layers if layer.out_features not in rows} - shared
