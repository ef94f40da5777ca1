"""Losses and data of ``find_optimal`` that look like others: weighted, contrastive or packed losses."""

import functools
from collections import namedtuple

import pytest
import torch
from test_inline_data import CONTEXT, PAIRS, ROWS, VOCAB, Net, Rows, notes, result, study
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset, TensorDataset

from flops_fit_core import ConfigError, DataError

cross_entropy = functional.cross_entropy
FROZEN = {"optimizer": functools.partial(torch.optim.SGD, lr=0.0)}
X = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
BINARY = (X.sum(1) > 0).long()
VALUES = TensorDataset(X, X.sum(1))


class Dense(nn.Module):
    def __init__(self, width, outputs=1):
        super().__init__()
        self.inner, self.head = nn.Linear(6, width), nn.Linear(width, outputs)

    def forward(self, x):
        return self.head(self.inner(x).relu())


def dense(tmp_path, outputs, targets, loss_fn=None, **arguments):
    data = TensorDataset(X, targets)
    kwargs = {"outputs": outputs}
    return study(tmp_path, Dense, model_kwargs=kwargs, dataset=data, loss_fn=loss_fn, **arguments)


def flat(loss, **options):
    return lambda outputs, targets: loss(outputs.flatten(0, 1), targets.flatten(), **options)


# ---------------------------------------------------------------------------- the form of a loss


def in_turn(targets):
    """Targets with equal numbers of both classes in each part of a batch."""
    return torch.arange(len(targets)) % 2


@pytest.mark.parametrize("targets", [in_turn(BINARY), BINARY * 0], ids=["balanced", "one class in sight"])
def test_a_loss_that_weights_classes_is_refused_whatever_classes_the_first_samples_have(tmp_path, targets):
    with pytest.raises(DataError, match=r"With class weights, return \(sum"):
        dense(tmp_path, 2, targets, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 30.0])))


@pytest.mark.parametrize("first", [0, 1])
def test_a_class_does_not_count_as_ignored_because_the_first_samples_have_no_other(tmp_path, first):
    targets = torch.cat([torch.full((1,), 1 - first), torch.full((299,), first), torch.full((100,), 1 - first)])
    planned = dense(tmp_path, 2, targets, nn.CrossEntropyLoss())
    assert "loss_fn returns a mean over the targets of a batch, without targets -100" in planned.plan.notes
    assert dense(tmp_path / "none", 2, targets * 0 + first, nn.CrossEntropyLoss(), train=False).plan.runs


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_ignored_class_is_found_wherever_it_is_among_the_classes(tmp_path, reduction):
    loss = flat(cross_entropy, ignore_index=7, reduction=reduction)
    run_result = result(tmp_path, loss_fn=loss, eval_share=0.5)
    assert run_result.valid_share == pytest.approx(float((ROWS[:, 1:] != 7).float().mean()), abs=0.02)
    assert "without targets 7" in notes(tmp_path / "again", loss_fn=loss)


def test_padding_that_the_loss_ignores_is_not_named_as_padding(tmp_path):
    lengths = torch.arange(CONTEXT) < 5
    padded = TensorDataset(ROWS[:, :-1], torch.where(lengths, ROWS[:, 1:], 7))
    assert "at the end of a row" not in notes(
        tmp_path, dataset=padded, loss_fn=flat(cross_entropy, ignore_index=7)
    )


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda o, t: ((o - t) ** 2).mean(1), r"smaller batch \(outputs of shape \(8, 1\).*broadcast"),
        (lambda o, t: ((o - t) ** 2).mean(), r"outputs of shape \(8, 1\) and targets of shape \(8,\).*broadcast"),
        (lambda o, t: functional.mse_loss(o[:, 0], t).detach(), "without a gradient"),
        (lambda o, t: functional.mse_loss(o[:, 0], t).bfloat16(), "bfloat16 value"),
        (
            lambda o, t: (functional.mse_loss(o[:, 0], t), {"seen": 1}),
            r"shape \(\), dict\): return \(sum, count\)",
        ),
        (lambda o, t: functional.mse_loss(o[:, 0] + torch.randn(len(o)), t), "draws random numbers"),
        (lambda o, t: None, "NoneType.*no loss without targets"),
    ],
)
def test_a_value_that_is_not_a_loss_of_the_samples_is_refused(tmp_path, loss_fn, message):
    with pytest.raises(DataError, match=message):
        study(tmp_path, Dense, dataset=VALUES, loss_fn=loss_fn)


def test_contrastive_values_of_each_sample_are_refused(tmp_path):
    def loss(outputs, targets):
        return cross_entropy(outputs @ targets.T, torch.arange(len(outputs)), reduction="none")

    with pytest.raises(DataError, match="values of a sample differ in a smaller batch"):
        dense(tmp_path, 6, X, loss)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_fn": nn.CrossEntropyLoss}, r"is a class: pass an instance, CrossEntropyLoss\(\)"),
        ({"loss_fn": "cross_entropy"}, "is not callable"),
        ({"loss_fn": nn.PReLU()}, r"\(weight\), which no optimizer would train"),
        ({"eval_share": 0}, "between 0 and 1"),
        ({"eval_share": -1}, "between 0 and 1"),
        ({"tokens_per_sample": 0}, "an integer of at least 1"),
    ],
)
def test_invalid_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        study(tmp_path, **arguments)


