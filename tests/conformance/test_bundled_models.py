"""Every bundled model family keeps its contract."""

from __future__ import annotations

import pytest

from flops_fit_core.data import SupervisedTask
from flops_fit_core.testing import ModelConformance


class TestGPT(ModelConformance):
    name = "gpt"
    options = {"width": 32, "depth": 2}


class TestGPTWithLearnedPositionsAndTiedEmbeddings(ModelConformance):
    name = "gpt"
    options = {"width": 24, "depth": 1, "positions": "learned", "tied": True, "mlp_ratio": 2}


class TestGPTOfDepthAndWidth(ModelConformance):
    name = "gpt"
    options = {"width": 32, "aspect_ratio": 8, "head_dim": 8}


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


class TestATiedLlamaThatStartsByFanIn(ModelConformance):
    name = "hf"
    options = {
        "width": 32,
        "head_dim": 8,
        "init": "fan_in",
        "config": {"num_hidden_layers": 2, "tie_word_embeddings": True},
    }
    flops_tolerance = 1e-9


class TestAMixtureOfExperts(ModelConformance):
    name = "hf"
    options = {
        "architecture": "qwen3_moe",
        "width": 32,
        "head_dim": 8,
        "config": {"num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 1},
    }


class TestAMixtureThatCorrectsItsRouterByHand(ModelConformance):
    name = "hf"
    options = {
        "architecture": "ernie4_5_moe",
        "width": 32,
        "head_dim": 8,
        "config": {"num_hidden_layers": 2, "moe_num_experts": 4, "moe_k": 2},
    }


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
    options = {"params": 1000, "lookup_table_params": 100}
    trains = False


class TestSurfaceModel(ModelConformance):
    name = "surface"
    trains = False
