"""Fingerprints of models in the layouts of public projects: nanoGPT, LitGPT, timm, x-transformers and others."""

import ast

import pytest
from user_package import edit, identity, package, write  # noqa: F401

from flops_fit_core.plugins import code_hash

NANO = {
    "ownpkg_nano.py": """
import inspect
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F

device = "cuda" if torch.cuda.is_available() else "cpu"


class LayerNorm(nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if bias else None

    def forward(self, input):
        return F.layer_norm(input, self.weight.shape, self.weight, self.bias, 1e-5)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU()

    def forward(self, x):
        return self.gelu(self.c_fc(x)) + torch.arange(3, device=device)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)


@dataclass
class GPTConfig:
    block_size: int = 1024
    n_embd: int = 768
    bias: bool = True  # True: bias in Linears and LayerNorms, like GPT-2


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transformer = nn.ModuleDict(dict(h=nn.ModuleList([Block(config) for _ in range(2)])))

    def configure_optimizers(self, weight_decay):
        fused = "fused" in inspect.signature(torch.optim.AdamW).parameters
        return torch.optim.AdamW(self.parameters(), fused=fused)

    @classmethod
    def from_pretrained(cls, model_type):
        from transformers import GPT2LMHeadModel

        return GPT2LMHeadModel.from_pretrained(model_type)


def build(n_embd):
    return GPT(GPTConfig(n_embd=n_embd))
"""
}
LIT = {
    "ownpkg_lit/__init__.py": "from ownpkg_lit.model import GPT\nfrom ownpkg_lit.config import Config\n",
    "ownpkg_lit/config.py": """
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import ownpkg_lit.model

configs = []
pythia = [dict(name="pythia-14m", n_layer=6, mlp="Gelu"), dict(name="pythia-31m", n_layer=6, mlp="Llama")]
configs.extend(pythia)
for c in pythia:
    copy = deepcopy(c)
    copy["name"] = c["name"] + "-deduped"
    configs.append(copy)
name_to_config = {config["name"]: config for config in configs}


@dataclass
class Config:
    name: str = ""
    n_layer: int = 2
    n_embd: int = 8
    mlp: str = "Gelu"

    @classmethod
    def from_name(cls, name, **kwargs):
        return cls(**{**name_to_config[name], **kwargs})

    @property
    def mlp_class(self) -> Any:
        return getattr(ownpkg_lit.model, self.mlp + "MLP")
""",
    "ownpkg_lit/model.py": """
from torch import nn

from ownpkg_lit.config import Config


class GeluMLP(nn.Module):
    def forward(self, x):
        return nn.functional.gelu(x)


class LlamaMLP(nn.Module):
    def forward(self, x):
        return nn.functional.silu(x)


class GPT(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.mlp = config.mlp_class()

    @classmethod
    def from_name(cls, name, **kwargs):
        return cls(Config.from_name(name, **kwargs))
""",
    "ownpkg_lit/train.py": "import ownpkg_lit\n\nSTEPS = 10\n",
    "ownpkg_lit/build.py": """
from ownpkg_lit import GPT


def build(n_embd):
    return GPT.from_name("pythia-14m", n_embd=n_embd)
""",
}
REGISTRY = {
    "ownpkg_vit/__init__.py": "from .models import *\nfrom .registry import create_model\n",
    "ownpkg_vit/registry.py": """
import sys

_entrypoints = {}


def register_model(function):
    module = sys.modules[function.__module__]
    if hasattr(module, "__all__"):
        module.__all__.append(function.__name__)
    _entrypoints[function.__name__] = function
    return function


def create_model(name, **kwargs):
    return _entrypoints[name](**kwargs)
""",
    "ownpkg_vit/models/__init__.py": "from .vit import *\n",
    "ownpkg_vit/models/vit.py": """
from functools import partial

from torch import nn

from ..registry import register_model

__all__ = ["VisionTransformer"]


class Mlp(nn.Module):
    def forward(self, x):
        return x + 1


class VisionTransformer(nn.Module):
    def __init__(self, dim, mlp_layer=Mlp, norm_layer=None):
        super().__init__()
        self.mlp = mlp_layer()
        self.norm = (norm_layer or partial(nn.LayerNorm, eps=1e-6))(dim)


def _create(name, **kwargs):
    return VisionTransformer(**kwargs)


@register_model
def vit_tiny(pretrained=False, **kwargs):
    return _create("vit_tiny", **dict(dim=16, **kwargs))


@register_model
def vit_small(pretrained=False, **kwargs):
    return _create("vit_small", **dict(dim=32, **kwargs))
""",
    "ownpkg_vit/build.py": """
from ownpkg_vit import create_model


def build(dim):
    return create_model("vit_tiny", dim=dim)
""",
}
XTRANSFORMERS = {
    "ownpkg_x.py": """
from collections import namedtuple
from functools import partial, wraps
from typing import Callable

import torch
from torch import nn, einsum, Tensor

Intermediates = namedtuple("Intermediates", ["hiddens", "attn"])
DEFAULT_DIM_HEAD = 64
LinearNoBias = partial(nn.Linear, bias=False)


def exists(val):
    return val is not None


def default(val, d):
    if exists(val):
        return val
    return d() if callable(d) else d


def maybe(fn):
    @wraps(fn)
    def inner(x, *args, **kwargs):
        return fn(x, *args, **kwargs) if exists(x) else x

    return inner


def groupby_prefix(prefix, d):
    return {key: value for key, value in d.items() if key.startswith(prefix)}


class always:
    def __init__(self, val):
        self.val = val

    def __call__(self, *args, **kwargs):
        return self.val


@maybe
def once_masked(x):
    return x.tril()


class Attention(nn.Module):
    def __init__(self, dim, dim_head=DEFAULT_DIM_HEAD, act=always(1)):
        super().__init__()
        self.to_q = LinearNoBias(dim, dim_head)
        self.scale = default(None, lambda: dim_head**-0.5)

    def forward(self, x: Tensor):
        return once_masked(einsum("b i d, b j d -> b i j", self.to_q(x), self.to_q(x)) * self.scale)


class AttentionLayers(nn.Module):
    def __init__(self, dim, depth, **kwargs):
        super().__init__()
        attn_kwargs = groupby_prefix("attn_", kwargs)
        self.layers = nn.ModuleList([Attention(dim, **attn_kwargs) for _ in range(depth)])


class Decoder(AttentionLayers):
    def __init__(self, **kwargs):
        assert "causal" not in kwargs
        super().__init__(depth=2, **kwargs)
"""
}
HUGGING_FACE = {
    "ownpkg_hf/__init__.py": "",
    "ownpkg_hf/configuration_tiny.py": """
from transformers import PretrainedConfig


class TinyConfig(PretrainedConfig):
    model_type = "tiny"

    def __init__(self, hidden_size=16, hidden_act="silu", eps=1e-6, **kwargs):
        self.hidden_size = hidden_size
        self.hidden_act = hidden_act
        self.eps = eps
        super().__init__(**kwargs)
""",
    "ownpkg_hf/modeling_tiny.py": """
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import logging

from .configuration_tiny import TinyConfig

logger = logging.get_logger(__name__)
_CONFIG_FOR_DOC = "TinyConfig"


class TinyRMSNorm(nn.Module):
    def forward(self, x):
        return x * x.pow(2).mean(-1, keepdim=True).rsqrt()


class TinyAttention(nn.Module):
    def forward(self, x):
        return x


class TinyFlashAttention(TinyAttention):
    def forward(self, x):
        return 2 * x


ATTENTION = {"eager": TinyAttention, "flash": TinyFlashAttention}


class TinyForCausalLM(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        logger.warning_once("tiny")
        self.norm = TinyRMSNorm()
        self.attention = ATTENTION["eager"]()
        self.act = ACT2FN[config.hidden_act]


def build(hidden_size):
    return TinyForCausalLM(TinyConfig(hidden_size=hidden_size))
""",
}
STRANGERS = {
    "nanoGPT": (NANO, "ownpkg_nano:build"),
    "lit-gpt": (LIT, "ownpkg_lit.build:build"),
    "timm": (REGISTRY, "ownpkg_vit.build:build"),
    "x-transformers": (XTRANSFORMERS, "ownpkg_x:Decoder"),
    "Hugging Face": (HUGGING_FACE, "ownpkg_hf.modeling_tiny:build"),
}
STRANGERS_EDITS = [
    ("nanoGPT", "ownpkg_nano.py", "1e-5", "1e-6"),
    ("nanoGPT", "ownpkg_nano.py", "nn.GELU()", "nn.ReLU()"),
    ("nanoGPT", "ownpkg_nano.py", "bias: bool = True", "bias: bool = False"),
    ("lit-gpt", "ownpkg_lit/model.py", "gelu(x)", "relu(x)"),
    ("lit-gpt", "ownpkg_lit/config.py", 'pythia-14m", n_layer=6', 'pythia-14m", n_layer=7'),
    ("lit-gpt", "ownpkg_lit/config.py", "n_embd: int = 8", "n_embd: int = 9"),
    ("timm", "ownpkg_vit/models/vit.py", "x + 1", "x + 2"),
    ("timm", "ownpkg_vit/models/vit.py", "eps=1e-6", "eps=1e-5"),
    ("timm", "ownpkg_vit/models/vit.py", "dim=16", "dim=17"),
    ("x-transformers", "ownpkg_x.py", "is not None", "is None"),
    ("x-transformers", "ownpkg_x.py", "DEFAULT_DIM_HEAD = 64", "DEFAULT_DIM_HEAD = 32"),
    ("x-transformers", "ownpkg_x.py", "bias=False", "bias=True"),
    ("x-transformers", "ownpkg_x.py", "x.tril()", "x.triu()"),
    ("x-transformers", "ownpkg_x.py", "always(1)", "always(2)"),
    ("x-transformers", "ownpkg_x.py", "key.startswith", "key.endswith"),
    ("Hugging Face", "ownpkg_hf/configuration_tiny.py", "eps=1e-6", "eps=1e-5"),
    ("Hugging Face", "ownpkg_hf/modeling_tiny.py", "pow(2)", "pow(3)"),
    ("Hugging Face", "ownpkg_hf/modeling_tiny.py", "return 2 * x", "return 3 * x"),
]


