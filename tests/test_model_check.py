"""A forward pass of the smallest model detects changes that do not change the run ids."""

import json
import random
import warnings

import numpy as np
import pytest
import torch
from small import text_table, write_text
from test_find_optimal import Net, ids, planned, trained
from torch import nn

import flops_fit_core
from flops_fit_core import StudyWarning
from flops_fit_core.plugins.checked_json import write_checked
from flops_fit_core.study import model_check
from flops_fit_core.study.model_check import relative_difference


def scale():
    """Stands for another version of a library: nothing that an identity follows."""
    return float(nn.Module._scale_of_this_test)


class Scaled(Net):
    def forward(self, x):
        return scale() * super().forward(x)


class ZeroHead(Scaled):
    def __init__(self, width):
        super().__init__(width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)


@pytest.fixture(autouse=True)
def library(monkeypatch):
    monkeypatch.setattr(nn.Module, "_scale_of_this_test", 1.0, raising=False)
    return lambda value: monkeypatch.setattr(nn.Module, "_scale_of_this_test", value)


def kept(tmp_path):
    return json.loads((tmp_path / "study" / "model_check.json").read_text())


@pytest.mark.parametrize("model", [Scaled, ZeroHead])
def test_different_outputs_under_the_same_id_are_a_warning(tmp_path, library, model):
    first = ids(trained(tmp_path, model))
    before = kept(tmp_path)
    library(1.01)
    with pytest.warns(UserWarning, match=r"size 3 have changed .*relative difference 0\.0099"):
        study = trained(tmp_path, model)
    assert ids(study) == first
    assert [result.attempt for result in study.results] == [1, 1]
    assert kept(tmp_path) == before


def test_rounding_differences_are_not_a_warning(tmp_path, library):
    trained(tmp_path, Scaled)
    library(1 + 5e-4)
    planned(tmp_path, Scaled)  # a warning is an error here


def test_a_different_model_replaces_the_stored_outputs(tmp_path):
    trained(tmp_path, Scaled)
    before = kept(tmp_path)
    with pytest.warns(StudyWarning, match=r"finished runs differ in .*model\.identity"):
        trained(tmp_path, Net)
    assert kept(tmp_path)["identity"] != before["identity"]


def test_the_outputs_are_those_of_the_model_itself(tmp_path, library):
    """Computed here: seed, weights, noise and a batch of the user's own data."""
    library(2.0)
    study = trained(tmp_path, Scaled)
    sample = study.registry.find("dataset", "inline/dataset").spec.build(None, 0).task.sample
    torch.manual_seed(0)
    model = Scaled(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
        expected = 2 * model.outer(model.act(model.inner(sample[0]))).flatten()
    assert kept(tmp_path)["outputs"] == pytest.approx(expected.tolist(), rel=1e-5)


def test_random_generators_do_not_advance(tmp_path):
    study = planned(tmp_path)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    model_check.record_model_check(study.experiment, study.plan, tmp_path)
    assert (tmp_path / "model_check.json").exists()
    assert torch.get_rng_state().equal(before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


def test_planning_writes_nothing(tmp_path):
    planned(tmp_path)
    assert not (tmp_path / "study").exists()


class Fails(Net):
    def forward(self, x):
        if scale() == 0:
            raise RuntimeError("a library that does not work here")
        return super().forward(x)


@pytest.mark.parametrize(("model", "most"), [(Fails, 50_000_000), (Net, 20)], ids=["fails", "large"])
def test_a_model_that_fails_or_is_large_is_not_checked(tmp_path, monkeypatch, library, model, most):
    monkeypatch.setattr(model_check, "MOST_PARAMETERS", most)
    study = planned(tmp_path, model)
    library(0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_check.record_model_check(study.experiment, study.plan, tmp_path)
    assert not (tmp_path / "model_check.json").exists()


def test_a_plan_of_a_file_has_the_difference_as_a_note(tmp_path):
    table = text_table(write_text(tmp_path / "text"))
    study = flops_fit_core.plan(table, out=tmp_path / "study")
    (tmp_path / "study").mkdir()
    study.folder.save(study.experiment, study.plan, study.registry.setup)
    model_check.record_model_check(study.experiment, study.plan, tmp_path / "study")
    assert flops_fit_core.plan(table, out=tmp_path / "study").plan.notes == study.plan.notes
    changed = kept(tmp_path) | {"outputs": [1.1 * value for value in kept(tmp_path)["outputs"]]}
    changed["versions"]["torch"] = "2.0"
    del changed["sha256"]
    write_checked(tmp_path / "study" / "model_check.json", changed)
    note = flops_fit_core.plan(table, out=tmp_path / "study").plan.notes[-1]
    assert f"torch 2.0 -> {torch.__version__}" in note
    assert "relative difference 0.091" in note


def test_a_model_of_an_external_program_is_not_checked(tmp_path):
    table = text_table(
        write_text(tmp_path / "text"), trainer={"name": "command", "command": ["python", "train.py"]}
    )
    study = flops_fit_core.plan(table, out=tmp_path / "study")
    model_check.record_model_check(study.experiment, study.plan, tmp_path)
    assert not (tmp_path / "model_check.json").exists()


def test_the_relative_difference():
    assert relative_difference((3.0, 4.0), (3.0, 4.0)) == 0
    assert relative_difference((3.0, 4.0), (0.0, 0.0)) == 1
    assert relative_difference((1.0,), (1.0, 2.0)) == float("inf")
