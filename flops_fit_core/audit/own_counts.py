"""Whether a family's own count of its FLOPs is what torch counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from flops_fit_core.audit.tracing import SAMPLES, Trace, trace_flops
from flops_fit_core.config import Chosen
from flops_fit_core.contracts import MeasuredModel, Task
from flops_fit_core.measure import Measured, measure_model
from flops_fit_core.specs import ModelSpec, Options
from flops_fit_core.tasks import LanguageTask

OFF = 0.01
"""Relative difference from which a count is reported."""
EXACT = 1e-6
"""Relative difference up to which a formula is the trace's own."""
LARGEST_TRACED = 2_000_000_000
"""Parameters."""
LARGEST_RUN = 3e9
"""FLOPs of a trace up to which the model is run for real, a fraction of a second. For the first model on the meta
device torch imports its compiler, which takes longer."""
MOST_PARTS = 300
"""Modules within modules, of both sizes together: 1 to 2 ms each."""


def own_count_notes(model: Chosen[ModelSpec], task: Task, sizes: Sequence[Measured]) -> list[str]:
    """A note where the family's ``flops_per_token`` is more than 1% off what torch counts in a trace.

    Looked at are the smallest and the largest of ``sizes`` with at most 2e9 parameters, the largest only where
    both together are no more than 300 modules. Empty where the family counts nothing itself, and where it cannot
    be traced.

    Takes a fraction of a second: models are run for real on the CPU, and one that is too large for that counts as
    right where the formula is exact at two small sizes with the same other options. Where it is not, the model is
    traced on the meta device, for which torch imports its compiler: another second or two.
    """
    if model.spec.flops_per_token is None:
        return []
    by_size = sorted(sizes, key=lambda size: size.parameters.total)
    small = [one for one in by_size if one.parameters.total <= LARGEST_TRACED]
    ends = {one.options.model_dump_json(): one for one in (*small[:1], *small[-1:])}
    parts, found = 0, []
    for one in ends.values():
        try:
            measured = measure_model(model, one.options, task)
            if measured.own_flops_per_token is None:
                return []
            parts += sum(1 for _ in measured.module.modules())
            if parts > MOST_PARTS:
                break
            difference = _difference(model, one.options, measured)
        except Exception:
            break  # a note that cannot be made is no reason to end a plan
        if difference:
            found.append(f"{difference} at size {one.size}")
    if not found:
        return []
    differences = "; ".join(found)
    note = f"{model.name} counts its own FLOPs, and not as torch does in a trace of the model: {differences}. "
    return [note + "flops-fit audit shows what every counter says"]


def _difference(model: Chosen[ModelSpec], options: Options, measured: MeasuredModel) -> str | None:
    if _runs_fast(measured):
        trace = _run(model, options, measured.task)
    elif _is_exact_when_small(model, options, measured.task):
        return None
    else:
        trace = trace_flops(measured.module, measured.task, model.name)
    own = _own(measured)
    off = own / trace.flops_per_token - 1
    if abs(off) <= OFF:
        return None
    if abs(own / (3 * trace.forward) - 1) > OFF:
        return f"{off:+.1%}"
    ratio = trace.backward / trace.forward
    return f"{off:+.1%} (it takes the backward pass as 2 forward passes; this one is {ratio:.2f})"


def _own(measured: MeasuredModel) -> float:
    assert measured.own_flops_per_token is not None
    return measured.own_flops_per_token


def _runs_fast(measured: MeasuredModel) -> bool:
    return _own(measured) * measured.task.tokens_per_sample * SAMPLES <= LARGEST_RUN


def _run(model: Chosen[ModelSpec], options: Options, task: Task) -> Trace:
    import torch

    with torch.random.fork_rng(devices=[]):
        return trace_flops(model.spec.build(options, task), task, model.name)


def _is_exact_when_small(model: Chosen[ModelSpec], options: Options, task: Task) -> bool:
    """At two sizes, 2 and 3 times ``multiple_of``, and on a language task at two short contexts."""
    return all(_is_exact(model, options, task, times) for times in (2, 3))


def _is_exact(model: Chosen[ModelSpec], options: Options, task: Task, times: int) -> bool:
    size = times * model.spec.multiple_of
    if isinstance(task, LanguageTask):
        task = replace(task, context=min(task.context, 16 * times))
    try:
        smaller = type(options).model_validate({**options.model_dump(), model.spec.size: size})
        measured = measure_model(model, smaller, task)
        if not _runs_fast(measured):
            return False
        return math.isclose(_own(measured), _run(model, smaller, task).flops_per_token, rel_tol=EXACT)
    except Exception:
        return False  # this family has no such size, or it cannot be run
