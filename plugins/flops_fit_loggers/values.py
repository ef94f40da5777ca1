"""Convert runs, progress and results to flat dicts of numbers and texts, with the same names in every logger.

N, D and C are ``params``, ``tokens`` and ``flops``, as in tables of runs. Options are named as in ``--set``, with
``/`` instead of ``.``, because Weights & Biases nests names at dots. Unknown values are left out.
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
    """Display name and folder name: ``C1e+11-size32-seed0-3f2a90c1``, ``...-attempt2``."""
    name = f"C{run.budget:.4g}-size{_plain(run.size)}-seed{run.seed}-{run.id[:8]}"
    return name if attempt == 1 else f"{name}-attempt{attempt}"


def study_token(folder: Path) -> str:
    """Random id that distinguishes studies of the same name on a server. It is stored in the study's folder."""
    file = folder / "loggers" / "study"
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x") as new:
            new.write(uuid4().hex[:12])
    except FileExistsError:
        pass
    return file.read_text()


def config(run: RunSpec, plan: SweepPlan) -> dict[str, Scalar]:
    """Configuration of a run: N, D and C with their conventions, and every plugin with its non-default options."""
    entries: dict[str, Scalar | None] = {
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
        entries[kind] = choice.name
        entries |= {f"{kind}/{_plain(option)}": _scalar(value) for option, value in choice.options.items()}
    return {key: value for key, value in entries.items() if value is not None}


def training(progress: Progress) -> dict[str, float]:
    """A point of the training curve."""
    point = {"train/loss": progress.loss, "train/tokens_per_second": progress.tokens_per_second}
    return _finite(point)


def eval_points(result: RunResult) -> Iterator[tuple[int, dict[str, float]]]:
    """Points of the held-out curve: tokens and values."""
    for evaluation in result.curve:
        if evaluation.loss is not None:
            yield evaluation.tokens, {"eval/loss": evaluation.loss}


def measured(result: RunResult) -> dict[str, float]:
    """The numbers of a result."""
    numbers: dict[str, float | None] = {name: getattr(result, name) for name in _MEASURED}
    if result.parameters is not None:
        numbers |= {f"parameters/{name}": value for name, value in result.parameters.model_dump().items()}
    numbers |= {f"metrics/{_plain(name)}": value for name, value in result.metrics.items()}
    numbers |= {f"losses/{_plain(name)}": value for name, value in result.losses.items()}
    return _finite(numbers)


def texts(result: RunResult) -> dict[str, str]:
    """The texts of a result: status, device, versions and error."""
    entries = {
        "status": result.status,
        "attempt": str(result.attempt),
        "device": result.device,
        "precision": result.precision,
        "synthetic": "true" if result.synthetic else "",
        "error": result.error.line if result.error else "",
        "traceback": result.error.traceback if result.error else "",
    }
    entries |= {f"versions/{_plain(name)}": version for name, version in result.versions.items()}
    return {key: text for key, text in entries.items() if text}


class Thinning:
    """Selects at most ``max_points`` points of each run's training curve, evenly spaced in steps."""

    def __init__(self, max_points: int) -> None:
        self._max_points = max_points
        self._last: dict[tuple[str, int], int] = {}

    def selects(self, progress: Progress) -> bool:
        """Whether to show this point. A run that resumes from an earlier step is shown from that step on."""
        key = progress.run, progress.attempt
        last = self._last.get(key)
        gap = math.ceil(progress.steps / self._max_points)
        if last is not None and 0 <= progress.step - last < gap:
            return False
        self._last[key] = progress.step
        return True

    def remove(self, result: RunResult) -> None:
        """Drop the state of a finished run."""
        self._last.pop((result.id, result.attempt), None)


def _plain(name: object) -> str:
    """The name in characters that every tracker accepts: letters, digits, ``.``, ``_``, ``-``, at most 200."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", str(name)).strip(".")[:200] or "_"


def _scalar(value: JsonValue) -> Scalar | None:
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)


def _finite(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {key: float(value) for key, value in numbers.items() if value is not None and math.isfinite(value)}
