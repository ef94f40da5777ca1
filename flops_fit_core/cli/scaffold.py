"""Write the project of a new plugin from the example of its hook. It can be installed, tested and run as is."""

from __future__ import annotations

import difflib
import inspect
import re
import textwrap
from pathlib import Path

from flops_fit_core import __version__
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins import hookspecs
from flops_fit_core.plugins.registry import KINDS, SPEC_TYPES

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_HOOKS = {spec.kind: hook for hook, spec in SPEC_TYPES.items()}
_NOUNS = {"counter": "FLOPs counter"}
"""Names of kinds in sentences, if they differ from the table's name."""
_CLAIMS = {
    "logger": ["keeps_attempts = False  # a line has no attempt number"],
    "store": ["shared = False  # its claims are visible in one process only"],
    "executor": ["isolated = False  # jobs run in the driver's own process"],
    "reader": [
        "",
        "def write(self, folder):",
        '    for name, params in (("small", 1e7), ("large", 4e7)):',
        "        (folder / name).mkdir()",
        '        (folder / name / "progress.txt").write_text("step=100 tokens=4e6 eval_loss=3.1\\n")',
        '        (folder / name / "config.json").write_text(f\'{{"n_params": {params}}}\')',
        '    return {"small": (1e7, 4e6, 3.1), "large": (4e7, 4e6, 3.1)}',
    ],
}
"""Class attributes and methods of the conformance test, for a kind's example."""
NO_EXPERIMENT = ("reader",)
"""Kinds that no experiment chooses."""

MODEL = {
    "__init__.py": '''\
"""Model ``{name}``."""

from flops_fit_core import ConfigError
from flops_fit_core.data import LanguageTask
from flops_fit_core.plugins import ModelSpec, Options, hookimpl


class ModelOptions(Options):
    width: int = 16
    """Channels. This is what scales."""


def build_model(options, task):
    if not isinstance(task, LanguageTask):
        raise ConfigError(f"model '{name}' predicts tokens, and this dataset poses a {{type(task).__name__}}")
    from {module}.model import Model  # imports torch, which discovering plugins must not do

    return Model(task.vocab_size, options.width)


@hookimpl
def flops_fit_models():
    yield ModelSpec(name="{name}", options=ModelOptions, build=build_model, size="width")
''',
    "model.py": '''\
"""The module of model ``{name}``."""

from torch import nn


class Model(nn.Module):
    """Predicts the next token from the current token: an embedding and an output head."""

    def __init__(self, vocab_size, width):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, ids):
        """Ids of shape (batch, context) to logits of shape (batch, context, vocab_size)."""
        return self.head(self.embedding(ids))
''',
}
"""The package of a model. ``build`` imports the module from a second file."""

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{dist}"
version = "0.1.0"
description = "{Kind} {name} for flops-fit"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["flops-fit>={minor},<{next_minor}"]

[project.optional-dependencies]
test = ["flops-fit[testing]"]

[project.entry-points.flops_fit]
{name} = "{module}"

[tool.hatch.build.targets.wheel]
packages = ["{module}"]
"""

README = """\
# {dist}

