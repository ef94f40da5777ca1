"""Every bundled plugin keeps the contract of its kind, and the kits find those that do not."""

from __future__ import annotations

import json
import random

import pytest

from flops_fit_core import SupervisedTask
from flops_fit_core.registry import installed
from flops_fit_core.testing import (
    DatasetConformance,
    FlopCounterConformance,
    ModelConformance,
    OptimizerConformance,
    ScheduleConformance,
    TrainerConformance,
)

# ---------------------------------------------------------------------------- models


class TestGPT(ModelConformance):
    name = "gpt"
    options = {"width": 32, "depth": 2}


class TestGPTWithLearnedPositionsAndTiedEmbeddings(ModelConformance):
    name = "gpt"
    options = {"width": 24, "depth": 1, "positions": "learned", "tied": True, "mlp_ratio": 2}


class TestMLPOnSamples(ModelConformance):
    name = "mlp"
    options = {"width": 24}
    task = SupervisedTask(inputs=(3, 4), outputs_size=5)


class TestMLPOnVectors(ModelConformance):
    name = "mlp"
    options = {"width": 16, "depth": 1}
    task = SupervisedTask(inputs=(6,), outputs_size=3, kind="mse")


class TestMLPOnLanguage(ModelConformance):
    name = "mlp"
    options = {"width": 16, "window": 4}


class TestViT(ModelConformance):
    name = "vit"
    options = {"width": 32, "depth": 2, "patch": 2}
    task = SupervisedTask(inputs=(3, 8, 6), outputs_size=5)


class TestViTWithAClassTokenOnImagesWithoutChannels(ModelConformance):
    name = "vit"
    options = {"width": 24, "depth": 1, "patch": 4, "pool": "class", "norm": "layer", "mlp_ratio": 2}
    task = SupervisedTask(inputs=(8, 8), outputs_size=10)


class TestLlama(ModelConformance):
    name = "hf"
    options = {"width": 32, "head_dim": 8, "queries_per_kv": 2, "config": {"num_hidden_layers": 2}}
    flops_tolerance = 1e-9


class TestGPT2(ModelConformance):
    name = "hf"
    options = {
        "architecture": "gpt2",
        "width": 32,
        "head_dim": 8,
        "scaled": {"n_inner": 3.0},
        "config": {"num_hidden_layers": 2},
    }
    flops_tolerance = 1e-9


class TestQwen3(ModelConformance):
    name = "hf"
    options = {"architecture": "qwen3", "width": 32, "head_dim": 8, "config": {"num_hidden_layers": 2}}
    flops_tolerance = 1e-9


class TestMamba(ModelConformance):
    name = "hf"
    options = {"architecture": "mamba", "width": 32, "config": {"num_hidden_layers": 2, "state_size": 4}}


class TestBertWhichSeesNoFuture(ModelConformance):
    name = "hf"
    options = {"architecture": "bert", "width": 32, "head_dim": 8, "config": {"num_hidden_layers": 2}}


class TestLadder(ModelConformance):
    name = "hf-ladder"
    options = {
        "configs": [
            {
                "hidden_size": 16 * 2**rung,
                "intermediate_size": 32 * 2**rung,
                "vocab_size": 61,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
            }
            for rung in range(5)
        ]
    }


OWN_MODELS = """
import torch
from torch import nn

class Transformer(nn.Module):
    def __init__(self, d_model, vocab_size, context):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        layer = nn.TransformerEncoderLayer(d_model, 4, 2 * d_model, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(d_model, vocab_size)

    def forward(self, ids):
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=ids.device)
        return self.head(self.blocks(self.embedding(ids), mask=mask, is_causal=True))

def convolutions(channels, num_classes, input_shape):
    return nn.Sequential(
        nn.Conv2d(input_shape[0], channels, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(channels * (input_shape[1] - 2) * (input_shape[2] - 2), num_classes),
    )
"""


