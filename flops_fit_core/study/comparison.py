"""Compare the recipes of two studies: refuse studies that cannot be compared, and list how the recipes differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flops_fit_core.errors import FitError
from flops_fit_core.records import Diagnostic, Observation, RunResult, SweepPlan
from flops_fit_core.study.other_results import find_other_runs

if TYPE_CHECKING:
    from flops_fit_core.fitting import Comparison
    from flops_fit_core.plugins.registry import Registry


@dataclass(frozen=True)
class Recipe:
    """One side of a comparison: a study, or runs of a table."""

    name: str
    observations: Sequence[Observation]
    plan: SweepPlan | None = None
    """None for a table, which has no conventions and no data identity."""
    results: Sequence[RunResult] = ()
    eval_set: str | None = None
    diagnostics: Sequence[Diagnostic] = field(default_factory=tuple)
    """Diagnostics of reading a table."""


def compare_recipes(
    first: Recipe,
    second: Recipe,
    flops: Sequence[float] = (),
    *,
    gate: float = 1.0,
    level: float = 0.9,
    allow_differences: bool = False,
    registry: Registry | None = None,
) -> Comparison:
    """The gain of the second recipe over the first, with diagnostics about the assumptions.

    ``allow_differences`` turns different data or conventions into warnings. Raises FitError otherwise, and for
    runs that cannot be compared.
    """
    from flops_fit_core.fitting import compare

    problems = find_differences(first, second)
    if problems and not allow_differences:
        raise FitError(
            f"{first.name} and {second.name} cannot be compared: {'; '.join(problems)}. If both losses are on the "
            "same held-out data and N, D and C are counted alike, add --allow-differences"
        )
    _refuse_bits(first, second)
    comparison = compare(
        first.observations, second.observations, flops, gate=gate, level=level, names=(first.name, second.name)
    )
    diagnostics = [Diagnostic(code="different", message=f"compared in spite of: {text}") for text in problems]
    diagnostics += _state_assumptions(first, second)
    return comparison.model_copy(
        update={
            "differences": describe_recipes(first, second, registry),
            "diagnostics": (*diagnostics, *comparison.diagnostics),
        }
    )


def find_differences(first: Recipe, second: Recipe) -> list[str]:
    """Differences in data or conventions that make losses or budgets incomparable. Empty for tables."""
    if first.plan is None or second.plan is None:
        return []
    texts = {
        "the held-out sets differ": [recipe.eval_set or "the main set" for recipe in (first, second)],
        "N is counted differently": [first.plan.params_name, second.plan.params_name],
        "C is counted differently": [first.plan.flops_name, second.plan.flops_name],
        "D has different units": [first.plan.unit, second.plan.unit],
        "the datasets differ": [_dataset(plan) for plan in (first.plan, second.plan)],
    }
    problems = [f"{text} ({a}; {b})" for text, (a, b) in texts.items() if a != b]
    fingerprints = [{run.fingerprint for run in plan.runs} for plan in (first.plan, second.plan)]
    if fingerprints[0] != fingerprints[1] and not problems:
        problems.append("the data or the tokenizers differ (the datasets have different fingerprints)")
    return problems


def _dataset(plan: SweepPlan) -> str:
    return ", ".join(sorted({run.dataset.name for run in plan.runs}))


def _refuse_bits(first: Recipe, second: Recipe) -> None:
    """Raises FitError if the losses of one table are in bits by its column names, and the others are not."""
    bits = [any(item.code == "bits" for item in recipe.diagnostics) for recipe in (first, second)]
    if bits[0] != bits[1]:
        names = (first.name, second.name) if bits[0] else (second.name, first.name)
        raise FitError(f"the losses of {names[0]} are in bits, those of {names[1]} are not: give both in nats")


def describe_recipes(first: Recipe, second: Recipe, registry: Registry | None = None) -> tuple[str, ...]:
    """How the planned runs of two studies differ, first -> second; empty for tables and equal recipes."""
    if first.plan is None or second.plan is None:
        return ()
    groups = find_other_runs(first.results, second.plan, registry)
    differences = (difference for group in groups for difference in group.differences)
    return tuple(dict.fromkeys(str(item) for item in differences if item.name not in _DESIGN))


_DESIGN = {"budget", "size", "seed", "tokens", "steps"}
"""Fields of the design of a sweep, not of the recipe."""


def _state_assumptions(first: Recipe, second: Recipe) -> list[Diagnostic]:
    diagnostics = []
    if first.plan is None or second.plan is None:
        message = (
            "a table has no record of its data: the comparison assumes the same held-out set and tokenizer, "
            "losses in one unit, and N, D and C counted alike"
        )
        diagnostics.append(Diagnostic(code="assumptions", message=message))
    for recipe in (first, second):
        warnings = [item for item in recipe.diagnostics if item.severity == "warning"]
        diagnostics += [item.model_copy(update={"message": f"{recipe.name}: {item.message}"}) for item in warnings]
        if any(result.synthetic for result in recipe.results):
            message = f"{recipe.name}: losses are computed from a formula, not trained"
            diagnostics.append(Diagnostic(code="synthetic", message=message, severity="note"))
    return diagnostics
