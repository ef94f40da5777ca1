"""Special models and data of ``find_optimal``: BatchNorm, unused weights, losses that cannot be traced."""

import functools

import pytest
import torch
from test_inline_data import PAIRS, VOCAB, Net, notes, result, study
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from flops_fit_core import ConfigError, DataError, SweepFailed

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
        parts = [(model(x), y) for x, y in opened.eval_batches(1000, 100)]
    return float(functional.cross_entropy(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])))


@pytest.mark.parametrize(("devices", "share"), [(1, 8), (2, 4)])
def test_running_statistics_are_those_of_the_training_batches_of_the_first_process(tmp_path, devices, share):
    arguments = {**FEW_STEPS, "optimizer": FROZEN, "device": {"name": "cpu", "devices_per_run": devices}}
    run_result = result(tmp_path, Normed, trainer={"name": "torch", "parallel": "ddp"}, **arguments)
    assert run_result.run.devices == devices
    planned = study(tmp_path, Normed, **arguments)
    assert run_result.loss == pytest.approx(by_hand(planned, share), rel=1e-6)


def test_running_statistics_of_packed_runs_are_of_training_batches_only(tmp_path):
    losses = {
        vmap_runs: [
            run_result.loss
            for run_result in study(
                tmp_path / str(vmap_runs),
                Normed,
                trainer={"name": "torch", "vmap_runs": vmap_runs},
                seeds=[0, 1],
                train=True,
                **{**FEW_STEPS, "optimizer": SGD},
            ).results
        ]
        for vmap_runs in (1, 2)
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
def test_a_unit_that_is_not_a_name_is_refused(tmp_path, unit):
    with pytest.raises(ConfigError, match="it must name the unit of D"):
        study(tmp_path, unit=unit)
    assert study(tmp_path, dataset=PAIRS, unit="bytes").plan.unit == "bytes"


# ---------------------------------------------------------------------------- losses


SOUNDS = torch.randn(100, 20, 6, generator=torch.Generator().manual_seed(2))
TEXTS = torch.randint(1, 9, (100, 5), generator=torch.Generator().manual_seed(3))
SPEECH = {"dataset": TensorDataset(SOUNDS, TEXTS), "compute_budgets": [4e6]}


class Listener(nn.Module):
    """A model that returns outputs with time first, as CTC requires."""

    def __init__(self, width):
        super().__init__()
        self.inner, self.head = nn.Linear(6, width), nn.Linear(width, 9)

    def forward(self, x):
        return self.head(self.inner(x)).log_softmax(-1).transpose(0, 1)


def ctc(outputs, targets, reduction="sum"):
    lengths = [torch.full((len(targets),), size) for size in (20, 5)]
    return functional.ctc_loss(outputs, targets, *lengths, reduction=reduction)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_ctc_with_time_first_is_traced_without_its_loss_and_uses_the_stated_form(tmp_path, micro_batch):
    arguments = {**SPEECH, "loss_fn": ctc, "loss_reduction": "sum", "optimizer": FROZEN}
    run_result = result(tmp_path, Listener, trainer={"name": "torch", "micro_batch": micro_batch}, **arguments)
    torch.manual_seed(0)
    model = Listener(4)
    held = slice(5, None, 10)
    expected = float(ctc(model(SOUNDS[held]).detach(), TEXTS[held])) / (10 * 5)
    assert run_result.loss == pytest.approx(expected, rel=1e-5)
    # Forward, gradients of both weights, and of the inputs of the second layer: 20 steps for 5 targets.
    assert run_result.flops / run_result.tokens == 20 * 2 * (2 * (24 + 36) + 36) / 5


def test_a_stated_form_that_the_loss_contradicts_is_refused(tmp_path):
    with pytest.raises(DataError, match="returned twice the value for a doubled batch"):
        study(
            tmp_path,
            loss_fn=lambda o, t: functional.cross_entropy(o.flatten(0, 1), t.flatten(), reduction="sum"),
            loss_reduction="mean",
        )


TEACHER = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)).eval().requires_grad_(False)


class Student(Normed):
    def forward(self, x):
        return super().forward(x), x


def distil(outputs, targets):
    return functional.mse_loss(outputs[0], TEACHER(outputs[1]))


def test_a_network_in_the_loss_is_not_changed_and_the_model_is_traced_without_it(tmp_path):
    before = {name: value.clone() for name, value in TEACHER.state_dict().items()}
    run_result = result(tmp_path, Student, dataset=CLASSES, loss_fn=distil, compute_budgets=[2e6])
    assert run_result.flops / run_result.tokens == 2 * (2 * (64 + 20) + 20)
    assert all(torch.equal(value, before[name]) for name, value in TEACHER.state_dict().items())


# ---------------------------------------------------------------------------- batches


def in_a_row(items):
    ids, labels = (torch.cat([item[place] for item in items])[None] for place in (0, 1))
    return ids, labels


def test_packed_rows_are_trained_on_one_device_and_refused_on_two(tmp_path):
    loader = DataLoader(PAIRS, 8, collate_fn=in_a_row)
    plain = result(tmp_path / "plain", optimizer=FROZEN).loss
    assert result(tmp_path / "one", dataset=loader, optimizer=FROZEN).loss == pytest.approx(plain, rel=1e-6)
    devices = {"device": {"name": "cpu", "devices_per_run": 2}, "trainer": {"name": "torch", "parallel": "ddp"}}
    with pytest.raises(SweepFailed, match="a batch of 8 samples has 1 row, so it cannot be divided among 2"):
        result(tmp_path / "two", dataset=loader, **devices)


def test_a_number_of_tokens_that_is_not_the_number_of_targets_is_named(tmp_path):
    assert "D counts 17 tokens a sample, as tokens_per_sample states, and a sample has 16 targets" in notes(
        tmp_path, tokens_per_sample=17, compute_budgets=[4e7]
    )
    assert "tokens_per_sample states" not in notes(tmp_path / "same", tokens_per_sample=16)


def test_arguments_that_a_dataset_plugin_states_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="unit: a dataset that is a plugin states them itself"):
        study(tmp_path, dataset="text", unit="bytes")