class TestCallable(ModelConformance):
    name = "callable"

    @pytest.fixture
    def given_options(self, tmp_path):
        (tmp_path / "own.py").write_text(OWN_MODELS)
        return {"import_path": f"{tmp_path}/own.py:Transformer", "size_argument": "d_model", "size": 16}


class TestCallableOnImages(ModelConformance):
    name = "callable"
    task = SupervisedTask(inputs=(3, 8, 6), outputs_size=5)

    @pytest.fixture
    def given_options(self, tmp_path):
        (tmp_path / "own.py").write_text(OWN_MODELS)
        return {"import_path": f"{tmp_path}/own.py:convolutions", "size_argument": "channels", "size": 4}


class TestDeclared(ModelConformance):
    name = "declared"
    options = {"params": 1000, "lookup_params": 100}
    trains = False


class TestSurfaceModel(ModelConformance):
    name = "surface"
    trains = False


# ---------------------------------------------------------------------------- datasets


class TestText(DatasetConformance):
    name = "text"
    most = 4000

    @staticmethod
    def write_files(folder):
        source = random.Random(0)
        for number in range(60):
            words = ("".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(300))
            (folder / f"{number}.txt").write_text(" ".join(words))

    @pytest.fixture
    def given_options(self, tmp_path):
        self.write_files(tmp_path)
        return {"path": str(tmp_path), "context": 64}


class TestTextWithFurtherHeldOutSets(TestText):
    @pytest.fixture
    def given_options(self, tmp_path):
        source = random.Random(1)
        for name in ("small", "large"):
            words = ("".join(source.choices("nopqrstuvwxyz", k=7)) for _ in range(3000))
            (tmp_path / f"{name}.md").write_text(" ".join(words))
        further = {name: str(tmp_path / f"{name}.md") for name in ("small", "large")}
        self.write_files(tmp_path)
        return {"path": str(tmp_path / "*.txt"), "context": 64, "heldout_sets": further}


class TestTokens(DatasetConformance):
    name = "tokens"

    @pytest.fixture
    def given_options(self, tmp_path):
        import numpy as np

        ids = np.random.default_rng(0).integers(0, 500, size=20_000).astype("<u2")
        ids.tofile(tmp_path / "all.bin")
        return {"path": str(tmp_path / "all.bin"), "vocab_size": 500, "context": 32, "heldout_share": 0.2}


class TestDigits(DatasetConformance):
    name = "images"
    options = {"heldout_share": 0.2}


class TestImagesOfOnesOwn(DatasetConformance):
    name = "images"

    @pytest.fixture
    def given_options(self, tmp_path):
        (tmp_path / "own.py").write_text(
            "import torch\n"
            "def make(seed, count):\n"
            "    random = torch.Generator().manual_seed(seed)\n"
            "    images = torch.randint(256, (count, 3, 6, 4), generator=random, dtype=torch.uint8)\n"
            "    return [(image, number % 3) for number, image in enumerate(images)]\n"
            "def train(): return make(0, 500)\n"
            "def test(): return make(1, 90)\n"
            "def other(): return make(2, 70)\n"
        )
        own = {name: f"{tmp_path / 'own.py'}:{name}" for name in ("train", "test", "other")}
        return {
            "source": own["train"],
            "heldout_source": own["test"],
            "heldout_sets": {"other": own["other"]},
            "normalize": False,
        }


class TestHFDataset(DatasetConformance):
    name = "hf-dataset"

    @pytest.fixture
    def given_options(self, tmp_path):
        for number, (name, documents) in enumerate((("train", 400), ("other", 90))):
            source = random.Random(number)
            rows = [[source.randrange(500) for _ in range(60)] for _ in range(documents)]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows))
        return {
            "path": str(tmp_path / "train.jsonl"),
            "column": "ids",
            "vocab_size": 501,
            "end_of_text": 500,
            "context": 32,
            "heldout_share": 0.2,
            "heldout_sets": {"other": str(tmp_path / "other.jsonl")},
            "cache": str(tmp_path / "cache"),
        }


