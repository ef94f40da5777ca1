"""The kits for model families and datasets find those that break their contract."""

from __future__ import annotations

MODEL = """
import torch
from torch import nn
from torch.nn import functional

from flops_fit_core import ModelSpec, Options, hookimpl
from flops_fit_core.testing import ModelConformance

class Lines(Options):
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
        yield ModelSpec(name="broken", options=Lines, build=build, size="width",
                        flops_per_token=lambda options, task: FLOPS)

class TestBroken(ModelConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


def test_broken_models_are_caught(failures):
    sound = {
        "INIT": "pass",
        "FORWARD": "pass",
        "WIDTH": "options.width",
        "FLOPS": "6 * options.width * 4 * (options.width + task.vocab_size)",
    }
    found = failures(
        MODEL,
        sound,
        {
            "sound": {},
            "has a parameter without gradient": {"INIT": "self.extra = nn.Parameter(torch.ones(width))"},
            "detaches a parameter": {
                "INIT": "self.scale = nn.Parameter(torch.ones(width))",
                "FORWARD": "x = x * self.scale.detach()",
            },
            "reads values while it is built": {"INIT": "self.start = float(torch.rand(1).sum())"},
            "insists on a device": {"INIT": "self.register_buffer('mask', torch.ones(3, device='cpu'))"},
            "reads values forward": {"FORWARD": "x = x if float(x.detach().sum()) > -1e9 else -x"},
            "does not grow": {"WIDTH": "8", "FLOPS": "6 * 8 * 4 * (8 + task.vocab_size)"},
            "forgets the backward pass": {"FLOPS": "2 * options.width * 4 * (options.width + task.vocab_size)"},
            "forgets the head": {"FLOPS": "6 * options.width * 4 * options.width"},
            "sees later tokens": {"FORWARD": "x = x + x.mean(1, keepdim=True)"},
            "sees other samples": {"FORWARD": "x = x + x.mean(0, keepdim=True)"},
            "seeds itself": {"INIT": "torch.manual_seed(7)"},
            "hides a weight": {
                "INIT": "self.noise = torch.rand(width)",
                "FORWARD": "x = x + self.noise.to(x.device)",
            },
        },
    )
    assert found == {
        "sound": set(),
        "has a parameter without gradient": {"test_every_parameter_gets_a_gradient"},
        "detaches a parameter": {"test_every_parameter_gets_a_gradient"},
        "reads values while it is built": {
            "test_it_is_built_on_the_meta_device",
            "test_the_meta_device_changes_no_shape",
            "test_a_larger_size_has_more_parameters",
            "test_it_can_be_tried_on_the_meta_device",
        },
        "insists on a device": {"test_it_is_built_on_the_meta_device"},
        "reads values forward": {"test_it_can_be_tried_on_the_meta_device"},
        "does not grow": {"test_a_larger_size_has_more_parameters"},
        "forgets the backward pass": {"test_its_own_flops_are_three_times_the_forward_pass"},
        "forgets the head": {"test_its_own_flops_are_three_times_the_forward_pass"},
        "sees later tokens": {"test_a_prediction_sees_no_later_token"},
        "sees other samples": {"test_the_loss_of_a_sample_does_not_depend_on_its_batch"},
        "seeds itself": {"test_another_seed_gives_other_weights"},
        "hides a weight": {"test_its_state_is_all_there_is"},
    }


DATASET = """
import torch

from flops_fit_core import DatasetSpec, LanguageTask, hookimpl
from flops_fit_core.testing import DatasetConformance

CONTEXT = 16
TEXT = torch.randint(1000, (4000,), generator=torch.Generator().manual_seed(0))