# ---------------------------------------------------------------------------- targets of the default loss


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (2, BINARY.bool(), "are bool, which have no default loss"),
        (2, BINARY - 1, r"a target is -1,.*classes 0 to 1\. Mark targets that do not count with -100"),
        (1, X.sum(1).masked_fill(BINARY.bool(), torch.nan), "targets of the first samples are NaN"),
        (1, X.sum(1) * torch.inf, "the loss of the first samples is .*targets contain NaN or infinity"),
    ],
)
def test_targets_without_a_default_loss_are_refused(tmp_path, outputs, targets, message):
    with pytest.raises(DataError, match=message):
        dense(tmp_path, outputs, targets)


def test_single_targets_that_are_the_inputs_are_refused(tmp_path):
    with pytest.raises(DataError, match="copy_task"):
        study(tmp_path, dataset=ROWS.flatten())


# ---------------------------------------------------------------------------- models of transformers


def t5(width):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCAB, d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    return T5ForConditionalGeneration(config)


def bart(width):
    from transformers import BartConfig, BartForConditionalGeneration

    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIDE.items()}
    config = BartConfig(
        vocab_size=VOCAB, d_model=width, max_position_embeddings=32, decoder_start_token_id=2, **sides
    )
    torch.manual_seed(0)
    return BartForConditionalGeneration(config)


SIDE = {"layers": 1, "attention_heads": 2, "ffn_dim": 8}
TURNED = [{"input_ids": row, "labels": row.flip(0)} for row in ROWS]


@pytest.mark.parametrize("family", [t5, pytest.param(bart, marks=pytest.mark.slow)])
def test_an_encoder_decoder_computes_the_decoder_inputs_from_the_labels(tmp_path, family):
    arguments = {**FROZEN, "sizes": [8], "compute_budgets": [3e8], "batch_size": 2}
    run_result = result(tmp_path, family, dataset=TURNED[60:], eval_dataset=TURNED[:60], **arguments)
    assert run_result.tokens % (CONTEXT + 1) == 0
    assert "receives the targets as 'labels'" in notes(tmp_path / "again", family, dataset=TURNED, **arguments)


NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def gpt2(width):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": VOCAB, "n_positions": 256, "n_embd": width, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **NO_DROPOUT))


HF = {"size": "width", "sizes": [8], "compute_budgets": [1e8], "batch_size": 4}


def test_rows_without_labels_do_not_hide_that_the_labels_are_the_inputs(tmp_path):
    labels = ROWS.clone()
    labels[:50] = -100
    assert "shifted by one, by flops-fit" in notes(tmp_path, gpt2, dataset=Rows(labels), **HF)


def test_labels_that_are_mostly_the_inputs_of_a_causal_model_are_refused(tmp_path):
    labels = torch.where(torch.arange(CONTEXT + 1) % 5 == 0, 0, ROWS)
    with pytest.raises(DataError, match=r"of the labels equal the input.*shifted by one.*copy_task"):
        study(tmp_path, gpt2, dataset=Rows(labels), **HF)


