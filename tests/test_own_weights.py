"""A model may be made of layers and tables that are there already; no run trains those themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from flops_fit_core import find_optimal

TABLE = torch.randn(11, 8, generator=torch.Generator().manual_seed(3))
EMBEDDING = nn.Embedding(11, 8, _weight=TABLE.clone())


class WithTable(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embedding = self.make()
        self.body = nn.Linear(8, width)
        self.head = nn.Linear(width, 11)

    def make(self):
        return nn.Embedding.from_pretrained(TABLE, freeze=False)

    def forward(self, ids):
        return self.head(self.body(self.embedding(ids)))


class WithLayer(WithTable):
    def make(self):
        return EMBEDDING


def losses(model, folder, seeds):
    ids = torch.randint(11, (300, 17), generator=torch.Generator().manual_seed(1))
    data = TensorDataset(ids[:, :-1], ids[:, 1:])
    found = find_optimal(
        *(model, "width"),
        dataset=data,
        compute_budgets=[4e6],
        sizes=[16],
        seeds=seeds,
        optimizer="adamw",
        allow_repeat=True,
        min_steps=1,
        executor="local",
        output_dir=folder,
    )
    return {result.run.seed: (result.run.id, repr(result.loss)) for result in found.results}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", [WithTable, WithLayer])
def test_no_run_trains_what_the_next_one_starts_from(tmp_path, model):
    together = losses(model, tmp_path / "together", [0, 1])
    alone = losses(model, tmp_path / "alone", [1])
    assert alone[1] == together[1]
    assert torch.equal(EMBEDDING.weight, TABLE)
    assert TABLE.sum() == torch.randn(11, 8, generator=torch.Generator().manual_seed(3)).sum()
