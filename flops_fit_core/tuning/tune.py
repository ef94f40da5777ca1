"""Train a learning-rate sweep, and extend it towards the side where the minimum may be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from flops_fit_core.errors import ConfigError
from flops_fit_core.flops.model_stats import SizeStats
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.records import Interval, RunResult, RunSpec
from flops_fit_core.study import Study
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.tuning.best_rate import LEVEL, BestRate, Side, best_rate, mean_interval
from flops_fit_core.tuning.learning_rate_sweep import LearningRateSweep
from flops_fit_core.tuning.records import SizeOptimum, Tuning, TuningRun

RATES = 5
EXTENSIONS = 3
"""How often a sweep with its minimum at an edge gets two more values."""
ADDED = 2
DIFFERENT_OCTAVES = 1.0
"""Octaves between the best values of two sizes above which a note reports a difference."""
FILE = "tune.json"


def tune(
    lr_sweep: LearningRateSweep,
    registry: Registry,
    folder: StudyFolder,
    *,
    rates: int = RATES,
    extensions: int = EXTENSIONS,
    progress: bool = False,
) -> Tuning:
    """Train the missing runs of a sweep and find the best value of the tuned option.

    The values are powers of 2 around the present one. If a size's lowest loss is at an edge, or nearly all values
    diverge, two more values are tried on that side, up to ``extensions`` times.

    Args:
        lr_sweep: The runs to train.
        registry: The plugins.
        folder: The sweep's folder, such as ``runs/NAME/tune``; the result is also written to :data:`FILE` in it.
        rates: Number of values to start with, at least 3.
        extensions: 0 for no more values.
        progress: Whether to show each round of training, as in :meth:`flops_fit_core.Study.train`.

    Raises ConfigError, PlanError or StoreError, saying what to change.
    """
    if rates < 3:
        raise ConfigError(
            f"{rates} learning rates have no minimum to find: try at least 3, such as --rates {RATES}"
        )
    steps = list(range(-(rates // 2), rates - rates // 2))
    for extension in range(extensions + 1):
        tuning = _train(lr_sweep, registry, folder, steps, progress)
        if not tuning.edges or extension == extensions:
            break
        below = range(steps[0] - ADDED, steps[0]) if "low" in tuning.edges else ()
        above = range(steps[-1] + 1, steps[-1] + 1 + ADDED) if "high" in tuning.edges else ()
        steps = [*below, *steps, *above]
    write_atomically(folder.path / FILE, tuning.model_dump_json(indent=1))
    return tuning


def _train(
    lr_sweep: LearningRateSweep,
    registry: Registry,
    folder: StudyFolder,
    steps: Sequence[int],
    progress: bool,
) -> Tuning:
    values = lr_sweep.values(steps)
    study = Study(lr_sweep.plan_runs(values), registry, folder, experiment=lr_sweep.experiment)
    study.train(check=False, progress=progress)
    return summarize(lr_sweep, values, study.results)


def summarize(lr_sweep: LearningRateSweep, values: Sequence[float], results: Sequence[RunResult]) -> Tuning:
    """The best value of each size, and of all."""
    by_id = {result.id: result for result in results}
    runs = [
        _tuning_run(lr_sweep, value, spec, by_id.get(spec.id)) for value in values for spec in lr_sweep.runs(value)
    ]
    rates = {
        size.params: _best_rate_of_size(size.params, values, lr_sweep.seeds, runs) for size in lr_sweep.measured
    }
    sizes = [_size_optimum(size, rates[size.params], runs, values) for size in lr_sweep.measured]
    inside = [rate for rate in rates.values() if rate is not None and rate.edge is None]
    best = _interval(inside, values) if len(inside) == len(rates) else None
    return Tuning(
        option=lr_sweep.option.name,
        before=lr_sweep.option.value,
        values=tuple(values),
        runs=tuple(runs),
        sizes=tuple(sizes),
        best=best,
        level=LEVEL,
        notes=tuple(_notes(sizes, runs, best)),
    )


def _tuning_run(lr_sweep: LearningRateSweep, value: float, spec: RunSpec, result: RunResult | None) -> TuningRun:
    return TuningRun(
        id=spec.id,
        size=spec.size,
        params=spec.params,
        tokens=spec.tokens,
        value=value,
        lr=lr_sweep.lr(spec),
        seed=spec.seed,
        status=result.status if result else "waiting",
        loss=result.loss if result else None,
    )


def _best_rate_of_size(
    params: int, values: Sequence[float], seeds: Sequence[int], runs: Sequence[TuningRun]
) -> BestRate | None:
    losses = {(run.value, run.seed): run.loss for run in runs if run.params == params}
    table = [[losses[value, seed] for seed in seeds] for value in values]
    return best_rate(np.log2(values), np.array(table, dtype=float))


def _size_optimum(
    size: SizeStats, rate: BestRate | None, runs: Sequence[TuningRun], values: Sequence[float]
) -> SizeOptimum:
    return SizeOptimum(
        size=size.size,
        params=size.params,
        tokens=next(run.tokens for run in runs if run.params == size.params),
        value=None if rate is None else _interval([rate], values),
        edge=_side_without_losses(size.params, runs) if rate is None else rate.edge,
    )


def _side_without_losses(params: int, runs: Sequence[TuningRun]) -> Side | None:
    """``low`` if runs diverged: the best rate is then below those tried."""
    return "low" if any(run.status == "diverged" for run in runs if run.params == params) else None


def _interval(rates: Sequence[BestRate], values: Sequence[float]) -> Interval:
    """Mean and interval. No ends if an end lies outside the values tried, because the runs do not determine it."""
    middle, low, high = mean_interval(list(rates))
    if low is None or high is None or low < math.log2(values[0]) or high > math.log2(values[-1]):
        return Interval(value=2.0**middle)
    return Interval(value=2.0**middle, low=2.0**low, high=2.0**high)


def _notes(sizes: Sequence[SizeOptimum], runs: Sequence[TuningRun], best: Interval | None) -> Iterator[str]:
    for size in sizes:
        if size.value is None:
            yield f"size {size.size}: fewer than three values have a loss, so no minimum can be fitted"
    for status in ("diverged", "failed"):
        ended = [run for run in runs if run.status == status]
        if ended:
            at = sorted({f"{run.value:.3g}" for run in ended}, key=float)
            yield f"{len(ended)} runs {status}, at {', '.join(at)}"
    inside = [size for size in sizes if size.value is not None and size.edge is None]
    for smaller, larger in itertools.pairwise(inside):
        factor = larger.value.value / smaller.value.value if larger.value and smaller.value else 1.0
        if abs(math.log2(factor)) > DIFFERENT_OCTAVES:
            yield (
                f"the best value changes by a factor of {factor:.2g} from size {smaller.size} to size "
                f"{larger.size}: no single value suits both, and larger sizes may need yet another"
            )
    if best is not None and best.low is None:
        yield "no interval: the losses do not determine it within the values tried; use more seeds or more tokens"
