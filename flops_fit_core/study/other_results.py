"""Count the results in a study's folder that are not in its plan, and name the fields in which they differ.

Each run is compared with the nearest planned run. Runs that differ in the same fields form a group.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from pydantic import JsonValue

from flops_fit_core.config.secrets import mask_secrets
from flops_fit_core.errors import FlopsFitError
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import Record, RunResult, RunSpec, SweepPlan

GROUPS, FIELDS, VALUES = 3, 4, 3
"""The most groups, fields per group and values per field in a message."""
CANDIDATES = 16
"""The most planned runs to compare a run with."""

_KINDS = ("model", "dataset", "optimizer", "schedule", "counter", "trainer")
_CELLS = (("budget", "size", "seed"), ("budget", "size"), ("size", "seed"), ("budget", "seed"), ("size",), ())
"""Sets of coordinates that a planned run must share to be compared, tried in this order."""
_SOLVED = ("tokens", "steps")
_RESOLVED = (*_SOLVED, "base_width", "schedule.warmup_tokens")
"""Fields that planning and recipes derive from others: named only if no other field differs."""

Fields = Mapping[str, JsonValue]


class Difference(Record):
    """A field in which results differ from the plan."""

    name: str
    """The field's key in an experiment file, such as ``model.activation``, if there is one."""
    theirs: tuple[JsonValue, ...]
    """Distinct values of the results; None for an unknown value."""
    planned: tuple[JsonValue, ...]
    """Distinct values of the planned runs."""

    def __str__(self) -> str:
        if self.name in _MEANINGS:
            return _MEANINGS[self.name]
        return f"{self.name}: {_join(self.theirs)} -> {_join(self.planned)}"


class OtherRuns(Record):
    """A group of finished runs outside the plan that differ from it in the same fields."""

    runs: int
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        shown = ", ".join(str(difference) for difference in self.differences[:FIELDS])
        more = len(self.differences) - FIELDS
        return shown + (f" and {more} more field{'s' if more > 1 else ''}" if more > 0 else "")


_MEANINGS = {
    "fingerprint": "the content of the data (fingerprint)",
    "model.identity": "the code or arguments of the model (model.identity)",
    "optimizer.identity": "the code or arguments of the optimizer (optimizer.identity)",
    "counter.identity": "the code of the FLOPs counter (counter.identity)",
}


def find_other_runs(
    results: Iterable[RunResult], plan: SweepPlan, registry: Registry | None = None
) -> tuple[OtherRuns, ...]:
    """Groups of finished results of runs outside the plan, largest first.

    Args:
        results: The latest result of every run in the store.
        plan: The study's plan. The runs that it replaced (``retry``) belong to it.
        registry: Where defaults of missing options are looked up.
    """
    planned = {run.id for run in plan.runs} | set(plan.replaced)
    other_runs = [result.run for result in results if result.is_finished and result.id not in planned]
    if not other_runs or not plan.runs:
        return ()
    index = _Index(plan.runs)
    default = _defaults(registry)
    groups: dict[tuple[str, ...], _Group] = defaultdict(_Group)
    for run in other_runs:
        theirs, planned_fields = index.nearest(run)
        names = _different(theirs, planned_fields)
        groups[tuple(names)].add({name: (default(name, theirs), default(name, planned_fields)) for name in names})
    largest_first = sorted(groups.items(), key=lambda group: -group[1].runs)
    return tuple(group.record(names) for names, group in largest_first)


def describe(groups: Sequence[OtherRuns]) -> str:
    """``12 finished runs differ in model.activation: gelu -> relu (...)``; empty without groups."""
    if not groups:
        return ""
    total = sum(group.runs for group in groups)
    consequence = "they are in this folder but not in this plan, so they are neither counted nor fitted"
    if len(groups) == 1:
        legend = " (theirs -> the plan's)" if "->" in str(groups[0]) else ""
        return f"{_count_runs(total)} in {groups[0]}{legend}; {consequence}"
    parts = [f"{group.runs} in {group}" for group in groups[:GROUPS]]
    if more := sum(group.runs for group in groups[GROUPS:]):
        parts.append(f"{more} in other fields")
    return f"{_count_runs(total)} (theirs -> the plan's): {'; '.join(parts)}. {consequence.capitalize()}"


def _count_runs(count: int) -> str:
    return f"{count} finished run{' differs' if count == 1 else 's differ'}"


