"""``flops-fit curve``: tables, schedules, further tables, and the runs of a study, finished or not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from small import Bench, stopped_after
from typer.testing import CliRunner

from flops_fit_core import Study
from flops_fit_core.cli import app
from flops_fit_core.config import make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.study.loss_curves import study_curves
from flops_fit_core.training import work

sys.path.insert(0, str(Path(__file__).parent / "fitting"))
from curve_samples import rates, true_losses


def run(*arguments: object, status: int = 0):
    result = CliRunner().invoke(app, ["curve", *map(str, arguments)])
    assert result.exit_code == status or (status and result.exception), result.output
    return result


def write(path: Path, runs: dict[str, tuple[str, int]], *, planned: bool = True) -> Path:
    """A table of curves. ``runs``: name -> schedule and last step with a loss, of 4,000."""
    lines = ["run,step,lr,loss"]
    for name, (schedule, last) in runs.items():
        values = rates(schedule, 4001)
        steps = np.arange(200, 4001, 50)
        losses = true_losses(values, steps) * (1 + 1e-3 * np.sin(np.arange(len(steps))))
        for step, loss in zip(steps, losses, strict=True):
            if step <= last or planned:
                lines.append(f"{name},{step},{values[step]},{loss if step <= last else ''}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_an_unfinished_run_is_forecast_from_the_finished_runs_of_the_table(tmp_path):
    runs = {"constant": ("constant", 4000), "cosine": ("cosine", 4000), "new": ("wsd", 2000)}
    path = write(tmp_path / "curves.csv", runs)
    answer = json.loads(run(path, "--json").output)
    new = next(item for item in answer["runs"] if item["run"] == "new")
    assert new["others"] == ["constant", "cosine"]
    truth = true_losses(rates("wsd", 4001), np.array([4000]))[0]
    assert new["low"] < truth < new["high"]
    text = run(path).output
    assert "forecast, decay from 2 other curves" in text
    assert "Law multi-power, from 2 finished curves: L0" in text


def test_a_run_whose_decay_was_not_seen_is_not_forecast(tmp_path):
    path = write(tmp_path / "curves.csv", {"new": ("wsd", 2000)})
    text = " ".join(run(path).output.split())
    assert "no forecast" in text
    assert "! new: the schedule lowers the learning rate by 90% of its peak" in text


def test_further_tables_give_the_decay_term(tmp_path):
    path = write(tmp_path / "new.csv", {"new": ("wsd", 2000)})
    others = write(tmp_path / "others.csv", {"cosine": ("cosine", 4000)})
    answer = json.loads(run(path, "--with", others, "--json").output)
    assert [item["run"] for item in answer["runs"]] == ["new"]
    assert answer["runs"][0]["others"] == ["cosine"]


def test_a_schedule_completes_a_table_without_planned_rows(tmp_path):
    path = write(tmp_path / "new.csv", {"new": ("cosine", 2400)}, planned=False)
    answer = json.loads(run(path, "--schedule", "cosine:steps=4000,final=0.1,warmup=0", "--json").output)
    assert answer["runs"][0]["steps"] == 4000
    truth = true_losses(rates("cosine", 4001), np.array([4000]))[0]
    assert answer["runs"][0]["low"] < truth < answer["runs"][0]["high"]


def test_the_loss_of_another_schedule_is_predicted(tmp_path):
    path = write(tmp_path / "curves.csv", {"constant": ("constant", 4000), "cosine": ("cosine", 4000)})
    arguments = (path, "--predict", "linear:steps=4000,warmup=150", "--law", "annealing")
    (prediction,) = json.loads(run(*arguments, "--json").output)["predictions"]
    truth = true_losses(rates("linear", 4001), np.array([4000]))[0]
    assert prediction["loss"] == pytest.approx(truth, rel=0.02)
    assert "Final loss of linear:steps=4000,warmup=150: " in run(*arguments).output


def test_a_prediction_needs_a_finished_run(tmp_path):
    path = write(tmp_path / "new.csv", {"new": ("wsd", 2000)})
    assert "needs a finished run" in str(run(path, "--predict", "cosine:steps=10", status=2).exception)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--law", "power"], "no curve law is named 'power'"),
        (["--column", "loss"], "write --column loss=eval/loss"),
        (["--schedule", "cosin:steps=10"], "Did you mean 'cosine'"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, arguments, part):
    path = write(tmp_path / "new.csv", {"new": ("cosine", 2000), "old": ("cosine", 4000)})
    assert part in str(run(path, *arguments, status=2).exception)


# ---------------------------------------------------------------------------- studies


def bench_study(folder: Path, bench: Bench, *, stop_after: int | None = None) -> Study:
    """A study of two runs that share a stable phase, trained completely or stopped."""
    one_step = bench.table(1)["sweep"]["budgets"][0]
    table = bench.table(
        name="bench",
        sweep={"budgets": [one_step * steps for steps in (60, 120)]},
        schedule={"name": "wsd", "decay": 0.25, "warmup_tokens": 0},
        trainer={"num_evals": 20},
    )
    registry = bench.registry()
    experiment = make_experiment(table, registry)
    plan = make_plan(experiment)
    study = Study(plan, registry, StudyFolder(folder), experiment=experiment)
    if stop_after is None:
        study.train()
        return study
    for job in plan.jobs({item.id for item in plan.runs}):
        list(
            work(
                job.model_dump_json(),
                registry.setup.model_dump_json(),
                objects=registry.objects,
                folder=folder,
                should_stop=stopped_after(stop_after),
            )
        )
    return study


def test_the_curves_of_a_study_have_the_rates_of_its_schedule(tmp_path):
    study = bench_study(tmp_path / "study", Bench())
    short, long = study_curves(study)
    assert short.is_finished
    assert long.is_finished
    assert short.group == long.group
    assert (short.rates.steps, long.rates.steps) == (60, 120)
    assert short.rates.values[:45] == pytest.approx(np.ones(45))
    assert short.rates.values[59] == pytest.approx(1 - np.sqrt(14 / 15))
    results = {result.id: result for result in study.results}
    assert short.losses[-1] == results[short.name].loss
    assert [point.step for point in results[long.name].curve] == long.steps.tolist()


def test_the_evaluations_of_an_interrupted_run_are_read_from_its_checkpoint(tmp_path):
    complete = {curve.name: curve for curve in study_curves(bench_study(tmp_path / "complete", Bench()))}
    stopped = study_curves(bench_study(tmp_path / "stopped", Bench(), stop_after=40))
    assert len(stopped) == 2
    for curve in stopped:
        expected = dict(zip(complete[curve.name].steps, complete[curve.name].losses, strict=True))
        shared = {step: loss for step, loss in zip(curve.steps, curve.losses, strict=True) if step in expected}
        assert len(shared) >= 5
        assert shared == {step: expected[step] for step in shared}
        assert not curve.is_finished
        assert curve.rates.steps == complete[curve.name].rates.steps


def test_a_study_without_evaluations_names_the_option(tmp_path):
    from flops_fit_core import FitError

    bench = Bench()
    table = bench.table(20, name="bench")
    experiment = make_experiment(table, bench.registry())
    study = Study(make_plan(experiment), bench.registry(), StudyFolder(tmp_path / "s"), experiment=experiment)
    study.train()
    with pytest.raises(FitError, match="num_evals"):
        study_curves(study)
