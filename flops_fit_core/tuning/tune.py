"""Train a probe, look at it, go on towards the side where the minimum may be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from flops_fit_core.errors import ConfigError
from flops_fit_core.flops.model_stats import SizeStats
from flops_fit_core.plugins.protocols import Logger
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.records import Interval, RunResult, RunSpec
from flops_fit_core.study import Study
from flops_fit_core.study.directory import StudyFolder
from flops_fit_core.tuning.optimum import LEVEL, BestRate, Side, best_rate, mean_interval
from flops_fit_core.tuning.probe import Probe
from flops_fit_core.tuning.records import ProbeRun, SizeOptimum, Tuning

RATES = 5
EXTENSIONS = 3
"""How often a probe whose minimum is at an edge goes on by two further values."""
ADDED = 2
APART = 1.0
"""Octaves between two sizes' best values from which on they count as different."""
FILE = "tune.json"


def tune(
    probe: Probe,
    registry: Registry,
    folder: StudyFolder,
    *,
    rates: int = RATES,
    extensions: int = EXTENSIONS,
    loggers: Callable[[Study], Sequence[Logger]] = lambda study: (),
) -> Tuning:
    """Train what the probe lacks and find the best value of its knob.

    The values are powers of 2 around the present one. Where some size's lowest loss is at an edge, or nearly all
    values diverge, two further values are tried on that side, up to ``extensions`` times.

    Args:
        probe: What to train.
        registry: The plugins.
        folder: The probe's own, such as ``runs/NAME/tune``; :data:`FILE` in it keeps what is returned.
        rates: How many values to start with, at least 3.
        extensions: 0 for no further ones.
        loggers: Of one round of training.

    Raises ConfigError, PlanError or StoreError, saying what to change.
    """
    if rates < 3:
        raise ConfigError(
            f"{rates} learning rates have no minimum to find: try at least 3, such as --rates {RATES}"
        )
    steps = list(range(-(rates // 2), rates - rates // 2))
    for left in range(extensions, -1, -1):
        found = _trained(probe, registry, folder, steps, loggers)
        if not found.edges or left == 0:
            break
        below = range(steps[0] - ADDED, steps[0]) if "low" in found.edges else ()
        above = range(steps[-1] + 1, steps[-1] + 1 + ADDED) if "high" in found.edges else ()
        steps = [*below, *steps, *above]
    write_atomically(folder.path / FILE, found.model_dump_json(indent=1))
    return found


def _trained(
    probe: Probe,
    registry: Registry,
    folder: StudyFolder,
    steps: Sequence[int],
    loggers: Callable[[Study], Sequence[Logger]],
) -> Tuning:
    values = probe.values(steps)
    study = Study(probe.sweep(values), registry, folder, experiment=probe.experiment)
    study.train(loggers=loggers(study), check=False)
    return judged(probe, values, study.results)


def judged(probe: Probe, values: Sequence[float], results: Sequence[RunResult]) -> Tuning:
    """What a trained probe says."""
    by_id = {result.id: result for result in results}
    runs = [_probe_run(probe, value, spec, by_id.get(spec.id)) for value in values for spec in probe.runs(value)]
    rates = {one.params: _of_size(one.params, values, probe.seeds, runs) for one in probe.measured}
    sizes = [_optimum(one, rates[one.params], runs, values) for one in probe.measured]
    inside = [rate for rate in rates.values() if rate is not None and rate.edge is None]
    best = _interval(inside, values) if len(inside) == len(rates) else None
    return Tuning(
        option=probe.knob.name,
        before=probe.knob.value,
        values=tuple(values),
        runs=tuple(runs),
        sizes=tuple(sizes),
        best=best,
        level=LEVEL,
        notes=tuple(_notes(sizes, runs, best)),
    )


def _probe_run(probe: Probe, value: float, spec: RunSpec, result: RunResult | None) -> ProbeRun:
    return ProbeRun(
        id=spec.id,
        size=spec.size,
        params=spec.params,
        tokens=spec.tokens,
        value=value,
        lr=probe.lr(spec),
        seed=spec.seed,
        status=result.status if result else "waiting",
        loss=result.loss if result else None,
    )


def _of_size(
    params: int, values: Sequence[float], seeds: Sequence[int], runs: Sequence[ProbeRun]
) -> BestRate | None:
    losses = {(run.value, run.seed): run.loss for run in runs if run.params == params}
    table = [[losses[value, seed] for seed in seeds] for value in values]
    return best_rate(np.log2(values), np.array(table, dtype=float))


def _optimum(
    one: SizeStats, rate: BestRate | None, runs: Sequence[ProbeRun], values: Sequence[float]
) -> SizeOptimum:
    return SizeOptimum(
        size=one.size,
        params=one.params,
        tokens=next(run.tokens for run in runs if run.params == one.params),
        value=None if rate is None else _interval([rate], values),
        edge=_side_without_losses(one.params, runs) if rate is None else rate.edge,
    )


def _side_without_losses(params: int, runs: Sequence[ProbeRun]) -> Side | None:
    """Where nearly all rates diverged, the best is below them."""
    return "low" if any(run.status == "diverged" for run in runs if run.params == params) else None


def _interval(rates: Sequence[BestRate], values: Sequence[float]) -> Interval:
    """Without ends where one would lie outside what was tried: then the runs do not tell."""
    middle, low, high = mean_interval(list(rates))
    if low is None or high is None or low < math.log2(values[0]) or high > math.log2(values[-1]):
        return Interval(value=2.0**middle)
    return Interval(value=2.0**middle, low=2.0**low, high=2.0**high)


def _notes(sizes: Sequence[SizeOptimum], runs: Sequence[ProbeRun], best: Interval | None) -> Iterator[str]:
    for size in sizes:
        if size.value is None:
            yield f"size {size.size}: fewer than three values have a loss, so there is no minimum to find"
    for status in ("diverged", "failed"):
        ended = [run for run in runs if run.status == status]
        if ended:
            at = sorted({f"{run.value:.3g}" for run in ended}, key=float)
            yield f"{len(ended)} runs {status}, at {', '.join(at)}"
    known = [size for size in sizes if size.value is not None and size.edge is None]
    for smaller, larger in itertools.pairwise(known):
        factor = larger.value.value / smaller.value.value if larger.value and smaller.value else 1.0
        if abs(math.log2(factor)) > APART:
            yield (
                f"the best value moves by a factor {factor:.2g} from size {smaller.size} to size {larger.size}: "
                f"one value does not serve both, and larger sizes may want yet another"
            )
    if best is not None and best.low is None:
        yield "no interval: the losses do not say within what was tried; use more seeds or more tokens"
