"""Model family ``gpt``: a decoder-only transformer whose width scales."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, field_validator

from flops_fit_core import (
    ConfigError,
    LanguageTask,
    ModelSpec,
    Options,
    ParameterGroup,
    Task,
    TransformerShape,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import nn


class GPTOptions(Options):
    """Context length and vocabulary come from the dataset's task."""

    width: PositiveInt = 64
    """d: channels of the residual stream. This is what scales."""
    depth: PositiveInt = 4
    """Number of blocks."""
    head_dim: PositiveInt = 16
    """Channels an attention head; there are ``width / head_dim`` heads, rounded down to a number that
    divides the width evenly."""
    mlp_ratio: PositiveInt = 4
    """Hidden units of a block's feed-forward part over the width."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Rotary embeddings (Su et al. 2021), or a table of learned ones that is looked up."""
    tied: bool = False
    """Whether the output head is the input embedding."""

    @field_validator("width")
    @classmethod
    def _pairs_of_channels(cls, width: int) -> int:
        if width % 2:
            raise ValueError("must be even: rotary positions turn channels in pairs")
        return width

    @property
    def heads(self) -> int:
        """The most heads of at least ``head_dim`` channels that share the width evenly, in pairs of channels."""
        most = max(1, self.width // self.head_dim)
        return next(n for n in range(most, 0, -1) if self.width % (2 * n) == 0)


def build_gpt(options: GPTOptions, task: Task) -> nn.Module:
    """Logits of shape (batch, context, vocabulary) from ids of shape (batch, context)."""
    from flops_fit_gpt.model import GPT

    language = _language(task)
    return GPT(
        vocab_size=language.vocab_size,
        context=language.context,
        width=options.width,
        depth=options.depth,
        heads=options.heads,
        hidden=options.mlp_ratio * options.width,
        learned_positions=options.positions == "learned",
        tied=options.tied,
    )


def flops_per_token(options: GPTOptions, task: Task) -> float:
    """Training FLOPs a token: every matrix product and the attention over the full context, 3 x forward.

    With width d, depth L, context s, vocabulary V and feed-forward ratio 4 this is
    ``3 (L (24 d^2 + 4 s d) + 2 d V)``: a multiply-add is two FLOPs; backward is twice forward; softmax, norms,
    activations and the embedding lookup are not counted; causal masking is not exploited (as in Hoffmann et
    al. 2022, appendix F, which counts softmax and the lookup as well).
    """
    language = _language(task)
    d = options.width
    block = 2 * (4 + 2 * options.mlp_ratio) * d * d + 4 * language.context * d
    return 3.0 * (options.depth * block + 2 * d * language.vocab_size)


def shape(options: GPTOptions, task: Task) -> TransformerShape:
    """What formulas need to know of it."""
    language = _language(task)
    return TransformerShape(
        vocabulary=language.vocab_size,
        context=language.context,
        width=options.width,
        depth=options.depth,
        heads=options.heads,
        key_size=options.width // options.heads,
        hidden=options.mlp_ratio * options.width,
        tied=options.tied,
    )


def parameter_groups(module: nn.Module) -> Iterable[ParameterGroup]:
    """The blocks' matrices; the output head, where it is none of the tables; then embeddings and gains."""
    from flops_fit_gpt.model import GPT

    if not isinstance(module, GPT):
        raise TypeError(f"these are the groups of a GPT, not of a {type(module).__name__}")
    tables = {id(parameter) for parameter in module.tables()}
    matrices = [p for p in module.blocks.parameters() if p.ndim == 2]
    head = [p for p in module.head.parameters() if id(p) not in tables]
    vectors = [p for p in module.parameters() if p.ndim == 1]
    yield ParameterGroup(matrices, width=module.width, hidden=True)
    yield ParameterGroup(head, width=module.width, hidden=False)
    yield ParameterGroup([*module.tables(), *vectors], decay=False, hidden=False)


def _language(task: Task) -> LanguageTask:
    if not isinstance(task, LanguageTask):
        raise ConfigError(
            f"model 'gpt' predicts the next token, and this dataset poses a {type(task).__name__}: choose a "
            f"text dataset, or another model"
        )
    return task


@hookimpl
def flops_fit_models() -> Iterable[ModelSpec]:
    """Offer ``gpt``."""
    yield ModelSpec(
        name="gpt",
        options=GPTOptions,
        build=build_gpt,
        size="width",
        multiple_of=4,
        width=lambda options: options.width,
        flops_per_token=flops_per_token,
        shape=shape,
        parameter_groups=parameter_groups,
        optimizer="optim/adamw",
    )
