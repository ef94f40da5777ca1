"""Variables that functions change: settings are part of the fingerprint, caches and counters are not."""

import sys

import pytest
from user_package import edit, identity, package, write  # noqa: F401

from flops_fit_core.api.fingerprint.objects import identify_callable

FILL = "T = {}\ndef fill(k): T['a'] = k\nfill(2)\ndef make(w): return T['a']\n"
APPEND = "T = []\ndef add(k): T.append(k)\nadd(2)\ndef make(w): return T[0]\n"
GLOBAL = """
K = 1
def choose(v):
    global K
    K = v
choose(2)
def make(w): return K
"""
CLASS = """
class Config: depth = 1
def choose(v): Config.depth = v
choose(2)
def make(w): return Config.depth
"""
UPDATE = """
C = {"depth": 1}
C.update(depth=2)
def reset(): C.update(depth=1)
def make(w): return C["depth"]
"""
REGISTER = """
SIZES = {}
def size(n):
    def put(f):
        SIZES[f.__name__] = n
        return f
    return put
@size(2)
def small(): pass
def make(w): return SIZES["small"]
"""
PLACE = """
D = 2
C = {"depth": D, "device": "cpu"}
def make(w): return C["depth"]
"""
DEFAULT = """
D = 2
def make(w, c={"depth": D, "device": "cpu"}): return c["depth"]
"""
ATTRIBUTE = """
D = 2
class make:
    c = {"depth": D, "device": "cpu"}
    def __init__(self, w): self.w = self.c
"""
FACTORY = """
from collections import defaultdict
T = defaultdict(lambda: 2, {"a": 1})
def make(w): return T[w]
"""
DATACLASS = """
from dataclasses import field, make_dataclass
T = make_dataclass("T", [("depth", int, field(default=2))])
def make(w): return T().depth
"""
SETTINGS = {
    "a dict filled by a function": (FILL, "fill(2)"),
    "a list": (APPEND, "add(2)"),
    "a number set by global": (GLOBAL, "choose(2)"),
    "a class attribute": (CLASS, "choose(2)"),
    "a dict that is updated outside of functions": (UPDATE, "update(depth=2)"),
    "a registered size": (REGISTER, "size(2)"),
    "a dict with a device": (PLACE, "D = 2"),
    "a default with a device": (DEFAULT, "D = 2"),
    "a keyword default with a device": (DEFAULT.replace("w, c=", "w, *, c="), "D = 2"),
    "a class attribute with a device": (ATTRIBUTE, "D = 2"),
    "the function of a defaultdict": (FACTORY, "lambda: 2"),
    "a made dataclass": (DATACLASS, "default=2"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_setting_changes_the_fingerprint(package, kind):  # noqa: F811
    text, old = SETTINGS[kind]
    write(package, {"ownpkg_one.py": text})
    before = identity("ownpkg_one:make")
    assert identity("ownpkg_one:make") == before
    edit(package, "ownpkg_one.py", old, old.replace("2", "3"))
    assert identity("ownpkg_one:make") != before


FILE = """
import json
from pathlib import Path

CONFIG = json.loads((Path(__file__).parent / "ownpkg.json").read_text())


def make(width):
    return CONFIG["depth"]
"""


def test_a_configuration_file_counts_without_its_paths_and_devices(package):  # noqa: F811
    write(package, {"ownpkg_one.py": FILE, "ownpkg.json": '{"depth": 2, "device": "cpu", "data": "/home/a/data"}'})
    before = identity("ownpkg_one:make")
    edit(package, "ownpkg.json", '"cpu"', '"cuda:1"')
    edit(package, "ownpkg.json", "/home/a", "/data/b")
    assert identity("ownpkg_one:make") == before
    edit(package, "ownpkg.json", "2", "3")
    assert identity("ownpkg_one:make") != before


MAIN = """
DEPTH = None


def make(width):
    return DEPTH


def main(depth):
    global DEPTH
    DEPTH = depth
"""


def test_a_global_that_main_sets_changes_the_fingerprint(package):  # noqa: F811
    write(package, {"ownpkg_one.py": MAIN})
    identity("ownpkg_one:make")
    module = sys.modules["ownpkg_one"]

    def after(depth):
        module.main(depth)
        return identify_callable(module.make, {}, "model_cls")

    assert after(2) == after(2)
    assert len({after(None), after(2), after(3)}) == 3


STATE = """
from functools import lru_cache

CACHE, CALLS, SEEN, MODEL, MASKS = {}, 0, set(), None, {}


def cached(width):
    if width not in CACHE:
        CACHE[width] = width + 1
    return CACHE[width]


def seen(width):
    SEEN.add(width)


def model():
    global MODEL
    if MODEL is None:
        MODEL = 3
    return MODEL


def count():
    global CALLS
    CALLS += 1


def mask(width):
    return MASKS.setdefault(width, width)


def make(width):
    seen(width)
    return cached(width), model(), len(SEEN), CALLS, MASKS
"""


def test_caches_and_counters_do_not_change_the_fingerprint(package):  # noqa: F811
    write(package, {"ownpkg_one.py": STATE})
    before = identity("ownpkg_one:make")
    module = sys.modules["ownpkg_one"]
    module.make(4)
    module.make(5)
    module.count()
    module.mask(6)
    assert identify_callable(module.make, {}, "model_cls") == before


CLOCK = """
import os
import time
from datetime import datetime

START = time.time()
NAME = f"run-{datetime.now().isoformat()}"
SETTINGS = {"rate": int("3"), "begun": time.time_ns(), "process": os.getpid()}


def make(width):
    print(time.time() - START, NAME, SETTINGS["rate"])
"""


def test_clocks_and_process_ids_do_not_count(package):  # noqa: F811
    write(package, {"ownpkg_one.py": CLOCK})
    before = identity("ownpkg_one:make")
    module = sys.modules["ownpkg_one"]
    module.START += 1
    module.NAME += "1"
    module.SETTINGS |= {"begun": 1, "process": 2}
    assert identify_callable(module.make, {}, "model_cls") == before
    module.SETTINGS["rate"] = 4
    assert identify_callable(module.make, {}, "model_cls") != before
