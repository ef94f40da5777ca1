"""What a study's folder tells its owner: Python objects, other results, other stores."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from flops_fit_core import find_optimal
from flops_fit_core.cli.main import run as command


class Net(nn.Module):
    def __init__(self, width, act=nn.ReLU):
        super().__init__()
        self.inner, self.outer, self.act = nn.Linear(4, width), nn.Linear(width, 3), act()

    def forward(self, x):
        return self.outer(self.act(self.inner(x)))


INPUTS = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
PAIRS = TensorDataset(INPUTS, INPUTS[:, :3].argmax(1))


def optimal(folder, model=Net, **changes):
    arguments = {
        "dataset": PAIRS,
        "compute_budgets": [2e5, 4e5],
        "sizes": [3, 4, 6],
        "batch_size": 8,
        "min_steps": 1,
        "repeat": True,
        "device": "cpu",
        "executor": "local",
        "trainer": {"name": "torch", "heldout_tokens": 100},
        "output_dir": folder / "study",
    }
    return find_optimal(model, "width", **{**arguments, **changes})


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a command line in an empty directory; gives its exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = command([str(argument) for argument in arguments])
        output, error = capsys.readouterr()
        return status, " ".join(output.split()), " ".join(error.split())

    return run


# ---------------------------------------------------------------------------- Python objects


@pytest.fixture
def python_study(tmp_path, call):
    return optimal(tmp_path)


@pytest.mark.parametrize("name", ["plan", "run", "doctor", "tune"])
def test_a_command_that_needs_the_python_objects_names_find_optimal(python_study, call, name):
    status, _, error = call(name, "study")
    assert status == 2
    assert "call find_optimal again with the same objects and output_dir='study'" in error
    assert "no model named" not in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "study"],
        ["runs", "study"],
        ["fit", "study"],
        ["predict", "study", "--flops", "1e6"],
        ["report", "study"],
        ["clean", "study"],
        ["store", "copy", "study", "copy"],
    ],
)
def test_a_command_that_reads_results_works_without_the_python_objects(python_study, call, arguments):
    status, _, error = call(*arguments)
    assert status == 0, error


def test_the_status_of_an_unfinished_python_study_names_find_optimal(tmp_path, call):
    study = optimal(tmp_path, train=False)
    study.train(only=[study.plan.runs[0].id])
    status, output, _ = call("status", "study")
    assert status == 0
    assert "find_optimal with the same objects and output_dir='study' goes on" in output
    assert "flops-fit run" not in output


def test_a_store_that_is_a_python_object_is_named_where_the_folder_lacks_it(tmp_path, call):
    from flops_fit_stores.json_file import JsonStore

    store = JsonStore(tmp_path / "elsewhere.json", 10.0)
    study = optimal(tmp_path, store=store)
    assert len(study.results) == 6
    status, _, error = call("status", "study")
    assert status == 2
    assert "a store given as a Python object" in error
    assert len(optimal(tmp_path, store=store).results) == 6
