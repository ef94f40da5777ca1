"""Compares a family's FLOPs formula with torch's count."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_core import numbers
from flops_fit_core.config import PluginConfig
from flops_fit_core.flops.audit.reference import MAX_MODULES, MAX_RUN_FLOPS, MAX_TRACED_PARAMS, ReferenceFlops
from flops_fit_core.flops.audit.tracing import SAMPLES
from flops_fit_core.flops.model_stats import SizeStats, build_on_meta
from flops_fit_core.plugins.options import Options
from flops_fit_core.plugins.protocols import Task
from flops_fit_core.plugins.specs import ModelSpec

TOLERANCE = 0.01
"""A larger relative difference is reported."""


def formula_notes(
    model: PluginConfig[ModelSpec], task: Task, sizes: Sequence[SizeStats], reference: ReferenceFlops | None = None
) -> list[str]:
    """A note if the family's ``flops_per_token`` differs from a trace by more than 1%.

    Checks the smallest and the largest of ``sizes`` with at most 2e9 parameters; the largest only if both together
    have at most 300 modules. Returns an empty list if the family has no formula or cannot be traced.

    Takes a fraction of a second: small models run on the CPU, and for large models the formula counts as right if
    it is exact at two small sizes with the same other options. Otherwise the model is traced on the meta device,
    where torch imports its compiler (1 to 2 s).
    """
    if model.spec.flops_per_token is None:
        return []
    reference = reference or ReferenceFlops(model, task)
    by_size = sorted(sizes, key=lambda size: size.parameters.total)
    small = [size for size in by_size if size.parameters.total <= MAX_TRACED_PARAMS]
    ends = {size.options.model_dump_json(): size for size in (*small[:1], *small[-1:])}
    num_modules, differences = 0, []
    for size in ends.values():
        try:
            family_flops = reference.family_flops(size.options)
            if family_flops is None:
                return []
            num_modules += sum(1 for _ in build_on_meta(model, size.options, task).modules())
            if num_modules > MAX_MODULES:
                break
            difference = _difference(reference, size.options, family_flops, task)
        except Exception:
            break  # planning continues without the note
        if difference:
            differences.append(f"{difference} at size {size.size}")
    if not differences:
        return []
    note = f"{model.name}: its FLOPs formula differs from a trace of the model: {'; '.join(differences)}. "
    return [note + "Compare all counters with flops-fit count-flops"]


def _difference(reference: ReferenceFlops, options: Options, family_flops: float, task: Task) -> str | None:
    runs_fast = family_flops * task.tokens_per_sample * SAMPLES <= MAX_RUN_FLOPS
    if not runs_fast and reference.is_exact(options):
        return None
    trace = reference.trace(options)
    ratio = family_flops / trace.flops_per_token
    if abs(ratio - 1) <= TOLERANCE:
        return None
    if abs(family_flops / (3 * trace.forward) - 1) > TOLERANCE:
        return numbers.change(ratio)
    backward = trace.backward / trace.forward
    passes = f"it counts the backward pass as 2 forward passes; the trace has {backward:.2f}"
    return f"{numbers.change(ratio)} ({passes})"
