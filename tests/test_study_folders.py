"""Messages about a study's folder: Python objects, other results, other stores, failed runs."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from flops_fit_core import (
    ConfigError,
    FitError,
    FlopsFitError,
    PlanError,
    PluginChoice,
    RunResult,
    RunSpec,
    StudyWarning,
    SweepFailed,
    SweepPlan,
    find_optimal,
    fit,
    plan,
    run,
)
from flops_fit_core.cli.main import run as command
from flops_fit_core.errors import raised_at
from flops_fit_core.plugins import Registry
from flops_fit_core.study import Study
from flops_fit_core.study import results as study_results
from flops_fit_core.study.heartbeat import Heartbeat
from flops_fit_core.study.other_results import describe, find_other_runs


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
        "allow_repeat": True,
        "device": "cpu",
        "executor": "local",
        "trainer": {"name": "torch", "eval_tokens": 100},
        "output_dir": folder / "study",
    }
    return find_optimal(model, "width", **{**arguments, **changes})


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a command line in an empty directory; gives its exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def in_process(*arguments):
        status = command([str(argument) for argument in arguments])
        output, error = capsys.readouterr()
        return status, " ".join(output.split()), " ".join(error.split())

    return in_process


# ---------------------------------------------------------------------------- Python objects


@pytest.fixture(scope="module")
def made_by_python(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    optimal(folder)
    return folder / "study"


@pytest.fixture
def python_study(made_by_python, tmp_path, call):
    """A finished study of Python objects, ``study`` in the working directory."""
    return shutil.copytree(made_by_python, tmp_path / "study")


@pytest.mark.parametrize("name", ["plan", "run", "doctor", "tune"])
def test_a_command_that_needs_the_python_objects_names_find_optimal(python_study, call, name):
    status, _, error = call(name, "study")
    assert status == 2
    assert "call find_optimal with the same objects and output_dir='study'" in error
    assert "no model named" not in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "study"],
        ["runs", "study"],
        ["fit", "study"],
        ["predict", "study", "--flops", "1e6"],
        ["report", "study"],
        ["prune-checkpoints", "study"],
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
    assert "To continue: call find_optimal with the same objects and output_dir='study'" in output
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


# ---------------------------------------------------------------------------- results of another experiment


def surface(folder, name="formula.json", **changes):
    """An experiment on a formula: 9 runs that take no time."""
    table = {
        "name": "formula",
        "sweep": {"budgets": [1e18, 1e19, 1e20], "sizes": 3, "batch_size": 8},
        "model": "surface/surface",
        "dataset": {"name": "surface/surface", "noise": 0.005},
        "executor": "local",
        **changes,
    }
    (folder / name).write_text(json.dumps(table))
    return table


@pytest.fixture(scope="module")
def formula_study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formula")
    run(surface(folder), out=folder / "study")
    return folder


@pytest.fixture
def formula(formula_study, tmp_path, call):
    """A finished study of a formula, ``study`` in the working directory, with its ``formula.json``."""
    shutil.copy(formula_study / "formula.json", tmp_path)
    return shutil.copytree(formula_study / "study", tmp_path / "study")


NOISE = "9 finished runs differ in dataset.noise: 0.005 -> 0.01"


def test_plan_and_run_name_the_fields_in_which_finished_runs_differ(formula, call):
    change = ("--out", "study", "--set", "dataset.noise=0.01")
    assert NOISE in call("plan", "formula.json", *change, "--no-estimate")[1]
    planned = json.loads(call("plan", "formula.json", *change, "--no-estimate", "--json")[1])
    (group,) = planned["other_runs"]
    assert group["runs"] == 9
    assert {"name": "dataset.noise", "theirs": [0.005], "planned": [0.01]} in group["differences"]
    assert NOISE in call("run", "formula.json", *change)[2]


def test_status_and_fit_name_finished_runs_of_another_plan(formula, call):
    study = Study.open(formula)
    other = plan({**surface(formula.parent), "dataset": {"name": "surface/surface", "noise": 0.01}}, out="other")
    other.folder.path.mkdir()
    study.folder.save(other.experiment, other.plan, study.registry.setup)
    status, output, _ = call("status", "study")
    assert status == 0
    assert "9 waiting of 9 runs" in output
    assert NOISE in output
    assert json.loads(call("status", "study", "--json")[1])["other_runs"][0]["runs"] == 9
    status, _, error = call("fit", "study")
    assert status == 2
    assert "no completed runs" in error
    assert NOISE in error
    with pytest.raises(FitError, match="9 finished runs differ"):
        fit(formula)


def test_a_fit_has_a_diagnostic_about_other_results(formula, call):
    call("run", "formula.json", "--out", "study", "--set", "dataset.noise=0.01", "--report")
    codes = [item["code"] for item in json.loads(call("fit", "study", "--json")[1])["diagnostics"]]
    assert codes.count("other-results") == 1
    assert "9 finished runs differ" in call("predict", "study", "--flops", "1e20")[1]
    assert "9 finished runs differ" in str(Study.open(formula).table())
    assert "9 finished runs differ" in (formula / "report" / "index.html").read_text()


def test_a_plan_with_all_results_has_no_notice(formula, call):
    assert Study.open(formula).notices == []
    _, output, error = call(
        "run", "formula.json", "--out", "study", "--set", "sweep.budgets=[1e18,1e19,1e20,1e21]"
    )
    assert "finished run" not in output + error


def test_find_optimal_warns_of_results_of_another_model_data_or_optimizer(tmp_path, call):
    optimal(tmp_path)
    with pytest.warns(StudyWarning, match=r"study: 6 finished runs differ in the code or arguments of the model"):
        optimal(tmp_path, train=False, model_kwargs={"act": nn.GELU})
    with pytest.warns(StudyWarning, match=r"6 finished runs differ in optimizer: optim/sgd -> optim/adamw"):
        optimal(tmp_path, train=False, optimizer="adamw")
    more = TensorDataset(INPUTS[:1000], INPUTS[:1000, :3].argmax(1))
    with pytest.warns(
        StudyWarning, match=r"6 finished runs differ in the content of the data \(fingerprint\); they are"
    ):
        optimal(tmp_path, train=False, dataset=more)
    with pytest.warns(StudyWarning, match=r"3 finished runs differ in budget: 200000 -> 400000"):
        optimal(tmp_path, train=False, compute_budgets=[4e5])
    with pytest.warns(StudyWarning, match=r"6 finished runs differ in seed: 0 -> 1"):
        optimal(tmp_path, train=False, seeds=[1])


def made_run(**changes):
    base = {
        "model": PluginChoice(name="gpt/gpt", options={"width": 16}),
        "dataset": PluginChoice(name="text/text"),
        "fingerprint": "data",
        "optimizer": PluginChoice(name="optim/adamw", options={"lr": 0.01}),
        "schedule": PluginChoice(name="schedules/cosine"),
        "counter": PluginChoice(name="counters/chinchilla"),
        "trainer": PluginChoice(name="trainers/torch"),
        "batch_size": 8,
        "steps": 100,
        "tokens": 12800,
        "seed": 0,
        "budget": 1e9,
        "size": 16,
        "params": 1000,
        "flops_per_token": 6000.0,
    }
    return RunSpec(**{**base, **changes})


def sized(width, **changes):
    model = PluginChoice(name="gpt/gpt", options={"width": width})
    return made_run(**{"model": model, "size": width, "params": 100 * width, **changes})


def groups_of(others, planned):
    plan = SweepPlan(
        name="p", runs=tuple(planned), params_name="N", flops_name="C", device=PluginChoice(name="devices/cpu")
    )
    results = [RunResult(run=run, status="completed", loss=1.0) for run in others]
    return find_other_runs(results, plan, Registry())


def test_runs_are_grouped_by_the_fields_in_which_they_differ_from_the_nearest_planned_run():
    planned = [sized(width) for width in (8, 16, 32)]
    lr = PluginChoice(name="optim/adamw", options={"lr": 0.02})
    old = PluginChoice(name="text/text", options={"context": 128})
    others = [sized(width, optimizer=lr) for width in (8, 16, 32)] + [sized(16, dataset=old), sized(64, steps=25)]
    first, *rest = groups_of([*others, planned[0]], planned)
    assert (first.runs, str(first)) == (3, "optimizer.lr: 0.02 -> 0.01")
    assert {str(group) for group in rest} == {"dataset.context: 128 -> 64", "size: 64 -> 32"}


def test_the_default_of_an_option_missing_on_one_side_is_shown():
    gelu = PluginChoice(name="gpt/gpt", options={"width": 16, "positions": "learned"})
    (group,) = groups_of([made_run(model=gelu)], [made_run()])
    assert str(group) == "model.positions: learned -> rotary"


def test_a_revision_of_a_plugin_is_a_difference():
    newer = PluginChoice(name="gpt/gpt", options={"width": 16}, revision=2)
    (group,) = groups_of([made_run()], [made_run(model=newer)])
    assert str(group) == "model revision: 1 -> 2"


def test_tokens_and_steps_are_named_only_where_nothing_else_differs():
    (group,) = groups_of([made_run(steps=50, tokens=6400)], [made_run()])
    assert str(group) == "tokens: 6400 -> 12800, steps: 50 -> 100"
    (group,) = groups_of([made_run(steps=50, tokens=6400, seed=3)], [made_run()])
    assert str(group) == "seed: 3 -> 0"


def test_the_notice_is_bounded():
    planned = [made_run()]
    many = [PluginChoice(name="gpt/gpt", options={"width": 16, f"option{k}": k}) for k in range(40)]
    text = describe(groups_of([made_run(model=model) for model in many], planned))
    assert text.startswith("40 finished runs differ (theirs -> the plan's): 1 in model.option")
    assert "37 in other fields" in text
    assert len(text) < 400
    wide = PluginChoice(name="gpt/gpt", options={f"option{k}": "x" * 100 for k in range(40)})
    assert len(describe(groups_of([made_run(model=wide)], planned))) < 500


def test_thousands_of_other_runs_take_seconds():
    planned = [made_run(seed=seed) for seed in range(3000)]
    others = [made_run(seed=seed, batch_size=16) for seed in range(3000)]
    (group,) = groups_of(others, planned)
    assert (group.runs, str(group)) == (3000, "batch_size: 16 -> 8")


# ---------------------------------------------------------------------------- another store


def finished(study):
    return {result.id: result.finished for result in study.results}


@pytest.mark.parametrize(("before", "after"), [("sqlite", "json"), ("json", "sqlite")])
def test_no_run_is_trained_again_in_another_store(tmp_path, call, before, after):
    table = surface(tmp_path, store=before)
    times = finished(run(table, out="study"))
    _, output, _ = call("plan", "formula.json", "--out", "study", "--store", after, "--no-estimate")
    assert f"9 results of this plan are in results.{before}, not in stores/{after}" in output
    assert output.count("completed") == 9
    with pytest.warns(StudyWarning, match="training copies them"):
        assert finished(run({**table, "store": after}, out="study")) == times
    moved = Study.open("study")
    assert moved.folder.choice("store", moved.registry).name == f"stores/{after}"
    with moved.store() as store:
        assert {result.id: result.finished for result in store.results()} == times
    assert moved.notices == []


def test_the_command_line_trains_nothing_again_in_another_store(formula, call):
    status, _, error = call("run", "formula.json", "--out", "study", "--store", "json")
    assert status == 0
    assert "9 runs, 0 to train" in error


def test_find_optimal_in_another_store_trains_nothing_again(tmp_path, call):
    times = finished(optimal(tmp_path))
    with pytest.warns(StudyWarning, match="6 results of this plan are in results.sqlite, not in stores/json"):
        study = optimal(tmp_path, store="json")
    assert finished(study) == times


def test_an_old_store_file_next_to_the_present_one_is_read(formula, call):
    times = finished(Study.open(formula))
    call("store", "copy", "study", "study", "--store", "json")
    for file in formula.glob("results.json*"):
        file.unlink()
    assert finished(Study.open(formula)) == times
    assert "9 results of this plan are in results.sqlite" in call("status", "study")[1]
    status, output, _ = call("fit", "study")
    assert status == 0
    assert "9 runs" in output


def test_a_finished_result_in_another_store_replaces_a_failed_attempt(formula, call):
    study = Study.open(formula)
    (formula / "results.sqlite").rename(formula / "kept")
    (formula / "results.sqlite.count").unlink()
    with study.store() as store:
        for run in study.plan.runs:
            store.add(RunResult(run=run, status="failed", attempt=2))
    call("store", "copy", "study", "study", "--store", "json")
    (formula / "results.sqlite").unlink()
    (formula / "kept").rename(formula / "results.sqlite")
    results = Study.open(formula).train()
    assert [(result.status, result.attempt) for result in results] == [("completed", 3)] * 9


@pytest.mark.filterwarnings("ignore:.*training copies them")
def test_two_drivers_that_change_the_store_copy_each_result_once(formula, monkeypatch):
    table = surface(formula.parent, store="json")
    first, second = plan(table, out="study"), plan(table, out="study")
    find = study_results.find_other_stores

    def find_and_wait(*arguments):
        stores = find(*arguments)
        monkeypatch.setattr(study_results, "find_other_stores", find)
        second.train()
        return stores

    monkeypatch.setattr(study_results, "find_other_stores", find_and_wait)
    first.train()
    assert [attempt.attempt for attempt in Study.open(formula).attempts] == [1] * 9


def test_a_store_that_cannot_be_read_stops_a_run_that_would_train_again(formula, call):
    (formula / "results.sqlite").write_text("not a database")
    status, _, error = call("run", "formula.json", "--out", "study", "--store", "json")
    assert status == 2
    assert "may have results in results.sqlite, which cannot be read" in error
    assert "would be trained again" in error


def test_a_study_with_a_python_object_as_store_requires_it(tmp_path, call):
    from flops_fit_stores.json_file import JsonStore

    optimal(tmp_path, store=JsonStore(tmp_path / "elsewhere.json", 10.0))
    with pytest.raises(ConfigError, match="pass it as store= again"):
        optimal(tmp_path)


def test_a_driver_with_another_store_stops_a_run(formula, call):
    note = Heartbeat(formula, "other", "local")
    note.started(Study.open(formula).plan)
    try:
        status, _, error = call("run", "formula.json", "--out", "study", "--store", "json")
        assert status == 2
        assert "is being trained by process" in error
        assert "with another store than stores/json" in error
    finally:
        note.close()


# ---------------------------------------------------------------------------- failures from Python


class Fails(Net):
    """Fails in training, not while the planner tries it."""

    def forward(self, x):
        if torch.is_grad_enabled():
            raise RuntimeError("out of flour")
        return super().forward(x)


class FailsWide(Net):
    def __init__(self, width):
        super().__init__(width)
        self.width = width

    def forward(self, x):
        if self.width > 3 and torch.is_grad_enabled():
            raise RuntimeError("out of flour")
        return super().forward(x)


class Unbuildable(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(4, widht)  # noqa: F821


class Unusable(Net):
    def forward(self, x):
        return self.outer(self.inner(x).reshape(-1, 7))


class TwoClasses(Net):
    def __init__(self, width):
        super().__init__(width)
        self.outer = nn.Linear(width, 2)


class UnusableOnData(Net):
    def forward(self, x):
        assert not x.any(), "not my data"
        return super().forward(x)


class Needy(torch.optim.SGD):
    def __init__(self, params, rho):
        super().__init__(params, lr=0.01)


def line_of(text):
    """The number of this file's first line with the text."""
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def test_a_sweep_in_which_every_run_fails_raises_its_first_error(tmp_path, call):
    place = f"{__file__}, line {line_of('raise RuntimeError')}, in forward"
    message = f"  RuntimeError: out of flour\n    raised in {place}\n"
    with pytest.raises(SweepFailed, match=re.escape(message)) as caught:
        optimal(tmp_path, Fails)
    assert str(caught.value).startswith("6 of 6 runs of study failed")
    assert len(Study.open(tmp_path / "study").results) == 6


