"""Counts the same sizes of one model family with every FLOPs counter."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from flops_fit_core.config import PluginConfig
from flops_fit_core.errors import FlopsFitError
from flops_fit_core.flops.model_stats import count_flops, measure_model
from flops_fit_core.plugins.protocols import FlopCount, Task
from flops_fit_core.plugins.registry import RegisteredSpec, Registry
from flops_fit_core.plugins.specs import FlopCounterSpec, ModelSpec, Options
from flops_fit_core.records import ParameterCounts

TRACED = "counters/traced"
"""The counter that all other counters are compared with."""


@dataclass(frozen=True)
class AuditedSize:
    """One size of the family."""

    size: int | float | str
    options: Options
    parameters: ParameterCounts


@dataclass(frozen=True)
class Convention:
    """A counter with its options, and its count of each size."""

    counter: PluginConfig[FlopCounterSpec]
    counts: tuple[FlopCount, ...]
    """One count per audited size, in the same order."""

    @property
    def label(self) -> str:
        """``counters/chinchilla n=total``."""
        return label(self.counter)


@dataclass(frozen=True)
class Audit:
    """The counts of all counters; the study's counter is first."""

    family: str
    sizes: tuple[AuditedSize, ...]
    """Smallest first."""
    conventions: tuple[Convention, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    """Counter to the reason why it cannot count this family."""

    @property
    def traced(self) -> Convention | None:
        """The counts of a trace; None if the model cannot be traced."""
        return next((part for part in self.conventions if part.counter.name == TRACED), None)

    def over_traced(self, convention: Convention) -> tuple[float | None, ...]:
        """FLOPs per token, divided by FLOPs per token of the trace, for each size."""
        if self.traced is None:
            return (None,) * len(self.sizes)
        pairs = zip(convention.counts, self.traced.counts, strict=True)
        return tuple(count.flops_per_token / traced.flops_per_token for count, traced in pairs)

    def over_six_n(self, convention: Convention) -> tuple[float, ...]:
        """FLOPs per token, divided by 6 N (N: matmul parameters), for each size."""
        pairs = zip(convention.counts, self.sizes, strict=True)
        return tuple(count.flops_per_token / (6 * size.parameters.matmul) for count, size in pairs)


def label(counter: PluginConfig[FlopCounterSpec]) -> str:
    """A counter's name and the options that were set."""
    options = counter.choice.options
    shown = (f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items())
    return " ".join([counter.name, *shown])


def audit(
    model: PluginConfig[ModelSpec],
    sizes: Sequence[Options],
    task: Task,
    study_counter: PluginConfig[FlopCounterSpec],
    other_counters: Sequence[PluginConfig[FlopCounterSpec]],
) -> Audit:
    """Count each size with each counter.

    Args:
        model: The family.
        sizes: The options of each size.
        task: The training task.
        study_counter: The study's counter. It is the first convention, and its N is the reference for all others.
        other_counters: Counters to compare it with. A variant of a counter with the same FLOPs is left out.

    Raises ConfigError if ``study_counter`` cannot count the family, PlanError and PluginError.
    """
    by_size = [(options, measure_model(model, options, task)) for options in sizes]
    by_size.sort(key=lambda pair: pair[1].parameters.total)
    inputs = [counter_input for _, counter_input in by_size]
    conventions = [Convention(study_counter, tuple(count_flops(study_counter, size) for size in inputs))]
    refused: dict[str, str] = {}
    for counter in other_counters:
        if counter.name in refused:
            continue
        try:
            if any(_is_same_count(counter, count_flops(counter, inputs[0]), other) for other in conventions):
                continue
            conventions.append(Convention(counter, tuple(count_flops(counter, size) for size in inputs)))
        except FlopsFitError as error:
            refused[label(counter)] = str(error)
    audited = (
        AuditedSize(getattr(options, model.spec.size), options, counter_input.parameters)
        for options, counter_input in by_size
    )
    return Audit(model.name, tuple(audited), tuple(conventions), refused)


def _is_same_count(counter: PluginConfig[FlopCounterSpec], smallest: FlopCount, other: Convention) -> bool:
    """Compares the smallest size only: tracing every size for options that only choose N would take long."""
    counted = other.counts[0].flops_per_token
    return counter.name == other.counter.name and math.isclose(smallest.flops_per_token, counted, rel_tol=1e-9)


def every_counter(registry: Registry) -> list[PluginConfig[FlopCounterSpec]]:
    """Every installed counter with its defaults, and with every other value of each option that is a choice.

    Counters with required options or with a missing requirement are left out.
    """
    return [counter for offer in registry.offers("counter") if not offer.missing() for counter in _variants(offer)]


def _variants(offer: RegisteredSpec[Any]) -> Iterator[PluginConfig[FlopCounterSpec]]:
    try:
        defaults = offer.spec.options()
    except ValidationError:
        return
    yield PluginConfig(offer, defaults)
    for name, field_info in type(defaults).model_fields.items():
        for value in _choices(field_info.annotation):
            if value != getattr(defaults, name):
                yield PluginConfig(offer, defaults).with_options(**{name: value})


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return (True, False) if annotation is bool else ()