@pytest.mark.parametrize(("layout", "file", "old", "new"), STRANGERS_EDITS)
def test_edits_in_the_layouts_of_public_projects_change_the_fingerprint(package, layout, file, old, new):  # noqa: F811
    files, root = STRANGERS[layout]
    write(package, files)
    before = identity(root)
    edit(package, file, old, new)
    assert identity(root) != before


@pytest.mark.parametrize("layout", STRANGERS)
def test_reformatting_the_layouts_of_public_projects_does_not_change_the_fingerprint(package, layout):  # noqa: F811
    """``ast.unparse`` drops comments and changes quotes, parentheses and line breaks."""
    files, root = STRANGERS[layout]
    write(package, files)
    before = identity(root)
    for name in files:
        tree = ast.parse((package / name).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                node.body.insert(0, ast.Expr(ast.Constant("A docstring.")))
        (package / name).write_text(f"# A comment.\n\n{ast.unparse(tree)}\n")
    assert identity(root) == before


def test_a_file_that_the_model_does_not_reach_does_not_change_the_fingerprint(package):  # noqa: F811
    write(package, LIT)
    before = code_hash(f"{package}/ownpkg_lit/build.py:build"), identity("ownpkg_lit.build:build")
    edit(package, "ownpkg_lit/train.py", "STEPS = 10", "STEPS = 20")
    assert (code_hash(f"{package}/ownpkg_lit/build.py:build"), identity("ownpkg_lit.build:build")) == before