class Data:
    task = LanguageTask(vocab_size=1000, context=CONTEXT)
    bytes_per_token = None

    def __init__(self, seed):
        self.seed = seed
        self.fingerprint = FINGERPRINT
        self.training = TEXT[:TRAINING]
        self.held = TEXT[3000:]
        self.count = (len(self.training) - 1) // CONTEXT
        self.tokens = self.count * CONTEXT
        self.position = 0

    def order(self, epoch):
        return torch.randperm(self.count, generator=torch.Generator().manual_seed(1000 * self.seed + EPOCH))

    def sample(self, position):
        epoch, place = divmod(position, self.count)
        first = int(self.order(epoch)[place]) * CONTEXT
        return self.training[first : first + CONTEXT + 1]

    def batches(self, batch_size, start=0):
        START
        while True:
            yield torch.stack([self.sample(start + k) for k in range(batch_size)])
            start += STEP

    heldout_sets = SETS

    def heldout(self, tokens, batch_size, name=None):
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


def test_broken_datasets_are_caught(failures):
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
    other = "(one + 1000 for one in self.heldout(tokens, batch_size))"
    found = failures(
        DATASET,
        sound,
        {
            "sound": {},
            "leaks held-out text": {"TRAINING": "4000"},
            "has an order that depends on the batch size": {"STEP": "batch_size + (batch_size % 4 > 0)"},
            "has a fingerprint that depends on the seed": {"FINGERPRINT": "f'data {seed}'"},
            "starts at the beginning whatever one says": {"START": "start = 0"},
            "repeats in the same order": {"EPOCH": "0"},
            "holds out other data for other seeds": {"SELECTED": "self.seed : self.seed + tokens // CONTEXT"},
            "drops the last held-out batch": {"SELECTED": ": tokens // CONTEXT // batch_size * batch_size"},
            "holds out overlapping windows": {"STRIDE": "CONTEXT // 2"},
            "names a further set twice": {"SETS": "('more', 'more')", "FURTHER": other},
            "has a further set with nothing in it": {"SETS": "('more',)"},
            "trains on a further set": {
                "SETS": "('more',)",
                "FURTHER": "[TEXT[k : k + 17][None] for k in range(0, tokens, 16)]",
            },
            "holds out others of a further set for other seeds": {
                "SETS": "('more',)",
                "FURTHER": "(one + 1000 + self.seed for one in self.heldout(tokens, batch_size))",
            },
            "follows the global generator": {"EPOCH": "int(torch.randint(10**6, ()))"},
        },
    )
    always_wrong = {"test_the_same_seed_gives_the_same_samples", "test_the_batch_size_does_not_change_the_order"}
    assert found.pop("follows the global generator") >= always_wrong
    assert found == {
        "sound": set(),
        "leaks held-out text": {"test_training_data_do_not_contain_the_held_out_data"},
        "has an order that depends on the batch size": {"test_the_batch_size_does_not_change_the_order"},
        "has a fingerprint that depends on the seed": {"test_the_seed_does_not_change_the_fingerprint"},
        "starts at the beginning whatever one says": {"test_it_starts_at_any_sample"},
        "repeats in the same order": {"test_it_never_ends_and_repeats_in_another_order"},
        "holds out other data for other seeds": {
            "test_held_out_data_are_the_same_for_every_seed_batch_size_and_call"
        },
        "drops the last held-out batch": {
            "test_held_out_data_are_the_same_for_every_seed_batch_size_and_call",
            "test_held_out_data_are_as_many_as_asked_for_or_fewer",
        },
        "holds out overlapping windows": {"test_held_out_windows_do_not_overlap"},
        "names a further set twice": {"test_further_held_out_sets_have_names_of_their_own"},
        "has a further set with nothing in it": {
            "test_held_out_data_are_the_same_for_every_seed_batch_size_and_call",
            "test_held_out_data_are_as_many_as_asked_for_or_fewer",
            "test_held_out_windows_do_not_overlap",
            "test_training_data_do_not_contain_the_held_out_data",
        },
        "trains on a further set": {"test_training_data_do_not_contain_the_held_out_data"},
        "holds out others of a further set for other seeds": {
            "test_held_out_data_are_the_same_for_every_seed_batch_size_and_call"
        },
    }
