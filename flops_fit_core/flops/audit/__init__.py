"""Compares FLOPs counters with each other and with the operations that torch executes."""

from __future__ import annotations

from flops_fit_core.flops.audit.comparing import (
    TRACED,
    Audit,
    AuditedSize,
    Convention,
    audit,
    every_counter,
)
from flops_fit_core.flops.audit.exponents import CHINCHILLA, LossExponents, Scaling, scalings
from flops_fit_core.flops.audit.family_formula import formula_notes
from flops_fit_core.flops.audit.reference import ReferenceFlops
from flops_fit_core.flops.audit.tracing import Trace, Untraceable, trace_flops

__all__ = [
    "CHINCHILLA",
    "TRACED",
    "Audit",
    "AuditedSize",
    "Convention",
    "LossExponents",
    "ReferenceFlops",
    "Scaling",
    "Trace",
    "Untraceable",
    "audit",
    "every_counter",
    "formula_notes",
    "scalings",
    "trace_flops",
]
