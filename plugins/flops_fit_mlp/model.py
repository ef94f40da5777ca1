"""A layer of the perceptron that torch does not have."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class LatestTokens(nn.Module):
    """Ids (batch, time) -> concatenated embeddings of the latest ``window`` tokens at each position: (batch, time,
    width * window). Positions before the first token are zeros."""

    def __init__(self, vocab_size: int, width: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.embedding = nn.Embedding(vocab_size, width)

    def forward(self, ids: Tensor) -> Tensor:
        padded = functional.pad(self.embedding(ids), (0, 0, self.window - 1, 0))
        return padded.unfold(1, self.window, 1).flatten(2)
