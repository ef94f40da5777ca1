"""A training script as one has it: arguments in, a model trained, the held-out loss out.

It knows nothing of flops-fit but for the last line.
"""

import argparse
import json
import sysconfig
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional


class Model(nn.Module):
    """Bytes through two causal convolutions."""

    def __init__(self, width: int, vocab_size: int = 256, kernel: int = 4):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, kernel) for _ in range(2))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, ids):
        x = self.embedding(ids).transpose(1, 2)
        for layer in self.layers:
            x = x + functional.gelu(layer(functional.pad(x, (layer.kernel_size[0] - 1, 0))))
        return self.head(self.norm(x.transpose(1, 2)))


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """The Python standard library's own sources: the last twentieth is held out."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    data = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
    cut = len(data) * 19 // 20
    return data[:cut], data[cut:]


def loss_of(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Nats per byte."""
    return functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def main() -> None:
    """Train one model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, required=True)
    for name in ("width", "steps", "batch", "context", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    training, eval_data = load()
    model = Model(args.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    window = torch.arange(args.context + 1)
    for step in range(args.steps):
        starts = torch.randint(len(training) - args.context - 1, (args.batch,))
        loss = loss_of(model, training[starts[:, None] + window])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: {loss.item():.3f}", flush=True)
    with torch.no_grad():
        rows = eval_data[: len(eval_data) // 65 * 65].view(-1, 65)[:1024]
        final = loss_of(model, rows).item()
    args.out.write_text(json.dumps({"loss": final}))


if __name__ == "__main__":
    main()
