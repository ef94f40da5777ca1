"""``show ID``: all records of single runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flops_fit_core import numbers
from flops_fit_core.config.secrets import mask_secrets
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins import latest_attempts
from flops_fit_core.records import PluginChoice, RunResult, RunSpec, SweepPlan
from flops_fit_core.study import Study

RunsWithAttempts = list[tuple[RunSpec, list[RunResult]]]
"""Runs, each with all attempts, first to last."""


def find_runs(study: Study, prefixes: Sequence[str]) -> RunsWithAttempts:
    """The runs with an id that starts with a prefix, also runs that were replaced since.

    Raises ConfigError for a prefix without a run.
    """
    with study.store() as store:
        runs = {run.id: run for run in study.plan.runs}
        runs |= {result.id: result.run for result in store.results()}
        for name in prefixes:
            if not any(run_id.startswith(name) for run_id in runs):
                raise ConfigError(
                    f"{study.plan.name} has no run {name!r}; 'flops-fit runs {study.folder.shown}' lists their ids"
                )
        return [
            (run, store.attempts(run_id)) for run_id, run in runs.items() if run_id.startswith(tuple(prefixes))
        ]


def to_json(runs: RunsWithAttempts) -> list[dict[str, Any]]:
    """The stored records of runs and their attempts."""
    return [
        {
            "id": run.id,
            "run": run.model_dump(mode="json"),
            "attempts": [attempt.model_dump(mode="json", exclude={"run"}) for attempt in attempts],
        }
        for run, attempts in runs
    ]


def describe_run(run: RunSpec, attempts: Sequence[RunResult], plan: SweepPlan) -> Iterator[str]:
    """Lines of text about a run and its attempts, first to last, with errors and tracebacks."""
    latest = next(iter(latest_attempts(attempts)), None)
    yield f"run {run.id}: {latest.status if latest else 'planned'}"
    yield (
        f"  C {numbers.scientific(run.flops, 4)} FLOPs, {plan.flops_name}; its budget is "
        f"{numbers.scientific(run.budget, 4)}"
    )
    yield f"  N {run.params:,} {plan.params_name}"
    yield f"  D {run.tokens:,} {plan.unit}: {run.steps:,} steps, {run.batch_size:,} samples each; seed {run.seed}"
    for kind, chosen in _plugins(run).items():
        yield f"  {kind:<10} {chosen.name}{_format_options(chosen.options)}"
    for attempt in attempts:
        yield ""
        yield f"attempt {attempt.attempt}: {', '.join(_outcome(attempt, plan))}"
        if attempt.runtime:
            yield f"  with{', and'.join(_format_options(options) for options in attempt.runtime.values())}"
        if attempt.error is not None:
            yield f"  {attempt.error.type}: {attempt.error.message}"
            yield from (f"  | {line}" for line in attempt.error.traceback.splitlines())


def _plugins(run: RunSpec) -> Mapping[str, PluginChoice]:
    return {
        "model": run.model,
        "dataset": run.dataset,
        "optimizer": run.optimizer,
        "schedule": run.schedule,
        "trainer": run.trainer,
        "counter": run.counter,
    }


def _format_options(options: Mapping[str, Any]) -> str:
    shown = mask_secrets(options)
    return ",".join(f" {name} = {json.dumps(value, ensure_ascii=False)}" for name, value in shown.items())


def _outcome(result: RunResult, plan: SweepPlan) -> Iterator[str]:
    yield result.status
    if result.superseded:
        yield "superseded by an attempt of another driver"
    if result.loss is not None:
        yield f"loss {numbers.loss(result.loss)}"
    if result.bits_per_byte is not None:
        yield f"{numbers.loss(result.bits_per_byte)} bits/byte"
    yield from (f"loss on {name} {numbers.loss(value)}" for name, value in result.losses.items())
    yield from (f"{name} {numbers.loss(value)}" for name, value in result.metrics.items())
    yield f"{result.tokens:,} {plan.unit}"
    if result.curve and result.status != "completed":
        last = result.curve[-1]
        loss = "no number" if last.loss is None else numbers.loss(last.loss)
        yield f"at step {last.step:,} its loss was {loss}"
    yield numbers.duration(result.seconds)
    if result.device:
        yield f"{result.device} in {result.precision}" if result.precision else result.device
    if result.flops_per_second is not None:
        yield f"{numbers.scientific(result.flops_per_second)} FLOP/s"
    yield f"ended {result.finished:%Y-%m-%d %H:%M:%S} UTC"
