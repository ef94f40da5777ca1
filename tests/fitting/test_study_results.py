"""A study's results as observations."""

from __future__ import annotations

import pytest

from flops_fit_core import Evaluation, PluginChoice, RunResult, RunSpec
from flops_fit_core.fitting import curve_points, observations


def make_run(seed=0):
    choice = PluginChoice(name="some/plugin")
    return RunSpec(
        model=choice,
        dataset=choice,
        fingerprint="abc",
        optimizer=choice,
        schedule=choice,
        counter=choice,
        trainer=choice,
        batch_size=8,
        steps=100,
        tokens=51200,
        seed=seed,
        budget=1e9,
        size=16,
        params=3000,
        flops_per_token=2e4,
    )


def make_result(status="completed", seed=0, **more):
    done = (
        {"loss": 3.0, "tokens": 51200, "unique_tokens": 40000, "flops": 1.024e9} if status == "completed" else {}
    )
    return RunResult(run=make_run(seed), status=status, **{**done, **more})


def test_completed_runs_are_observed_with_their_actual_tokens():
    results = [make_result(), make_result("failed", seed=1), make_result("diverged", seed=2)]
    (observation,) = observations(results)
    assert (observation.id, observation.params, observation.tokens, observation.flops) == (
        results[0].id,
        3000,
        51200,
        1.024e9,
    )
    assert (observation.loss, observation.budget, observation.seed, observation.unique_tokens) == (
        3.0,
        1e9,
        0,
        40000,
    )


def test_a_runs_evaluations_are_points_of_its_training_curve():
    curve = (
        Evaluation(step=0, tokens=0, loss=5.5),
        Evaluation(step=50, tokens=25600, loss=3.5),
        Evaluation(step=75, tokens=38400, loss=None),
        Evaluation(step=100, tokens=51200, loss=3.0),
    )
    points = curve_points([make_result(curve=curve)])
    assert [(point.tokens, point.loss) for point in points] == [(25600, 3.5), (51200, 3.0)]
    assert points[0].flops == pytest.approx(1.024e9 / 2)
    assert len({point.trajectory for point in points}) == 1
