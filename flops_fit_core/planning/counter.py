"""Which FLOPs counter a plan uses if none is named, and how it compares with a trace of the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flops_fit_core.config import Experiment, PluginConfig
from flops_fit_core.errors import ConfigError, FlopsFitError, PlanError
from flops_fit_core.flops.audit import TRACED, ReferenceFlops, Untraceable, trace_flops
from flops_fit_core.flops.model_stats import SizeMeasurer, SizeStats, build_on_meta
from flops_fit_core.flops.parameter_counts import is_language_task, parameter_groups
from flops_fit_core.flops.parameter_usage import ParameterUsage, Use, pattern
from flops_fit_core.plugins.protocols import Task
from flops_fit_core.plugins.specs import FlopCounterSpec, Options

CHINCHILLA = "counters/chinchilla"
MODEL = "counters/model"
OFF = 0.05
"""Relative difference from a trace from which the ratio is reported."""
MOST_OFF = 2.0
"""Ratio to a trace above which a default counter is refused outside language tasks."""
MOST_DRIFT = 1.3
"""Ratio at one size over the ratio at another above which it is refused."""
PROBED = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Multiples of a family's step that are tried for a size that builds."""


def resolve_counter(experiment: Experiment, task: Task) -> tuple[Experiment, list[str]]:
    """The experiment with the FLOPs counter that its plan uses, and a note that gives the reason.

    A counter that the user named stays. The default is 6 N D on language tasks. Elsewhere it is the family's own
    count if that equals a trace, otherwise ``traced``; for a model that cannot be traced it is the family's own
    count, or 6 N D.
    """
    if not experiment.counter.depends_on_task:
        return experiment, []
    name, reason = _default_counter(experiment, task)
    counter: PluginConfig[FlopCounterSpec] = experiment.counter.instead(name)
    note = f"FLOPs counter {counter.name}, by default: {reason}. Another one is named in [counter] (flops=)"
    return experiment.model_copy(update={"flops": counter}), [note]


def _default_counter(experiment: Experiment, task: Task) -> tuple[str, str]:
    if is_language_task(task):
        return CHINCHILLA, "this is a language task, for which C is 6 N D, as in the papers on scaling laws"
    reference = ReferenceFlops(experiment.model, task)
    for options in _small_sizes(experiment):
        try:
            if reference.is_exact(options):
                return MODEL, "this is no language task, and the family's own count equals a trace of the model"
            shapes = build_on_meta(experiment.model, options, task)
        except FlopsFitError:
            continue  # the family has no such size
        try:
            trace_flops(shapes, task, experiment.model.name)
        except ConfigError as error:
            return _without_trace(reference, options, getattr(error, "reason", str(error)))
        return TRACED, "this is no language task, and 6 N D counts every weight once per sample"
    return CHINCHILLA, "no small size of the model can be built and traced"


def _without_trace(reference: ReferenceFlops, options: Options, reason: str) -> tuple[str, str]:
    has_own = reference.family_flops(options) is not None
    meaning = "C is the family's own count" if has_own else "C is 6 N D, which counts every weight once per sample"
    return MODEL if has_own else CHINCHILLA, f"the model cannot be traced ({reason}), so {meaning}"


def _small_sizes(experiment: Experiment) -> Iterator[Options]:
    """Sizes to try for a trace, the planned ones first."""
    model, sizes = experiment.model, experiment.sweep.sizes
    if isinstance(sizes, tuple):
        yield from (model.with_options(**changes).options for changes in sizes)
        return
    step = experiment.sweep.multiple_of or model.spec.multiple_of
    if model.spec.scale is not None:
        yield model.options
        return
    for times in PROBED:
        try:
            yield model.with_options(**{model.spec.size: times * step}).options
        except ValueError:
            continue


# ---------------------------------------------------------------------------- against a trace


@dataclass(frozen=True)
class Comparison:
    """FLOPs per token of one size by the plan's counter over those of a trace."""

    size: int | float | str
    ratio: float


def counter_notes(
    meter: SizeMeasurer, sizes: Sequence[SizeStats], reference: ReferenceFlops, *, is_named: bool
) -> list[str]:
    """What to report of the counter on the smallest and largest of these sizes.

    Raises PlanError for a counter that was not named, outside language tasks, if it is more than a factor 2 off a
    trace or its ratio to the trace differs by more than 1.3 between the sizes.
    """
    if meter.counter.name == TRACED:
        return []
    try:
        compared = list(_compare(sizes, reference))
    except Untraceable as error:
        return [f"C by {meter.counter.name} is not compared with a trace of {meter.model.name}: {error.reason}"]
    except FlopsFitError as error:
        return [f"C by {meter.counter.name} is not compared with a trace: {str(error).splitlines()[0]}"]
    ratios = [one.ratio for one in compared]
    if not ratios or all(abs(ratio - 1) <= OFF for ratio in ratios):
        return []
    text = " and ".join(f"{one.ratio:.3g} at size {one.size}" for one in compared)
    difference = f"C by {meter.counter.name} over a trace of the model, which counts every product: {text}"
    if is_language_task(meter.task) or is_named:
        drift = ", so runs of one budget differ in computation" if max(ratios) / min(ratios) > 1 + OFF else ""
        return [f'warning: {difference}{drift}. counter = "traced" counts as torch does']
    if max(max(ratios), 1 / min(ratios)) > MOST_OFF or max(ratios) / min(ratios) > MOST_DRIFT:
        raise PlanError(
            f'{difference}. Choose the counter: counter = "traced" counts as torch does; flops = '
            f'"{meter.counter.spec.name}" keeps this one'
        )
    return [f'{difference}. counter = "traced" counts as torch does']