The {kind} `{name}` for [flops-fit](https://pypi.org/project/flops-fit/).

    pip install -e ".[test]"
    flops-fit plugins                  # shows {name}/{name}
    pytest                             # the conformance kit
    {command}
"""

TEST = '''\
"""The {kind} keeps its contract. Type ``pip install -e ".[test]"`` first: the kit finds the plugin by name."""

from flops_fit_core.testing import {kit}


class Test{Class}({kit}):
    name = "{name}/{name}"
{claims}'''

EXPERIMENT = """\
# A sweep of a few minutes: flops-fit run experiment.toml
name = "{name}"

{head}[sweep]
budgets = [2e9, 4e9, 8e9]    # training FLOPs
sizes = 4                    # per budget

{tables}"""


def write_plugin(name: str, kind: str, parent: Path) -> Path:
    """Write the project ``flops-fit-NAME`` into a new folder in ``parent``. Returns the folder.

    Raises ConfigError for a name that is no plugin's, an unknown kind, or a folder that exists.
    """
    name = name.removeprefix("flops-fit-")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not a plugin's name: write lower case letters, digits and '-', such as my-rnn"
        )
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f". Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"no kind named {kind!r}; write one of {', '.join(KINDS)}{hint}")
    folder = parent / f"flops-fit-{name}"
    if folder.exists():
        raise ConfigError(f"{folder} exists: choose another name, or move the folder")
    for path, text in _files(name, kind).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return folder


def _files(name: str, kind: str) -> dict[str, str]:
    module = "flops_fit_" + name.replace("-", "_")
    major, minor, *_ = __version__.split(".")
    noun = _NOUNS.get(kind, kind)
    words = {
        "name": name,
        "dist": f"flops-fit-{name}",
        "module": module,
        "kit": SPEC_TYPES[_HOOKS[kind]].__name__.removesuffix("Spec") + "Conformance",
        "Class": "".join(part.capitalize() for part in name.split("-")),
        "kind": noun,
        "Kind": noun[0].upper() + noun[1:],
        "claims": textwrap.indent("".join(f"{line}\n" for line in _CLAIMS.get(kind, [])), "    "),
        "command": "flops-fit fit FOLDER" if kind in NO_EXPERIMENT else "flops-fit run experiment.toml",
        "minor": f"{major}.{minor}",
        "next_minor": f"{major}.{int(minor) + 1}" if major == "0" else str(int(major) + 1),
        "head": f'loggers = ["{name}/{name}"]\n\n' if kind == "logger" else "",
        "tables": _tables(name, kind),
    }
    return {
        "pyproject.toml": PROJECT.format(**words),
        "README.md": README.format(**words),
        **({} if kind in NO_EXPERIMENT else {"experiment.toml": EXPERIMENT.format(**words)}),
        **{f"{module}/{file}": text for file, text in _package(words, kind).items()},
        f"{module}/py.typed": "",
        f"tests/test_{name.replace('-', '_')}.py": TEST.format(**words),
    }


def _package(words: dict[str, str], kind: str) -> dict[str, str]:
    """The Python files of the package: the example of the kind's hook; two files for a model."""
    if kind == "model":
        return {file: text.format(**words) for file, text in MODEL.items()}
    return {"__init__.py": f'"""{words["Kind"]} ``{words["name"]}``."""\n\n{_example(words["name"], kind)}'}


def _example(name: str, kind: str) -> str:
    """The code example of the kind's hook, with the spec renamed."""
    hook = _HOOKS[kind]
    doc = inspect.getdoc(getattr(hookspecs, hook))
    if doc is None:
        raise ConfigError("the examples are docstrings, which python -OO removes: run without -OO")
    code = textwrap.dedent(doc.partition("\n::\n")[2]).strip() + "\n"
    spec = SPEC_TYPES[hook].__name__
    code = re.sub(rf'({spec}\(\s*name=)"[\w-]+"', rf'\1"{name}"', code)
    code = re.sub(r'fit_header\(self, "[\w/-]+"', f'fit_header(self, "{name}/{name}"', code)
    return re.sub(r"\n\n(?=class |def |@)", "\n\n\n", code)  # two blank lines between definitions, as in a file


def _tables(name: str, kind: str) -> str:
    """The tables of an experiment with the new plugin."""
    chosen = {"model": "mlp", "dataset": "text", "optimizer": "adamw"}
    if kind == "law":  # a fitter names its law
        chosen["fitter"] = f'law"\nlaw = "{name}/{name}'
    elif kind != "logger":  # loggers are in a list, not in a table
        chosen[kind] = f"{name}/{name}"
    return "\n".join(f'[{table}]\nname = "{choice}"\n' for table, choice in chosen.items())
