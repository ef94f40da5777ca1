"""What trains a model when the user names no optimizer, and the warning about plain SGD."""

import functools
import logging

import pytest
import torch
from small import Bench, text_table, write_text

from flops_fit_core import find_optimal, plan
from flops_fit_core.config import Experiment, load_experiment, make_experiment, with_planner
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.registry import installed
from flops_fit_core.study import Study


@pytest.fixture
def table(tmp_path):
    """A gpt on text, without an optimizer."""
    table = text_table(write_text(tmp_path / "text"))
    del table["optimizer"]
    return table


def warnings_of(sweep):
    return [note for note in sweep.notes if "plain SGD" in note]


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *[(name, "optim/adamw") for name in ("gpt", "vit", "hf", "hf-ladder")],
        *[(name, "optim/sgd") for name in ("mlp", "surface", "callable")],
    ],
)
def test_a_family_declares_the_optimizer_of_files_that_name_none(name, optimizer):
    assert (installed().find("model", name).spec.optimizer or "optim/sgd") == optimizer


def test_a_file_without_an_optimizer_uses_the_familys_with_its_width_scaled_recipe(tmp_path, table):
    (run, *_) = make_plan(make_experiment(table, installed())).runs
    assert run.optimizer.name == "optim/adamw"
    assert run.optimizer.options == {"lr": 0.008, "betas": [0.9, 0.95]}
    assert run.base_width == 64
    named = make_plan(make_experiment({**table, "optimizer": "adamw"}, installed()))
    assert named.runs[0].id == run.id
    file = tmp_path / "x.yaml"
    file.write_text(
        f"sweep: {{budgets: [2.4e8]}}\nmodel: gpt\ndataset: {{name: text, path: {tmp_path / 'text'}}}\n"
    )
    assert load_experiment(file, installed()).optimizer.name == "optim/adamw"


def test_an_optimizer_table_without_a_name_sets_options_of_the_familys_default(table):
    experiment = make_experiment({**table, "optimizer": {"lr": 0.004}}, installed())
    assert (experiment.optimizer.name, experiment.optimizer.options.lr) == ("optim/adamw", 0.004)


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": {"lr": 0.004}}])
def test_the_planners_first_revision_keeps_sgd(table, optimizer):
    old = make_experiment({**table, **optimizer, "planner": 1}, installed())
    assert old.optimizer.name == "optim/sgd"
    new = make_experiment({**table, **optimizer}, installed())
    back = with_planner(new, 1, installed())
    assert back.optimizer == old.optimizer
    assert [run.id for run in make_plan(back).runs] == [run.id for run in make_plan(old).runs]


def test_a_python_experiment_keeps_sgd_and_its_study_too(tmp_path, table):
    experiment = Experiment.model_validate(table, context={"registry": installed()})
    assert experiment.optimizer.name == "optim/sgd"
    study = plan(experiment, out=tmp_path / "study")
    study.folder.save(experiment, study.plan, installed().setup)
    assert Study.open(tmp_path / "study").folder.experiment(installed()).optimizer.name == "optim/sgd"
    assert Study.open(tmp_path / "study").folder.table()["optimizer"] == {"name": "optim/sgd"}


def test_plain_sgd_on_a_language_task_is_the_first_note_of_the_plan(table):
    sweep = make_plan(make_experiment({**table, "optimizer": "sgd"}, installed()))
    assert 'optimizer = "adamw"' in sweep.notes[0] and "plain SGD" in sweep.notes[0]
    with_momentum = {**table, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}
    for quiet in (with_momentum, table, {**table, "optimizer": "muon"}):
        assert not warnings_of(make_plan(make_experiment(quiet, installed())))


def test_plain_sgd_on_images_is_no_mistake():
    images = {"sweep": {"budgets": [1e9], "sizes": [{"width": 16}], "allow_repeat": True, "min_steps": 1}}
    images |= {"model": {"name": "mlp"}, "dataset": {"name": "images"}, "optimizer": "sgd", "device": "cpu"}
    assert not warnings_of(make_plan(make_experiment(images, installed())))


class Net(torch.nn.Sequential):
    """A language model of one embedding and a head."""

    def __init__(self, width: int, vocab: int = 12) -> None:
        super().__init__(torch.nn.Embedding(vocab, width), torch.nn.Linear(width, vocab))


@pytest.mark.parametrize(
    ("optimizer", "warned"),
    [
        ("sgd", True),
        (torch.optim.SGD, True),
        (functools.partial(torch.optim.SGD, lr=0.1), True),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1), True),
        (functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9), False),
        (torch.optim.Adam, False),
        ("adamw", False),
    ],
)
def test_find_optimal_warns_of_plain_sgd_however_it_is_given(tmp_path, caplog, optimizer, warned):
    bench = Bench()
    with caplog.at_level(logging.WARNING, "flops_fit"):
        study = find_optimal(
            Net,
            "width",
            dataset="bench/walk",
            compute_budgets=[1e7],
            sizes=[4],
            allow_repeat=True,
            min_steps=1,
            optimizer=optimizer,
            output_dir=tmp_path / "study",
            registry=bench.registry(),
            train=False,
        )
    assert bool(warnings_of(study.plan)) is warned
    assert ('optimizer="adamw"' in caplog.text) is warned


def test_find_optimal_keeps_sgd_at_its_own_learning_rate(tmp_path):
    study = find_optimal(
        Net,
        "width",
        dataset="bench/walk",
        compute_budgets=[1e7],
        sizes=[4],
        allow_repeat=True,
        min_steps=1,
        output_dir=tmp_path / "study",
        registry=Bench().registry(),
        train=False,
    )
    assert study.plan.runs[0].optimizer.name == "optim/sgd"
    assert study.experiment.optimizer.options.lr == 0.01
