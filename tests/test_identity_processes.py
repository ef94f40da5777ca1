"""Fingerprints are equal in scripts, notebooks, at a prompt, in spawned processes and in all Python versions."""

import subprocess
import sys

from user_package import edit, forget_modules, identity, package, write  # noqa: F401

# ---------------------------------------------------------------------------- what is installed


def test_installed_code_counts_by_name_and_an_editable_install_by_source(tmp_path, monkeypatch):
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
    forget_modules()


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


def test_a_script_has_one_fingerprint_in_every_process_that_follows_its_classes(tmp_path):
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


def test_a_class_that_cloudpickle_sent_by_value_has_the_same_fingerprint(tmp_path):
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


def test_a_spawned_process_computes_the_same_fingerprint(package):  # noqa: F811
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


def test_every_supported_python_computes_the_same_fingerprint(package):  # noqa: F811
    (package / "ownpkg_plain.py").write_text(PLAIN)
    assert identity("ownpkg_plain:make") == PLAIN_IDENTITY
