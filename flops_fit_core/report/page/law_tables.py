"""Tables of a law: exponents under both counts of FLOPs, and every parameter with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.fitting import parameter_intervals
from flops_fit_core.fitting.uncertainty.bootstrap import interval
from flops_fit_core.records import Interval, LawFit
from flops_fit_core.report.datatable import Column, DataTable, Row, show_exponent

SIX_ND = "6 N D"
_MEANINGS = {"a": "N_opt ~ C^a", "b": "D_opt ~ C^b"}


def exponents_table(fit: LawFit, six_nd: LawFit | None) -> DataTable | None:
    """The exponents, with C by the counter of the runs and with C = 6 N D; None for a law without exponents."""
    if not fit.exponents:
        return None
    rows: list[Row] = [
        {
            "exponent": name,
            "meaning": _MEANINGS.get(name, ""),
            "counter": value,
            "six_nd": six_nd.exponents.get(name) if six_nd is not None else None,
        }
        for name, value in fit.exponents.items()
    ]
    columns = [
        Column("", lambda row: row["exponent"], align_left=True),
        Column("", lambda row: row["meaning"], align_left=True),
        Column(f"C: {fit.flops_name}", lambda row: show_exponent(row["counter"])),
    ]
    if six_nd is not None:
        columns.append(
            Column("C: 6 N D", lambda row: show_exponent(row["six_nd"]) if row["six_nd"] else numbers.NONE)
        )
    caption = f"In brackets: {fit.level:.0%} intervals. N: {fit.params_name}. D: {fit.unit}."
    return DataTable("Exponents", caption, ("exponent",), tuple(rows), tuple(columns))


def parameters_table(fit: LawFit) -> DataTable | None:
    """Every parameter of the law, or of each law of an average, with its interval; None for a law without any."""
    rows: list[Row] = []
    for law, values in _laws(fit):
        rows += [{"law": law, "parameter": name, "value": value} for name, value in values.items()]
    if not rows:
        return None
    law_column = [Column("law", lambda row: row["law"], align_left=True)] if fit.members else []
    columns = [
        *law_column,
        Column("parameter", lambda row: row["parameter"], align_left=True),
        Column("value", lambda row: f"{row['value'].value:.5g}"),
        Column(f"{fit.level:.0%} interval", lambda row: numbers.span(row["value"].low, row["value"].high, _show)),
    ]
    return DataTable("Parameters", _formulas(fit), ("parameter",), tuple(rows), tuple(columns))


def _show(value: float) -> str:
    return f"{value:.4g}"


def _laws(fit: LawFit) -> Sequence[tuple[str, Mapping[str, Interval]]]:
    if not fit.members:
        return [(fit.law.name, parameter_intervals(fit))]
    return [
        (
            f"{member.law.name}, {'largest runs favoured' if member.drift else 'equal weights'}",
            {
                name: interval(value, np.array(member.draws.get(name, ())), fit.level)
                for name, value in member.law.parameters.items()
            },
        )
        for member in fit.members
    ]


def _formulas(fit: LawFit) -> str:
    """The formulas of the laws that this installation has."""
    from flops_fit_core.errors import FitError
    from flops_fit_core.plugins.registry.law_index import find_law

    names = dict.fromkeys(member.law.name for member in fit.members) or {fit.law.name: None}
    formulas = []
    for name in names:
        try:
            formulas.append(f"{name}: {find_law(name).formula}")
        except FitError:  # a law of the optimum only, or of a plugin that is not installed
            continue
    return ". ".join(formulas)
