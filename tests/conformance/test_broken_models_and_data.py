"""The conformance kits for model families and datasets detect plugins that break their contract."""

from __future__ import annotations

import pytest

MODEL = """
import torch
from torch import nn
from torch.nn import functional

from flops_fit_core.plugins import Ladder, ModelSpec, Options, ParameterGroup, hookimpl
from flops_fit_core.testing import ModelConformance

class ModelOptions(Options):
    width: int = 8

class Model(nn.Module):
    def __init__(self, width, vocabulary):
        super().__init__()
        INIT
        self.table = nn.Embedding(vocabulary, width)
        self.hidden = nn.Linear(width, 4 * width)
        self.head = nn.Linear(4 * width, vocabulary)

    def forward(self, ids):
        x = self.table(ids)
        FORWARD
        return self.head(functional.gelu(self.hidden(x)))

def build(options, task):
    width = WIDTH
    return Model(width, task.vocab_size)

class Plugin:
    @hookimpl
    def flops_fit_models(self):
        yield ModelSpec(name="broken", options=ModelOptions, build=build, size="width",
                        flops_per_token=lambda options, task: FLOPS, parameter_groups=GROUPS,
                        width_scaled_options=SCALED, ladders=LADDERS, heads=lambda options: HEADS)

class TestBroken(ModelConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""

MIXTURE = {
    "INIT": "self.gate = nn.Linear(width, 4)\n"
    "        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in 'four')",
    "FORWARD": "share = self.gate(x).softmax(-1)\n"
    "        chosen = share * (share == share.amax(-1, keepdim=True))\n"
    "        x = x + sum(expert(x) * chosen[..., [i]] for i, expert in enumerate(self.experts))",
    "FLOPS": "6 * options.width * (8 * options.width + 4 + 4 * task.vocab_size)",
    "GROUPS": "lambda module: [ParameterGroup(list(module.experts.parameters()), active=0.25), ParameterGroup("
    "[param for name, param in module.named_parameters() if 'experts' not in name])]",
}
"""A token computes all four experts and uses one of them."""
UNUSUAL = {
    "sound, with tied weights, BatchNorm and dropout": {
        "INIT": "self.norm = nn.BatchNorm1d(width); self.down = nn.Linear(4 * width, width)",
        "self.head = nn.Linear(4 * width, vocabulary)": "self.head = nn.Linear(width, vocabulary)\n"
        "        self.head.weight = self.table.weight",
        "FORWARD": "x = functional.dropout(self.norm(x.transpose(1, 2)).transpose(1, 2), 0.1, self.training)",
        "self.head(functional.gelu(self.hidden(x)))": "self.head(self.down(functional.gelu(self.hidden(x))))",
        "FLOPS": "6 * options.width * (8 * options.width + task.vocab_size)",
    },
    "sound, a mixture of experts": MIXTURE,
}
"""Unusual models that keep the contract: the kit must not be stricter than the contract."""


@pytest.mark.slow
def test_broken_models_fail_the_kit(failures):
    sound = {
        "INIT": "pass",
        "FORWARD": "pass",
        "WIDTH": "options.width",
        "FLOPS": "6 * options.width * 4 * (options.width + task.vocab_size)",
        "GROUPS": "None",
        "SCALED": "None",
        "LADDERS": "lambda options: [Ladder(multiple_of=4)]",
        "HEADS": "(options.width // 4, 4)",
    }
    failed = failures(
        MODEL,
        sound,
        {
            "sound": {},
            "has a parameter without gradient": {"INIT": "self.extra = nn.Parameter(torch.ones(width))"},
            "detaches a parameter": {
                "INIT": "self.scale = nn.Parameter(torch.ones(width))",
                "FORWARD": "x = x * self.scale.detach()",
            },
            "reads values at construction": {"INIT": "self.start = float(torch.rand(1).sum())"},
            "requires a device": {"INIT": "self.register_buffer('mask', torch.ones(3, device='cpu'))"},
            "reads values in a forward pass": {"FORWARD": "x = x if float(x.detach().sum()) > -1e9 else -x"},
            "has heads that grow with the width": {"HEADS": "(4, options.width // 4)"},
            "cannot be built along its ladder": {"INIT": "assert width % 8 == 0"},
            "does not grow": {"WIDTH": "8", "FLOPS": "6 * 8 * 4 * (8 + task.vocab_size)"},
            "omits the backward pass": {"FLOPS": "2 * options.width * 4 * (options.width + task.vocab_size)"},
            "omits the head": {"FLOPS": "6 * options.width * 4 * options.width"},
            "sees later tokens": {"FORWARD": "x = x + x.mean(1, keepdim=True)"},
            "sees other samples": {"FORWARD": "x = x + x.mean(0, keepdim=True)"},
            "sets the seed": {"INIT": "torch.manual_seed(7)"},
            "hides a weight": {
                "INIT": "self.noise = torch.rand(width)",
                "FORWARD": "x = x + self.noise.to(x.device)",
            },
            "counts FLOPs for one width only": {"FLOPS": "6 * 8 * 4 * (8 + task.vocab_size)"},
            "hides state that training changes": {
                "INIT": "self.mean = 0.0",
                "FORWARD": "self.mean += x.detach().mean() * self.training; x = x - self.mean",
            },
            "draws from a private generator": {
                "INIT": "self.generator = torch.Generator()",
                "FORWARD": "x = x + self.training * torch.rand(1, generator=self.generator).to(x.device)",
            },
            "leaves dropout on": {"FORWARD": "x = functional.dropout(x, 0.1)"},
            "remembers evaluation data": {
                "INIT": "self.register_buffer('seen', torch.zeros(width))",
                "FORWARD": "self.seen.add_(x.detach().mean((0, 1))); x = x + self.seen * self.training",
            },
            "draws random numbers in an evaluation": {"FORWARD": "torch.rand(1)"},
            "writes into the batch": {"FORWARD": "ids[:, 0] = 0"},
            "uses more experts than declared": {**MIXTURE, "GROUPS": MIXTURE["GROUPS"].replace("0.25", "0.2")},
            "has a frozen parameter in a group": {
                "INIT": "self.still = nn.Parameter(torch.ones(width), requires_grad=False)",
                "GROUPS": "lambda module: [ParameterGroup(list(module.parameters()))]",
            },
            "changes its size where learning rates are scaled": {
                "SCALED": "lambda options: {'width': 2 * options.width}",
            },
            "has options for scaled learning rates": {"SCALED": "lambda options: {}"},
            **UNUSUAL,
        },
    )
    dropout_checks = {
        "test_a_prediction_sees_no_later_token",
        "test_the_loss_of_a_sample_does_not_depend_on_its_batch",
    }
    assert failed.pop("leaves dropout on") >= dropout_checks
    assert failed.pop("writes into the batch") >= {"test_a_forward_pass_leaves_its_batch_as_it_was"}
    assert failed == {
        "sound": set(),
        **{name: set() for name in UNUSUAL},
        "counts FLOPs for one width only": {"test_its_own_flops_are_three_times_the_forward_pass"},
        "hides state that training changes": {"test_its_state_is_all_there_is"},
        "draws from a private generator": {"test_its_state_is_all_there_is"},
        "remembers evaluation data": {"test_an_evaluation_leaves_no_trace"},
        "draws random numbers in an evaluation": {"test_an_evaluation_leaves_no_trace"},
        "has heads that grow with the width": {"test_its_automatic_sizes_keep_their_heads"},
        "cannot be built along its ladder": {"test_its_automatic_sizes_keep_their_heads"},
        "has a parameter without gradient": {"test_every_parameter_gets_a_gradient"},
        "detaches a parameter": {"test_every_parameter_gets_a_gradient"},
        "reads values at construction": {
            "test_it_is_built_on_the_meta_device",
            "test_the_meta_device_changes_no_shape",
            "test_a_larger_size_has_more_parameters",
            "test_it_can_be_tried_on_the_meta_device",
            "test_its_automatic_sizes_keep_their_heads",
        },
        "requires a device": {"test_it_is_built_on_the_meta_device"},
        "reads values in a forward pass": {"test_it_can_be_tried_on_the_meta_device"},
        "does not grow": {"test_a_larger_size_has_more_parameters"},
        "omits the backward pass": {"test_its_own_flops_are_three_times_the_forward_pass"},
        "omits the head": {"test_its_own_flops_are_three_times_the_forward_pass"},
        "sees later tokens": {"test_a_prediction_sees_no_later_token"},
        "sees other samples": {"test_the_loss_of_a_sample_does_not_depend_on_its_batch"},
        "sets the seed": {"test_another_seed_gives_other_weights"},
        "hides a weight": {"test_its_state_is_all_there_is"},
        "uses more experts than declared": {"test_a_token_uses_no_more_than_its_groups_say"},
        "has a frozen parameter in a group": {"test_its_groups_hold_every_parameter_once"},
        "changes its size where learning rates are scaled": {"test_options_of_width_scaled_runs_change_no_count"},
        "has options for scaled learning rates": set(),
    }


DATASET = """
import torch

