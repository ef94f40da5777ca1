"""Models as optimizers and FLOPs counters see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flops_fit_core.plugins.protocols.data import Task
from flops_fit_core.records import ParameterCounts

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that an optimizer treats alike. Raises ValueError if ``active`` is not in (0, 1]."""

    parameters: Sequence[nn.Parameter]
    width: int | None = None
    """Number of channels that feed these matrices and grows with the model; None for embeddings, gains
    and biases. Adam-like optimizers use the learning rate ``lr * base_width / width`` (Yang et al. 2022,
    Tensor Programs V, table 3)."""
    decay: bool = True
    """Whether weight decay applies."""
    hidden: bool | None = None
    """Whether these are matrices between a model's first and last layer, which some optimizers (Muon) treat
    differently. False for embeddings, input layers, the output head, gains and biases. None in all groups: the
    family does not declare it."""
    active: float = 1.0
    """Share of the parameters that one token uses. For experts: experts per token, divided by all experts."""

    def __post_init__(self) -> None:
        if not 0 < self.active <= 1:
            raise ValueError(f"ParameterGroup: active must be above 0 and at most 1, not {self.active}")
        object.__setattr__(self, "parameters", list(self.parameters))  # module.parameters() can be read only once

    def torch_group(self, lr: float, weight_decay: float = 0.0, *, lr_scale: float = 1.0) -> dict[str, Any]:
        """The group as torch's optimizers accept it: ``params``, ``lr * lr_scale`` and ``weight_decay``.

        The weight decay is 0 unless ``decay`` is set. It is divided by ``lr_scale``, so that a step of decoupled
        weight decay shrinks a matrix by ``lr * weight_decay`` at every width (Wang & Aitchison 2024).
        """
        decay = weight_decay / lr_scale if self.decay else 0.0
        return {"params": list(self.parameters), "lr": lr * lr_scale, "weight_decay": decay}


def own_parameter_groups(module: nn.Module) -> Iterable[ParameterGroup]:
    """The groups that the module's method ``parameter_groups`` returns. A module without it has a single group."""
    method = getattr(module, "parameter_groups", None)
    if callable(method):
        groups: Iterable[ParameterGroup] = method()
        return groups
    return [ParameterGroup([parameter for parameter in module.parameters() if parameter.requires_grad])]


@dataclass(frozen=True)
class TransformerShape:
    """Dimensions of a decoder-only transformer, from which a formula counts its FLOPs."""

    vocabulary: int
    context: int
    """Tokens per sequence. Each token attends to all."""
    width: int
    """Channels of the residual stream."""
    depth: int
    """Blocks."""
    heads: int
    """Query heads per block; 0 for blocks without attention."""
    key_size: int
    """Channels per head."""
    hidden: int
    """Hidden units of a block's feed-forward part."""
    tied: bool = False
    """Whether the output head is the input embedding."""
    kv_heads: int | None = None
    """Key and value heads if queries share them; None: as many as ``heads``."""
    gated: bool = False
    """Whether the feed-forward part has a third matrix, the gate (Shazeer 2020)."""


@dataclass(frozen=True)
class CounterInput:
    """A model on the meta device (shapes, no memory), as input of a FLOPs counter.

    The module was built for counting. A counter may run it and must not change its parameters.
    """

    module: nn.Module
    task: Task
    parameters: ParameterCounts
    own_flops_per_token: float | None
    """Training FLOPs per token, counted by the family; None if the family does not count them."""
    family: str
    """Qualified name, for messages."""
    shape: TransformerShape | None = None
    """The transformer's dimensions; None if the family does not declare them."""


@dataclass(frozen=True)
class FlopCount:
    """Training FLOPs (forward and backward) per token and N, with their conventions."""

    flops_per_token: float
    params: int
    """N by this convention."""
    flops_name: str
    """``6 N D``, ``every matmul and attention, forward and backward``, ..."""
    params_name: str
    """``matmul parameters (without lookup tables)``, ..."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """Terms with the sum ``flops_per_token``, by name. Empty if the counter does not separate them."""
