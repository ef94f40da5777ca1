"""Ordinary models and data of others, given to ``find_optimal``: BatchNorm, unused weights, names of what D counts."""

import functools

import pytest
import torch
from test_inline_data import PAIRS, VOCAB, Net, notes, result, study
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from flops_fit_core import ConfigError

SGD = functools.partial(torch.optim.SGD, lr=0.1)
FROZEN = functools.partial(torch.optim.SGD, lr=0.0)
X = torch.randn(300, 16, generator=torch.Generator().manual_seed(0)) * 5 + 3
Y = torch.randint(0, 5, (300,), generator=torch.Generator().manual_seed(1))
CLASSES = TensorDataset(X, Y)


# ---------------------------------------------------------------------------- BatchNorm


class Normed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(16, width), nn.BatchNorm1d(width), nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.norm(self.inner(x)).relu())


FEW_STEPS = {"dataset": CLASSES, "compute_budgets": [9024.0]}


def by_hand(planned, share):
    """Held-out loss of weights that are not trained, with running statistics of a share of each training batch."""
    data = planned.experiment.dataset
    opened = data.spec.build(data.options, 0)
    torch.manual_seed(0)
    model, batches = Normed(4), opened.batches(8)
    with torch.no_grad():
        for _ in range(planned.plan.runs[0].steps):
            model(next(batches)[0][:share])
        model.eval()
        parts = [(model(x), y) for x, y in opened.heldout(1000, 100)]
    return float(functional.cross_entropy(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])))


@pytest.mark.parametrize(("devices", "share"), [(1, 8), (2, 4)])
def test_running_statistics_are_those_of_the_training_batches_of_the_first_process(tmp_path, devices, share):
    given = {**FEW_STEPS, "optimizer": FROZEN, "device": {"name": "cpu", "devices_per_run": devices}}
    one = result(tmp_path, Normed, trainer={"name": "torch", "parallel": "ddp"}, **given)
    assert one.run.devices == devices
    planned = study(tmp_path, Normed, **given)
    assert one.loss == pytest.approx(by_hand(planned, share), rel=1e-6)


def test_running_statistics_of_packed_runs_are_of_training_batches_only(tmp_path):
    losses = {
        pack: [
            one.loss
            for one in study(
                tmp_path / str(pack),
                Normed,
                trainer={"name": "torch", "pack": pack},
                seeds=[0, 1],
                train=True,
                **{**FEW_STEPS, "optimizer": SGD},
            ).results
        ]
        for pack in (1, 2)
    }
    assert losses[2] == pytest.approx(losses[1], rel=1e-6)


def test_divided_batches_of_a_batch_norm_are_named_in_the_plan(tmp_path):
    divided = {"trainer": {"name": "torch", "micro_batch": 2}}
    assert "losses depend on trainer.micro_batch = 2" in notes(tmp_path, Normed, **FEW_STEPS, **divided)
    assert "losses depend on" not in notes(tmp_path / "whole", Normed, **FEW_STEPS)
    assert "losses depend on" not in notes(tmp_path / "net", **divided)


# ---------------------------------------------------------------------------- N and D


class Unused(Net):
    def __init__(self, width):
        super().__init__(width)
        self.spare = nn.Linear(width, 10)


def test_weights_that_no_pass_uses_are_named_in_the_plan(tmp_path):
    text = notes(tmp_path, Unused)
    total = 2 * 4 * VOCAB + VOCAB + 50
    assert f"did not use 50 of its {total} weights at size 4 (spare.weight, spare.bias), and N counts them" in text


class Ordinary(nn.Module):
    """Layers of torch, and a weight that is used as a bias only."""

    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 8 * width)
        layer = nn.TransformerEncoderLayer(8 * width, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1)
        self.recurrent = nn.LSTM(8 * width, width, batch_first=True)
        self.shift, self.norm = nn.Parameter(torch.zeros(width)), nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCAB)

    def forward(self, ids):
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=ids.device)
        inner = self.layers(self.embedding(ids), mask=mask, is_causal=True)
        return self.head(self.norm(self.recurrent(inner)[0] + self.shift))


def test_weights_that_a_pass_uses_are_not_named_as_unused(tmp_path):
    assert "did not use" not in notes(tmp_path, Ordinary, compute_budgets=[2e9])
    assert "did not use" not in notes(tmp_path / "normed", Normed, **FEW_STEPS)


@pytest.mark.parametrize("unit", ["", " ", 5, "to\nkens"])
def test_a_unit_that_is_no_name_is_refused(tmp_path, unit):
    with pytest.raises(ConfigError, match="it is the name of what D counts"):
        study(tmp_path, unit=unit)
    assert study(tmp_path, dataset=PAIRS, unit="bytes").plan.unit == "bytes"