def test_a_loss_of_routers_that_would_not_be_trained_is_refused(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    def mixtral(width, output_router_logits):
        sizes = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "num_local_experts": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": VOCAB}
        return MixtralForCausalLM(MixtralConfig(**sizes, **heads, output_router_logits=output_router_logits))

    with pytest.raises(DataError, match="output_router_logits=False"):
        study(tmp_path, mixtral, model_kwargs={"output_router_logits": True}, dataset=Rows(), **HF)


def batch_encoding(items):
    from transformers import BatchEncoding

    return BatchEncoding({name: torch.stack([item[name] for item in items]) for name in items[0]})


Named = namedtuple("Named", "inputs targets")


def test_a_batch_encoding_is_divided_like_a_dict(tmp_path):
    loader = DataLoader(Rows(), batch_size=4, collate_fn=batch_encoding)
    losses = [
        result(tmp_path / name, gpt2, dataset=loader, trainer={"name": "torch", "micro_batch": size}, **HF).loss
        for name, size in (("whole", None), ("parts", 1))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_named_tuples_are_pairs(tmp_path):
    pairs = result(tmp_path / "pairs", dataset=list(PAIRS)).loss
    assert result(tmp_path / "named", dataset=[Named(*item) for item in PAIRS]).loss == pairs


def packed(items):
    """All items in one row, as transformers packs them."""
    ids = torch.cat([item["input_ids"] for item in items])[None]
    places = torch.cat([torch.arange(len(item["input_ids"])) for item in items])[None]
    return {"input_ids": ids, "position_ids": places, "labels": ids.masked_fill(places == 0, -100)}


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_packed_row_is_a_single_sample_that_is_not_divided(tmp_path, micro_batch):
    items = [{"input_ids": row[: 3 + index % 12]} for index, row in enumerate(ROWS)]
    loader = DataLoader(items, batch_size=4, collate_fn=packed)
    trainer = {"name": "torch", "micro_batch": micro_batch}
    run_result = result(tmp_path, gpt2, dataset=loader, trainer=trainer, **{**HF, "compute_budgets": [4e8]})
    assert run_result.loss < 3.5


# ---------------------------------------------------------------------------- batches


class Placed(Net):
    def forward(self, input_ids, position_ids, scale):
        return super().forward(input_ids) + 0 * position_ids.unsqueeze(-1) + 0 * scale


def with_shared(items, *, dims=1):
    ids, labels = torch.stack([item[0] for item in items]), torch.stack([item[1] for item in items])
    places = torch.arange(CONTEXT).reshape(*[1] * (dims - 1), -1)
    return {"position_ids": places, "scale": torch.tensor(1.0), "input_ids": ids, "labels": labels}


@pytest.mark.parametrize(("dims", "micro_batch"), [(1, None), (2, None), (2, 2)])
def test_values_shared_by_all_samples_of_a_batch_are_passed_unchanged(tmp_path, dims, micro_batch):
    plain = result(tmp_path / "plain").loss
    collate = functools.partial(with_shared, dims=dims)
    loader, trainer = DataLoader(PAIRS, 8, collate_fn=collate), {"name": "torch", "micro_batch": micro_batch}
    run_result = result(tmp_path / "shared", Placed, dataset=loader, trainer=trainer)
    assert run_result.loss == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            [(row[: 3 + k % 9], row[1 : 4 + k % 9]) for k, row in enumerate(ROWS)],
            "cannot be collated into a batch.*collate_fn",
        ),
        ([{"ids": row, "labels": None} for row in ROWS], "cannot be collated into a batch"),
        ([(row[:-1].tolist(), row[1:].tolist()) for row in ROWS], r"with_format\('torch'\)"),
        ([(row[:0], row[:0]) for row in ROWS], "have no targets"),
        (
            DataLoader(PAIRS, 8, collate_fn=lambda items: [torch.stack(x, 1) for x in zip(*items, strict=True)]),
            "first",
        ),
    ],
    ids=["lengths", "None", "lists", "empty", "samples second"],
)
def test_items_that_cannot_be_collated_are_refused(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        study(tmp_path, dataset=data)


# ---------------------------------------------------------------------------- held-out data


def pairs_of(rows):
    rows = torch.stack(rows)
    return rows[:, :-1], rows[:, 1:]


def test_a_held_out_loader_uses_its_collate_function(tmp_path):
    pairs = result(tmp_path / "pairs", eval_dataset=TensorDataset(*pairs_of(list(ROWS.flip(1)[:40])))).loss
    loader = DataLoader(list(ROWS.flip(1)[:40]), batch_size=4, collate_fn=pairs_of)
    assert result(tmp_path / "rows", eval_dataset=loader).loss == pytest.approx(pairs, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eval_dataset": PAIRS}, "eval_dataset is the training data"),
        ({"eval_dataset": DataLoader(PAIRS, batch_size=2)}, "eval_dataset is the training data"),
        (
            {"eval_dataset": TensorDataset(*(part.clone() for part in PAIRS.tensors))},
            "eval_dataset is the training data",
        ),
        ({"eval_dataset": Subset(PAIRS, range(9))}, "9 of the 9 samples of eval_dataset"),
        (
            {"dataset": Subset(PAIRS, range(500)), "eval_dataset": Subset(PAIRS, range(490, 510))},
            "10 of the 20 samples",
        ),
        ({"eval_dataset": list(ROWS)}, "targets of eval_dataset are the inputs"),
        ({"eval_dataset": TensorDataset(ROWS[:9, :-1], ROWS[:9, 0])}, "both must be of the same kind"),
        ({"eval_dataset": TensorDataset(ROWS[:9, :-1], ROWS[:9, 1:] + VOCAB)}, "eval_dataset does not fit"),
        ({"eval_dataset": []}, "^eval_dataset has 0 items: give at least 1"),
    ],
)
def test_invalid_held_out_data_are_refused(tmp_path, arguments, message):
    with pytest.raises(DataError, match=message):
        study(tmp_path, **arguments)


def test_parts_of_one_dataset_and_a_single_held_out_sample_are_accepted(tmp_path):
    assert study(
        tmp_path, dataset=Subset(PAIRS, range(500)), eval_dataset=Subset(PAIRS, range(500, 600))
    ).plan.runs
    assert result(tmp_path, eval_dataset=TensorDataset(ROWS[:1, :-1], ROWS[:1, 1:])).loss > 0
