"""A small package of user code. Tests edit it and import it again to compare fingerprints."""

import importlib
import sys

import pytest

from flops_fit_core.api.fingerprint.objects import identify_callable

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
    forget_modules()


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def forget_modules():
    for name in [name for name in sys.modules if name.partition(".")[0].startswith("ownpkg")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def identity(root="ownpkg.model:make"):
    """As a new process has it."""
    forget_modules()
    module, _, name = root.partition(":")
    return identify_callable(getattr(importlib.import_module(module), name), {}, "model_cls")


def edit(folder, file, old, new):
    path = folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
