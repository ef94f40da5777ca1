"""Small real experiments that the rows of ``check.py`` share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flops_fit_core import Job, RunResult, SweepPlan
from flops_fit_core.config import Experiment, make_experiment
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.registry import Registry, installed
from flops_fit_core.training import work

MEBIBYTE = 2**20


class CheckFailed(Exception):
    """A row's number is not what it must be."""


def check(condition: bool, message: str) -> None:
    """Raises CheckFailed with the message unless the condition holds."""
    if not condition:
        raise CheckFailed(message)


def gpt_table(
    device: str,
    *,
    width: int = 64,
    depth: int = 3,
    head_dim: int = 16,
    context: int = 64,
    batch: int = 16,
    steps: int = 60,
    seeds: tuple[int, ...] = (0,),
    **options: dict[str, Any],
) -> dict[str, Any]:
    """An experiment of one gpt on the default text. ``options`` are merged over its tables, by kind."""
    per_token = 3 * (depth * (24 * width**2 + 4 * context * width) + 2 * width * 256)
    table: dict[str, Any] = {
        "name": "check",
        "sweep": {
            "budgets": [per_token * steps * batch * context],
            "sizes": [{"width": width}],
            "batch_size": batch,
            "min_steps": 1,
            "allow_repeat": True,
            "seeds": seeds,
        },
        "model": {"name": "gpt", "depth": depth, "head_dim": head_dim},
        "dataset": {"name": "text", "context": context},
        "optimizer": {"name": "adamw"},
        "counter": {"name": "model"},
        "trainer": {"name": "torch", "eval_tokens": 8192},
        "device": {"name": device},
        "executor": {"name": "local"},
    }
    for kind, changes in options.items():
        table[kind] = {**table.get(kind, {}), **changes}
    return table


def plan_of(table: dict[str, Any], registry: Registry) -> tuple[Experiment, SweepPlan]:
    """The experiment of a table, and its plan."""
    experiment = make_experiment(table, registry)
    return experiment, make_plan(experiment)


def jobs_of(table: dict[str, Any], registry: Registry) -> list[Job]:
    """All jobs of an experiment."""
    _, plan = plan_of(table, registry)
    return plan.jobs({run.id for run in plan.runs})


def train(
    table: dict[str, Any],
    registry: Registry | None = None,
    folder: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[RunResult]:
    """The results of an experiment's runs, trained in this process. Raises CheckFailed if a run fails."""
    registry = registry or installed()
    with tempfile.TemporaryDirectory() as temporary:
        return run_jobs(jobs_of(table, registry), registry, folder or Path(temporary), should_stop)


def run_jobs(
    jobs: list[Job], registry: Registry, folder: Path, should_stop: Callable[[], bool] = lambda: False
) -> list[RunResult]:
    """The results of jobs, trained in this process. Raises CheckFailed if a run fails."""
    results = [
        event
        for job in jobs
        for event in work(
            job.model_dump_json(),
            registry.setup.model_dump_json(),
            objects=registry.objects,
            folder=folder,
            should_stop=should_stop,
        )
        if isinstance(event, RunResult)
    ]
    for result in results:
        error = result.error
        check(error is None, f"{error.type}: {error.message}\n{error.traceback}" if error else "")
    return results


def train_one(table: dict[str, Any], registry: Registry | None = None, **more: Any) -> RunResult:
    """The result of an experiment of one run, which must be completed."""
    (result,) = train(table, registry, **more)
    check(result.status == "completed", f"the run is {result.status}")
    return result


def loss_of(result: RunResult) -> float:
    """The held-out loss of a completed run, in nats."""
    assert result.loss is not None
    return result.loss


def relative(value: float, reference: float) -> float:
    """How far a value is from a reference, over the reference."""
    return abs(value - reference) / abs(reference)
