"""Results in a study's folder that its plan does not ask for: how many, and in which fields they differ.

A run is compared with the planned run that is nearest to it. Runs that differ in the same fields are one group.
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

from flops_fit_core.errors import FlopsFitError
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import Record, RunResult, RunSpec, SweepPlan

GROUPS, FIELDS, VALUES = 3, 4, 3
"""Groups, fields of a group, and values of a field that are named in a sentence."""
CANDIDATES = 16
"""Planned runs that one run is compared with."""

_KINDS = {
    "model": "model",
    "dataset": "dataset",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "flops": "counter",
    "trainer": "trainer",
}
_CELLS = (("budget", "size", "seed"), ("budget", "size"), ("size", "seed"), ("budget", "seed"), ("size",), ())
"""Which of its coordinates a planned run must share to be compared, most first."""
_SOLVED = ("tokens", "steps")
_RESOLVED = (*_SOLVED, "base_width", "schedule.warmup_tokens")
"""What planning and recipes derive from the rest: not named where anything else differs."""

Fields = Mapping[str, JsonValue]


class Difference(Record):
    """A field in which runs differ from the plan."""

    name: str
    """As an experiment file writes it, ``model.activation``, where it has such."""
    theirs: tuple[JsonValue, ...]
    """Different values of the results; None for a value that cannot be told."""
    planned: tuple[JsonValue, ...]

    def __str__(self) -> str:
        if self.name in _MEANINGS:
            return _MEANINGS[self.name]
        return f"{self.name}: {_shown(self.theirs)} -> {_shown(self.planned)}"


class OtherRuns(Record):
    """Finished runs that no plan of the study asks for, all with the same differences."""

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
    "flops.identity": "the code of the FLOPs counter (flops.identity)",
}


def find_other_runs(
    results: Iterable[RunResult], plan: SweepPlan, registry: Registry | None = None
) -> tuple[OtherRuns, ...]:
    """Groups of finished results whose runs are not the plan's, largest first.

    Args:
        results: The latest of every run in the store.
        plan: What the study asks for. Runs that it has replaced (``retry``) belong to it.
        registry: Where the default of an option is looked up that one side leaves out.
    """
    planned = {run.id for run in plan.runs} | set(plan.replaced)
    others = [result.run for result in results if result.is_finished and result.id not in planned]
    if not others or not plan.runs:
        return ()
    index = _Index(plan.runs)
    default = _defaults(registry)
    groups: dict[tuple[str, ...], _Group] = defaultdict(_Group)
    for run in others:
        theirs, planned_fields = index.nearest(run)
        names = _different(theirs, planned_fields)
        groups[tuple(names)].add({name: (default(name, theirs), default(name, planned_fields)) for name in names})
    largest_first = sorted(groups.items(), key=lambda group: -group[1].runs)
    return tuple(group.record(names) for names, group in largest_first)


def describe(groups: Sequence[OtherRuns]) -> str:
    """``12 finished runs differ in model.activation: gelu -> relu (...)``; empty where there are none."""
    if not groups:
        return ""
    total = sum(group.runs for group in groups)
    rest = "they are in this folder but not in this plan, so they are neither counted nor fitted"
    if len(groups) == 1:
        legend = " (theirs -> the plan's)" if "->" in str(groups[0]) else ""
        return f"{_runs(total)} in {groups[0]}{legend}; {rest}"
    parts = [f"{group.runs} in {group}" for group in groups[:GROUPS]]
    if more := sum(group.runs for group in groups[GROUPS:]):
        parts.append(f"{more} in other fields")
    return f"{_runs(total)} (theirs -> the plan's): {'; '.join(parts)}. {rest.capitalize()}"


def _runs(count: int) -> str:
    return f"{count} finished run{' differs' if count == 1 else 's differ'}"


@dataclass
class _Group:
    runs: int = 0
    values: dict[str, tuple[dict[str, JsonValue], dict[str, JsonValue]]] = field(default_factory=dict)
    """Field -> different values of the results and of the plan, by their text."""

    def add(self, values: Mapping[str, tuple[JsonValue, JsonValue]]) -> None:
        self.runs += 1
        for name, pair in values.items():
            for seen, value in zip(self.values.setdefault(name, ({}, {})), pair, strict=True):
                seen.setdefault(json.dumps(value), value)

    def record(self, names: Sequence[str]) -> OtherRuns:
        differences = [
            Difference(name=name, theirs=tuple(theirs.values()), planned=tuple(planned.values()))
            for name, (theirs, planned) in ((name, self.values[name]) for name in names)
        ]
        return OtherRuns(runs=self.runs, differences=tuple(differences))


class _Index:
    """The planned runs by their coordinates, each with its fields."""

    def __init__(self, runs: Sequence[RunSpec]) -> None:
        self._by_cell: dict[tuple[tuple[str, ...], tuple[Any, ...]], list[tuple[RunSpec, Fields]]] = defaultdict(
            list
        )
        for run in runs:
            entry = run, _fields(run)
            for names in _CELLS:
                self._by_cell[names, _coordinates(run, names)].append(entry)

    def nearest(self, run: RunSpec) -> tuple[Fields, Fields]:
        """The run's fields, and those of the planned run with the fewest differences; of equal ones, of the next
        size."""
        fields = _fields(run)
        for names in _CELLS:
            near = self._by_cell.get((names, _coordinates(run, names)), [])
            near = sorted(near, key=lambda entry: abs(math.log(entry[0].params / run.params)))[:CANDIDATES]
            if near:
                break
        return fields, min((planned for _, planned in near), key=lambda other: len(_different(fields, other)))


def _coordinates(run: RunSpec, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(run, name) for name in names)


def _fields(run: RunSpec) -> dict[str, JsonValue]:
    """What identifies a run, and its coordinates in the sweep, flat."""
    fields: dict[str, JsonValue] = {"budget": run.budget, "size": run.size, "seed": run.seed}
    for kind, attribute in _KINDS.items():
        choice = getattr(run, attribute)
        fields |= {kind: choice.name, f"{kind} revision": choice.revision}
        fields |= {f"{kind}.{option}": value for option, value in choice.options.items()}
    own = ("fingerprint", "batch_size", "base_width", *_SOLVED)
    return fields | {name: getattr(run, name) for name in own}


def _different(theirs: Fields, planned: Fields) -> list[str]:
    """Names of the fields that differ; of a plugin that is another one, its name alone."""
    names = [name for name in dict.fromkeys(chain(theirs, planned)) if theirs.get(name) != planned.get(name)]
    others = [kind for kind in _KINDS if kind in names]
    names = [name for name in names if not any(name.startswith((f"{kind}.", f"{kind} ")) for kind in others)]
    if "size" in names:  # named once, not also as the option that it is
        pair = theirs["size"], planned["size"]
        names = [
            name
            for name in names
            if name == "size" or not name.startswith("model.") or (theirs.get(name), planned.get(name)) != pair
        ]
    return [name for name in names if name not in _RESOLVED] or names


def _defaults(registry: Registry | None) -> Callable[[str, Fields], JsonValue]:
    """``(name, fields)`` -> the value of a field; of an option that is left out, its default."""

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


def _shown(values: Sequence[JsonValue]) -> str:
    texts = [_text(value) for value in values[:VALUES]]
    return ", ".join(texts) + (", ..." if len(values) > VALUES else "")


def _text(value: JsonValue) -> str:
    if value is None:
        return "unset"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
