"""The default FLOPs counter of a plan, and its comparison with a trace of the model."""

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
from flops_fit_core.plugins.options import Options
from flops_fit_core.plugins.protocols import Task
from flops_fit_core.plugins.specs import FlopCounterSpec

CHINCHILLA = "counters/chinchilla"
MODEL = "counters/model"
REPORTED_DIFFERENCE = 0.05
"""Relative difference from a trace above which the ratio is reported."""
MAX_RATIO = 2.0
"""Ratio to a trace above which a default counter is refused outside language tasks."""
MAX_DRIFT = 1.3
"""Ratio at one size over the ratio at another size above which a default counter is refused."""
MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Multiples of a family's step that are tried to find a size that can be built."""


def resolve_counter(experiment: Experiment, task: Task) -> tuple[Experiment, list[str]]:
    """The experiment with the FLOPs counter of its plan, and a note with the reason.

    A counter set by the user is not changed. The default is 6 N D for language tasks. For other tasks it is the
    family's own count if that equals a trace, otherwise ``traced``; for a model that cannot be traced it is the
    family's own count, or 6 N D.
    """
    if not experiment.counter.depends_on_task:
        return experiment, []
    name, reason = _default_counter(experiment, task)
    counter: PluginConfig[FlopCounterSpec] = experiment.counter.instead(name)
    note = f"FLOPs counter {counter.name}, by default: {reason}. To use another counter, set [counter] (counter=)"
    return experiment.model_copy(update={"counter": counter}), [note]


def _default_counter(experiment: Experiment, task: Task) -> tuple[str, str]:
    if is_language_task(task):
        return CHINCHILLA, "in a language task, C is 6 N D, as in the papers on scaling laws"
    reference = ReferenceFlops(experiment.model, task)
    for options in _small_sizes(experiment):
        try:
            if reference.is_exact(options):
                return MODEL, "this is not a language task, and the family's own count equals a trace of the model"
            shapes = build_on_meta(experiment.model, options, task)
        except FlopsFitError:
            continue  # the family does not have this size
        try:
            trace_flops(shapes, task, experiment.model.name)
        except ConfigError as error:
            return _without_trace(reference, options, getattr(error, "reason", str(error)))
        return TRACED, "this is not a language task, and 6 N D counts every weight once per sample"
    return CHINCHILLA, "no small size of the model can be built and traced"


def _without_trace(reference: ReferenceFlops, options: Options, reason: str) -> tuple[str, str]:
    has_own = reference.family_flops(options) is not None
    meaning = "C is the family's own count" if has_own else "C is 6 N D, which counts every weight once per sample"
    return MODEL if has_own else CHINCHILLA, f"the model cannot be traced ({reason}), so {meaning}"


def _small_sizes(experiment: Experiment) -> Iterator[Options]:
    """Options to try for a trace: the listed sizes, or small multiples of the family's step."""
    model, sizes = experiment.model, experiment.sweep.sizes
    if isinstance(sizes, tuple):
        yield from (model.with_options(**changes).options for changes in sizes)
        return
    step = experiment.sweep.multiple_of or model.spec.multiple_of
    if model.spec.scale is not None:
        yield model.options
        return
    for multiple in MULTIPLES:
        try:
            yield model.with_options(**{model.spec.size: multiple * step}).options
        except ValueError:
            continue


# ---------------------------------------------------------------------------- comparison with a trace


@dataclass(frozen=True)
class Comparison:
    """FLOPs per token of one size by the plan's counter over those of a trace."""

    size: int | float | str
    ratio: float


def counter_notes(
    measurer: SizeMeasurer, sizes: Sequence[SizeStats], reference: ReferenceFlops, *, is_named: bool
) -> list[str]:
    """Notes on the ratio of the counter to a trace, at the smallest and the largest size.

    Raises PlanError for a default counter outside language tasks if it differs from the trace by more than a
    factor of 2, or if its ratio to the trace changes by more than a factor of 1.3 between the sizes.
    """
    if measurer.counter.name == TRACED:
        return []
    try:
        comparisons = list(_compare(sizes, reference))
    except Untraceable as error:
        return [
            f"C by {measurer.counter.name} is not compared with a trace of {measurer.model.name}: {error.reason}"
        ]
    except FlopsFitError as error:
        return [f"C by {measurer.counter.name} is not compared with a trace: {str(error).splitlines()[0]}"]
    ratios = [comparison.ratio for comparison in comparisons]
    if not ratios or all(abs(ratio - 1) <= REPORTED_DIFFERENCE for ratio in ratios):
        return []
    text = " and ".join(f"{comparison.ratio:.3g} at size {comparison.size}" for comparison in comparisons)
    difference = f"C by {measurer.counter.name} over a trace of the model, which counts every product: {text}"
    if is_language_task(measurer.task) or is_named:
        drift = (
            ", so runs of one budget differ in computation"
            if max(ratios) / min(ratios) > 1 + REPORTED_DIFFERENCE
            else ""
        )
        return [f'warning: {difference}{drift}. counter = "traced" counts as torch does']
    if max(max(ratios), 1 / min(ratios)) > MAX_RATIO or max(ratios) / min(ratios) > MAX_DRIFT:
        raise PlanError(
            f'{difference}. Choose the counter: counter = "traced" counts as torch does; counter = '
            f'"{measurer.counter.spec.name}" keeps this counter'
        )
    return [f'{difference}. counter = "traced" counts as torch does']