@dataclass
class _Group:
    runs: int = 0
    values: dict[str, tuple[dict[str, JsonValue], dict[str, JsonValue]]] = field(default_factory=dict)
    """Field -> distinct values of the results and of the plan, each by its JSON text."""

    def add(self, values: Mapping[str, tuple[JsonValue, JsonValue]]) -> None:
        self.runs += 1
        for name, pair in values.items():
            for distinct, value in zip(self.values.setdefault(name, ({}, {})), pair, strict=True):
                distinct.setdefault(json.dumps(value), value)

    def record(self, names: Sequence[str]) -> OtherRuns:
        differences = [
            Difference(name=name, theirs=tuple(theirs.values()), planned=tuple(planned.values()))
            for name, (theirs, planned) in ((name, self.values[name]) for name in names)
        ]
        return OtherRuns(runs=self.runs, differences=tuple(differences))


class _Index:
    """The planned runs by coordinates, each with its fields."""

    def __init__(self, runs: Sequence[RunSpec]) -> None:
        self._by_cell: dict[tuple[tuple[str, ...], tuple[Any, ...]], list[tuple[RunSpec, Fields]]] = defaultdict(
            list
        )
        for run in runs:
            entry = run, _fields(run)
            for names in _CELLS:
                self._by_cell[names, _coordinates(run, names)].append(entry)

    def nearest(self, run: RunSpec) -> tuple[Fields, Fields]:
        """The run's fields, and those of the planned run with the fewest differences; ties go to the nearest N."""
        fields = _fields(run)
        for names in _CELLS:
            candidates = self._by_cell.get((names, _coordinates(run, names)), [])
            candidates = sorted(candidates, key=lambda entry: abs(math.log(entry[0].params / run.params)))
            if candidates:
                break
        planned = (planned for _, planned in candidates[:CANDIDATES])
        return fields, min(planned, key=lambda other: len(_different(fields, other)))


def _coordinates(run: RunSpec, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(run, name) for name in names)


def _fields(run: RunSpec) -> dict[str, JsonValue]:
    """The identity and the coordinates of a run as a flat mapping."""
    fields: dict[str, JsonValue] = {"budget": run.budget, "size": run.size, "seed": run.seed}
    for kind in _KINDS:
        choice = getattr(run, kind)
        fields |= {kind: choice.name, f"{kind} revision": choice.revision}
        fields |= {f"{kind}.{option}": value for option, value in choice.options.items()}
    attributes = ("fingerprint", "batch_size", "base_width", *_SOLVED)
    return fields | {name: getattr(run, name) for name in attributes}


def _different(theirs: Fields, planned: Fields) -> list[str]:
    """Names of the fields that differ; for another plugin of a kind, the kind without its options."""
    names = [name for name in dict.fromkeys(chain(theirs, planned)) if theirs.get(name) != planned.get(name)]
    changed_kinds = [kind for kind in _KINDS if kind in names]
    names = [name for name in names if not any(name.startswith((f"{k}.", f"{k} ")) for k in changed_kinds)]
    if "size" in names:  # the size is also an option of the model: name it once
        pair = theirs["size"], planned["size"]
        names = [
            name
            for name in names
            if name == "size" or not name.startswith("model.") or (theirs.get(name), planned.get(name)) != pair
        ]
    return [name for name in names if name not in _RESOLVED] or names


def _defaults(registry: Registry | None) -> Callable[[str, Fields], JsonValue]:
    """A function of (name, fields) that returns the value of a field, or the default of a missing option."""

    def value(name: str, fields: Fields) -> JsonValue:
        if name in fields:
            return fields[name]
        kind, _, option = name.partition(".")
        try:
            offer = registry.find(kind, str(fields[kind])) if registry is not None and option else None
        except FlopsFitError:
            return None
        declared = offer.spec.options.model_fields.get(option) if offer is not None else None
        if declared is None or declared.is_required():
            return None
        default: JsonValue = json.loads(json.dumps(declared.get_default(call_default_factory=True), default=str))
        return default

    return value


def _join(values: Sequence[JsonValue]) -> str:
    texts = [_text(value) for value in values[:VALUES]]
    return ", ".join(texts) + (", ..." if len(values) > VALUES else "")


def _text(value: JsonValue) -> str:
    if value is None:
        return "unset"
    if isinstance(value, float):
        return f"{value:.6g}"
    shown = mask_secrets(value)
    text = shown if isinstance(shown, str) else json.dumps(shown)
    return text if len(text) <= 40 else f"{text[:37]}..."