# ---------------------------------------------------------------------------- the rest


class TestSGD(OptimizerConformance):
    name = "sgd"
    lr = 0.05


class TestSGDWithMomentum(OptimizerConformance):
    name = "sgd"
    options = {"momentum": 0.9}


class TestAdamW(OptimizerConformance):
    name = "adamw"


class TestMuon(OptimizerConformance):
    name = "muon"
    hidden_width_power = 0.5


class TestMuonWithStepsOfOneSpectralNorm(OptimizerConformance):
    name = "muon"
    options = {"adjust_lr_fn": "original", "nesterov": False, "hidden": "linear"}
    hidden_width_power = 0.0


class TestLion(OptimizerConformance):
    name = "lion"
    lr = 0.002


class TestAdafactor(OptimizerConformance):
    name = "adafactor"


class TestScheduleFree(OptimizerConformance):
    name = "schedule-free"


class TestConstant(ScheduleConformance):
    name = "constant"


class TestConstantAfterWarmup(ScheduleConformance):
    name = "constant"
    options = {"warmup_tokens": 10_000}


class TestCosine(ScheduleConformance):
    name = "cosine"


class TestCosineAfterWarmup(ScheduleConformance):
    name = "cosine"
    options = {"warmup_tokens": 1000, "final": 0.0}


class TestWSD(ScheduleConformance):
    name = "wsd"


class TestWSDOfAnotherShape(ScheduleConformance):
    name = "wsd"
    options = {"warmup_tokens": 10_000, "decay": 0.5, "shape": "linear", "final": 0.1}


class TestChinchilla(FlopCounterConformance):
    name = "chinchilla"


class TestChinchillaOfAllParameters(FlopCounterConformance):
    name = "chinchilla"
    options = {"n": "total"}


class TestModelCounter(FlopCounterConformance):
    name = "model"


class TestHoffmann(FlopCounterConformance):
    name = "hoffmann"


class TestTraced(FlopCounterConformance):
    name = "traced"


# ---------------------------------------------------------------------------- trainers


class TestTorch(TrainerConformance):
    name = "torch"


class TestCommand(TrainerConformance):
    name = "command"
    in_process = False
    size = {"params": 100}
    budget = 6.0 * 100 * 2000 * 8
    experiment = {
        "model": "declared",
        "dataset": {"name": "external", "label": "none", "vocab_size": 16, "context": 8},
        "optimizer": "sgd",
    }

    @pytest.fixture
    def given_options(self, tmp_path):
        (tmp_path / "train.py").write_text(
            "import json, sys\n"
            "seed, steps, result, progress = sys.argv[1:]\n"
            "open(progress, 'w').write(json.dumps({'step': int(steps) // 2}) + '\\n')\n"
            "json.dump({'loss': 2 + int(seed) + 1 / int(steps)}, open(result, 'w'))\n"
        )
        return {
            "command": ["{python}", "train.py", "{seed}", "{steps}", "{result}", "{progress}"],
            "directory": str(tmp_path),
        }


class TestLightning(TrainerConformance):
    name = "lightning"
    experiment = {"optimizer": {"name": "sgd", "lr": 0.3}}
    # Lightning takes optimizers of torch's class only, which the one that writes its learning rates down is not.
    uses_optimizer = False

    @pytest.fixture
    def given_options(self, tmp_path):
        (tmp_path / "train.py").write_text(
            "import lightning\n"
            "class Plain(lightning.LightningModule):\n"
            "    def __init__(self, model, task):\n"
            "        super().__init__()\n"
            "        self.model, self.task = model, task\n"
            "    def training_step(self, batch, batch_idx):\n"
            "        loss, count = self.task.loss(self.task.outputs(self.model, batch), batch)\n"
            "        return loss / count\n"
        )
        return {"module": f"{tmp_path}/train.py:Plain"}