def _compare(sizes: Sequence[SizeStats], reference: ReferenceFlops) -> Iterator[Comparison]:
    """The smallest size, and the largest if its trace is cheap."""
    ordered = sorted(sizes, key=lambda measured: measured.parameters.total)
    smallest, largest = ordered[0], ordered[-1]
    yield Comparison(smallest.size, smallest.count.flops_per_token / reference.at(smallest.options))
    if largest.options != smallest.options and reference.is_cheap(largest.options):
        yield Comparison(largest.size, largest.count.flops_per_token / reference.at(largest.options))


# ---------------------------------------------------------------------------- parameters


def usage_notes(meter: SizeMeasurer, smallest: SizeStats) -> list[str]:
    """What to report of the parameters: an impossible trace, weights that not every token uses."""
    if meter.usages.failure is not None:
        note = (
            f"{meter.model.name} cannot be traced ({meter.usages.failure}): N is counted by module types, and has "
            f"all experts of a mixture unless parameter_groups() gives the share that a token uses"
        )
        return [note]
    if not meter.usages.traced:
        return []
    usage = meter.usages.traced[0]
    shared = _with_a_share(meter, smallest)
    partly = {name: part for name, part in partly_used(usage).items() if not part.names & shared}
    notes = _unused_notes(meter, smallest, usage, shared.union(*(part.names for part in partly.values())))
    if partly:
        names = ", ".join(f"{name} ({part.used})" for name, part in partly.items())
        notes.append(
            f"warning: in a trace of {meter.model.name} not every token was multiplied by all of {names}. N and "
            f"6 N D count all experts of a mixture: let the model's parameter_groups() give the share that a "
            f"token uses (ParameterGroup.active, docs/flops.md)"
        )
    return notes


def _unused_notes(
    meter: SizeMeasurer, smallest: SizeStats, usage: ParameterUsage, known: frozenset[str]
) -> list[str]:
    """Weights that N counts and the traced pass did not use, other than those of ``known`` names."""
    module = build_on_meta(meter.model, smallest.options, meter.task)
    named = dict(module.named_parameters())
    uses = usage.of(named) or {}
    unused = [name for name, use in uses.items() if not use.is_used and name not in known]
    if not unused:
        return []
    count, total = sum(named[name].numel() for name in unused), smallest.parameters.total
    more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
    note = (
        f"warning: a forward pass of {meter.model.name} did not use {count:,} of its {total:,} weights at size "
        f"{smallest.size} ({', '.join(unused[:3])}{more}), and N counts them: leave them out of the model, or "
        f"give it a num_params() that does"
    )
    return [note]


def _with_a_share(meter: SizeMeasurer, measured: SizeStats) -> frozenset[str]:
    """Names of the parameters of which the family gives the share that a token uses."""
    module = build_on_meta(meter.model, measured.options, meter.task)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = parameter_groups(meter.model, module)
    return frozenset(names[id(part)] for group in groups if group.active < 1 for part in group.parameters)


@dataclass(frozen=True)
class PartlyUsed:
    """Parameters that differ in a number of their name, of which a token uses some; or one stack of matrices."""

    names: frozenset[str]
    used: str
    """``1 of 8``, or a share."""


def partly_used(usage: ParameterUsage) -> Mapping[str, PartlyUsed]:
    """Weights that not every token is multiplied by, by the pattern of their names.

    These are stacks of matrices from which tokens choose or that are multiplied by a share of them, and layers of
    equal names of which some were multiplied by fewer tokens than others.
    """
    alike: dict[str, dict[str, Use]] = defaultdict(dict)
    for name, use in usage.uses.items():
        alike[pattern(name)][name] = use
    parts: dict[str, PartlyUsed] = {}
    for key, uses in alike.items():
        names = frozenset(uses)
        shares = [use.products for use in uses.values()]
        if any(_is_chosen_from(use) for use in uses.values()):
            parts[key] = PartlyUsed(names, f"{min(shares):.0%}")
        elif len(uses) > 1 and _differ(list(uses.values())):
            parts[key] = PartlyUsed(names, f"{sum(share > 0 for share in shares)} of {len(uses)}")
    return parts


def _is_chosen_from(use: Use) -> bool:
    return use.dimensions > 2 and 0 < use.products < 1 - OFF


def _differ(uses: list[Use]) -> bool:
    """Whether some are multiplied by fewer tokens than others, and none by more than the batch has."""
    shares = [use.products for use in uses if use.dimensions > 1]
    return bool(shares) and 0 < max(shares) <= 1 + OFF and min(shares) < (1 - OFF) * max(shares)
