"""The transformer: pre-norm blocks, RMSNorm, GELU, scaled dot-product attention, no biases."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

TIED_SCALE = 4.0
"""Logits of a tied head are multiplied by this, divided by the width. Of 1, 4, 8 and 16, byte-level models of
widths 32 and 128 learned best at 4, and started with uniform predictions."""


class GPT(nn.Module):
    """Decoder-only transformer. Input: ids (batch, time), time <= context. Output: logits (batch, time, V).

    Matrices start with standard deviation ``1/sqrt(fan_in)``, those that write to the residual stream with
    ``1/sqrt(2 depth)`` of that, and the head with ``1/fan_in``, so that activations and the first updates have
    the same size at every width (Yang et al. 2022, Tensor Programs V, table 3). A tied head has the entries of an
    embedding, with size 1. Its output is multiplied by ``4 / width`` instead.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        context: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        learned_positions: bool,
        tied: bool,
    ) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width) if learned_positions else None
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        if self.positions is None:
            cos, sin = rotary_table(context, width // heads)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.initialize()
        self.head_scale = 1.0
        if tied:
            self.head.weight = self.embedding.weight
            self.head_scale = TIED_SCALE / width

    def initialize(self) -> None:
        """Draw the initial weights."""
        for table in (self.embedding, self.positions):
            if table is not None:
                nn.init.normal_(table.weight, std=1.0 if table is self.embedding else 0.1)
        residual_scale = 1 / math.sqrt(2 * len(self.blocks))
        for block in self.blocks:
            assert isinstance(block, Block)
            for linear, scale in (
                (block.qkv, 1.0),
                (block.mix, residual_scale),
                (block.up, 1.0),
                (block.down, residual_scale),
            ):
                nn.init.normal_(linear.weight, std=scale / math.sqrt(linear.in_features))
        nn.init.normal_(self.head.weight, std=1 / self.head.in_features)

    def tables(self) -> Iterator[nn.Parameter]:
        """The embedding tables."""
        for table in (self.embedding, self.positions):
            if table is not None:
                yield from table.parameters()

    def forward(self, ids: Tensor) -> Tensor:
        time = ids.shape[1]
        x = self.embedding(ids)
        rotary: tuple[Tensor, Tensor] | None = None
        if self.positions is None:
            rotary = (self.get_buffer("cos")[:time], self.get_buffer("sin")[:time])
        else:
            x = x + self.positions.weight[:time]
        for block in self.blocks:
            x = block(x, rotary)
        x = self.norm(x)
        logits: Tensor = self.head(x if self.head_scale == 1.0 else x * self.head_scale)
        return logits


class Block(nn.Module):
    """Attention, then a feed-forward part. Each normalizes its input and adds its output to the stream."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.RMSNorm(width)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x + self.attend(self.norm_attention(x), rotary)
        out: Tensor = x + self.down(functional.gelu(self.up(self.norm_mlp(x))))
        return out

    def attend(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Causal self-attention. x: (batch, time, width)."""
        batch, time, width = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads)
        qk, v = qkv[:, :, :2], qkv[:, :, 2]
        if rotary is not None:
            qk = rotate(qk, *rotary)
        q, k, v = (part.transpose(1, 2) for part in (qk[:, :, 0], qk[:, :, 1], v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.mix(mixed.transpose(1, 2).reshape(batch, time, width))
        return out


def rotary_table(context: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of shape (context, head_dim / 2), base 10,000 (Su et al. 2021, RoFormer)."""
    if torch.empty(0).is_meta:
        # Only shapes matter, and arange on the meta device takes a second to import parts of torch.
        return torch.empty(context, head_dim // 2), torch.empty(context, head_dim // 2)
    frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels, one from each half of a head's channels.

    x: (batch, time, queries and keys, heads, head_dim); cos, sin: (time, head_dim / 2). Queries and keys are
    rotated in one operation, because the number of operations dominates the cost of small models.
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = (table.to(x.dtype)[:, None, None, :] for table in (cos, sin))
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
