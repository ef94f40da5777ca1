"""The time left of a sweep, from recorded timings of a real one and a clock that the test sets."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flops_fit_core import PluginChoice, Progress, RunResult, RunSpec, SweepPlan
from flops_fit_core.study.time_left import TimeLeft

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "text_gpt_timings.json").read_text())["runs"]
START = 1_700_000_000.0


def spec_of(row: dict[str, Any]) -> RunSpec:
    """The run of a recorded row, with other plugins than the real one."""
    plugin = PluginChoice(name="any/any")
    kinds = ("model", "dataset", "optimizer", "schedule", "counter", "trainer")
    names = ("budget", "size", "params", "tokens", "steps", "batch_size", "flops_per_token")
    fields = {**dict.fromkeys(kinds, plugin), **{name: row[name] for name in names}}
    fields["model"] = PluginChoice(name=f"any/{row['size']}")
    return RunSpec(**fields, fingerprint="0", seed=0)


def result_of(row: dict[str, Any], run: RunSpec) -> RunResult:
    return RunResult(
        run=run,
        status="completed",
        loss=row["loss"],
        tokens=run.tokens,
        flops=run.flops,
        seconds=row["seconds"],
        eval_tokens=row["eval_tokens"],
        finished=datetime.fromtimestamp(START + row["ended"], UTC),
    )


def progress_of(row: dict[str, Any], run: RunSpec, now: float) -> Progress:
    speed = row["train_tokens_per_second"]
    elapsed = now - (row["ended"] - row["seconds"])
    step = min(run.steps, int(elapsed * speed / run.tokens_per_step))
    return Progress(
        run=run.id, step=step, steps=run.steps, tokens=step * run.tokens_per_step, tokens_per_second=speed
    )


def plan_of(runs: list[RunSpec]) -> SweepPlan:
    return SweepPlan(
        name="recorded", runs=tuple(runs), params_name="N", flops_name="C", device=PluginChoice(name="any/cpu")
    )


RUNS = [spec_of(row) for row in RECORDED]
PLAN = plan_of(RUNS)
TOTAL = max(row["ended"] for row in RECORDED)
TIMINGS = {run.id: row["timing"] for row, run in zip(RECORDED, RUNS, strict=True) if row["timing"]}


def estimated_seconds(now: float, timings: dict[str, float]) -> float:
    """The estimate ``now`` seconds after the start of the recorded sweep, by two workers."""
    pairs = list(zip(RECORDED, RUNS, strict=True))
    finished = [result_of(row, run) for row, run in pairs if row["ended"] <= now]
    running = [
        progress_of(row, run, now) for row, run in pairs if row["ended"] - row["seconds"] < now < row["ended"]
    ]
    estimate = TimeLeft(PLAN, timings).estimate(finished, {item.id for item in finished}, running, 2)
    assert estimate is not None
    return estimate.seconds


@pytest.mark.parametrize("percent", [25, 35, 50, 65, 75, 90])
@pytest.mark.parametrize("timings", [TIMINGS, {}], ids=["with timings", "without timings"])
def test_the_time_left_of_the_recorded_sweep_is_within_15_percent_from_its_first_quarter_on(
    percent: int, timings: dict[str, float]
) -> None:
    now = TOTAL * percent / 100
    assert estimated_seconds(now, timings) == pytest.approx(TOTAL - now, rel=0.15)


def test_nothing_is_estimated_before_anything_was_measured() -> None:
    assert TimeLeft(PLAN).estimate([], set(), [], 2) is None


def test_timings_give_an_estimate_before_the_first_run() -> None:
    estimate = TimeLeft(PLAN, TIMINGS).estimate([], set(), [], 2)
    assert estimate is not None
    assert estimate.share_done == 0.0
    alone = sum(run.tokens / TIMINGS[run.id] for run in RUNS if run.id in TIMINGS)
    assert estimate.seconds > alone / 2


def test_failed_and_diverged_runs_need_no_time() -> None:
    results = [result_of(row, run) for row, run in zip(RECORDED, RUNS, strict=True)]
    half = results[::2]
    failed = [item.model_copy(update={"status": "failed", "loss": None}) for item in results[1::2]]
    done = {item.id for item in results}
    estimate = TimeLeft(PLAN).estimate([*half, *failed], done, [], 2)
    assert estimate is not None
    assert (estimate.seconds, estimate.share_done) == (0.0, 1.0)
    missing = TimeLeft(PLAN).estimate(half, {item.id for item in half}, [], 2)
    assert missing is not None
    assert missing.seconds > 30


def test_twice_the_workers_need_half_the_time_if_there_are_enough_runs() -> None:
    runs = [RUNS[0].model_copy(update={"seed": seed}) for seed in range(41)]
    plan = plan_of(runs)
    first = RunResult(run=runs[0], status="completed", loss=1.0, tokens=runs[0].tokens, seconds=50.0)
    by_two, by_four = (TimeLeft(plan).estimate([first], {first.id}, [], workers) for workers in (2, 4))
    assert by_two is not None
    assert by_four is not None
    assert by_two.seconds == pytest.approx(2 * by_four.seconds)
    assert by_four.seconds == pytest.approx(10 * 50.0, rel=0.02)


def test_an_unknown_number_of_workers_is_the_number_of_jobs_in_training() -> None:
    runs = [RUNS[0].model_copy(update={"seed": seed}) for seed in range(12)]
    first = RunResult(run=runs[0], status="completed", loss=1.0, tokens=runs[0].tokens, seconds=50.0)
    running = [
        Progress(
            run=run.id, step=1, steps=run.steps, tokens=run.tokens_per_step, tokens_per_second=run.tokens / 50
        )
        for run in runs[1:6]
    ]
    unknown, five = (TimeLeft(plan_of(runs)).estimate([first], {first.id}, running, k) for k in (None, 5))
    assert unknown == five


def test_a_shared_stable_phase_is_trained_once() -> None:
    short, long = (
        RUNS[0].model_copy(update={"tokens": 1000 * steps, "steps": steps, "branch_step": int(0.8 * steps)})
        for steps in (1000, 2000)
    )
    alone = [run.model_copy(update={"branch_step": None}) for run in (short, long)]
    done = RunResult(run=RUNS[1], status="completed", loss=1.0, tokens=RUNS[1].tokens, seconds=100.0)
    shared, separate = (
        TimeLeft(plan_of([RUNS[1], *runs])).estimate([done], {done.id}, [], 1) for runs in ((short, long), alone)
    )
    assert shared is not None
    assert separate is not None
    saved = 800 / 3000  # of all steps, the stable phase of the short run
    assert shared.seconds / separate.seconds == pytest.approx(1 - saved, abs=0.02)


def test_runs_of_a_vectorised_job_share_its_worker() -> None:
    runs = [RUNS[0].model_copy(update={"seed": seed}) for seed in range(4)]
    plan = plan_of(runs).model_copy(update={"vmap_runs": 4})
    half = RUNS[0].steps // 2
    running = [
        Progress(
            run=run.id,
            step=half,
            steps=run.steps,
            tokens=half * run.tokens_per_step,
            tokens_per_second=run.tokens / 100,
        )
        for run in runs
    ]
    estimate = TimeLeft(plan).estimate([], set(), running, 1)
    assert estimate is not None
    assert estimate.seconds == pytest.approx(50, rel=0.05)
