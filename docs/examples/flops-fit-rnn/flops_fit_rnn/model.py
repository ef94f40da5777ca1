"""The module of family ``rnn``. Imported inside functions: discovering the plugin must not import torch."""

from __future__ import annotations

from torch import Tensor, nn


class RNN(nn.Module):
    """Embedding, recurrent layers with a residual stream between them, output head."""

    def __init__(self, vocab_size: int, width: int, depth: int, cell: str) -> None:
        super().__init__()
        self.width = width
        layer_class = {"gru": nn.GRU, "lstm": nn.LSTM}[cell]
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(layer_class(width, width, batch_first=True) for _ in range(depth))
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids of shape (batch, context) to logits of shape (batch, context, vocabulary)."""
        x = self.embedding(ids)
        for layer in self.layers:
            x = x + layer(self.norm(x))[0]
        return self.head(self.norm(x))