class TestSurfaceTrainer(TrainerConformance):
    name = "surface"
    in_process = False
    size = {"params": 1_000_000}
    budget = 1e15
    experiment = {"model": "surface/surface", "dataset": {"name": "surface", "noise": 0.1}}


def test_every_bundled_plugin_of_these_kinds_is_tested_here():
    kits = (
        ModelConformance,
        DatasetConformance,
        OptimizerConformance,
        ScheduleConformance,
        FlopCounterConformance,
        TrainerConformance,
    )
    tested = {
        (it.kind, it.name)
        for it in globals().values()
        if isinstance(it, type) and issubclass(it, kits) and it not in kits
    }
    offered = {
        (offer.spec.kind, offer.spec.name)
        for kit in kits
        for offer in installed().offers(kit.kind)
        if offer.source.startswith("flops-fit ")
    }
    # These have no data to be held to anything.
    assert offered - tested - {("dataset", "surface"), ("dataset", "external")} == set()


# ---------------------------------------------------------------------------- plugins that break their contract


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


OPTIMIZER = """
import torch

from flops_fit_core import OptimizerSpec, Options, hookimpl
from flops_fit_core.testing import OptimizerConformance

class Lines(Options):
    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0

class Adam(torch.optim.AdamW):
    BODY

class Averaging(torch.optim.AdamW):
    # Its model is a moving average of the weights, which eval() exchanges for them, and train() exchanges back.
    def step(self):
        super().step()
        for p in self.weights():
            self.state[p].setdefault("average", p.detach().clone()).lerp_(p.detach(), 0.5)

    def weights(self):
        return [p for group in self.param_groups for p in group["params"]]

    def exchange(self, averaged):
        if self.param_groups[0].get("averaged", False) == KNOWN:
            return
        for group in self.param_groups:
            group["averaged"] = averaged
        for p in self.weights():
            if "average" in self.state[p]:
                kept = p.detach().clone()
                p.data.copy_(self.state[p]["average"])
                self.state[p]["average"].copy_(kept)

    def train(self):
        self.exchange(False)

    EVAL

def build(options, model, run):
    groups = [
        {"params": list(group.parameters), "lr": LR, "weight_decay": DECAY} for group in run.groups(model)
    ]
    return KIND(GROUPS, betas=BETAS)

class Plugin:
    @hookimpl
    def flops_fit_optimizers(self):
        yield OptimizerSpec(name="broken", options=Lines, build=build, adam_like=True)

class TestBroken(OptimizerConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


def test_broken_optimizers_are_caught(failures):
    evaluated = "def eval(self): self.exchange(True)"
    counted = evaluated + "; [self.state[p]['step'].add_(1) for p in self.weights() if self.state[p]]"
    sound = {
        "LR": "options.lr * run.lr_scale(group)",
        "DECAY": "options.weight_decay if group.decay else 0.0",
        "GROUPS": "groups",
        "BODY": "pass",
        "KIND": "Adam",
        "BETAS": "options.betas",
        "KNOWN": "averaged",
        "EVAL": evaluated,
    }
    own_rate = """def step(self):
        rates = [group['lr'] for group in self.param_groups]
        for group in self.param_groups:
            group['lr'] = 0.01
        super().step()
        for group, rate in zip(self.param_groups, rates):
            group['lr'] = rate
    """
    found = failures(
        OPTIMIZER,
        sound,
        {
            "sound": {},
            "ignores its lr": {"LR": "0.01"},
            "ignores widths": {"LR": "options.lr"},
            "drops parameters": {"GROUPS": "groups[:1]"},
            "decays biases": {"DECAY": "options.weight_decay"},
            "ignores the schedule": {"BODY": own_rate},
            "forgets its state": {"BODY": "def load_state_dict(self, state): pass"},
            "goes uphill": {"GROUPS": "groups, maximize=True"},
            "ignores its betas": {"BETAS": "(0.9, 0.999)"},
            "ignores its weight decay": {"DECAY": "0.0"},
            "sound, with modes": {"KIND": "Averaging"},
            "has one mode": {"KIND": "Averaging", "EVAL": "pass"},
            "forgets in which mode it is": {"KIND": "Averaging", "KNOWN": "None"},
            "takes an evaluation for a step": {"KIND": "Averaging", "EVAL": counted},
        },
    )
    assert found == {
        "sound": set(),
        "ignores its lr": {
            "test_groups_start_at_the_peak_learning_rate",
            "test_a_tenth_of_the_learning_rate_is_a_smaller_first_step",
            "test_wide_matrices_get_a_smaller_learning_rate",
        },
        "ignores widths": {"test_wide_matrices_get_a_smaller_learning_rate"},
        "drops parameters": {
            "test_every_parameter_is_in_one_group",
            "test_a_step_moves_every_parameter",
            "test_wide_matrices_get_a_smaller_learning_rate",
        },
        "decays biases": {"test_only_groups_that_may_decay_do"},
        "ignores the schedule": {
            "test_a_learning_rate_of_zero_moves_nothing",
            "test_a_tenth_of_the_learning_rate_is_a_smaller_first_step",
        },
        "forgets its state": {"test_its_state_goes_on_where_it_was_saved"},
        "goes uphill": {"test_it_learns"},
        "ignores its betas": {"test_other_betas_are_another_run"},
        "ignores its weight decay": {"test_only_groups_that_may_decay_do"},
        "sound, with modes": set(),
        "has one mode": {"test_it_has_both_modes_or_none"},
        "forgets in which mode it is": {
            "test_its_state_goes_on_where_it_was_saved",
            "test_a_mode_that_it_is_in_is_kept",
        },
        "takes an evaluation for a step": {"test_an_evaluation_changes_nothing"},
    }


SCHEDULE = """
import math