from flops_fit_core.data import LanguageTask
from flops_fit_core.plugins import DatasetSpec, MultiEvalDataset, hookimpl
from flops_fit_core.testing import DatasetConformance

CONTEXT = 16
TEXT = torch.randint(1000, (4000,), generator=torch.Generator().manual_seed(0))

class Data(MultiEvalDataset):
    task = LanguageTask(vocab_size=3000, context=CONTEXT)

    def __init__(self, seed):
        self.seed = seed
        self.fingerprint = FINGERPRINT
        self.training = TEXT[:TRAINING]
        self.held = TEXT[3000:]
        self.count = (len(self.training) - 1) // CONTEXT
        self.num_unique_tokens = self.count * CONTEXT
        self.position = 0

    def order(self, epoch):
        return torch.randperm(self.count, generator=torch.Generator().manual_seed(1000 * self.seed + EPOCH))

    def sample(self, position):
        epoch, index = divmod(position, self.count)
        first = int(self.order(epoch)[index]) * CONTEXT
        return self.training[first : first + CONTEXT + 1]

    def batches(self, batch_size, start=0):
        START
        while True:
            yield torch.stack([self.sample(start + k) for k in range(batch_size)])
            start += STEP

    eval_sets = SETS

    def eval_batches(self, tokens, batch_size, name=None):
        if name is not None:
            yield from FURTHER
            return
        windows = [self.held[k : k + CONTEXT + 1] for k in range(0, len(self.held) - CONTEXT, STRIDE)]
        windows = windows[SELECTED]
        for first in range(0, len(windows), batch_size):
            yield torch.stack(windows[first : first + batch_size])

