"""FLOPs per token of a model family at sizes between and far beyond the sizes of a plan.

The plan's counter counts them when a study is trained. They are stored in the study's folder, so that a fit gives
the same result on every machine.
"""

from __future__ import annotations

import math
from pathlib import Path

from flops_fit_core.config import Experiment
from flops_fit_core.errors import DamagedFile, FlopsFitError
from flops_fit_core.flops.audit import TRACED
from flops_fit_core.flops.model_stats import SizeMeasurer, SizeStats
from flops_fit_core.planning import open_dataset, resolve_counter
from flops_fit_core.planning.completion import complete_dataset
from flops_fit_core.planning.ladder_sizes import LadderSizes
from flops_fit_core.plugins.checked_json import read_record, write_checked
from flops_fit_core.plugins.specs import Ladder
from flops_fit_core.records import Record, SweepPlan, content_hash

FILE = "flops_per_token.json"
BEYOND = 1000.0
"""N of the largest counted size over N of the largest planned size."""
BELOW = 4.0
"""N of the smallest planned size over N of the smallest counted size."""
RATIO, RATIO_ABOVE = 1.5, 3.0
"""Approximate ratio of N between neighbouring counted sizes, below and above ten times the largest planned N."""
MAX_SIZES = 60
"""Largest number of counted sizes of a family without ``scale``."""


class FamilyFlops(Record):
    """Pairs (N, training FLOPs per token) of one family."""

    identity: str
    """Hash of the plan's models and counter. The points are used only for this plan."""
    points: tuple[tuple[float, float], ...]


def count_family(experiment: Experiment, plan: SweepPlan) -> tuple[tuple[float, float], ...]:
    """(N, FLOPs per token) from a quarter of the plan's smallest N to 1000 times its largest, along its ladder.

    Sizes are built on the meta device. The result is empty for a family without a count in closed form, because a
    user's module may need memory for sizes that are never trained; for C = 6 N D; for traced counts; and if sizes
    are lists of several options, because the shape of further sizes is then unknown.
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
        measurer = SizeMeasurer(experiment.model, dataset.task, experiment.counter)
        smallest = min(run.params for run in plan.runs) / BELOW
        largest = max(run.params for run in plan.runs) * BEYOND
        ladder = _ladder(experiment, plan)
        if ladder.scale is None:
            sizes = _measure_by_option(measurer, ladder, plan, largest)
        else:
            sizes = _measure_by_scale(LadderSizes(experiment.model, sweep, measurer, ladder), smallest, largest)
    except FlopsFitError:  # a size does not exist, or the data were removed: the fit uses the runs' FLOPs only
        return ()
    points = {float(size.params): float(size.count.flops_per_token) for size in sizes}
    return tuple(sorted(points.items()))


def record_family(experiment: Experiment, plan: SweepPlan, folder: Path) -> None:
    """Write the family's FLOPs per token to a study's folder, unless the folder has them. Damage is replaced."""
    try:
        recorded = load_family(plan, folder)
    except DamagedFile as error:
        error.path.unlink(missing_ok=True)
        recorded = None
    if recorded is None and not is_proportional(plan):
        family = FamilyFlops(identity=_identity(plan), points=count_family(experiment, plan))
        write_checked(folder / FILE, family)


def load_family(plan: SweepPlan, folder: Path) -> tuple[tuple[float, float], ...] | None:
    """The recorded points of this plan; None if the folder has none.

    Raises DamagedFile, because a fit without the points may have other optima.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        family = read_record(FamilyFlops, file)
    except DamagedFile as error:
        advice = "The plan and the results are not affected. The next training of the study writes the file again"
        raise DamagedFile(error.path, error.reason, advice) from None
    return family.points if family.identity == _identity(plan) else None


def is_proportional(plan: SweepPlan) -> bool:
    """Whether FLOPs per token are the same multiple of N at every size."""
    ratios = [run.flops_per_position / run.params for run in plan.runs]
    return max(ratios) / min(ratios) < 1 + 1e-6


def _ladder(experiment: Experiment, plan: SweepPlan) -> Ladder:
    """The family's ladder with the most options in common with the plan's sizes."""
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


def _measure_by_scale(ladder_sizes: LadderSizes, smallest: float, largest: float) -> list[SizeStats]:
    """Sizes near a geometric series of N, from a family's ``scale``."""
    targets = [smallest]
    while targets[-1] < largest:
        # Large steps for large models: deep models take long to build, and the curve is straighter there.
        targets.append(targets[-1] * (RATIO if targets[-1] < largest / 100 else RATIO_ABOVE))
    options = (ladder_sizes.scaled_options(max(1, round(target))) for target in targets)
    return [ladder_sizes.measurer.measure(size) for size in options]


def _measure_by_option(measurer: SizeMeasurer, ladder: Ladder, plan: SweepPlan, largest: float) -> list[SizeStats]:
    """Sizes at multiples of the ladder's step, from the smallest planned size to ``largest`` N."""
    step, sizes = ladder.multiple_of, list[SizeStats]()
    size = min(int(run.size) for run in plan.runs)
    while len(sizes) < MAX_SIZES:
        sizes.append(measurer.at(size, **ladder.options))
        if sizes[-1].params >= largest:
            break
        factor = math.sqrt(RATIO) if len(sizes) < 2 else _next_factor(sizes)
        size = max(size + step, round(size * factor / step) * step)
    return sizes


def _next_factor(sizes: list[SizeStats]) -> float:
    """The factor on the size option that multiplies N by about ``RATIO``, extrapolated from the last two sizes."""
    previous, last = sizes[-2:]
    slope = math.log(last.params / previous.params) / math.log(float(last.size) / float(previous.size))
    return min(8.0, math.pow(RATIO, 1 / max(slope, 0.1)))


def _identity(plan: SweepPlan) -> str:
    counts = sorted({(run.params, run.flops_per_token) for run in plan.runs})
    models = sorted({run.model.model_dump_json() for run in plan.runs})
    counters = sorted({run.counter.model_dump_json() for run in plan.runs})
    return content_hash({"models": models, "counters": counters, "counts": [list(pair) for pair in counts]})