from flops_fit_core import ScheduleSpec, hookimpl
from flops_fit_core.testing import ScheduleConformance

calls = []

def build(options, run):
    return lambda step: MULTIPLIER

class Plugin:
    @hookimpl
    def flops_fit_schedules(self):
        yield ScheduleSpec(name="broken", build=build, branch=BRANCH)

class TestBroken(ScheduleConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


def test_broken_schedules_are_caught(failures):
    multipliers = {
        "sound": "1 - step / run.steps",
        "is a learning rate": "0.001 * (1 - step / run.steps)",
        "goes above the peak": "1.5 - step / run.steps",
        "goes below zero": "math.cos(math.pi * step / 300)",
        "divides by zero in a run of one step": "1 - step / (run.steps - 1)",
        "stands still in a run of one step": "min(1, step / 100)",
        "counts its calls": "calls.append(1) or 1 / len(calls)",
    }
    cases = {name: {"MULTIPLIER": text} for name, text in multipliers.items()}
    cases["branches off while it falls"] = {"BRANCH": "lambda options, run: run.steps"}
    found = failures(SCHEDULE, {"BRANCH": "None", "MULTIPLIER": multipliers["sound"]}, cases)
    assert found == {
        "sound": set(),
        "branches off while it falls": {"test_before_its_branch_a_run_does_as_every_longer_one"},
        "is a learning rate": {"test_a_long_run_reaches_the_peak"},
        "goes above the peak": {"test_it_is_a_share_of_the_peak_at_every_step"},
        "goes below zero": {"test_it_is_a_share_of_the_peak_at_every_step"},
        "divides by zero in a run of one step": {
            "test_it_is_a_share_of_the_peak_at_every_step",
            "test_no_run_stands_still",
        },
        "stands still in a run of one step": {"test_no_run_stands_still"},
        "counts its calls": {
            "test_a_long_run_reaches_the_peak",
            "test_it_depends_on_the_step_alone",
            "test_two_runs_do_not_disturb_each_other",
        },
    }


COUNTER = """
from flops_fit_core import FlopCount, FlopCounterSpec, hookimpl
from flops_fit_core.testing import FlopCounterConformance

def build(options, measured):
    n = measured.parameters.matmul
    return COUNT

class Plugin:
    @hookimpl
    def flops_fit_flop_counters(self):
        yield FlopCounterSpec(name="broken", build=build)

class TestBroken(FlopCounterConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


def test_broken_counters_are_caught(failures):
    counts = {
        "sound": "FlopCount(6.0 * n, n, '6 N D', 'matmul parameters')",
        "sound, recomputing": "FlopCount(8.0 * n, n, '8 N D', 'matmul parameters')",
        "forgets the backward pass": "FlopCount(2.0 * n, n, '2 N D', 'matmul parameters')",
        "counts a whole sequence": "FlopCount(6.0 * n * measured.task.context, n, '6 N D', 'matmul parameters')",
        "gives N in millions": "FlopCount(6.0 * n, n / 1e6, '6 N D', 'millions')",
        "does not say what it counts": "FlopCount(6.0 * n, n, '', '')",
        "has terms of something else": "FlopCount(6.0 * n, n, '6 N D', 'matmul', {'head': 5.0 * n})",
        "takes for granted that families count": "FlopCount(1.0 * measured.own_flops_per_token, n, 'own', 'N')",
        "reads the weights": "FlopCount(6.0 * n * bool(next(measured.module.parameters()).sum()), n, 'C', 'N')",
    }
    found = failures(COUNTER, {}, {name: {"COUNT": text} for name, text in counts.items()})
    assert "test_it_counts_without_reading_or_changing_the_model" in found.pop("reads the weights")
    assert found == {
        "sound": set(),
        "sound, recomputing": set(),
        "forgets the backward pass": {"test_it_counts_forward_and_backward"},
        "counts a whole sequence": {"test_it_counts_forward_and_backward"},
        "gives N in millions": {"test_n_is_a_number_of_the_model_s_parameters"},
        "does not say what it counts": {"test_it_says_what_it_counts"},
        "has terms of something else": {"test_it_says_what_it_counts"},
        "takes for granted that families count": {
            "test_a_family_that_does_not_describe_itself_is_counted_or_refused"
        },
    }


LOGGER = """
import json
import os
import threading

from flops_fit_core import LoggerSpec, hookimpl
from flops_fit_core.testing import LoggerConformance

class Lines:
    def __init__(self, folder):
        self.path = folder / "log.jsonl"
        self.curves = {}
        self.latest = []

    def started(self, plan):
        START
        self.path.touch()

    def progress(self, progress):
        PROGRESS
        key = KEY
        if progress.loss is not None:
            self.curves.setdefault(key, []).append((progress.tokens, progress.loss))

    def finished(self, result):
        FINISH
        row = {"run": result.id, "attempt": result.attempt, "status": result.status, "loss": result.loss,
               "params": result.run.params, "tokens": TOKENS, "flops": result.flops,
               "heldout": [(one.tokens, one.loss) for one in result.curve if one.loss is not None],
               "training": self.curves.pop((result.id, result.attempt), []),
               "error": result.error.message if result.error else None}
        self.latest.append(row)
        WRITE

    def write(self, rows):
        with self.path.open("a") as file:
            file.writelines(json.dumps(row) + chr(10) for row in rows)

    def close(self):
        CLOSE

class Plugin:
    @hookimpl
    def flops_fit_loggers(self):
        yield LoggerSpec(name="broken", build=lambda options, folder: Lines(folder))

class TestBroken(LoggerConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
    keeps = ("attempt", "status", "loss", "params", "tokens", "flops", "heldout", "error")
    keeps_training = True

    def shown(self, folder):
        return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
"""


def test_broken_loggers_are_caught(failures):
    sound = {
        "START": "pass",
        "PROGRESS": "pass",
        "KEY": "(progress.run, progress.attempt)",
        "FINISH": "pass",
        "TOKENS": "result.tokens",
        "WRITE": "self.write([row])",
        "CLOSE": "pass",
    }
    follows = "test_it_follows_a_sweep_from_its_start_to_its_end"
    apart = "test_runs_that_train_at_the_same_time_are_kept_apart"
    unseen = "test_a_result_needs_no_progress_before_it"
    fail = "test_runs_that_fail_or_diverge_are_shown"
    missing = "test_numbers_may_be_missing"
    attempts = "test_every_attempt_at_a_run_is_followed"
    again = "test_opening_again_keeps_what_was_there"
    goes_on = "test_a_run_that_was_interrupted_goes_on"
    named = "test_metrics_may_be_called_anything"
    closing = "test_closing_twice_leaves_no_thread_and_no_process"
    within = "test_it_writes_into_the_study_s_folder_only"
    nothing = "test_a_sweep_without_anything_to_train_is_no_error"
    results = {follows, apart, unseen, fail, missing, attempts, again, goes_on, named}
    found = failures(
        LOGGER,
        sound,
        {
            "sound": {},
            "drops the last result": {
                "WRITE": "self.write(self.latest[:-1]); self.latest = self.latest[-1:]",
            },
            "fails on a failed run": {"FINISH": "result.status == 'failed' and result.cause"},
            "cannot show a run without a loss": {"FINISH": "f'{result.loss:.3f}'"},
            "cannot show progress without a loss": {"PROGRESS": "f'{progress.loss:.3f}'"},
            "mixes up runs that train at the same time": {
                "PROGRESS": "self.current = getattr(self, 'current', (progress.run, progress.attempt))",
                "KEY": "self.current",
                "FINISH": "self.__dict__.pop('current', None)",
            },
            "needs progress before a result": {"FINISH": "self.curves[result.id, result.attempt]"},
            "mixes up attempts": {"KEY": "(progress.run, 1)"},
            "shows the tokens that were planned": {"TOKENS": "result.run.tokens"},
            "deletes what was there": {"START": "self.path.unlink(missing_ok=True)"},
            "wants a new folder": {"START": "self.path.with_suffix('.new').mkdir()"},
            "names a file like a metric": {
                "FINISH": "[(self.path.parent / name).touch() for name in result.metrics]"
            },
            "prints": {"FINISH": "print(result.id)"},
            "writes into the working directory": {"FINISH": "open('latest.txt', 'w').close()"},
            "leaves a thread behind": {
                "START": "threading.Thread(target=threading.Event().wait, daemon=True).start()",
            },
            "leaves a process behind": {
                "START": "os.posix_spawn('/bin/sleep', ['sleep', '5'], {})",
            },
            "cannot be closed twice": {"CLOSE": "del self.latest"},
            "cannot be closed before it starts": {"START": "self.plan = plan", "CLOSE": "self.plan"},
        },
    )
    assert found == {
        "sound": set(),
        "drops the last result": results,
        "fails on a failed run": {fail, attempts},
        "cannot show a run without a loss": {fail, attempts},
        "cannot show progress without a loss": {missing},
        "mixes up runs that train at the same time": {apart},
        "needs progress before a result": {unseen, fail, missing, named, closing},
        "mixes up attempts": {attempts},
        "shows the tokens that were planned": {fail, missing},
        "deletes what was there": {attempts, again},
        "wants a new folder": {attempts, again, goes_on},
        "names a file like a metric": {named},
        "prints": results | {closing, within},
        "writes into the working directory": {within},
        "leaves a thread behind": {closing},
        "leaves a process behind": {closing},
        "cannot be closed twice": {closing},
        "cannot be closed before it starts": {closing},
    }
    assert nothing not in set().union(*found.values())
