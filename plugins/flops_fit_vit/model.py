"""The vision transformer: patches, pre-norm blocks of full attention, pooling, a head, no biases.

Its block differs from that of ``gpt``: it has no mask and no rotation, and the norm is an option.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional


class ViT(nn.Module):
    """Classifier of images. Input: (batch, channels, height, width), or (batch, height, width) for one channel.
    Output: (batch, outputs).

    Patches are in row-major order. Positions of patches and class token are learned. Matrices start with standard
    deviation ``1/sqrt(fan_in)``, those that write to the residual stream with ``1/sqrt(2 depth)`` of that, and the
    head with ``1/fan_in``, so that activations and the first updates have the same size at every width (Yang et
    al. 2022, Tensor Programs V, table 3).
    """

    def __init__(
        self,
        *,
        channels: int,
        grid: tuple[int, int],
        patch: int,
        outputs: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        class_token: bool,
        layer_norm: bool,
    ) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, bias=False) if layer_norm else nn.RMSNorm
        self.channels, self.grid, self.patch, self.width = channels, grid, patch, width
        self.embedding = nn.Linear(channels * patch**2, width, bias=False)
        self.class_token = nn.Embedding(1, width) if class_token else None
        self.positions = nn.Embedding(grid[0] * grid[1] + class_token, width)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, norm) for _ in range(depth)))
        self.norm = norm(width)
        self.head = nn.Linear(width, outputs, bias=False)
        self.initialize()

    def initialize(self) -> None:
        """Draw the initial weights."""
        _draw(self.embedding, 1.0)
        nn.init.normal_(self.positions.weight, std=0.1)
        if self.class_token is not None:
            nn.init.normal_(self.class_token.weight, std=1.0)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.initialize(residual=1 / math.sqrt(2 * len(self.blocks)))
        _draw(self.head, 1 / math.sqrt(self.width))

    def tables(self) -> Iterator[nn.Parameter]:
        """Lookup tables: class token and positions."""
        for table in (self.class_token, self.positions):
            if table is not None:
                yield from table.parameters()

    def forward(self, images: Tensor) -> Tensor:
        x = self.embedding(self.patches(images))
        if self.class_token is not None:
            x = torch.cat((self.class_token.weight.expand(len(x), 1, -1), x), dim=1)
        x = self.norm(self.blocks(x + self.positions.weight))
        pooled = x.mean(1) if self.class_token is None else x[:, 0]
        outputs: Tensor = self.head(pooled)
        return outputs

    def patches(self, images: Tensor) -> Tensor:
        """The numbers of each patch, channel by channel: shape (batch, patches, channels * patch^2)."""
        (rows, columns), side = self.grid, self.patch
        tiles = images.reshape(len(images), self.channels, rows, side, columns, side)
        return tiles.permute(0, 2, 4, 1, 3, 5).reshape(len(images), rows * columns, -1)


class Block(nn.Module):
    """Full attention, then a feed-forward part. Each normalizes its input and adds its output to the stream."""

    def __init__(self, width: int, heads: int, hidden: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = norm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.norm_mlp = norm(width)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def initialize(self, residual: float) -> None:
        """Draw the initial weights. Those that write to the stream are scaled by ``residual``."""
        for linear, scale in ((self.qkv, 1.0), (self.mix, residual), (self.up, 1.0), (self.down, residual)):
            _draw(linear, scale)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.mix(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(functional.gelu(self.up(self.norm_mlp(x))))
        return out


def _draw(linear: nn.Linear, scale: float) -> None:
    nn.init.normal_(linear.weight, std=scale / math.sqrt(linear.in_features))
