"""The families ``callable`` and ``declared`` and the dataset ``external``: own code, and own numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import text_table, write_text

from flops_fit_core import ConfigError, DataError, RunFailed
from flops_fit_core.config import PluginConfig, make_experiment
from flops_fit_core.data import LanguageTask, SupervisedTask
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.registry import installed

TASK = LanguageTask(vocab_size=61, context=16)
IMAGES = SupervisedTask(inputs=(1, 8, 8), outputs_size=10)
MODELS = '''
"""Models of a user's own."""
import torch
from torch import nn


class Transformer(nn.Module):
    def __init__(self, vocab_size, context, d_model, depth=1):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Parameter(torch.randn(context, d_model) * 0.02)
        layer = nn.TransformerEncoderLayer(d_model, 4, 4 * d_model, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(d_model, vocab_size)

    def forward(self, ids):
        x = self.embedding(ids) + self.positions[: ids.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=ids.device)
        return self.head(self.blocks(x, mask=mask, is_causal=True))


def convolutions(channels, num_classes, input_shape):
    return nn.Sequential(
        nn.Conv2d(input_shape[0], channels, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * channels, num_classes),
    )


def a_list(width):
    return [width]


def breaks(width):
    raise RuntimeError("no such width")


number = 3
'''


@pytest.fixture
def models(tmp_path: Path) -> Path:
    file = tmp_path / "own_models.py"
    file.write_text(MODELS)
    return file


def chosen(name: str = "callable", **options):
    offer = installed().find("model", name)
    return PluginConfig(offer, offer.spec.options.model_validate(options))


def built(task=TASK, **options):
    model = chosen(**options)
    return model.spec.build(model.options, task)


# ---------------------------------------------------------------------------- calling


def test_a_class_gets_what_it_asks_for_by_name(models):
    module = built(import_path=f"{models}:Transformer", size_argument="d_model", size=8, arguments={"depth": 2})
    assert module.embedding.weight.shape == (61, 8)
    assert module.positions.shape == (16, 8)
    assert len(module.blocks.layers) == 2


def test_an_image_model_gets_shapes_and_classes(models):
    module = built(task=IMAGES, import_path=f"{models}:convolutions", size_argument="channels", size=4)
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"import_path": "Transformer"}, "has no 'Transformr'"),
        ({"import_path": "number"}, "is a int, which cannot be called"),
        ({"import_path": "a_list"}, "returned a list, not a torch.nn.Module"),
        ({"import_path": "breaks"}, "breaks(width=64) failed: RuntimeError: no such width"),
        ({"import_path": "Transformer", "size_argument": "width"}, "model.size_argument is width"),
        (
            {"import_path": "Transformer", "size_argument": "d_model", "arguments": {"dept": 1}},
            "takes vocab_size, context, d_model, depth; model.arguments has dept",
        ),
        ({"import_path": "Transformer", "size_argument": "depth"}, "d_model must be in model.arguments"),
        ({"import_path": "a_list", "arguments": {"width": 3}}, "width is set by model.size"),
    ],
)
def test_a_mistake_is_named(models, options, message):
    name = options["import_path"] if "Transformr" not in message else "Transformr"
    with pytest.raises(ConfigError) as error:
        built(**{**options, "import_path": f"{models}:{name}"})
    assert message in str(error.value)


def test_a_file_that_does_not_import_says_why(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    with pytest.raises(ConfigError, match="No module named 'nothing_of_that_name'"):
        built(import_path=f"{tmp_path}/broken.py:make")


def test_a_path_without_a_name_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match=r"write package\.module:name, or file\.py:name"):
        chosen(import_path="models.py")


def test_a_file_finds_its_neighbours(tmp_path):
    (tmp_path / "own_neighbour_parts.py").write_text("from torch.nn import Linear\n")
    (tmp_path / "own_neighbour.py").write_text(
        "from own_neighbour_parts import Linear\ndef make(width): return Linear(width, 2)\n"
    )
    assert built(import_path=f"{tmp_path}/own_neighbour.py:make", size=3).in_features == 3


# ---------------------------------------------------------------------------- identity


def identity(**options):
    return chosen(**options).choice.options


def test_an_edit_makes_other_runs_and_a_comment_or_another_folder_does_not(models, tmp_path):
    options = {"import_path": f"{models}:Transformer", "size_argument": "d_model"}
    before = identity(**options)
    assert str(tmp_path) not in json.dumps(before)
    models.write_text("# a comment\n\n" + MODELS)
    assert identity(**options) == before
    elsewhere = tmp_path / "other" / "renamed.py"
    elsewhere.parent.mkdir()
    elsewhere.write_text(MODELS)
    assert identity(**{**options, "import_path": f"{elsewhere}:Transformer"}) == before
    models.write_text(MODELS.replace("* 0.02", "* 0.03"))
    assert identity(**options) != before
    assert identity(**options, fingerprint="mine")["fingerprint"] == "mine"


def test_an_edit_of_an_imported_file_makes_other_runs_and_its_docstring_does_not(tmp_path, monkeypatch):
    package = tmp_path / "ownfiles"
    package.mkdir()
    (package / "__init__.py").write_text("from ownfiles.train import STEPS\n")
    (package / "train.py").write_text("STEPS = 1\n")
    (package / "layers.py").write_text("from . import norms\nclass Block: pass\n")
    (package / "norms.py").write_text("EPS = 1e-5\n")
    (package / "model.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from ownfiles.train import STEPS\n"
        "def make(width):\n    from ownfiles.layers import Block\n    return Block()\n"
    )
    options = {"import_path": f"{package}/model.py:make"}
    before = identity(**options)
    for name in ("layers.py", "norms.py", "model.py"):
        text = (package / name).read_text()
        (package / name).write_text(f'"""A docstring."""\n# A comment.\n{text}')
        assert identity(**options) == before
        (package / name).write_text(f"{text}OTHER = 1\n")
        assert identity(**options) != before
        (package / name).write_text(text)
    (package / "train.py").write_text("STEPS = 2\n")  # no name of the model leads there
    assert identity(**options) == before
    moved = tmp_path / "moved"
    moved.mkdir()
    package.rename(moved / "ownfiles")
    assert identity(import_path=f"{moved}/ownfiles/model.py:make") == before


def test_the_hash_does_not_depend_on_what_was_imported_before(tmp_path, monkeypatch):
    """Importing a file puts its folder on the path, behind what is there: for what other packages import, too."""
    work, other = tmp_path / "work", tmp_path / "other"
    for folder in (work, other / "ownother"):
        folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(other)
    (other / "ownother" / "__init__.py").write_text("from ownshared import Linear\n")
    (work / "ownshared.py").write_text("from torch.nn import Linear\n")
    (work / "ownstart.py").write_text("from ownother import Linear\ndef make(width): return Linear(width, 2)\n")
    options = {"import_path": f"{work}/ownstart.py:make"}
    before = identity(**options)
    assert built(**options, size=3).in_features == 3
    assert identity(**options) == before
    (work / "ownshared.py").write_text("from torch.nn import Linear\nOTHER = 1\n")
    assert identity(**options) != before


def test_a_file_that_imports_by_a_computed_name_counts_with_its_package(tmp_path):
    package = tmp_path / "owncomputed"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "small.py").write_text("class Model: pass\n")
    (package / "model.py").write_text(
        "import importlib\n"
        "def make(width, name='small'):\n    return importlib.import_module(f'owncomputed.{name}').Model()\n"
    )
    options = {"import_path": f"{package}/model.py:make"}
    before = identity(**options)
    (package / "small.py").write_text("class Model: depth = 2\n")
    assert identity(**options) != before


def test_the_identity_of_a_fingerprint_written_by_hand_stays():
    """Its runs are found again: only the hash that stands for a fingerprint that is not written changed."""
    choice = chosen(import_path="nowhere.py:make", fingerprint="version 3").choice
    assert choice.model_dump() == {"name": choice.name, "options": {"fingerprint": "version 3"}, "revision": 1}


def test_a_file_that_was_edited_after_planning_is_not_trained(models):
    options = {"import_path": f"{models}:Transformer", "size_argument": "d_model"}
    planned = chosen(**options)
    models.write_text(MODELS.replace("* 0.02", "* 0.03"))
    again = chosen(**options, fingerprint=planned.options.fingerprint)
    with pytest.raises(RunFailed, match="has changed since this run was planned"):
        again.spec.build(again.options, TASK)


# ---------------------------------------------------------------------------- where it is found


def experiment(folder: Path, import_path: str) -> Path:
    table = text_table(
        write_text(folder / "text"),
        model={"name": "callable", "import_path": import_path, "size_argument": "d_model"},
        sweep={"budgets": [1e8], "sizes": [{"size": 8}, {"size": 12}], "allow_repeat": True, "min_steps": 1},
        counter="traced",
        executor={"name": "processes", "workers": 1},
        optimizer={"name": "adamw", "lr": 0.003},
    )
    file = folder / "own.json"
    file.write_text(json.dumps(table))
    return file


def flops_fit(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from flops_fit_core.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, env=os.environ)


@pytest.mark.slow
@pytest.mark.parametrize(
    "written", ["own.models:Transformer", pytest.param("own_models.py:Transformer", marks=pytest.mark.slow)]
)
def test_a_sweep_of_a_module_in_the_working_directory(tmp_path, written):
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    for folder in (work / "own", elsewhere):
        folder.mkdir(parents=True)
    (work / "own_models.py").write_text(MODELS)
    (work / "own" / "__init__.py").write_text("")
    (work / "own" / "layers.py").write_text("from torch import nn\n")
    (work / "own" / "models.py").write_text(MODELS.replace("from torch import nn", "from .layers import nn"))
    file = experiment(work, written)
    done = flops_fit(work, "run", str(file), "--out", str(work / "study"))
    assert "[2/2]" in done.stdout + done.stderr, done.stdout + done.stderr
    runs = flops_fit(elsewhere, "runs", str(work / "study"), "--json")
    assert runs.returncode == 0, runs.stderr
    assert [run["status"] for run in json.loads(runs.stdout)] == ["completed", "completed"]
    plan = flops_fit(elsewhere, "plan", str(work / "study"))
    assert plan.returncode == 0, plan.stderr
    assert "0 to train" in plan.stdout or "completed" in plan.stdout


# ---------------------------------------------------------------------------- numbers only


def declared_table(**changes) -> dict:
    table = {
        "sweep": {
            "budgets": [1e15],
            "sizes": [
                {"params": 2_000_000, "flops_per_token": 1.5e7},
                {"params": 4_000_000, "flops_per_token": 3e7},
            ],
            "batch_size": 16,
        },
        "model": {"name": "declared", "lookup_table_params": 500_000},
        "dataset": {"name": "external", "label": "web text 1", "vocab_size": 50_304, "context": 512},
        "trainer": {"command": "train {lr}"},
        "counter": "model",
    }
    return {**table, **changes}


def test_a_plan_of_declared_numbers_takes_them_as_they_are():
    plan = make_plan(make_experiment(declared_table(), installed()))
    assert [(run.params, run.flops_per_token) for run in plan.runs] == [(1_500_000, 1.5e7), (3_500_000, 3e7)]
    assert all(run.flops == pytest.approx(1e15, rel=0.01) for run in plan.runs)
    assert all(run.trainer.name == "trainers/command" for run in plan.runs)


def test_declared_numbers_are_never_trained():
    model = chosen("declared", params=100)
    module = model.spec.build(model.options, TASK)
    with pytest.raises(ConfigError, match="use it with trainer 'command'"):
        module(torch.zeros(1, 16, dtype=torch.long))
    with pytest.raises(ValueError, match="must be less than params"):
        chosen("declared", params=100, lookup_table_params=100)


def test_external_data_are_identified_by_their_label_and_give_no_batches():
    spec = installed().find("dataset", "external").spec
    options = {"label": "web text 1", "vocab_size": 10, "context": 4}
    dataset = spec.build(spec.options.model_validate(options), 0)
    other = spec.build(spec.options.model_validate({**options, "label": "web text 2"}), 0)
    assert dataset.fingerprint != other.fingerprint
    for give in (lambda: dataset.batches(1), lambda: dataset.eval_batches(1, 1)):
        with pytest.raises(DataError, match="use it with trainer 'command'"):
            give()
