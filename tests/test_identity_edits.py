"""Which edits of the user's own code make other runs, and which leave the finished ones."""

import ast
import importlib
import subprocess
import sys

import pytest

from flops_fit_core.api.fingerprint.objects import identify_callable
from flops_fit_core.plugins import code_hash

PACKAGE = {
    "ownpkg/__init__.py": "from ownpkg.model import GPT, GPTConfig\n",
    "ownpkg/sizes.py": """
DEPTH = 2
HEADS = {"small": 4}
DEVICE = "cpu"
""",
    "ownpkg/layers.py": '''
import math
from functools import lru_cache, partial, wraps

from torch import nn

from ownpkg.base import Base

EPS = 1e-5
NORMS = {}
SEEN = {}


def exists(value):
    return value is not None


def default(value, otherwise):
    return value if exists(value) else otherwise


def register(kind):
    NORMS[kind.__name__] = kind
    return kind


def once(function):
    called = False

    @wraps(function)
    def inner(x):
        nonlocal called
        called = True
        return function(x)

    return inner


@register
class RMSNorm(nn.Module):
    def forward(self, x):
        return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()


@register
class ScaleNorm(nn.Module):
    def forward(self, x):
        return x / x.norm()


def slope(heads):
    return 2.0 ** (-8 / heads)


@lru_cache
def mask(length):
    return math.log(length + 1)


@once
def squared_relu(x):
    return x.relu().square()


Wide = partial(nn.Linear, bias=False)


class Block(Base):
    """A block.

    With a docstring of several lines.
    """

    ratio = slope(4)

    def __init__(self, width, act=squared_relu):
        super().__init__()
        # A comment.
        self.norm = NORMS["RMSNorm"]()
        self.inner = Wide(width, default(None, 3) * width)
        self.heads = [slope(head) for head in range(1, 3)]
        self.act = act

    def forward(self, x):
        SEEN[x.shape] = True
        return self.act(self.inner(self.norm(x))) + mask(len(x))


class Unused(nn.Module):
    pass
''',
    "ownpkg/base.py": """
from torch import nn


class Base(nn.Module):
    scale = 1.0

    @property
    def doubled(self):
        return 2 * self.scale

    @staticmethod
    def half(x):
        return x / 2
""",
    "ownpkg/heads.py": """
from torch import nn


class Head(nn.Module):
    def forward(self, x):
        return 3 * x
""",
    "ownpkg/losses.py": """
def penalty(x):
    return 0.1 * x
""",
    "ownpkg/model.py": """
from dataclasses import dataclass, field

import ownpkg.layers as L
from torch import nn

from . import losses, sizes
from .sizes import DEVICE, HEADS


def spread():
    return [1, 2]


@dataclass
class GPTConfig:
    width: int = 8
    depth: int = sizes.DEPTH
    spread: list = field(default_factory=spread)


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        from .heads import Head

        self.blocks = nn.ModuleList(L.Block(config.width) for _ in range(sizes.DEPTH))
        self.head = Head()
        self.heads = HEADS["small"]
        self.penalty = lambda x: losses.penalty(x)

    def forward(self, x):
        x = x.to(DEVICE)
        for block in self.blocks:
            x = block(x)
        return self.head(x) + self.penalty(x)


def make(width):
    return GPT(GPTConfig(width))
""",
    "ownpkg/factory.py": """
def make(width):
    from ownpkg import GPT, GPTConfig

    return GPT(GPTConfig(width))
""",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # an edit may keep the second and the size
    write(tmp_path, PACKAGE)
    yield tmp_path
    forget()


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0].startswith("ownpkg")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def identity(root="ownpkg.model:make"):
    """As a new process has it."""
    forget()
    module, _, name = root.partition(":")
    return identify_callable(getattr(importlib.import_module(module), name), {}, "model_cls")


def edit(folder, file, old, new):
    path = folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


