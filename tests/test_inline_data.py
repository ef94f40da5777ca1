"""Data and losses of ``find_optimal``: training, counting, held-out data, and refused arguments."""

import functools
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from flops_fit_core import ConfigError, DataError, PlanError, SweepFailed, find_optimal
from flops_fit_core.api.inline_data import check_inline_data
from flops_fit_core.api.torch_data import InlineDataset

VOCAB, CONTEXT = 20, 16
ROWS = torch.randint(0, VOCAB, (600, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
PAIRS = TensorDataset(ROWS[:, :-1], ROWS[:, 1:])
LENGTHS = torch.where(torch.rand(600, generator=torch.Generator().manual_seed(1)) < 0.5, 2, CONTEXT)
PADDED_TARGETS = ROWS[:, 1:].masked_fill(torch.arange(CONTEXT) >= LENGTHS[:, None], -100)
PADDED = TensorDataset(ROWS[:, :-1], PADDED_TARGETS)
cross_entropy = functional.cross_entropy


class Net(nn.Module):
    """A bigram: causal."""

    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.head = nn.Linear(width, VOCAB)

    def forward(self, ids):
        return self.head(self.embedding(ids))


class Masked(Net):
    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids)


class Averaging(Net):
    """Every output depends on all inputs."""

    def forward(self, ids):
        x = self.embedding(ids)
        return self.head(x + x.mean(1, keepdim=True))


class Rows(Dataset):
    """Batches in the convention of transformers: labels are a copy of the inputs."""

    def __init__(self, labels=ROWS):
        self.labels = labels

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        mask = torch.ones(CONTEXT + 1, dtype=torch.long)
        return {"input_ids": ROWS[index], "attention_mask": mask, "labels": self.labels[index].clone()}


def study(tmp_path, model=Net, **changes):
    arguments = {
        "dataset": PAIRS,
        "compute_budgets": [4e6],
        "sizes": [4],
        "allow_repeat": True,
        "min_steps": 1,
        "batch_size": 8,
        "device": "cpu",
        "executor": "local",
        "optimizer": functools.partial(torch.optim.Adam, lr=0.02),
        "output_dir": tmp_path / "study",
        "train": False,
    }
    return find_optimal(model, changes.pop("size", "width"), **{**arguments, **changes})


def result(tmp_path, *arguments, **named):
    (run_result,) = study(tmp_path, *arguments, train=True, **named).results
    assert run_result.status == "completed", run_result.error
    return run_result


def notes(tmp_path, *arguments, **named):
    return " ".join(study(tmp_path, *arguments, **named).plan.notes)


# ---------------------------------------------------------------------------- targets that the model sees


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (Masked, Rows()),
        (Masked, Rows(ROWS.masked_fill(torch.arange(CONTEXT + 1) < 4, -100))),
        (Net, list(ROWS)),
        (Net, TensorDataset(ROWS, ROWS)),
        (Net, TensorDataset(ROWS[:, 1:], ROWS[:, :-1])),
    ],
    ids=["labels", "masked prompt", "bare rows", "pairs", "shifted the wrong way"],
)
def test_targets_that_are_inputs_are_refused(tmp_path, model, data):
    with pytest.raises(DataError, match=r"targets are the inputs.*row\[:-1\], row\[1:\].*copy_task=True"):
        study(tmp_path, model, dataset=data)


def test_a_copy_task_is_trained_on_request(tmp_path):
    assert result(tmp_path, Masked, dataset=Rows(), copy_task=True, compute_budgets=[2e7]).loss < 1.0


def test_a_loss_that_shifts_targets_is_accepted_and_does_not_count_the_first_targets(tmp_path):
    def shifting(outputs, targets):
        return cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

    run = result(tmp_path, dataset=list(ROWS), loss_fn=shifting, fingerprint="shifting")
    assert run.loss > 2.9  # no model of random tokens is below ln 20 = 2.996 for long
    assert run.tokens / run.positions == CONTEXT / (CONTEXT + 1)


def test_a_loss_that_does_not_shift_is_refused_for_targets_that_are_inputs(tmp_path):
    def plain(outputs, targets):
        return cross_entropy(outputs.flatten(0, 1), targets.flatten())

    with pytest.raises(DataError, match="targets are the inputs"):
        study(tmp_path, dataset=list(ROWS), loss_fn=plain, fingerprint="plain")


