"""Every FLOPs counter on the same sizes of one model family."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from flops_fit_core.config import Chosen
from flops_fit_core.errors import FlopsFitError
from flops_fit_core.flops.model_stats import count_flops, measure_model
from flops_fit_core.plugins.protocols import FlopCount, Task
from flops_fit_core.plugins.registry import Offer, Registry
from flops_fit_core.plugins.specs import FlopCounterSpec, ModelSpec, Options
from flops_fit_core.records import ParameterCounts

TRACED = "flops/traced"
"""The counter that the others are compared with."""


@dataclass(frozen=True)
class AuditedSize:
    """One size of the family."""

    size: int | float | str
    options: Options
    parameters: ParameterCounts


@dataclass(frozen=True)
class Convention:
    """One counter with its options, and what it says of each size."""

    counter: Chosen[FlopCounterSpec]
    counts: tuple[FlopCount, ...]
    """One an audited size, in their order."""

    @property
    def label(self) -> str:
        """``flops/chinchilla n=total``."""
        return label(self.counter)


@dataclass(frozen=True)
class Audit:
    """What the counters say, the study's own first."""

    family: str
    sizes: tuple[AuditedSize, ...]
    """Smallest first."""
    conventions: tuple[Convention, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    """Counter -> why it cannot count this family."""

    @property
    def traced(self) -> Convention | None:
        """What torch counts when the model runs; None where it cannot be traced."""
        return next((one for one in self.conventions if one.counter.name == TRACED), None)

    def over_traced(self, convention: Convention) -> tuple[float | None, ...]:
        """FLOPs a token over those of the trace, by size."""
        if self.traced is None:
            return (None,) * len(self.sizes)
        pairs = zip(convention.counts, self.traced.counts, strict=True)
        return tuple(one.flops_per_token / traced.flops_per_token for one, traced in pairs)

    def over_six_n(self, convention: Convention) -> tuple[float, ...]:
        """FLOPs a token over 6 N with N the matmul parameters, by size."""
        pairs = zip(convention.counts, self.sizes, strict=True)
        return tuple(one.flops_per_token / (6 * size.parameters.matmul) for one, size in pairs)


def label(counter: Chosen[FlopCounterSpec]) -> str:
    """A counter with the options that are not left at their default."""
    options = counter.choice.options
    shown = (f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items())
    return " ".join([counter.name, *shown])


def audit(
    model: Chosen[ModelSpec],
    sizes: Sequence[Options],
    task: Task,
    own: Chosen[FlopCounterSpec],
    others: Sequence[Chosen[FlopCounterSpec]],
) -> Audit:
    """Count each size with each counter.

    Args:
        model: The family.
        sizes: Its options at each size.
        task: What it is trained on.
        own: The study's counter: the first convention, whose N all others are set against.
        others: Compared with it. Of one counter's options those are kept that change its FLOPs.

    Raises ConfigError where ``own`` cannot count the family, PlanError and PluginError.
    """
    measured = [(options, measure_model(model, options, task)) for options in sizes]
    measured.sort(key=lambda pair: pair[1].parameters.total)
    built = [one for _, one in measured]
    found = [Convention(own, tuple(count_flops(own, one) for one in built))]
    refused: dict[str, str] = {}
    for counter in others:
        if counter.name in refused:
            continue
        try:
            if any(_says_the_same(counter, count_flops(counter, built[0]), other) for other in found):
                continue
            found.append(Convention(counter, tuple(count_flops(counter, one) for one in built)))
        except FlopsFitError as error:
            refused[label(counter)] = str(error)
    audited = (
        AuditedSize(getattr(options, model.spec.size), options, one.parameters) for options, one in measured
    )
    return Audit(model.name, tuple(audited), tuple(found), refused)


def _says_the_same(counter: Chosen[FlopCounterSpec], smallest: FlopCount, other: Convention) -> bool:
    """Judged by the smallest size: tracing every size for options that only choose N would take long."""
    there = other.counts[0].flops_per_token
    return counter.name == other.counter.name and math.isclose(smallest.flops_per_token, there, rel_tol=1e-9)


def every_counter(registry: Registry) -> list[Chosen[FlopCounterSpec]]:
    """Every installed counter with its defaults, and with each other value of each option that is a choice.

    Left out are counters with required options and such that lack a requirement.
    """
    return [counter for offer in registry.offers("flops") if not offer.missing() for counter in _variants(offer)]


def _variants(offer: Offer[Any]) -> Iterator[Chosen[FlopCounterSpec]]:
    try:
        defaults = offer.spec.options()
    except ValidationError:
        return
    yield Chosen(offer, defaults)
    for name, about in type(defaults).model_fields.items():
        for value in _choices(about.annotation):
            if value != getattr(defaults, name):
                yield Chosen(offer, defaults).with_options(**{name: value})


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return (True, False) if annotation is bool else ()