class Plugin:
    @hookimpl
    def flops_fit_datasets(self):
        yield DatasetSpec(name="broken", build=lambda options, seed: Data(seed))

class TestBroken(DatasetConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


@pytest.mark.slow
def test_broken_datasets_fail_the_kit(failures):
    sound = {
        "FINGERPRINT": "'data'",
        "TRAINING": "3000",
        "EPOCH": "epoch",
        "START": "pass",
        "STEP": "batch_size",
        "STRIDE": "CONTEXT",
        "SELECTED": ": tokens // CONTEXT",
        "SETS": "()",
        "FURTHER": "()",
    }
    other = "(batch + 1000 for batch in self.eval_batches(tokens, batch_size))"
    failed = failures(
        DATASET,
        sound,
        {
            "sound": {},
            "leaks held-out text": {"TRAINING": "4000"},
            "has an order that depends on the batch size": {"STEP": "batch_size + (batch_size % 4 > 0)"},
            "has a fingerprint that depends on the seed": {"FINGERPRINT": "f'data {seed}'"},
            "ignores start": {"START": "start = 0"},
            "repeats in the same order": {"EPOCH": "0"},
            "holds out other data for other seeds": {"SELECTED": "self.seed : self.seed + tokens // CONTEXT"},
            "drops the last held-out batch": {"SELECTED": ": tokens // CONTEXT // batch_size * batch_size"},
            "holds out overlapping windows": {"STRIDE": "CONTEXT // 2"},
            "uses the name of a further set twice": {"SETS": "('more', 'more')", "FURTHER": other},
            "has an empty further set": {"SETS": "('more',)"},
            "trains on a further set": {
                "SETS": "('more',)",
                "FURTHER": "[TEXT[k : k + 17][None] for k in range(0, tokens, 16)]",
            },
            "holds out another further set for other seeds": {
                "SETS": "('more',)",
                "FURTHER": "(batch + 1000 + self.seed for batch in self.eval_batches(tokens, batch_size))",
            },
            "uses the global generator": {"EPOCH": "int(torch.randint(10**6, ()))"},
            "ignores the epoch of start": {"START": "start %= self.count"},
            "draws with replacement": {"torch.randperm(self.count,": "torch.randint(self.count, (self.count,),"},
            "counts more unique tokens than it has": {
                "self.num_unique_tokens = ": "self.num_unique_tokens = 2 * "
            },
            "has another task for other seeds": {
                "self.seed = seed": "self.seed, self.task = seed, LanguageTask(3000 + seed, CONTEXT)",
            },
            "has more tokens for other seeds": {"self.num_unique_tokens = ": "self.num_unique_tokens = seed + "},
            "has tokens outside of its vocabulary": {"vocab_size=3000": "vocab_size=999"},
            "reuses a tensor for all batches": {
                "START": "buffer = torch.zeros(batch_size, CONTEXT + 1, dtype=torch.long)",
                "yield torch.stack([self.sample(start + k) for k in range(batch_size)])": (
                    "yield torch.stack([self.sample(start + k) for k in range(batch_size)], out=buffer)"
                ),
            },
        },
    )
    always = {"test_the_same_seed_gives_the_same_samples", "test_the_batch_size_does_not_change_the_order"}
    assert failed.pop("uses the global generator") >= always
    assert failed == {
        "sound": set(),
        "ignores the epoch of start": {"test_it_never_ends_and_repeats_in_another_order"},
        "draws with replacement": {"test_an_epoch_has_every_sample_once"},
        "counts more unique tokens than it has": {"test_an_epoch_has_every_sample_once"},
        "has another task for other seeds": {"test_the_seed_changes_nothing_but_the_order"},
        "has more tokens for other seeds": {"test_the_seed_changes_nothing_but_the_order"},
        "has tokens outside of its vocabulary": {"test_values_are_those_of_the_task"},
        "reuses a tensor for all batches": {"test_a_batch_stays_as_it_was_given"},
        "leaks held-out text": {"test_training_data_do_not_contain_the_held_out_data"},
        "has an order that depends on the batch size": {"test_the_batch_size_does_not_change_the_order"},
        "has a fingerprint that depends on the seed": {"test_the_seed_does_not_change_the_fingerprint"},
        "ignores start": {
            "test_it_starts_at_any_sample",
            "test_it_never_ends_and_repeats_in_another_order",
        },
        "repeats in the same order": {"test_it_never_ends_and_repeats_in_another_order"},
        "holds out other data for other seeds": {
            "test_held_out_data_are_the_same_for_every_seed_batch_size_and_call"
        },
        "drops the last held-out batch": {
            "test_held_out_data_are_the_same_for_every_seed_batch_size_and_call",
            "test_held_out_data_are_as_many_as_asked_for_or_fewer",
        },
        "holds out overlapping windows": {"test_held_out_windows_do_not_overlap"},
        "uses the name of a further set twice": {"test_further_held_out_sets_have_names_of_their_own"},
        "has an empty further set": {
            "test_held_out_data_are_the_same_for_every_seed_batch_size_and_call",
            "test_held_out_data_are_as_many_as_asked_for_or_fewer",
            "test_held_out_windows_do_not_overlap",
            "test_training_data_do_not_contain_the_held_out_data",
        },
        "trains on a further set": {"test_training_data_do_not_contain_the_held_out_data"},
        "holds out another further set for other seeds": {
            "test_held_out_data_are_the_same_for_every_seed_batch_size_and_call"
        },
    }


HASHED = """
import torch

from flops_fit_core.plugins import Dataset, DatasetSpec, Task, hookimpl

class Answers(Task):
    unit = "samples"

    def example(self, batch_size):
        return {"inputs": torch.zeros(batch_size, 2), "answers": torch.zeros(batch_size, dtype=torch.long)}

    def outputs(self, model, batch):
        return model(batch["inputs"])

    def loss(self, outputs, batch):
        loss = torch.nn.functional.cross_entropy(outputs, batch["answers"], reduction="sum")
        return loss, len(batch["answers"])

class Data(Dataset):
    # Batches are dictionaries, and the data are unlimited.
    task = Answers()
    fingerprint = FINGERPRINT

    def __init__(self, seed):
        self.seed = seed

    def sample(self, position):
        generator = torch.Generator().manual_seed(KEY % 2**63)
        return torch.randn(2, generator=generator), torch.randint(3, (), generator=generator)

    def batches(self, batch_size, start=0):
        while True:
            inputs, answers = zip(*(self.sample(start + k) for k in range(batch_size)))
            yield {"inputs": torch.stack(inputs), "answers": torch.stack(answers)}
            start += batch_size

    def eval_batches(self, tokens, batch_size):
        for first in range(0, min(tokens, 50), batch_size):
            count = min(tokens, 50, first + batch_size) - first
            yield {
                "inputs": torch.arange(first, first + count)[:, None].repeat(1, 2) + 0.5,
                "answers": torch.zeros(count, dtype=torch.long),
            }

@hookimpl
def flops_fit_datasets():
    yield DatasetSpec(name="hashed", build=lambda options, seed: Data(seed))
"""


def test_data_that_differ_between_processes_are_detected(site, failures):
    cases = {
        "sound": {},
        "fingerprint": {"FINGERPRINT": "str(hash('data'))"},
        "order": {"KEY": "hash(f'{self.seed} {position}')"},
    }
    for name, change in cases.items():
        text = HASHED
        for key, value in {"FINGERPRINT": "'data'", "KEY": "1000 * self.seed + position", **change}.items():
            text = text.replace(key, value)
        site.module(f"hashed_{name}", text)
    kit = """
import importlib

from flops_fit_core.testing import DatasetConformance

class TestIt(DatasetConformance):
    name = "hashed"
    plugins = {"mine": importlib.import_module("hashed_NAME")}
"""
    failed = failures(kit, {}, {name: {"NAME": name} for name in cases})
    other_process = {"test_another_process_finds_the_same_data"}
    assert failed == {"sound": set(), "fingerprint": other_process, "order": other_process}