def test_next_tokens_are_refused_for_a_model_that_sees_them(tmp_path):
    with pytest.raises(DataError, match=r"sees its targets.*Averaging.*later inputs.*copy_task=True"):
        study(tmp_path, Averaging)
    study(tmp_path, Averaging, copy_task=True)


class StartsAtZero(Averaging):
    """A model with a head of zeros, which hides the dependence of the outputs on the inputs."""

    def __init__(self, width):
        super().__init__(width)
        nn.init.zeros_(self.head.weight)


def test_weights_that_start_at_zero_do_not_hide_that_a_model_sees_its_targets(tmp_path):
    with pytest.raises(DataError, match="sees its targets"):
        study(tmp_path, StartsAtZero)


def test_labels_of_a_causal_model_of_transformers_are_shifted(tmp_path):
    transformers = pytest.importorskip("transformers")

    def llama(hidden_size):
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=hidden_size,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=32,
            )
        )

    arguments = {"size": "hidden_size", "sizes": [8], "compute_budgets": [4e7], "fingerprint": "llama"}
    run = result(tmp_path, llama, dataset=Rows(), **arguments)
    assert run.loss > 2.9
    assert run.valid_share == CONTEXT / (CONTEXT + 1)
    batch = next(DataLoader(Rows(), batch_size=8)._get_iterator())
    model = llama(8)
    opened = study(tmp_path, llama, dataset=Rows(), **arguments)
    data = opened.experiment.dataset
    checked = check_inline_data(
        Rows(),
        eval_dataset=None,
        eval_share=0.1,
        loss_fn=None,
        tokens_per_sample=None,
        unit=None,
        fingerprint="llama",
        allow_repeat=True,
        copy_task=False,
        loss_reduction=None,
        batch_size=None,
    )
    task = InlineDataset(checked, 0, data.spec.options(shifted=True)).task
    total, count = task.loss(task.outputs(model, batch), batch)
    assert float((total / count).detach()) == pytest.approx(float(model(**batch).loss.detach()), rel=1e-6)


def test_labels_of_a_model_of_transformers_that_is_not_causal_are_refused(tmp_path):
    transformers = pytest.importorskip("transformers")

    def bert(hidden_size):
        return transformers.BertLMHeadModel(
            transformers.BertConfig(
                vocab_size=VOCAB,
                hidden_size=hidden_size,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=32,
            )
        )

    with pytest.raises(DataError, match="BertLMHeadModel is not causal"):
        study(tmp_path, bert, size="hidden_size", sizes=[8], dataset=Rows(), fingerprint="bert")


class NanoGPT(Net):
    """A model that returns logits of the last position only, unless it receives targets."""

    def forward(self, idx, targets=None):
        logits = super().forward(idx)
        if targets is None:
            return logits[:, [-1], :], None
        return logits, cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def test_a_model_that_returns_logits_and_loss_is_trained_on_all_positions(tmp_path):
    run_result = result(tmp_path, NanoGPT)
    assert "receives the targets as 'targets'" in notes(tmp_path, NanoGPT)
    assert run_result.loss == pytest.approx(result(tmp_path / "plain").loss, rel=1e-6)


