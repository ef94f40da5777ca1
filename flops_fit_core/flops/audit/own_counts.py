"""Whether a family's own count of its FLOPs is what torch counts."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_core.config import Chosen
from flops_fit_core.flops.audit.reference import LARGEST_RUN, LARGEST_TRACED, MOST_PARTS, ReferenceFlops
from flops_fit_core.flops.audit.tracing import SAMPLES
from flops_fit_core.flops.model_stats import Measured, build_on_meta
from flops_fit_core.plugins.protocols import Task
from flops_fit_core.plugins.specs import ModelSpec, Options

OFF = 0.01
"""Relative difference from which a count is reported."""


def own_count_notes(
    model: Chosen[ModelSpec], task: Task, sizes: Sequence[Measured], reference: ReferenceFlops | None = None
) -> list[str]:
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
    reference = reference or ReferenceFlops(model, task)
    by_size = sorted(sizes, key=lambda size: size.parameters.total)
    small = [one for one in by_size if one.parameters.total <= LARGEST_TRACED]
    ends = {one.options.model_dump_json(): one for one in (*small[:1], *small[-1:])}
    parts, found = 0, []
    for one in ends.values():
        try:
            own = reference.own(one.options)
            if own is None:
                return []
            parts += sum(1 for _ in build_on_meta(model, one.options, task).modules())
            if parts > MOST_PARTS:
                break
            difference = _difference(reference, one.options, own, task)
        except Exception:
            break  # a note that cannot be made is no reason to end a plan
        if difference:
            found.append(f"{difference} at size {one.size}")
    if not found:
        return []
    differences = "; ".join(found)
    note = f"{model.name} counts its own FLOPs, and not as torch does in a trace of the model: {differences}. "
    return [note + "flops-fit count-flops shows what every counter says"]


def _difference(reference: ReferenceFlops, options: Options, own: float, task: Task) -> str | None:
    runs_fast = own * task.tokens_per_sample * SAMPLES <= LARGEST_RUN
    if not runs_fast and reference.is_own(options):
        return None
    trace = reference.trace(options)
    off = own / trace.flops_per_token - 1
    if abs(off) <= OFF:
        return None
    if abs(own / (3 * trace.forward) - 1) > OFF:
        return f"{off:+.1%}"
    ratio = trace.backward / trace.forward
    return f"{off:+.1%} (it takes the backward pass as 2 forward passes; this one is {ratio:.2f})"
