"""Model family ``gpt``: a decoder-only transformer, scaled by its width."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from flops_fit_core import ConfigError
from flops_fit_core.data import LanguageTask
from flops_fit_core.plugins import (
    Ladder,
    ModelSpec,
    Options,
    ParameterGroup,
    Task,
    TransformerShape,
    head_ladders,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import nn


ASPECT_TOLERANCE = 1.25
"""Largest factor between width / depth and ``aspect_ratio``. They differ because heads and blocks are integers."""

MAX_DEPTH = 1_000_000
"""The most blocks that ``aspect_ratio`` may give."""


class GPTOptions(Options):
    """Context length and vocabulary come from the dataset's task."""

    width: PositiveInt = 64
    """d: channels of the residual stream. This is what scales."""
    depth: PositiveInt = 4
    """Number of blocks. Unset with ``aspect_ratio``: ``width / aspect_ratio``, rounded, at least 1."""
    head_dim: PositiveInt = 16
    """Channels per attention head. There are ``width / head_dim`` heads, rounded down to a number that divides the
    width evenly. Automatic sizes are multiples of it, so that all heads have the same size."""
    mlp_ratio: PositiveInt = 4
    """Hidden units of a block's feed-forward part, divided by the width."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Rotary embeddings (Su et al. 2021), or a lookup table of learned positions."""
    tied: bool = False
    """Whether the output head is the input embedding."""
    aspect_ratio: Annotated[float, Field(gt=0)] | None = None
    """Width over depth. The planner scales both, and keeps each size within a quarter of this ratio if widths and
    depths allow it. Unset: the planner scales only the width."""

    @model_validator(mode="after")
    def _depth_of_width(self) -> Self:
        if self.aspect_ratio is not None and "depth" not in self.model_fields_set:
            if self.width > MAX_DEPTH * self.aspect_ratio:
                raise ValueError(f"width / aspect_ratio is more than {MAX_DEPTH:,} blocks: raise aspect_ratio")
            self.__dict__["depth"] = _round_depth(self.width / self.aspect_ratio)  # pydantic models are frozen
        return self

    @field_validator("width")
    @classmethod
    def _pairs_of_channels(cls, width: int) -> int:
        if width % 2:
            raise ValueError("must be even: rotary positions rotate pairs of channels")
        return width

    @property
    def heads(self) -> int:
        """The largest number of heads with at least ``head_dim`` channels each that divides the pairs of
        channels."""
        largest = max(1, self.width // self.head_dim)
        return next(n for n in range(largest, 0, -1) if self.width % (2 * n) == 0)


def build_gpt(options: GPTOptions, task: Task) -> nn.Module:
    """Build a GPT: ids (batch, context) -> logits (batch, context, vocabulary)."""
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
    """Training FLOPs per token: every matrix product and the attention over the full context, 3 x forward.

    With width d, depth L, context s, vocabulary V and feed-forward ratio 4 this is
    ``3 (L (24 d^2 + 4 s d) + 2 d V)``. A multiply-add is two FLOPs. Backward is twice forward. Softmax, norms,
    activations and the embedding lookup are not counted. Causal masking is not exploited (as in Hoffmann et al.
    2022, appendix F, which also counts softmax and the lookup).
    """
    language = _language(task)
    d = options.width
    block = 2 * (4 + 2 * options.mlp_ratio) * d * d + 4 * language.context * d
    return 3.0 * (options.depth * block + 2 * d * language.vocab_size)


def shape(options: GPTOptions, task: Task) -> TransformerShape:
    """The dimensions for formulas."""
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
    """Three groups: the blocks' matrices; the output head, unless it is tied; embeddings and gains."""
    from flops_fit_gpt.model import GPT

    if not isinstance(module, GPT):
        raise TypeError(f"expected a GPT, got a {type(module).__name__}")
    tables = {id(parameter) for parameter in module.tables()}
    matrices = [p for p in module.blocks.parameters() if p.ndim == 2]
    head = [p for p in module.head.parameters() if id(p) not in tables]
    vectors = [p for p in module.parameters() if p.ndim == 1]
    yield ParameterGroup(matrices, width=module.width, hidden=True)
    yield ParameterGroup(head, width=module.width, hidden=False)
    yield ParameterGroup([*module.tables(), *vectors], decay=False, hidden=False)


def ladders(options: GPTOptions) -> Iterable[Ladder]:
    """Ladders of multiples of ``head_dim``; with ``aspect_ratio``, each width has a depth.

    Raises ConfigError for an odd ``head_dim``, and for a depth together with an aspect ratio.
    """
    if options.head_dim % 2:
        raise ConfigError(
            f"model.head_dim = {options.head_dim}: heads have pairs of channels, so automatic sizes need an even "
            f"number: write {options.head_dim + 1}, or list the sizes"
        )
    if options.aspect_ratio is None:
        return head_ladders(options)
    if "depth" in options.model_fields_set:
        raise ConfigError(
            f"model.depth = {options.depth} and model.aspect_ratio = {options.aspect_ratio:g}: automatic sizes "
            f"take their depth from the aspect ratio. Leave out one of the two"
        )
    return [replace(ladder, scale=scale_both, label=_width_by_depth) for ladder in head_ladders(options)]


def _width_by_depth(options: GPTOptions) -> str:
    return f"{options.width}x{options.depth}"


def scale_both(options: GPTOptions, target_params: int) -> GPTOptions:
    """The width and depth with the nearest number of parameters in the blocks, within a quarter of the aspect
    ratio.

    Between sizes of similar distance, the size nearer to the aspect ratio wins. If no size is within a quarter,
    the depth follows from the width.
    """
    aspect_ratio = options.aspect_ratio
    assert aspect_ratio is not None
    per_block = 4 + 2 * options.mlp_ratio

    def cost(size: tuple[int, int]) -> float:
        width, depth = size
        deviation = abs(math.log(width / depth / aspect_ratio))
        return abs(math.log(depth * per_block * width**2 / target_params)) + deviation / 2

    best = min(_candidates(options, target_params, aspect_ratio, per_block), key=cost)
    # The width and depth identify a run, not the way in which they were chosen.
    values = {**options.model_dump(exclude_unset=True), "width": best[0], "depth": best[1], "aspect_ratio": None}
    return GPTOptions.model_validate(values)


def _round_depth(depth: float) -> int:
    """Rounded half up, at least 1."""
    return max(1, math.floor(depth + 0.5))


def _candidates(
    options: GPTOptions, target_params: int, aspect_ratio: float, per_block: int
) -> Iterable[tuple[int, int]]:
    """Widths and depths with about ``target_params``: for each depth, the two nearest numbers of heads."""
    shallow, deep = (
        math.cbrt(target_params / (per_block * (aspect_ratio * factor) ** 2))
        for factor in (ASPECT_TOLERANCE, 1 / ASPECT_TOLERANCE)
    )
    for depth in range(max(1, math.floor(shallow)), math.ceil(deep) + 1):
        heads = math.floor(math.sqrt(target_params / (per_block * depth)) / options.head_dim)
        for width in (max(1, heads) * options.head_dim, (heads + 1) * options.head_dim):
            deviation = abs(math.log(width / depth / aspect_ratio))
            if deviation <= math.log(ASPECT_TOLERANCE) or depth == _round_depth(width / aspect_ratio):
                yield width, depth
    # In case no such size has an integer depth: the nearest width, with the depth that follows from it.
    width = (
        max(1, round(math.cbrt(target_params * aspect_ratio / per_block) / options.head_dim)) * options.head_dim
    )
    yield width, _round_depth(width / aspect_ratio)


def _language(task: Task) -> LanguageTask:
    if not isinstance(task, LanguageTask):
        raise ConfigError(
            f"model 'gpt' predicts the next token, and this dataset has a {type(task).__name__}: choose a "
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
        ladders=ladders,
        heads=lambda options: (options.heads, options.width // options.heads),
        width=lambda options: options.width,
        flops_per_token=flops_per_token,
        shape=shape,
        parameter_groups=parameter_groups,
        optimizer="optim/adamw",
    )
