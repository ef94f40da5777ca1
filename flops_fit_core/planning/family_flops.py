"""FLOPs per token of a family at sizes between and far beyond those of a plan, by the plan's own counter.

Counted when a study is trained and kept in its folder, so that its fit is the same wherever it is made.
"""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import ValidationError

from flops_fit_core.config import Experiment
from flops_fit_core.errors import FlopsFitError
from flops_fit_core.flops.audit import TRACED
from flops_fit_core.flops.model_stats import SizeMeasurer, SizeStats
from flops_fit_core.planning import open_dataset, resolve_counter
from flops_fit_core.planning.completion import complete_dataset
from flops_fit_core.planning.rungs import Rungs
from flops_fit_core.plugins.specs import Ladder
from flops_fit_core.plugins.utilities import write_atomically
from flops_fit_core.records import Record, SweepPlan, content_hash

FILE = "flops_per_token.json"
BEYOND = 1000.0
"""N of the largest size that is counted over N of the largest planned one."""
BELOW = 4.0
"""N of the smallest planned size over N of the smallest that is counted."""
RATIO, RATIO_ABOVE = 1.5, 3.0
"""N of one counted size over N of the next smaller one, about; the second of those of more than ten times the
largest planned N."""
_MOST = 60


class FamilyFlops(Record):
    """N and training FLOPs per token of sizes of one family."""

    identity: str
    """Of the plan's models and counter; those of another plan are not used."""
    points: tuple[tuple[float, float], ...]


def count_family(experiment: Experiment, plan: SweepPlan) -> tuple[tuple[float, float], ...]:
    """(N, FLOPs per token) from a quarter of the plan's smallest N to 1000 times its largest, along its ladder.

    Sizes are built on the meta device. Empty for a family that does not count in closed form: a user's own module
    may need memory for sizes that nobody trains. Empty as well for C = 6 N D, for traced counts, and where sizes
    are listed by more than the size option, so that the shape of another size is not known.
    """
    spec, sweep = experiment.model.spec, experiment.sweep
    if is_proportional(plan) or (spec.flops_per_token is None and spec.shape is None):
        return ()
    if isinstance(sweep.sizes, tuple) and any(set(changes) != {spec.size} for changes in sweep.sizes):
        return ()
    try:
        experiment, dataset = complete_dataset(experiment, open_dataset(experiment, sweep.seeds[0]))
        experiment, _ = resolve_counter(experiment, dataset.task)
        if experiment.counter.name == TRACED:
            return ()
        meter = SizeMeasurer(experiment.model, dataset.task, experiment.counter)
        smallest = min(run.params for run in plan.runs) / BELOW
        largest = max(run.params for run in plan.runs) * BEYOND
        ladder = _ladder(experiment, plan)
        if ladder.scale is None:
            sizes = _by_option(meter, ladder, plan, largest)
        else:
            sizes = _by_scale(Rungs(experiment.model, sweep, meter, ladder), smallest, largest)
    except FlopsFitError:  # no such size, or the data are gone: the curve through the runs serves
        return ()
    points = {float(size.params): float(size.count.flops_per_token) for size in sizes}
    return tuple(sorted(points.items()))


def record_family(experiment: Experiment, plan: SweepPlan, folder: Path) -> None:
    """Write down the family's FLOPs per token in a study's folder, unless they are there."""
    if load_family(plan, folder) is None and not is_proportional(plan):
        found = FamilyFlops(identity=_identity(plan), points=count_family(experiment, plan))
        write_atomically(folder / FILE, found.model_dump_json(indent=1))


def load_family(plan: SweepPlan, folder: Path) -> tuple[tuple[float, float], ...] | None:
    """What was recorded for this plan; None where there is nothing."""
    try:
        found = FamilyFlops.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValidationError):  # not there, or damaged: the next training writes it again
        return None
    return found.points if found.identity == _identity(plan) else None


def is_proportional(plan: SweepPlan) -> bool:
    """Whether FLOPs per token are one multiple of N at every size."""
    ratios = [run.flops_per_position / run.params for run in plan.runs]
    return max(ratios) / min(ratios) < 1 + 1e-6


def _ladder(experiment: Experiment, plan: SweepPlan) -> Ladder:
    """The one of the family's ladders by which the plan's sizes were chosen, as far as their options show it."""
    model, options = experiment.model, plan.runs[0].model.options
    step = math.gcd(*(run.size for run in plan.runs if isinstance(run.size, int))) or 1
    if isinstance(experiment.sweep.sizes, tuple) or model.spec.ladders is None:
        return Ladder(
            multiple_of=step, scale=None if isinstance(experiment.sweep.sizes, tuple) else model.spec.scale
        )
    ladders = [
        ladder
        for ladder in model.call_all(model.spec.ladders, model.options)
        if all(options.get(name) == value for name, value in ladder.options.items())
    ]
    return max(ladders, key=lambda ladder: len(ladder.options), default=Ladder(multiple_of=step))


def _by_scale(rungs: Rungs, smallest: float, largest: float) -> list[SizeStats]:
    """About the sizes asked for: each is measured, whatever it is."""
    targets = [smallest]
    while targets[-1] < largest:
        # Deep models take long to build, and the curve is straighter there.
        targets.append(targets[-1] * (RATIO if targets[-1] < largest / 100 else RATIO_ABOVE))
    return [rungs.meter.measure(rungs._scaled_options(max(1, round(target)))) for target in targets]


def _by_option(meter: SizeMeasurer, ladder: Ladder, plan: SweepPlan, largest: float) -> list[SizeStats]:
    """At multiples of the ladder's step, from the smallest planned size on."""
    step, sizes = ladder.multiple_of, list[SizeStats]()
    size = min(int(run.size) for run in plan.runs)
    while len(sizes) < _MOST:
        sizes.append(meter.at(size, **ladder.options))
        if sizes[-1].params >= largest:
            break
        grown = math.sqrt(RATIO) if len(sizes) < 2 else _growth(sizes)
        size = max(size + step, round(size * grown / step) * step)
    return sizes


def _growth(sizes: list[SizeStats]) -> float:
    """The factor on the size option that multiplies N by about ``RATIO``, by the last two sizes."""
    before, last = sizes[-2:]
    slope = math.log(last.params / before.params) / math.log(float(last.size) / float(before.size))
    return min(8.0, math.pow(RATIO, 1 / max(slope, 0.1)))


def _identity(plan: SweepPlan) -> str:
    counts = sorted({(run.params, run.flops_per_token) for run in plan.runs})
    models = sorted({run.model.model_dump_json() for run in plan.runs})
    counters = sorted({run.counter.model_dump_json() for run in plan.runs})
    return content_hash({"models": models, "counters": counters, "counts": [list(pair) for pair in counts]})
