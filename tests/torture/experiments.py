"""The experiments that the harness trains, as plain tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from small import text_table, write_text

LOGGERS = ["acknowledge"]


def surface(store: Any = "sqlite", executor: Any = "local", runs: int = 6, **changes: Any) -> dict[str, Any]:
    """Deterministic runs without training. ``runs`` is even."""
    return {
        "name": "surface",
        "sweep": {"budgets": [1e17, 1e18], "sizes": runs // 2},
        "model": "surface",
        "dataset": {"name": "surface", "noise": 0.005},
        "executor": executor,
        "store": store,
        "loggers": LOGGERS,
        "fitter": {"name": "parametric", "draws": 20},  # each drive and each look at a study fits
        **changes,
    }


def noisy(store: Any = "sqlite", executor: Any = "local", runs: int = 6, seconds: float = 0.2) -> dict[str, Any]:
    """Runs whose loss differs in each training."""
    table = surface(store, executor, runs, trainer={"name": "noisy", "seconds": seconds})
    return {**table, "name": "noisy"}


def processes(workers: int = 2) -> dict[str, Any]:
    return {"name": "processes", "workers": workers}


def gpt(text: Path, executor: Any = "local", store: Any = "sqlite") -> dict[str, Any]:
    """Tiny models with shared stable phases: two trajectories, two runs each. A checkpoint after every report."""
    return text_table(
        write_text(text, files=8, words=400),
        name="gpt",
        sweep={
            "budgets": [4e7, 8e7],
            "sizes": [{"width": 8}, {"width": 12}],
            "batch_size": 4,
        },
        schedule={"name": "wsd"},
        trainer={"num_evals": 2, "checkpoint_minutes": 1e-4, "eval_tokens": 64},
        executor=executor,
        store=store,
        loggers=LOGGERS,
    )


def save(table: dict[str, Any], folder: Path) -> Path:
    """Write the experiment file of a trial."""
    file = folder / "experiment.json"
    file.write_text(json.dumps(table))
    return file
