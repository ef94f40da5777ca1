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
    """Parameters that an optimizer treats alike. Raises ValueError for a share ``active`` that is none."""

    parameters: Sequence[nn.Parameter]
    width: int | None = None
    """Number of channels that feed these matrices and grows with the model; None for embeddings, gains
    and biases. Adam-like optimizers use the learning rate ``lr * base_width / width`` (Yang et al. 2022,
    Tensor Programs V, table 3)."""
    decay: bool = True
    """Whether weight decay applies."""
    hidden: bool | None = None
    """Whether these are the matrices between a model's first and last layer, for optimizers that treat such
    matrices apart (Muon): neither embeddings, nor what reads the input, nor the output head, nor gains and
    biases. None in all groups: the family does not say."""
    active: float = 1.0
    """Share of them that one token uses: of the experts of a mixture, those it is sent to over all."""

    def __post_init__(self) -> None:
        if not 0 < self.active <= 1:
            raise ValueError(f"active = {self.active} of a ParameterGroup: it is a share above 0, at most 1")
        object.__setattr__(self, "parameters", list(self.parameters))  # module.parameters() can be read only once

    def torch_group(self, lr: float, weight_decay: float = 0.0, *, lr_scale: float = 1.0) -> dict[str, Any]:
        """The group as torch's optimizers take it: ``params``, ``lr * lr_scale`` and ``weight_decay``.

        The decay is 0 unless ``decay``. It is divided by ``lr_scale``, so that a step of decoupled weight decay
        shrinks a matrix by ``lr * weight_decay`` at every width (Wang & Aitchison 2024).
        """
        decay = weight_decay / lr_scale if self.decay else 0.0
        return {"params": list(self.parameters), "lr": lr * lr_scale, "weight_decay": decay}


def own_parameter_groups(module: nn.Module) -> Iterable[ParameterGroup]:
    """Those of the module's own method ``parameter_groups``, where it has one; otherwise one group of all."""
    own = getattr(module, "parameter_groups", None)
    if callable(own):
        groups: Iterable[ParameterGroup] = own()
        return groups
    return [ParameterGroup([parameter for parameter in module.parameters() if parameter.requires_grad])]


@dataclass(frozen=True)
class TransformerShape:
    """What a formula needs to know of a decoder-only transformer to count its FLOPs."""

    vocabulary: int
    context: int
    """Tokens of a sequence; every one attends to all."""
    width: int
    """Channels of the residual stream."""
    depth: int
    """Blocks."""
    heads: int
    """Attention heads of a block, those of queries; 0 for blocks without attention."""
    key_size: int
    """Channels of a head."""
    hidden: int
    """Hidden units of a block's feed-forward part."""
    tied: bool = False
    """Whether the output head is the input embedding."""
    kv_heads: int | None = None
    """Heads of keys and values where queries share them; None: as many as ``heads``."""
    gated: bool = False
    """Whether the feed-forward part has a third matrix, a gate (Shazeer 2020)."""


@dataclass(frozen=True)
class CounterInput:
    """A model built on the meta device (shapes, no memory), as a FLOPs counter sees it.

    The module was built to be counted: a counter may run it, and leaves its parameters as they were.
    """

    module: nn.Module
    task: Task
    parameters: ParameterCounts
    own_flops_per_token: float | None
    """The family's own count of training FLOPs per token; None where it gives none."""
    family: str
    """Qualified name, for messages."""
    shape: TransformerShape | None = None
    """The family's description of itself; None where it gives none."""


@dataclass(frozen=True)
class FlopCount:
    """Training FLOPs (forward and backward) a token, and the conventions behind the numbers."""

    flops_per_token: float
    params: int
    """N by this convention."""
    flops_name: str
    """``6 N D``, ``every matmul and attention, forward and backward``, ..."""
    params_name: str
    """``matmul parameters (without lookup tables)``, ..."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """What ``flops_per_token`` is the sum of, by name, where the counter can tell."""