class OwnLoss(Net):
    def forward(self, ids):
        return cross_entropy(super().forward(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def test_a_model_that_returns_its_loss_is_refused_unless_the_loss_is_of_whole_batches(tmp_path):
    with pytest.raises(DataError, match=r"OwnLoss returned a scalar, its own loss.*loss_reduction='batch'"):
        study(tmp_path, OwnLoss, dataset=list(ROWS))
    arguments = {"loss_fn": lambda loss, targets: loss, "loss_reduction": "batch", "copy_task": True}
    assert 2.5 < result(tmp_path, OwnLoss, dataset=list(ROWS), fingerprint="own", **arguments).loss < 3.5


def test_without_a_small_model_data_are_checked_without_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("flops_fit_core.planning.completion.LARGEST_BUILT", 10)
    study(tmp_path)
    with pytest.raises(DataError, match="targets are the inputs"):
        study(tmp_path, dataset=list(ROWS))
    with pytest.raises(DataError, match="loss_reduction="):
        study(tmp_path, loss_fn=LOSSES["mean"], fingerprint="mean")
    assert study(tmp_path, loss_fn=LOSSES["mean"], fingerprint="mean", loss_reduction="mean").plan.runs


# ---------------------------------------------------------------------------- padding


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_padding_gives_the_same_loss_for_every_micro_batch(tmp_path, micro_batch):
    undivided = result(tmp_path / "whole", dataset=PADDED)
    parts = result(tmp_path, dataset=PADDED, trainer={"name": "torch", "micro_batch": micro_batch})
    assert parts.loss == pytest.approx(undivided.loss, rel=1e-6)
    assert (parts.tokens, parts.positions, parts.flops) == (undivided.tokens, undivided.positions, undivided.flops)


KEPT = []


class Keeping(Net):
    def __init__(self, width):
        super().__init__(width)
        if not self.head.weight.is_meta:
            KEPT.append(self)


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
def test_padded_training_equals_a_hand_written_loop(tmp_path, micro_batch):
    """With SGD, weights are the sum of the gradients of the mean over the valid targets of each complete batch."""
    KEPT.clear()
    data = TensorDataset(ROWS[:, :-1], PADDED_TARGETS.masked_fill(torch.arange(600)[:, None] % 3 == 0, -100))
    run_result = result(
        tmp_path,
        Keeping,
        dataset=data,
        optimizer=functools.partial(torch.optim.SGD, lr=0.5),
        schedule="constant",
        recipe="constant",
        compute_budgets=[1e6],
        trainer={"name": "torch", "micro_batch": micro_batch, "grad_clip": None},
        fingerprint="by hand",
    )
    trained = KEPT[-1]
    torch.manual_seed(0)
    model = Net(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    opened = study(tmp_path / "same", Keeping, dataset=data, fingerprint="by hand").experiment.dataset
    batches = opened.spec.build(opened.options, 0).batches(8)
    tokens = 0
    for _ in range(run_result.run.steps):
        inputs, targets = next(batches)
        tokens += int((targets != -100).sum())
        cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert run_result.tokens == tokens
    for ours, theirs in zip(trained.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_two_processes_reach_the_padded_loss_of_one(tmp_path):
    alone = result(tmp_path / "alone", dataset=PADDED)
    shared = result(
        tmp_path,
        dataset=PADDED,
        device={"name": "cpu", "devices_per_run": 2},
        trainer={"name": "torch", "parallel": "ddp", "micro_batch": 1},
    )
    assert shared.run.devices == 2
    assert shared.loss == pytest.approx(alone.loss, rel=1e-6)
    assert (shared.id, shared.tokens, shared.positions, shared.flops) == (
        alone.id,
        alone.tokens,
        alone.positions,
        alone.flops,
    )


def test_held_out_loss_is_a_mean_over_valid_targets_whatever_the_evaluation_batch(tmp_path):
    losses = {
        size: result(
            tmp_path / str(size), dataset=PADDED, trainer={"name": "torch", "eval_batch_tokens": size}
        ).loss
        for size in (1, 48, 10_000)
    }
    assert losses[1] == pytest.approx(losses[10_000], rel=1e-6)
    assert losses[48] == pytest.approx(losses[10_000], rel=1e-6)


def test_d_counts_valid_targets_and_c_counts_every_position(tmp_path):
    run_result = result(tmp_path, dataset=PADDED)
    share = float((PADDED_TARGETS != -100).float().mean())
    assert run_result.run.tokens / run_result.run.positions == pytest.approx(share, rel=0.02)
    assert run_result.run.positions == run_result.run.steps * 8 * CONTEXT
    assert run_result.flops == pytest.approx(6 * run_result.run.params * run_result.positions)
    assert run_result.flops == pytest.approx(4e6, rel=0.01)
    assert run_result.positions == run_result.run.positions
    assert run_result.valid_share == pytest.approx(run_result.tokens / run_result.positions)
    assert run_result.valid_share == pytest.approx(share, rel=0.05)
    assert "D counts valid targets" in notes(tmp_path, dataset=PADDED)
    assert "fixed sample of 540" in notes(tmp_path, dataset=PADDED)


def test_a_batch_without_a_valid_target_has_no_nan_and_no_gradient(tmp_path):
    targets = PADDED_TARGETS.clone()
    targets[: len(targets) * 3 // 4] = -100
    run_result = result(
        tmp_path,
        dataset=TensorDataset(ROWS[:, :-1], targets),
        batch_size=2,
        trainer={"name": "torch", "micro_batch": 1},
    )
    assert run_result.valid_share < 0.2


def test_data_without_any_valid_target_are_refused(tmp_path):
    data = TensorDataset(ROWS[:, :-1], torch.full_like(ROWS[:, 1:], -100))
    with pytest.raises((DataError, PlanError), match="no valid target"):
        study(tmp_path, dataset=data)


class Ragged(Dataset):
    """Rows of different lengths, padded by the collate function to the longest of a batch."""

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        return ROWS[index, : LENGTHS[index] + 1]


def pad(items):
    inputs = nn.utils.rnn.pad_sequence([item[:-1] for item in items], batch_first=True)
    return inputs, nn.utils.rnn.pad_sequence([item[1:] for item in items], batch_first=True, padding_value=-100)


def test_batches_padded_to_their_longest_row_are_counted_as_they_are(tmp_path):
    loader = DataLoader(Ragged(), batch_size=2, collate_fn=pad)
    run_result = result(tmp_path, dataset=loader, batch_size=2)
    opened = study(tmp_path, dataset=loader, batch_size=2).experiment.dataset
    batches = opened.spec.build(opened.options, 0).batches(2)
    seen = [next(batches)[1] for _ in range(run_result.run.steps)]
    assert run_result.tokens == sum(int((targets != -100).sum()) for targets in seen)
    assert (run_result.positions or run_result.tokens) == sum(targets.numel() for targets in seen)
    assert run_result.flops == pytest.approx(4e6, rel=0.1)


def test_padding_that_is_a_class_is_named_in_the_plan(tmp_path):
    data = TensorDataset(ROWS[:, :-1], PADDED_TARGETS.masked_fill(PADDED_TARGETS == -100, 7))
    assert "targets are 7 at the end of a row" in notes(tmp_path, dataset=data)
    assert "end of a row" not in notes(tmp_path / "full")


# ---------------------------------------------------------------------------- losses


def flat(outputs, targets, **options):
    return cross_entropy(outputs.flatten(0, 1), targets.flatten(), **options)


def by_row(outputs, targets):
    return cross_entropy(outputs.transpose(1, 2), targets, reduction="none")


LOSSES = {
    "mean": flat,
    "sum": functools.partial(flat, reduction="sum"),
    "values": functools.partial(flat, reduction="none"),
    "values by row": by_row,
    "sum and count": lambda o, t: (flat(o, t, reduction="sum"), (t != -100).sum()),
    "mean of all": lambda o, t: by_row(o, t).mean(),
    "mean of sums": lambda o, t: by_row(o, t).sum(1).mean(),
    "sample sums": lambda o, t: by_row(o, t).sum(1),
    "sample means": lambda o, t: by_row(o, t).sum(1) / (t != -100).sum(1).clamp(min=1),
    "sample means of all": lambda o, t: by_row(o, t).mean(1),
    "ignores another class": lambda o, t: flat(o, t.masked_fill(t == -100, -1), ignore_index=-1),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("data", [PAIRS, PADDED], ids=["full", "padded"])
def test_every_form_of_cross_entropy_is_the_same_loss(tmp_path, loss, data):
    default = result(tmp_path / "default", dataset=data)
    parts = {"name": "torch", "micro_batch": 2}
    run_result = result(tmp_path, dataset=data, loss_fn=LOSSES[loss], fingerprint=loss, trainer=parts)
    assert run_result.loss == pytest.approx(default.loss, rel=1e-5)
    assert run_result.tokens == default.tokens


def test_the_form_of_a_loss_is_named_in_the_plan(tmp_path):
    text = notes(tmp_path, loss_fn=LOSSES["sum"], fingerprint="sum")
    assert "loss_fn returns a sum over the targets of a batch, without targets -100" in text


def contrastive(outputs, targets):
    x = functional.normalize(outputs.mean(1), dim=-1)
    return cross_entropy(x @ x.T, torch.arange(len(x), device=x.device))


def weighted(outputs, targets):
    return flat(outputs, targets, weight=torch.arange(VOCAB) + 1.0)


@pytest.mark.parametrize("loss_fn", [contrastive, weighted], ids=["contrastive", "weighted mean"])
def test_a_loss_that_is_not_a_sum_over_targets_needs_loss_reduction(tmp_path, loss_fn):
    with pytest.raises(DataError, match="loss_reduction='batch'"):
        study(tmp_path, loss_fn=loss_fn, fingerprint="other")


def test_a_loss_of_whole_batches_is_neither_divided_nor_evaluated_on_other_batches(tmp_path):
    arguments = {"loss_fn": contrastive, "fingerprint": "contrastive", "loss_reduction": "batch"}
    run_result = result(tmp_path, **arguments)
    assert run_result.eval_tokens % 8 == 0
    assert "a value per batch" in notes(tmp_path, **arguments)
    with pytest.raises(PlanError, match="micro_batch"):
        study(tmp_path, **arguments, trainer={"name": "torch", "micro_batch": 2})
    with pytest.raises(ConfigError, match="batch_size"):
        study(tmp_path, **arguments, batch_size=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_reduction": "average"}, r"'average': it must be one of 'mean'"),
        ({"loss_reduction": "mean"}, "needs a loss_fn"),
        ({"loss_reduction": "sum", "loss_fn": flat}, "the same value for a batch and a doubled batch"),
        ({"loss_reduction": "mean", "loss_fn": LOSSES["sum"]}, "twice the value for a doubled batch"),
        ({"loss_reduction": "mean", "loss_fn": by_row}, "does not match loss_fn"),
        ({"loss_fn": nn.CrossEntropyLoss()}, r"expects classes in dimension 1.*flatten"),
        ({"loss_fn": nn.MSELoss()}, "cannot be applied to outputs of shape"),
        ({"loss_fn": lambda o, t: 3.0}, "returned a float"),
        ({"loss_fn": lambda o, t: o.sum(0)}, r"shape \(16, 20\)"),
    ],
    ids=[
        "unknown",
        "no loss",
        "a mean",
        "a sum",
        "values",
        "positions as classes",
        "shapes",
        "number",
        "features",
    ],
)
def test_a_loss_that_contradicts_itself_is_refused(tmp_path, arguments, message):
    with pytest.raises((ConfigError, DataError), match=message):
        study(tmp_path, **arguments, **({"fingerprint": "x"} if "loss_fn" in arguments else {}))


class Square(nn.Module):
    """As many positions as classes."""

    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.head = nn.Linear(width, CONTEXT)

    def forward(self, ids):
        return self.head(self.embedding(ids))


def test_positions_are_not_confused_with_classes_of_equal_number(tmp_path):
    data = TensorDataset(ROWS[:, :-1], ROWS[:, 1:] % CONTEXT)
    with pytest.raises(DataError, match="dimension 1"):
        study(tmp_path, Square, dataset=data, loss_fn=nn.CrossEntropyLoss())


# ---------------------------------------------------------------------------- streams


class Stream(IterableDataset):
    def __init__(self, length):
        self.length = length

    def __iter__(self):
        for number in range(self.length):
            row = ROWS[number % len(ROWS)]
            yield row[:-1], row[1:]


class Shuffled(IterableDataset):
    def __iter__(self):
        for number in torch.randperm(len(ROWS)).tolist():
            yield ROWS[number, :-1], ROWS[number, 1:]


class FromSeed(IterableDataset):
    def __init__(self, seed):
        self.seed = seed

    def __iter__(self):
        for number in torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(self.seed)).tolist():
            yield ROWS[number, :-1], ROWS[number, 1:]


def test_a_stream_that_ends_before_d_fails_with_a_reason(tmp_path):
    with pytest.raises(SweepFailed, match=r"ended after 19,200 of the [\d,]+ tokens.*allow_repeat=True"):
        study(
            tmp_path,
            dataset=Stream(1200),
            eval_dataset=PAIRS,
            allow_repeat=False,
            compute_budgets=[4e7],
            train=True,
        )


def test_a_stream_that_is_repeated_counts_its_passes(tmp_path):
    run_result = result(tmp_path, dataset=Stream(1200), eval_dataset=PAIRS, compute_budgets=[4e7])
    assert run_result.unique_tokens == 1200 * CONTEXT
    assert run_result.passes == pytest.approx(run_result.tokens / (1200 * CONTEXT))
    assert run_result.passes > 1


def test_a_stream_is_not_read_through_while_it_is_planned(tmp_path):
    read = []

    class Counting(Stream):
        def __iter__(self):
            for item in super().__iter__():
                read.append(1)
                yield item

    study(tmp_path, dataset=Counting(10**9), eval_dataset=PAIRS, fingerprint="counting")
    assert len(read) < 20_000


def test_a_stream_that_shuffles_itself_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"shuffles itself.*eval_dataset=.*make\(seed\)"):
        study(tmp_path, dataset=Shuffled())


def test_a_seeded_stream_needs_held_out_data_and_differs_between_seeds(tmp_path):
    with pytest.raises(DataError, match="eval_dataset="):
        study(tmp_path, dataset=FromSeed)
    planned = study(tmp_path, dataset=FromSeed, eval_dataset=PAIRS, seeds=[0, 1])
    data = planned.experiment.dataset
    first, repeated, other = (next(iter(data.spec.build(data.options, seed).batches(8)))[0] for seed in (0, 0, 1))
    assert torch.equal(first, repeated)
    assert not torch.equal(first, other)
    assert len({run.fingerprint for run in planned.plan.runs}) == 1


def test_random_numbers_of_the_model_do_not_change_a_stream(tmp_path):
    class Noisy(IterableDataset):
        def __init__(self, seed):
            self.seed = seed

        def __iter__(self):
            for row in ROWS:
                x = row[:-1].clone()
                x[torch.rand(CONTEXT) < 0.1] = 0
                yield x, row[1:]

    planned = study(tmp_path, dataset=Noisy, eval_dataset=PAIRS, fingerprint="noisy", copy_task=True)
    data = planned.experiment.dataset
    plain = data.spec.build(data.options, 0).batches(8)
    disturbed = data.spec.build(data.options, 0).batches(8)
    for _ in range(100):
        torch.rand(3)
        after = torch.get_rng_state()
        assert torch.equal(next(plain)[0], next(disturbed)[0])
        assert torch.equal(after, torch.get_rng_state())


class Augmented(Dataset):
    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        x = ROWS[index, :-1].clone()
        x[torch.rand(CONTEXT) < 0.1] = 0
        return x, ROWS[index, 1:]


def test_random_items_depend_on_their_position_only(tmp_path):
    planned = study(tmp_path, dataset=Augmented(), copy_task=True)
    data = planned.experiment.dataset
    built = data.spec.build(data.options, 0)
    items = torch.cat([next(batches)[0] for batches in [built.batches(1)] for _ in range(12)])
    torch.rand(5)
    assert torch.equal(torch.cat([next(built.batches(4, start))[0] for start in (0, 4, 8)]), items)
    held = [torch.cat([batch[0] for batch in built.eval_batches(400, size)]) for size in (1, 7)]
    assert torch.equal(*held)


RESUMED = """
import functools, sys, time
import torch
from torch import nn
sys.path.insert(0, {tests!r})
import test_inline_data as t
from flops_fit_core import find_optimal

class Slow(t.Net):
    def __init__(self, width):
        super().__init__(width)
        self.dropout = nn.Dropout(0.2)

    def forward(self, ids):
        if self.training and torch.is_grad_enabled() and {slow}:
            time.sleep(0.004)
        return self.head(self.dropout(self.embedding(ids)))

for which, out in {studies!r}:
    data = dict(plain=t.Stream(700), seeded=t.FromSeed, augmented=t.Augmented())[which]
    study = find_optimal(
        Slow, "width", dataset=data, eval_dataset=t.PAIRS, compute_budgets=[2e7], sizes=[4], allow_repeat=True,
        min_steps=1, batch_size=8, executor="local", device="cpu", output_dir=out, copy_task=True,
        fingerprint="resumed", optimizer=functools.partial(torch.optim.Adam, lr=0.02),
        trainer=dict(name="torch", checkpoint_minutes=0.003),
    )
    print(which, repr(study.results[0].loss), study.results[0].tokens)
"""


def program(*studies, slow):
    """A process that trains studies, each given by the kind of its data and its folder."""
    studies = [(which, str(out)) for which, out in studies]
    text = RESUMED.format(tests=str(Path(__file__).parent), studies=studies, slow=slow)
    return [sys.executable, "-W", "ignore", "-c", text]


def kill_at_first_checkpoint(which, out):
    """Train in a process, and kill it as soon as it has written a checkpoint."""
    with subprocess.Popen(program((which, out), slow=True), stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(out.rglob("latest.pt")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_loss(tmp_path):
    kinds = ["plain", "seeded", "augmented"]
    for which in kinds:
        kill_at_first_checkpoint(which, tmp_path / which)
    resumed = [(which, tmp_path / which) for which in kinds]
    alone = [(which, tmp_path / f"{which}-alone") for which in kinds]
    command = program(*resumed, *alone, slow=False)
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[0] for line in lines] == kinds + kinds
    assert lines[:3] == lines[3:]
