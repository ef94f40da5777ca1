"""The module. Imported by ``build`` only, so that finding the plugin imports no torch."""

from __future__ import annotations

from torch import Tensor, nn


class RNN(nn.Module):
    """Embedding, recurrent layers with a residual stream between them, output head."""

    def __init__(self, vocab_size: int, width: int, depth: int, cell: str) -> None:
        super().__init__()
        self.width = width
        make = {"gru": nn.GRU, "lstm": nn.LSTM}[cell]
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(make(width, width, batch_first=True) for _ in range(depth))
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Shape (batch, context) to (batch, context, vocabulary)."""
        x = self.embedding(ids)
        for layer in self.layers:
            x = x + layer(self.norm(x))[0]
        return self.head(self.norm(x))
