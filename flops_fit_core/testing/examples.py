"""Valid records to test with. What is not given is made up; nothing was trained."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flops_fit_core.records import Evaluation, ParameterCounts, PluginChoice, RunError, RunResult, RunSpec


def example_run(**changes: Any) -> RunSpec:
    """A valid RunSpec; ``example_run(seed=3)`` is another run than ``example_run(seed=4)``."""
    given: dict[str, Any] = {
        "model": PluginChoice(name="gpt/gpt", options={"width": 32, "depth": 3}),
        "dataset": PluginChoice(name="text/text"),
        "fingerprint": "text 5b1e0a7c9d3f2468",
        "optimizer": PluginChoice(name="optim/adamw", options={"lr": 0.01, "betas": [0.9, 0.95]}),
        "schedule": PluginChoice(name="schedules/cosine"),
        "counter": PluginChoice(name="counters/model"),
        "trainer": PluginChoice(name="trainers/torch"),
        "batch_size": 16,
        "steps": 400,
        "tokens": 409_600,
        "seed": 0,
        "budget": 1.2e11,
        "size": 32,
        "params": 36_864,
        "flops_per_token": 293_000.0,
    }
    return RunSpec(**{**given, **changes})


def example_result(**changes: Any) -> RunResult:
    """A valid RunResult, every field filled: of ``example_run()`` and completed unless said otherwise.

    A ``failed`` one gets an error and no loss, a ``diverged`` one no loss.
    """
    run: RunSpec = changes.get("run") or example_run()
    status = changes.get("status", "completed")
    given: dict[str, Any] = {
        "run": run,
        "status": status,
        "loss": 2.3456789012345678 if status == "completed" else None,
        "bits_per_byte": 3.384 if status == "completed" else None,
        "metrics": {"accuracy": 0.1 + 0.2},
        "losses": {"another text": 2.75},
        "curve": (
            Evaluation(step=run.steps // 2, tokens=run.tokens // 2, loss=3.25),
            Evaluation(step=run.steps, tokens=run.tokens, loss=2.3456789012345678),
        ),
        "tokens": run.tokens,
        "unique_tokens": run.tokens - 1,
        "eval_tokens": 131_072,
        "parameters": ParameterCounts(total=45_056, lookup_table=8_192, unembedding=8_192, active=45_056),
        "params_name": "matmul parameters (without lookup tables)",
        "flops": run.flops,
        "flops_name": "every matmul and attention, forward and backward",
        "flops_per_second": 2.5e10,
        "seconds": 4.8,
        "device": "an example's device",
        "precision": "float32",
        "peak_memory": 123_456_789,
        "error": RunError(type="ValueError", message="an example", traceback="…") if status == "failed" else None,
        "versions": {"python": "3.11.2", "flops-fit": "0.1.0"},
        "runtime": {"trainer": {"threads": 1}},
        "finished": datetime(2026, 11, 1, 12, 30, 15, 123456, tzinfo=UTC),
    }
    return RunResult(**{**given, **changes})


def result_of(seed: int, attempt: int = 1, **changes: Any) -> RunResult:
    """A result of the run with this seed."""
    return example_result(run=example_run(seed=seed), attempt=attempt, **changes)