def test_a_sweep_in_which_some_runs_fail_warns_and_gives_the_rest(tmp_path, call):
    message = r"4 of 6 runs of study failed:\n  RuntimeError: out of flour\n    raised in .*\n    4 runs: "
    with pytest.warns(StudyWarning, match=message):
        study = optimal(tmp_path, FailsWide, counter="chinchilla")  # a trace would fail while it is planned
    assert [result.status for result in study.results].count("completed") == 2


class Interrupted(BaseException):
    """As test runners and event loops have them."""


class Speechless(Exception):
    def __str__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("flour " * 1000 + "\x00\x1b[31m"), "RuntimeError: flour flour"),
        (Interrupted("by hand"), "Interrupted: by hand\n    raised in /"),
        (Speechless(), "Speechless: its text cannot be shown: ZeroDivisionError\n    raised in /"),
        (SystemExit(3), "SystemExit: 3\n    raised in /"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_model_raises_is_one_line_of_the_error(tmp_path, call, error, message):
    class Raises(Net):
        def forward(self, x):
            if torch.is_grad_enabled() and len(x) == 8:  # not while it is planned
                raise error
            return super().forward(x)

    with pytest.raises(SweepFailed, match=re.escape(message)) as caught:
        optimal(tmp_path, Raises, fingerprint="raises", counter="chinchilla")
    assert len(str(caught.value)) < 800
    assert all(line.isprintable() for line in str(caught.value).splitlines())
    status, output, _ = call("status", "study")
    assert status == 0
    assert len(output) < 4000


@pytest.mark.parametrize("place", ["__init__", "forward"])
def test_a_model_that_exits_while_it_is_planned_is_an_error(tmp_path, place):
    class Exits(Net):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            if place == "__init__":
                raise SystemExit(3)

        def forward(self, x):
            raise SystemExit(3)

    with pytest.raises(PlanError, match=r"sys\.exit\(3\) \(.*test_study_folders.*line \d+, in " + place):
        optimal(tmp_path, Exits, fingerprint="exits", counter="chinchilla", train=False)


def test_an_interrupted_worker_is_one_line_of_the_error(tmp_path, call):
    class Stops(Net):
        def forward(self, x):
            if torch.is_grad_enabled() and len(x) == 8:  # not while it is planned
                raise KeyboardInterrupt
            return super().forward(x)

    arguments = {
        "compute_budgets": [2e5],
        "sizes": [3],
        "counter": "chinchilla",
        "executor": {"name": "processes", "workers": 1},
    }
    with pytest.raises(SweepFailed, match="WorkerLost: exited with status 1: KeyboardInterrupt") as caught:
        optimal(tmp_path, Stops, fingerprint="stops", **arguments)
    assert "Traceback" not in str(caught.value)
    assert "KeyboardInterrupt" in Study.open(tmp_path / "study").results[0].error.traceback


def test_run_from_python_raises_as_find_optimal_does(tmp_path):
    table = {
        "sweep": {"budgets": [1e9], "sizes": [{"width": 8}], "batch_size": 8, "min_steps": 1},
        "model": "mlp",
        "dataset": {"name": "external", "label": "mine", "vocab_size": 9, "context": 8},
        "trainer": {"name": "command", "command": ["false"]},
        "executor": "local",
    }
    with pytest.raises(SweepFailed, match="1 of 1 runs"):
        run(table, out=tmp_path / "programs")


@pytest.mark.parametrize(
    ("model", "changes", "message", "line"),
    [
        (Unbuildable, {}, "NameError: name 'widht' is not defined", "widht)"),
        (Unusable, {}, "does not fit", "reshape(-1, 7)"),
        (UnusableOnData, {}, "not my data", "assert not x.any()"),
        (TwoClasses, {}, "a target is 2, but the model's outputs of shape (8, 2) have classes 0 to 1", None),
        (Net, {"optimizer": Needy}, "missing 1 required positional argument: 'rho'", None),
        (Net, {"optimizer": torch.optim.LBFGS}, "LBFGS.step needs closure", None),
    ],
)
def test_a_failure_common_to_all_runs_is_an_error_of_the_plan(tmp_path, model, changes, message, line):
    with pytest.raises(FlopsFitError, match=re.escape(message)) as caught:
        optimal(tmp_path, model, train=False, **changes)
    if line is not None:
        assert f"{__file__}, line {line_of(line)}, in " in str(caught.value)
    assert not (tmp_path / "study").exists()


def test_the_named_frame_is_in_the_users_code():
    text = """Traceback (most recent call last):
  File "/opt/site-packages/flops_fit_gpt/model.py", line 3, in step
    x
  File "/home/anna/nets/net.py", line 12, in forward
    y
  File "/usr/lib/python3/site-packages/torch/nn/modules/linear.py", line 9, in forward
    z
RuntimeError: shapes"""
    assert raised_at(text) == "/home/anna/nets/net.py, line 12, in forward"
    assert raised_at("RuntimeError: shapes") == ""
    theirs = text.replace("/home/anna/nets", "/venv/lib/site-packages/nets")
    assert raised_at(theirs) == "/venv/lib/site-packages/nets/net.py, line 12, in forward"


# ---------------------------------------------------------------------------- without a report


def test_a_sweep_without_a_report_names_the_command_that_writes_it_again(formula, call, monkeypatch):
    status, output, error = call("run", "formula.json", "--out", "study", "--no-report")
    assert status == 0
    assert not (formula / "report").exists()
    assert "report" not in output
    assert "earlier sweep" not in error
    (formula / "report").mkdir()
    assert "to write it again: flops-fit report study" in call("run", "formula.json", "--out", "study")[2]
    assert list((formula / "report").iterdir()) == []
    monkeypatch.setenv("FLOPS_FIT_REPORT", "perhaps")
    status, _, error = call("run", "formula.json", "--out", "study")
    assert status == 2
    assert "FLOPS_FIT_REPORT" in error