EDITS = {
    "a class that a module holds": ("layers.py", "self.norm(x)))", "x))"),
    "its base class": ("base.py", "scale = 1.0", "scale = 2.0"),
    "a property of the base class": ("base.py", "2 * self", "3 * self"),
    "a static method of the base class": ("base.py", "x / 2", "x / 3"),
    "a helper of a helper": ("layers.py", "value is not None", "value is None"),
    "a constant": ("layers.py", "EPS = 1e-5", "EPS = 1e-6"),
    "a class in a registry": ("layers.py", "+ EPS", "- EPS"),
    "a decorator": ("layers.py", "return function(x)", "return -function(x)"),
    "what a decorator wraps": ("layers.py", "x.relu().square()", "x.relu()"),
    "what lru_cache wraps": ("layers.py", "length + 1", "length + 2"),
    "a default": ("layers.py", "act=squared_relu", "act=mask"),
    "a partial": ("layers.py", "bias=False", "bias=True"),
    "a function in a comprehension and a class body": ("layers.py", "-8 /", "-4 /"),
    "an import in a function": ("heads.py", "3 * x", "4 * x"),
    "a function in a lambda, through a module": ("losses.py", "0.1", "0.2"),
    "a constant through a module": ("sizes.py", "DEPTH = 2", "DEPTH = 3"),
    "an imported dict": ("sizes.py", '"small": 4', '"small": 8'),
    "a default of a dataclass": ("model.py", "width: int = 8", "width: int = 16"),
    "the factory of a dataclass's default": ("model.py", "[1, 2]", "[1, 3]"),
    "an operator": ("model.py", "self.head(x) +", "self.head(x) -"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_behind_a_factory_makes_other_runs(package, kind):
    before = identity()
    assert identity() == before
    file, old, new = EDITS[kind]
    edit(package, f"ownpkg/{file}", old, new)
    assert identity() != before


def test_an_edit_behind_a_factory_that_imports_when_it_is_called_makes_other_runs(package):
    before = identity("ownpkg.factory:make")
    edit(package, "ownpkg/base.py", "2 * self", "3 * self")
    assert identity("ownpkg.factory:make") != before


LAYOUT = {
    "a docstring": ("layers.py", '"""A block.', '"""One block.'),
    "no docstring": ("layers.py", '"""A block.\n\n    With a docstring of several lines.\n    """\n', ""),
    "a docstring of a function": ("layers.py", "    return 2.0", '    """Of ALiBi."""\n    return 2.0'),
    "a docstring of a module": ("heads.py", "\nfrom torch", '"""Heads."""\n\nfrom torch'),
    "a docstring of an attribute": ("base.py", "scale = 1.0", 'scale = 1.0\n    """Of the output."""'),
    "a comment": ("layers.py", "# A comment.", "# Another comment,\n        # longer."),
    "line breaks": (
        "layers.py",
        "def __init__(self, width, act=",
        "def __init__(\n        self,\n        width,\n        act=",
    ),
    "quotes": ("model.py", 'HEADS["small"]', "HEADS['small']"),
    "parentheses": ("model.py", "return self.head(x) + self", "return (self.head(x)) + self"),
    "blank lines": ("layers.py", "super().__init__()\n", "\n\n\n        super().__init__()\n\n"),
    "the order of imports": (
        "layers.py",
        "import math\nfrom functools import",
        "import math, os\nfrom functools import",
    ),
    "the form of a number": ("layers.py", "EPS = 1e-5", "EPS = 0.000_01"),
    "pass in place of a docstring": ("layers.py", "    pass", '    """None."""'),
    "code that the model does not use": ("layers.py", "    pass", "    width = 3"),
}


@pytest.mark.parametrize("kind", LAYOUT)
def test_layout_comments_and_docstrings_make_no_other_runs(package, kind):
    before = identity()
    file, old, new = LAYOUT[kind]
    edit(package, f"ownpkg/{file}", old, new)
    assert identity() == before


# ---------------------------------------------------------------------------- layouts of public projects

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
def test_edits_in_the_layouts_of_public_projects_make_other_runs(package, layout, file, old, new):
    files, root = STRANGERS[layout]
    write(package, files)
    before = identity(root)
    edit(package, file, old, new)
    assert identity(root) != before


@pytest.mark.parametrize("layout", STRANGERS)
def test_reformatting_the_layouts_of_public_projects_makes_no_other_runs(package, layout):
    """``ast.unparse`` drops comments and chooses quotes, parentheses and line breaks anew."""
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


def test_a_file_of_the_package_that_the_model_does_not_reach_makes_no_other_runs(package):
    write(package, LIT)
    before = code_hash(f"{package}/ownpkg_lit/build.py:build"), identity("ownpkg_lit.build:build")
    edit(package, "ownpkg_lit/train.py", "STEPS = 10", "STEPS = 20")
    assert (code_hash(f"{package}/ownpkg_lit/build.py:build"), identity("ownpkg_lit.build:build")) == before


# ---------------------------------------------------------------------------- code that computes names

COMPUTED = {
    "getattr of a module": """
import ownpkg.layers as layers
def make(width, name="Block"):
    return getattr(layers, name)(width)
""",
    "a module as an argument": """
import ownpkg.layers as layers
def build(module, width):
    return module.Block(width)
def make(width):
    return build(layers, width)
""",
    "import_module": """
import importlib
def make(width, name="Block"):
    return getattr(importlib.import_module(f"{__package__}.layers"), name)(width)
""",
    "__import__": """
def make(width):
    return __import__("ownpkg.layers").layers.Block(width)
""",
    "sys.modules": """
import sys
import ownpkg.layers
def make(width):
    return sys.modules["ownpkg.layers"].Block(width)
""",
    "a star import": """
from ownpkg.layers import *
def make(width):
    return Block(width)
""",
    "globals": """
from ownpkg.layers import Block
def make(width):
    return globals()["Block"](width)
""",
    "eval": """
from ownpkg.layers import Block
def make(width):
    return eval("Block")(width)
""",
    "a list of classes": """
from ownpkg.layers import Block, Unused
KINDS = [(Unused, {}), (Block, {"width": 4})]
def make(width):
    return KINDS[1][0](width)
""",
    "subclasses": """
from ownpkg.base import Base
import ownpkg.layers
def make(width):
    return Base.__subclasses__()[0](width)
""",
    "subclasses of a class method's class": """
class Kind:
    @classmethod
    def named(cls, name):
        return next(kind for kind in cls.__subclasses__() if kind.__name__ == name)
class Small(Kind):
    def forward(self, x):
        return squared(x)
def squared(x): return x.relu().square()
def make(width):
    return Kind.named("Small")
""",
    "an instance's method": """
from ownpkg.layers import Block
class Maker:
    def __init__(self, kind): self.kind = kind
    def make(self, width): return self.kind(width)
make = Maker(Block).make
""",
    "__init_subclass__": """
class Kind:
    registry = {}
    def __init_subclass__(cls, **kwargs):
        Kind.registry[cls.__name__] = cls
class Small(Kind):
    def forward(self, x): return x.relu().square()
def make(width):
    return Kind.registry["Small"]()
""",
    "a registry object": """
class Registry:
    def __init__(self): self.kinds = {}
    def register(self, kind):
        self.kinds[kind.__name__] = kind
        return kind
MODELS = Registry()
@MODELS.register
class Small:
    def forward(self, x): return x.relu().square()
def make(width):
    return MODELS.kinds["Small"]()
""",
    "a metaclass": """
class Meta(type):
    def __call__(cls, *args): return cls.relu_squared(*args)
    def relu_squared(cls, x): return x.relu().square()
class make(metaclass=Meta): pass
""",
    "an attribute set from outside": """
from ownpkg.base import Base
def forward(self, x): return x.relu().square()
Base.forward = forward
def make(width): return Base()
""",
    "a function in a closure": """
import ownpkg.layers as layers
def outer():
    def inner(width): return layers.Block(width)
    return inner
make = outer()
""",
    "a module in a closure": """
def outer():
    import ownpkg.layers as layers
    def inner(width): return layers.Block(width)
    return inner
make = outer()
""",
    "pydantic": """
from pydantic import BaseModel, Field
from ownpkg.layers import squared_relu
def act(): return squared_relu
class Config(BaseModel):
    act: object = Field(default_factory=act)
def make(width): return Config().act
""",
    "pydantic, by the type of a field": """
from pydantic import BaseModel
from ownpkg.layers import squared_relu
class Inner(BaseModel):
    def act(self): return squared_relu
class Config(BaseModel):
    inner: Inner | None = None
def make(width): return Config(inner={})
""",
    "try and except": """
try:
    from ownpkg_missing import Block
except ImportError:
    from ownpkg.layers import Block
def make(width): return Block(width)
""",
    "a function in a library's object": """
from collections import UserString
def jit(function):
    kernel = UserString("kernel")
    kernel.run = function
    del kernel.run
    return kernel
@jit
def kernel(x): return helper(x)
def helper(x): return x.relu().square()
def make(width): return kernel[width]
""",
    "an object that does not show what it holds": """
import weakref
def build(): return helper
def helper(x): return x.relu().square()
TABLE = weakref.ref(build)
def make(width): return TABLE
""",
    "an object that holds itself": """
TABLE = {"helper": lambda x: x.relu().square()}
TABLE["self"] = TABLE
def make(width): return TABLE
""",
    "a dict beside a place": """
import os
PARTS = {"act": lambda x: x.relu().square(), "data": os.path.abspath("data")}
def make(width): return PARTS["act"]
""",
    "an exported attribute of the package": """
import ownpkg
def make(width): return ownpkg.model.L.Block(width)
""",
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_code_behind_a_computed_name_is_followed_too(package, kind):
    (package / "ownpkg" / "root.py").write_text(COMPUTED[kind])
    before = identity("ownpkg.root:make")
    assert identity("ownpkg.root:make") == before
    where = "root.py" if "x.relu().square()" in COMPUTED[kind] else "layers.py"
    edit(package, f"ownpkg/{where}", "x.relu().square()", "x.relu()")
    assert identity("ownpkg.root:make") != before


# ---------------------------------------------------------------------------- what changes with use or place

STATEFUL = """
import logging
import os
import threading
from collections import Counter
from pathlib import Path

import torch
from ownpkg_shared import SEEN

logger = logging.getLogger(__name__)
lock = threading.Lock()
HERE = Path(__file__).parent
DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
DEVICE = os.environ.get("OWN_DEVICE", "cpu")
CACHE, COUNTS, CALLS = {}, Counter(), 0
SETTINGS = {"data": DATA, "device": DEVICE, "tag": "/think"}
GENERATOR = torch.Generator()


class Model:
    made = 0
    cache = {}

    home = DATA

    def __init__(self, width, device=DEVICE, *, data=DATA):
        global CALLS
        SEEN[width] = SETTINGS
        CALLS += 1
        Model.made += 1
        type(self).cache[width] = self
        CACHE[width] = torch.zeros(width)
        COUNTS.update([width])
        logger.debug("%s %s %s", HERE, DATA, DEVICE)
        with lock:
            self.x = torch.randn(3, generator=GENERATOR)
"""


def test_counters_caches_places_and_devices_do_not_count(package, monkeypatch):
    (package / "ownpkg_state.py").write_text(STATEFUL)
    (package / "ownpkg_shared.py").write_text("SEEN = {}\ndef add(key): SEEN[key] = True\n")
    before = identity("ownpkg_state:Model")
    model = sys.modules["ownpkg_state"].Model
    model(4)
    assert identify_callable(model, {}, "model_cls") == before
    monkeypatch.setenv("OWN_DEVICE", "cuda:1")
    assert identity("ownpkg_state:Model") == before
    edit(package, "ownpkg_state.py", '"/think"', '"/end"')
    assert identity("ownpkg_state:Model") != before
    edit(package, "ownpkg_state.py", '"/end"', '"/think"')
    moved = package / "moved"
    moved.mkdir()
    (package / "ownpkg_state.py").rename(moved / "ownpkg_state.py")
    monkeypatch.syspath_prepend(moved)
    assert identity("ownpkg_state:Model") == before


def test_a_constant_set_from_outside_makes_other_runs(package):
    before = identity()
    sys.modules["ownpkg.sizes"].DEPTH = 5
    assert identify_callable(sys.modules["ownpkg.model"].make, {}, "model_cls") != before


def test_names_on_both_sides_of_a_circle_are_followed_and_their_order_does_not_count(package):
    halves = [
        "class Left:\n    def other(self): return Right()\n",
        "class Right:\n    def other(self): return Left(), 1\n",
    ]
    found = set()
    for text in ("\n".join(halves), "\n".join(reversed(halves))):
        (package / "ownpkg_circle.py").write_text(text)
        found.add((identity("ownpkg_circle:Left"), identity("ownpkg_circle:Right")))
    ((left, right),) = found
    edit(package, "ownpkg_circle.py", "Left(), 1", "Left(), 2")
    assert identity("ownpkg_circle:Left") != left
    assert identity("ownpkg_circle:Right") != right


def test_a_long_chain_of_functions_is_followed(package):
    chain = [f"def f{number}(x): return f{number + 1}(x)" for number in range(2000)]
    (package / "ownpkg_chain.py").write_text("\n".join([*chain, "def f2000(x): return x"]))
    before = identity("ownpkg_chain:f0")
    edit(package, "ownpkg_chain.py", "def f2000(x): return x", "def f2000(x): return -x")
    assert identity("ownpkg_chain:f0") != before


# ---------------------------------------------------------------------------- what is installed


def test_what_is_installed_counts_by_its_name_and_an_editable_install_by_its_source(tmp_path, monkeypatch):
    installed, source = tmp_path / "venv" / "lib" / "site-packages", tmp_path / "project" / "src"
    for folder in (installed, source):
        folder.mkdir(parents=True)
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (installed / "ownpkg_installed.py").write_text("def layer(x): return x\n")
    (installed / "editable.pth").write_text(f"{source}\n")
    (source / "ownpkg_editable.py").write_text(
        "from ownpkg_installed import layer\n"
        "def helper(x): return x\n"
        "def make(width): return layer(helper(width))\n"
    )
    before = identity("ownpkg_editable:make")
    edit(installed, "ownpkg_installed.py", "return x", "return -x")
    assert identity("ownpkg_editable:make") == before
    edit(source, "ownpkg_editable.py", "def helper(x): return x", "def helper(x): return -x")
    assert identity("ownpkg_editable:make") != before
    forget()


# ---------------------------------------------------------------------------- scripts, notebooks, other processes

SCRIPT = """
import sys
from dataclasses import dataclass

from flops_fit_core.api.fingerprint.objects import identify_callable

WIDTH = 4
BUDGETS = [1e5, 2e5]


def scaled(x):
    return WIDTH * x


@dataclass
class Config:
    depth: int = WIDTH
    names: frozenset = frozenset({"a", "b", "c"})


class Block:
    def forward(self, x):
        return scaled(x)


class Net:
    def __init__(self, width, config=Config()):
        super().__init__()
        self.block = Block()
        self.act = {"relu", "gelu", "tanh"}


if __name__ == "__main__":
    print(identify_callable(Net, {"names": {"x", "y", "z"}}, "model_cls"))
"""


def output(folder, *arguments, seed="0"):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_script_is_the_same_in_every_process_and_follows_the_classes_in_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    before = output(tmp_path, "script.py", seed="1")
    assert len(before) == 16
    script.write_text(
        SCRIPT.replace("[1e5, 2e5]", "[1e5, 4e5]").replace("class Block:", '\nclass Block:\n    """A block."""\n')
    )
    assert output(tmp_path, "script.py", seed="2") == before
    script.write_text(SCRIPT.replace("return scaled(x)", "return scaled(x) + 1"))
    assert output(tmp_path, "script.py") != before
    script.write_text(SCRIPT.replace("WIDTH = 4", "WIDTH = 5"))
    assert output(tmp_path, "script.py") != before


def test_a_class_that_cloudpickle_carried_by_value_is_the_same_class(tmp_path):
    script = SCRIPT.replace(
        "print(identify",
        'import cloudpickle\n    open("net.pkl", "wb").write(cloudpickle.dumps(Net))\n    print(identify',
    )
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "other.py").write_text(
        "import cloudpickle\n"
        "from flops_fit_core.api.fingerprint.objects import identify_callable\n"
        'made = cloudpickle.loads(open("net.pkl", "rb").read())\n'
        'print(identify_callable(made, {"names": {"x", "y", "z"}}, "model_cls"))\n'
    )
    assert output(tmp_path, "script.py") == output(tmp_path, "other.py", seed="3")


SPAWNED = """
import multiprocessing
import ownpkg.model
from flops_fit_core.api.fingerprint.objects import identify_callable

def identity(_):
    return identify_callable(ownpkg.model.make, {}, "model_cls")

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*{identity(None), *pool.map(identity, [None])})
"""


def test_a_spawned_process_has_the_same_identity(package):
    (package / "spawned.py").write_text(SPAWNED)
    assert output(package, "spawned.py") == identity()


NOTEBOOK = """
import linecache, sys
from flops_fit_core.api.fingerprint.objects import identify_callable

names = {"__name__": "__main__"}
for number, cell in enumerate(sys.stdin.read().split("# cell")):
    name = f"/tmp/ipykernel_{number}/{number}.py"
    linecache.cache[name] = len(cell), None, cell.splitlines(True), name
    exec(compile(cell, name, "exec"), names)
print(identify_callable(names["Net"], {}, "model_cls"))
"""
CELLS = """
def helper(x):
    return 2 * x
# cell
width = 3
# cell
class Net:
    def forward(self, x):
        return helper(x) + width
"""


def test_the_cells_of_a_notebook_are_followed(tmp_path):
    def of(cells):
        done = subprocess.run([sys.executable, "-c", NOTEBOOK], input=cells, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    before = of(CELLS)
    assert of(f"# nothing\n# cell\n{CELLS}".replace("class Net:", 'class Net:\n    """A net."""\n')) == before
    assert len({before, of(CELLS.replace("2 * x", "3 * x")), of(CELLS.replace("width = 3", "width = 4"))}) == 3


AT_A_PROMPT = """
from flops_fit_core.api.fingerprint.objects import identify_callable
def helper(x): return 2 * x

class Net:
    def forward(self, x): return helper(x)

before = identify_callable(Net, {}, "model_cls")
def helper(x): return 3 * x

print(identify_callable(Net, {}, "model_cls") != before)
"""


def test_a_helper_typed_at_a_prompt_is_followed():
    done = subprocess.run([sys.executable, "-i"], input=AT_A_PROMPT, capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr


# ---------------------------------------------------------------------------- every version of Python

PLAIN = '''
import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial, singledispatch, wraps

KINDS, CACHE, DEPTH, NAMES = {}, {}, 3, ("a", "b")


def register(kind):
    KINDS[kind.__name__] = kind
    return kind


def twice(function):
    @wraps(function)
    def inner(*args, **kwargs):
        return function(function(*args, **kwargs))

    return inner


@twice
def grow(x, by=(1, 2.5), *, most=None):
    return x + sum(by) if most is None else min(most, x)


@lru_cache(maxsize=8)
def root(x):
    return math.sqrt(x)


@singledispatch
def show(x):
    return f"{x!r:>{DEPTH}} {root(4):.2f}"


@dataclass(frozen=True)
class Config:
    """Sizes."""

    width: int
    depth: int = DEPTH
    names: tuple = field(default_factory=lambda: [name.upper() for name in NAMES])

    @cached_property
    def total(self):
        return self.width * self.depth


@register
class Block:
    scale = partial(grow, most=9)

    def __init__(self, config: Config):
        self.parts = {number: root(number) for number in range(config.depth)}

    def forward(self, x):
        class Inner:
            depth = DEPTH

        match x:
            case {"x": value}:
                return show(value)
            case _:
                return [grow(part) for part in self.parts if (half := part / 2) < Inner.depth], half


def make(width):
    return KINDS["Block"](Config(width))
'''
PLAIN_IDENTITY = "f6b7cd687d0a95ba"
"""Computed with Python 3.11.7, 3.12.1 and 3.13.0."""


def test_every_supported_python_has_the_same_identity(package):
    (package / "ownpkg_plain.py").write_text(PLAIN)
    assert identity("ownpkg_plain:make") == PLAIN_IDENTITY


def test_a_sweep_of_a_class_forgets_its_runs_when_a_class_that_it_uses_is_edited(package):
    pytest.importorskip("torch")
    from test_find_optimal import ids, planned

    text = """
from torch import nn


class Block(nn.Linear):
    \"\"\"A block.\"\"\"

    def forward(self, x):
        return super().forward(x).relu()


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(Block(4, width), nn.Linear(width, 3))

    def forward(self, x):
        return self.layers(x)
"""

    def runs():
        forget()
        return ids(planned(package, importlib.import_module("ownpkg_net").Net))

    (package / "ownpkg_net.py").write_text(text)
    before = runs()
    edit(package, "ownpkg_net.py", '"""A block."""', '"""Linear and ReLU."""  # of width')
    assert runs() == before
    edit(package, "ownpkg_net.py", ".relu()", ".tanh()")
    assert not set(runs()) & set(before)


# ---------------------------------------------------------------------------- kinds of objects

REACHED = {
    "enum": (
        """from enum import Enum
class A(Enum):
    X=1
    def f(self): return 3
def make(w): return A.X.f()
""",
        "return 3",
        "return 4",
    ),
    "enum, X=1": (
        """from enum import Enum
class A(Enum):
    X=1
    def f(self): return 3
def make(w): return A.X.f()
""",
        "X=1",
        "X=2",
    ),
    "enum value in default": (
        """from enum import Enum
class A(Enum):
    X=1
    def f(self): return 3
def make(w,a=A.X): return a.f()
""",
        "return 3",
        "return 4",
    ),
    "global enum member": (
        """from enum import Enum
class A(Enum):
    X=1
    def f(self): return 3
D=A.X
def make(w): return D.f()
""",
        "return 3",
        "return 4",
    ),
    "namedtuple": (
        """from typing import NamedTuple
class C(NamedTuple):
    d: int = 3
D=C()
def make(w): return D.d
""",
        "= 3",
        "= 4",
    ),
    "namedtuple method": (
        """from typing import NamedTuple
class C(NamedTuple):
    d: int = 3
    def f(self): return 1
D=C()
def make(w): return D.f()
""",
        "return 1",
        "return 2",
    ),
    "dict subclass": (
        """class C(dict):
    def f(self): return 1
D=C(a=2)
def make(w): return D.f()
""",
        "return 1",
        "return 2",
    ),
    "dict subclass, a=2": (
        """class C(dict):
    def f(self): return 1
D=C(a=2)
def make(w): return D.f()
""",
        "a=2",
        "a=3",
    ),
    "int subclass": (
        """class C(int):
    def f(self): return 1
D=C(2)
def make(w): return D.f()
""",
        "return 1",
        "return 2",
    ),
    "dataclass instance attr": (
        """from dataclasses import dataclass
@dataclass
class C:
    d: int = 3
    e: int = 5
    @property
    def p(self): return self.d+1
D=C(d=4)
def make(w): return D.p
def make2(w): return D.d
""",
        "d+1",
        "d+2",
    ),
    "dataclass instance attr, C(d=4)": (
        """from dataclasses import dataclass
@dataclass
class C:
    d: int = 3
    e: int = 5
    @property
    def p(self): return self.d+1
D=C(d=4)
def make(w): return D.p
def make2(w): return D.d
""",
        "C(d=4)",
        "C(d=6)",
    ),
    "property on instance shadow": (
        """class C:
    def __init__(self): self.x=1
    def __getattr__(self,n): return helper()
def helper(): return 1
D=C()
def make(w): return D.zz
""",
        "helper(): return 1",
        "helper(): return 2",
    ),
    "property on instance shadow, self.x=1": (
        """class C:
    def __init__(self): self.x=1
    def __getattr__(self,n): return helper()
def helper(): return 1
D=C()
def make(w): return D.zz
""",
        "self.x=1",
        "self.x=2",
    ),
    "a generator and a coroutine": (
        """def h(x): yield 1
async def make(w):
    return [x for x in h(w)]
""",
        "yield 1",
        "yield 2",
    ),
    "nested lambda default": (
        """def h(x): return 1
def make(w):
    return (lambda y, f=h: f(y))(w)
""",
        "return 1",
        "return 2",
    ),
    "a base class in a function": (
        """class B:
    x=1
def make(w):
    class N(B):
        y=B
    return N
""",
        "x=1",
        "x=2",
    ),
    "typing Generic base": (
        """from typing import Generic, TypeVar
T=TypeVar('T')
class B(Generic[T]):
    x=1
class make(B[int]): pass
""",
        "x=1",
        "x=2",
    ),
    "assigned method": (
        """def f(self): return 1
class make:
    g = f
""",
        "return 1",
        "return 2",
    ),
    "class attr obj": (
        """class P:
    def __init__(self,a): self.a=a
    def f(self): return 1
class make:
    p = P(3)
""",
        "return 1",
        "return 2",
    ),
    "class attr obj, P(3)": (
        """class P:
    def __init__(self,a): self.a=a
    def f(self): return 1
class make:
    p = P(3)
""",
        "P(3)",
        "P(4)",
    ),
    "descriptor": (
        """class D:
    def __get__(self,o,t): return 1
    def __set__(self,o,v): pass
class make:
    p = D()
""",
        "return 1",
        "return 2",
    ),
    "non-data descriptor": (
        """class D:
    def __get__(self,o,t): return 1
class make:
    p = D()
""",
        "return 1",
        "return 2",
    ),
    "nested class": (
        """def h(): return 1
class make:
    class Inner:
        def f(self): return h()
""",
        "return 1",
        "return 2",
    ),
    "cached_property/partialmethod": (
        """from functools import partialmethod, cached_property
def h(): return 1
class make:
    def f(self,a): return h()
    g=partialmethod(f,3)
    @cached_property
    def c(self): return h()
""",
        "return 1",
        "return 2",
    ),
    "cached_property/partialmethod, f,3": (
        """from functools import partialmethod, cached_property
def h(): return 1
class make:
    def f(self,a): return h()
    g=partialmethod(f,3)
    @cached_property
    def c(self): return h()
""",
        "f,3",
        "f,4",
    ),
    "lru method": (
        """from functools import lru_cache
def h(): return 1
class make:
    @lru_cache
    def f(self,a): return h()
""",
        "return 1",
        "return 2",
    ),
    "a list of functions": (
        """from functools import reduce
def a(x): return x+1
L=[a]
def make(w): return reduce(lambda y,f: f(y), L, w)
""",
        "x+1",
        "x+2",
    ),
    "contextmanager": (
        """from contextlib import contextmanager
@contextmanager
def c():
    yield 1
def make(w):
    with c() as x: return x
""",
        "yield 1",
        "yield 2",
    ),
    "dispatch registration": (
        """from functools import singledispatch
@singledispatch
def f(x): return 1
@f.register
def _(x: int): return 3
def make(w): return f(w)
""",
        "return 3",
        "return 4",
    ),
    "dispatch registration, return 1": (
        """from functools import singledispatch
@singledispatch
def f(x): return 1
@f.register
def _(x: int): return 3
def make(w): return f(w)
""",
        "return 1",
        "return 2",
    ),
    "class decorator replaces": (
        """def deco(c):
    def forward(self): return 1
    c.forward=forward
    return c
@deco
class make:
    pass
""",
        "return 1",
        "return 2",
    ),
    "wrapper class decorator": (
        """class deco:
    def __init__(self,f): self.f=f
    def __call__(self,w): return self.f(w)+1
@deco
def make(w): return w*2
""",
        "+1",
        "+2",
    ),
    "wrapper class decorator, w*2": (
        """class deco:
    def __init__(self,f): self.f=f
    def __call__(self,w): return self.f(w)+1
@deco
def make(w): return w*2
""",
        "w*2",
        "w*3",
    ),
    "if TYPE_CHECKING/else version": (
        """import sys
if sys.version_info>(3,0):
    def h(): return 1
else:
    def h(): return 5
def make(w): return h()
""",
        "return 1",
        "return 2",
    ),
    "flag enum": (
        """from enum import Flag, StrEnum, auto
class A(Flag):
    X=auto()
    Y=auto()
    def f(self): return 3
class S(StrEnum):
    P='p'
    def f(self): return 7
D=A.X|A.Y
E=[S.P]
def make(w): return D.f(), E[0].f()
""",
        "return 3",
        "return 4",
    ),
    "flag enum, return 7": (
        """from enum import Flag, StrEnum, auto
class A(Flag):
    X=auto()
    Y=auto()
    def f(self): return 3
class S(StrEnum):
    P='p'
    def f(self): return 7
D=A.X|A.Y
E=[S.P]
def make(w): return D.f(), E[0].f()
""",
        "return 7",
        "return 4",
    ),
    "flag enum, 'p'": (
        """from enum import Flag, StrEnum, auto
class A(Flag):
    X=auto()
    Y=auto()
    def f(self): return 3
class S(StrEnum):
    P='p'
    def f(self): return 7
D=A.X|A.Y
E=[S.P]
def make(w): return D.f(), E[0].f()
""",
        "'p'",
        "'q'",
    ),
    "ordered dict subclass in kwargs default": (
        """from collections import OrderedDict
class C(OrderedDict):
    def f(self): return 1
def make(w,c=C(a=1)): return c.f()
""",
        "return 1",
        "return 2",
    ),
    "ordered dict subclass in kwargs default, a=1": (
        """from collections import OrderedDict
class C(OrderedDict):
    def f(self): return 1
def make(w,c=C(a=1)): return c.f()
""",
        "a=1",
        "a=2",
    ),
}

NOT_REACHED = {
    "unused function": (
        """def z(): return 1
def make(w): return w+1
""",
        "return 1",
        "return 2",
    ),
    "local shadows global": (
        """z = 1
def make(w):
    z = w
    return z+1
""",
        "z = 1\n",
        "z = 2\n",
    ),
    "the type of an argument": (
        """class T:
    x=1
def make(w: T): return w+1
""",
        "x=1",
        "x=2",
    ),
}


@pytest.mark.parametrize("kind", REACHED)
def test_code_behind_every_kind_of_object_is_followed(package, kind):
    text, old, new = REACHED[kind]
    (package / "ownpkg_one.py").write_text(text)
    before = identity("ownpkg_one:make")
    assert identity("ownpkg_one:make") == before
    edit(package, "ownpkg_one.py", old, new)
    assert identity("ownpkg_one:make") != before


@pytest.mark.parametrize("kind", NOT_REACHED)
def test_code_that_no_name_leads_to_makes_no_other_runs(package, kind):
    text, old, new = NOT_REACHED[kind]
    (package / "ownpkg_one.py").write_text(text)
    before = identity("ownpkg_one:make")
    edit(package, "ownpkg_one.py", old, new)
    assert identity("ownpkg_one:make") == before
