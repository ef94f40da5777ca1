import json

import pytest
from small import Bench, text_table, write_text

from flops_fit_core import ConfigError, FitError, plan, run
from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.study import Study, study_folder
from flops_fit_core.study.directory import StudyFolder


@pytest.fixture
def table(tmp_path):
    return text_table(write_text(tmp_path / "text"), sweep={"budgets": [5e7]})


def test_a_study_continues_from_its_folder_alone(tmp_path, table):
    first = run(table, out=tmp_path / "study")
    later = Study.open(tmp_path / "study")
    assert later.plan == first.plan
    assert later.results == first.results
    assert later.runs.json() == first.runs.json()
    finished = [result.finished for result in first.results]
    assert [result.finished for result in later.train()] == finished


def test_a_folder_can_be_moved(tmp_path, table):
    results = run(table, out=tmp_path / "study").results
    (tmp_path / "study").rename(tmp_path / "moved")
    assert Study.open(tmp_path / "moved").results == results != []


def test_a_folder_has_the_options_set_and_the_resolved_plan(tmp_path, table):
    run({**table, "optimizer": {"name": "adamw"}}, out=tmp_path / "study")
    saved_options = json.loads((tmp_path / "study" / "experiment.json").read_text())
    resolved = json.loads((tmp_path / "study" / "plan.json").read_text())
    assert saved_options["optimizer"] == {"name": "optim/adamw"}
    assert resolved["runs"][0]["optimizer"]["options"]["lr"] == 0.008


def test_a_larger_sweep_in_the_same_folder_trains_only_new_runs(tmp_path, table):
    first = run(table, out=tmp_path / "study")
    more = {**table, "sweep": {**table["sweep"], "budgets": [5e7, 1e8]}}
    second = run(more, out=tmp_path / "study")
    assert len(second.results) == 4
    assert [result.finished for result in second.results[:2]] == [result.finished for result in first.results]


def test_nothing_is_written_before_training(tmp_path, table):
    study = plan(table, out=tmp_path / "study")
    assert study.results == []
    assert "0 of 2 runs completed" in repr(study)
    assert not (tmp_path / "study").exists()


def test_too_few_runs_for_a_law_name_the_missing_runs(tmp_path, table):
    study = run(table, out=tmp_path / "study")
    with pytest.raises(FitError):
        _ = study.fit


def test_the_time_of_the_missing_runs_is_estimated(tmp_path, table):
    study = plan(table, out=tmp_path / "study")
    assert 0 < study.seconds() < 600
    study.train()
    assert study.seconds() == 0.0


@pytest.mark.parametrize("file", ["experiment.json", "plan.json"])
def test_a_damaged_folder_names_the_file(tmp_path, table, file):
    run(table, out=tmp_path / "study")
    path = tmp_path / "study" / file
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ConfigError, match=file):
        Study.open(tmp_path / "study")._experiment()


def test_a_folder_without_a_study_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a study.*flops-fit run"):
        StudyFolder.existing(tmp_path)


def test_a_file_with_the_path_of_the_folder_is_named(tmp_path):
    (tmp_path / "study").write_text("")
    with pytest.raises(ConfigError, match="study is a file; a study needs a folder"):
        study_folder(tmp_path / "study", "name")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "plan.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \udc80")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_python_objects_of_a_study_are_needed_only_for_training(tmp_path):
    bench = Bench()
    run(bench.table(5), registry=bench.registry(), out=tmp_path / "study")
    later = Study.open(tmp_path / "study")
    assert [result.status for result in later.results] == ["completed"]
    with pytest.raises(ConfigError, match="bench/net"):
        later.train()


def test_a_fit_reports_runs_trained_with_several_versions(tmp_path):
    study = run(
        {
            "sweep": {"budgets": [1e18, 1e19], "sizes": 4, "batch_size": 8},
            "model": "surface",
            "dataset": "surface",
            "executor": "local",
        },
        out=tmp_path / "study",
    )
    assert "mixed-versions" not in {item.code for item in study.fit.diagnostics}
    with study.store() as store:
        first = store.results()[0]
        store.add(first.model_copy(update={"versions": {**first.versions, "torch": "1.0"}}))
    study.refresh()
    (message,) = (item.message for item in study.fit.diagnostics if item.code == "mixed-versions")
    assert message.startswith(f"runs were trained with torch 1.0 and {first.versions['torch']}; ")


def test_an_answer_is_for_ten_times_the_largest_budget_or_the_one_that_is_asked_for(tmp_path):
    surface = {"model": "surface", "dataset": "surface", "fitter": {"name": "parametric", "draws": 50}}
    sweep = {"budgets": [1e17, 1e18, 1e19], "sizes": 5}
    study = run({"name": "law", "sweep": sweep, **surface}, out=tmp_path / "study")
    assert study.answer().optimum == study.predict(1e20)
    assert [row.flops for row in study.answer().rows] == [1e17, 1e18, 1e19, 1e20, 1e21]
    inside = study.answer(1e18)
    assert inside.optimum == study.predict(1e18)
    assert [row.flops for row in inside.rows] == [1e17, 1e18, 1e19]
    far = str(study.answer(1e22)).splitlines()
    assert far[1] == "  ! 1,000x beyond your data: orders of magnitude only"
    assert study.answer(1e22, fit=study.isoflop, fitter=study.fitter).fit == study.isoflop
    with pytest.raises(FitError, match="give a positive number of training FLOPs"):
        study.answer(-1)
