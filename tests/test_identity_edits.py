"""Edits of user code that change a run's id, and edits that leave it unchanged."""

import importlib
import sys

import pytest
from user_package import edit, forget_modules, identity, package, write  # noqa: F401

from flops_fit_core.api.fingerprint.objects import identify_callable

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
def test_an_edit_behind_a_factory_changes_the_fingerprint(package, kind):  # noqa: F811
    before = identity()
    assert identity() == before
    file, old, new = EDITS[kind]
    edit(package, f"ownpkg/{file}", old, new)
    assert identity() != before


def test_an_edit_behind_a_factory_with_local_imports_changes_the_fingerprint(package):  # noqa: F811
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
def test_layout_comments_and_docstrings_do_not_change_the_fingerprint(package, kind):  # noqa: F811
    before = identity()
    file, old, new = LAYOUT[kind]
    edit(package, f"ownpkg/{file}", old, new)
    assert identity() == before


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


def test_counters_caches_places_and_devices_do_not_count(package, monkeypatch):  # noqa: F811
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


def test_a_constant_set_from_outside_changes_the_fingerprint(package):  # noqa: F811
    before = identity()
    sys.modules["ownpkg.sizes"].DEPTH = 5
    assert identify_callable(sys.modules["ownpkg.model"].make, {}, "model_cls") != before


def test_names_in_a_reference_cycle_are_followed_in_any_order(package):  # noqa: F811
    halves = [
        "class Left:\n    def other(self): return Right()\n",
        "class Right:\n    def other(self): return Left(), 1\n",
    ]
    identities = set()
    for text in ("\n".join(halves), "\n".join(reversed(halves))):
        (package / "ownpkg_circle.py").write_text(text)
        identities.add((identity("ownpkg_circle:Left"), identity("ownpkg_circle:Right")))
    ((left, right),) = identities
    edit(package, "ownpkg_circle.py", "Left(), 1", "Left(), 2")
    assert identity("ownpkg_circle:Left") != left
    assert identity("ownpkg_circle:Right") != right


def test_a_long_chain_of_functions_is_followed(package):  # noqa: F811
    chain = [f"def f{number}(x): return f{number + 1}(x)" for number in range(2000)]
    (package / "ownpkg_chain.py").write_text("\n".join([*chain, "def f2000(x): return x"]))
    before = identity("ownpkg_chain:f0")
    edit(package, "ownpkg_chain.py", "def f2000(x): return x", "def f2000(x): return -x")
    assert identity("ownpkg_chain:f0") != before


def test_editing_a_class_that_the_model_uses_changes_all_run_ids(package):  # noqa: F811
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
        forget_modules()
        return ids(planned(package, importlib.import_module("ownpkg_net").Net))

    (package / "ownpkg_net.py").write_text(text)
    before = runs()
    edit(package, "ownpkg_net.py", '"""A block."""', '"""Linear and ReLU."""  # of width')
    assert runs() == before
    edit(package, "ownpkg_net.py", ".relu()", ".tanh()")
    assert not set(runs()) & set(before)
