"""Runs, progress and results as flat dicts of numbers and text: the same names in every logger.

N, D and C are called ``params``, ``tokens`` and ``flops``, as in tables of runs; options as in ``--set``, with
``/`` for the dot, which Weights & Biases takes for nesting. What is not known is left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

from pydantic import JsonValue

from flops_fit_core import Progress, RunResult, RunSpec, SweepPlan

Scalar = str | int | float | bool

_CHOICES = ("model", "dataset", "optimizer", "schedule", "counter", "trainer")
_MEASURED = (
    *("loss", "bits_per_byte", "tokens", "unique_tokens", "trained_tokens", "eval_tokens", "flops"),
    *("flops_per_second", "mfu", "data_wait", "seconds", "peak_memory", "micro_batch", "vmap_runs"),
)


def run_name(run: RunSpec, attempt: int = 1) -> str:
    """For people, and for folders: ``C1e+11-size32-seed0-3f2a90c1``, ``...-attempt2``."""
    name = f"C{run.budget:.4g}-size{_plain(run.size)}-seed{run.seed}-{run.id[:8]}"
    return name if attempt == 1 else f"{name}-attempt{attempt}"


def study_token(folder: Path) -> str:
    """What tells this study from others of the same name on one server: made once, kept in the study's folder."""
    file = folder / "loggers" / "study"
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x") as new:
            new.write(uuid4().hex[:12])
    except FileExistsError:
        pass
    return file.read_text()


def config(run: RunSpec, plan: SweepPlan) -> dict[str, Scalar]:
    """What the run is: N, D, C with their conventions, and every choice with the options that are not at their
    default."""
    known: dict[str, Scalar | None] = {
        "study": plan.name,
        "run": run.id,
        "trajectory": run.trajectory,
        "params": run.params,
        "params_name": plan.params_name,
        "tokens": run.tokens,
        "unit": plan.unit,
        "flops": run.flops,
        "flops_name": plan.flops_name,
        "flops_per_token": run.flops_per_token,
        "budget": run.budget,
        "size": run.size,
        "seed": run.seed,
        "batch_size": run.batch_size,
        "steps": run.steps,
        "tokens_per_step": run.tokens_per_step,
        "base_width": run.base_width,
        "fingerprint": run.fingerprint,
    }
    for kind in _CHOICES:
        choice = getattr(run, kind)
        known[kind] = choice.name
        known |= {f"{kind}/{_plain(option)}": _scalar(value) for option, value in choice.options.items()}
    return {key: value for key, value in known.items() if value is not None}


def training(progress: Progress) -> dict[str, float]:
    """One point of the training curve."""
    point = {"train/loss": progress.loss, "train/tokens_per_second": progress.tokens_per_second}
    return _finite(point)


def eval_points(result: RunResult) -> Iterator[tuple[int, dict[str, float]]]:
    """The held-out curve: tokens, and what was measured there."""
    for evaluation in result.curve:
        if evaluation.loss is not None:
            yield evaluation.tokens, {"eval/loss": evaluation.loss}


def measured(result: RunResult) -> dict[str, float]:
    """The result's numbers."""
    numbers: dict[str, float | None] = {name: getattr(result, name) for name in _MEASURED}
    if result.parameters is not None:
        numbers |= {f"parameters/{name}": value for name, value in result.parameters.model_dump().items()}
    numbers |= {f"metrics/{_plain(name)}": value for name, value in result.metrics.items()}
    numbers |= {f"losses/{_plain(name)}": value for name, value in result.losses.items()}
    return _finite(numbers)


def remarks(result: RunResult) -> dict[str, str]:
    """The result's words: status, device, versions, what went wrong."""
    said = {
        "status": result.status,
        "attempt": str(result.attempt),
        "device": result.device,
        "precision": result.precision,
        "synthetic": "true" if result.synthetic else "",
        "error": result.error.line if result.error else "",
        "traceback": result.error.traceback if result.error else "",
    }
    said |= {f"versions/{_plain(name)}": version for name, version in result.versions.items()}
    return {key: text for key, text in said.items() if text}


class Thinning:
    """Picks the points of training curves that are shown: at most ``most`` a run, evenly over its steps, however
    long it takes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._last: dict[tuple[str, int], int] = {}

    def wants(self, progress: Progress) -> bool:
        """Whether to show it. A run that went on from an earlier step is shown from there."""
        key = progress.run, progress.attempt
        last = self._last.get(key)
        gap = math.ceil(progress.steps / self._most)
        if last is not None and 0 <= progress.step - last < gap:
            return False
        self._last[key] = progress.step
        return True

    def forget(self, result: RunResult) -> None:
        self._last.pop((result.id, result.attempt), None)


def _plain(name: object) -> str:
    """Letters, digits, ``.``, ``_``, ``-``, not too many: what every tracker takes for part of a name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", str(name)).strip(".")[:200] or "_"


def _scalar(value: JsonValue) -> Scalar | None:
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)


def _finite(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {key: float(value) for key, value in numbers.items() if value is not None and math.isfinite(value)}