def _compare(sizes: Sequence[SizeStats], reference: ReferenceFlops) -> Iterator[Comparison]:
    """The smallest size, and the largest if its trace is cheap."""
    ordered = sorted(sizes, key=lambda stats: stats.parameters.total)
    smallest, largest = ordered[0], ordered[-1]
    yield Comparison(smallest.size, smallest.count.flops_per_token / reference.at(smallest.options))
    if largest.options != smallest.options and reference.is_cheap(largest.options):
        yield Comparison(largest.size, largest.count.flops_per_token / reference.at(largest.options))


# ---------------------------------------------------------------------------- parameters


def usage_notes(measurer: SizeMeasurer, smallest: SizeStats) -> list[str]:
    """Notes on parameters: a failed trace, unused weights, and weights that only some tokens use."""
    if measurer.usages.failure is not None:
        note = (
            f"{measurer.model.name} cannot be traced ({measurer.usages.failure}): N is counted by module types. "
            f"It includes all experts of a mixture, unless parameter_groups() sets the share that a token uses"
        )
        return [note]
    if not measurer.usages.traced:
        return []
    usage = measurer.usages.traced[0]
    declared = _names_with_share(measurer, smallest)
    partly = {name: part for name, part in partly_used(usage).items() if not part.names & declared}
    notes = _unused_notes(measurer, smallest, usage, declared.union(*(part.names for part in partly.values())))
    if partly:
        names = ", ".join(f"{name} ({part.used})" for name, part in partly.items())
        notes.append(
            f"warning: in a trace of {measurer.model.name}, some tokens were not multiplied by all of {names}. N "
            f"and 6 N D count all experts of a mixture: set the share that a token uses in the model's "
            f"parameter_groups() (ParameterGroup.active, docs/flops.md)"
        )
    return notes


def _unused_notes(
    measurer: SizeMeasurer, smallest: SizeStats, usage: ParameterUsage, explained: frozenset[str]
) -> list[str]:
    """A warning for weights that N counts and the trace did not use, except the names in ``explained``."""
    module = build_on_meta(measurer.model, smallest.options, measurer.task)
    named = dict(module.named_parameters())
    uses = usage.of(named) or {}
    unused = [name for name, use in uses.items() if not use.is_used and name not in explained]
    if not unused:
        return []
    count, total = sum(named[name].numel() for name in unused), smallest.parameters.total
    more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
    note = (
        f"warning: a forward pass of {measurer.model.name} did not use {count:,} of its {total:,} weights at size "
        f"{smallest.size} ({', '.join(unused[:3])}{more}), but N counts them: remove them from the model, or "
        f"define a num_params() that excludes them"
    )
    return [note]


def _names_with_share(measurer: SizeMeasurer, stats: SizeStats) -> frozenset[str]:
    """Names of the parameters for which the family declares the share that a token uses."""
    module = build_on_meta(measurer.model, stats.options, measurer.task)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = parameter_groups(measurer.model, module)
    return frozenset(names[id(part)] for group in groups if group.active < 1 for part in group.parameters)


@dataclass(frozen=True)
class PartlyUsed:
    """Parameters with names that differ only in a number, some of them used by a token; or a stack of matrices."""

    names: frozenset[str]
    used: str
    """Part that is used: ``1 of 8``, or a share."""


def partly_used(usage: ParameterUsage) -> Mapping[str, PartlyUsed]:
    """Weights that only some tokens are multiplied by, keyed by the pattern of their names.

    These are stacks of matrices that only a share of the tokens is multiplied by, and layers with the same name
    pattern and different numbers of tokens.
    """
    uses_by_pattern: dict[str, dict[str, Use]] = defaultdict(dict)
    for name, use in usage.uses.items():
        uses_by_pattern[pattern(name)][name] = use
    parts: dict[str, PartlyUsed] = {}
    for key, uses in uses_by_pattern.items():
        names = frozenset(uses)
        shares = [use.products for use in uses.values()]
        if any(_is_partly_used_stack(use) for use in uses.values()):
            parts[key] = PartlyUsed(names, f"{min(shares):.0%}")
        elif len(uses) > 1 and _have_different_shares(list(uses.values())):
            parts[key] = PartlyUsed(names, f"{sum(share > 0 for share in shares)} of {len(uses)}")
    return parts


def _is_partly_used_stack(use: Use) -> bool:
    return use.dimensions > 2 and 0 < use.products < 1 - REPORTED_DIFFERENCE


def _have_different_shares(uses: list[Use]) -> bool:
    """Whether the weights are multiplied by different numbers of tokens, none by more than the batch has."""
    shares = [use.products for use in uses if use.dimensions > 1]
    return (
        bool(shares)
        and 0 < max(shares) <= 1 + REPORTED_DIFFERENCE
        and min(shares) < (1 - REPORTED_DIFFERENCE) * max(shares)
    )
