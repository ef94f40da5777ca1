"""The verdict of a backtest."""

from __future__ import annotations

import json
from pathlib import Path

import made_up_fits
import pytest

from flops_fit_core.fitting import Backtest, BacktestPoint
from flops_fit_core.records import Interval, NewRunError
from flops_fit_core.report.verdict import judge

SCATTER = NewRunError(sigma=0.014, drift_rate=0.0, sigma_dof=10, drift_dof=0)


def backtest_of(
    errors: list[float], *, width: float | None = None, new_run: NewRunError | None = SCATTER
) -> Backtest:
    points = [
        BacktestPoint(
            id=f"run {n}",
            flops=2e20,
            loss=2.0,
            predicted=Interval(
                value=2 * (1 + error),
                low=None if width is None else 2 * (1 + error - width),
                high=None if width is None else 2 * (1 + error + width),
            ),
        )
        for n, error in enumerate(errors)
    ]
    return Backtest(fit=made_up_fits.law_fit(new_run=new_run), held_out=tuple(points), above=1e20)


def test_a_miss_above_the_scatter_advises_against_extrapolation() -> None:
    verdict = judge(backtest_of([0.02, 0.014]))
    assert verdict.holds is False
    assert verdict.sentence == (
        "Missed the held-out budget by 1.7%, above the 1.4% scatter: do not extrapolate far."
    )


def test_a_miss_within_the_scatter_states_the_tested_step() -> None:
    verdict = judge(backtest_of([0.01, -0.012]))
    assert verdict.holds is True
    assert verdict.sentence == (
        "Missed the held-out budget by 1.1%, within the 1.4% scatter: the law held for a step of 2.0x in C."
    )


@pytest.mark.parametrize(("width", "holds", "word"), [(0.02, True, "inside"), (0.001, False, "outside")])
def test_without_an_estimate_of_the_scatter_the_intervals_decide(width: float, holds: bool, word: str) -> None:
    verdict = judge(backtest_of([0.01], width=width, new_run=None))
    assert verdict.holds is holds
    assert f"Missed the held-out budget by 1.0%, {word} the law's 90% intervals" in verdict.sentence


def test_without_scatter_and_intervals_there_is_no_verdict() -> None:
    verdict = judge(backtest_of([0.01], new_run=None))
    assert verdict.holds is None
    assert "no estimate of the scatter" in verdict.sentence


@pytest.mark.parametrize(("bend", "word"), [(0.0, "within"), (0.2, "above")])
def test_backtest_ends_with_the_verdict_on_runs_that_follow_the_law_or_bend_away(
    bend: float, word: str, tmp_path: Path, call
) -> None:
    budgets = (1e18, 3e18, 1e19, 3e19, 1e20)
    rows = [
        {"params": run.params, "tokens": run.tokens, "flops": run.flops, "loss": run.loss}
        for run in made_up_fits.runs(budgets, noise=0.004)
    ]
    for row in rows:
        row["loss"] *= 1 + bend * (row["flops"] == 1e20)
    table = tmp_path / "runs.json"
    table.write_text(json.dumps(rows))
    status, output, _ = call("backtest", table, "--law", "chinchilla", "--set", "draws=20")
    assert status == 0
    last = output.strip().splitlines()[-1]
    assert last.startswith("Missed the held-out budget by")
    assert f", {word} the " in last
