"""Notes and warnings about a fitted law of learning rate and batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.fitting.hyperparameters.records import HyperparameterLaw, LrBatchFit
from flops_fit_core.fitting.hyperparameters.table import LrBatchTable
from flops_fit_core.records import Diagnostic

WIDE_EXPONENT = 1.0
"""An interval of an exponent wider than this is reported."""
FEW_CELLS = 6
MAX_EDGES = 0.5
"""Share of cells with the optimum beyond the values tried above which the edge note is a warning."""
TITLES = {"lr": "learning rate", "batch": "batch"}


def diagnose(fit: LrBatchFit, table: LrBatchTable, axes: Sequence[int], *, together: bool) -> list[Diagnostic]:
    """Diagnostics of the fit, warnings and notes."""
    return [
        *_diverged(fit),
        *_seeds(table),
        *_missing_axis(table, axes),
        *_scales(fit, together),
        *_edges(fit),
        *_widths(fit),
        *_intervals(fit),
    ]


def count_pairs(count: int) -> str:
    """``1 pair of N and D``, ``9 pairs of N and D``."""
    return f"{count} pair{'' if count == 1 else 's'} of N and D"


def _note(code: str, message: str) -> Diagnostic:
    return Diagnostic(code=code, message=message, severity="note")


def _diverged(fit: LrBatchFit) -> Iterator[Diagnostic]:
    far = fit.n_table - fit.n_runs
    if far:
        yield _note(
            "window",
            f"{far} of {fit.n_table} runs have a loss more than {fit.window:.2%} above the lowest of their N and "
            "D and are not used",
        )


def _seeds(table: LrBatchTable) -> Iterator[Diagnostic]:
    if table.seeds:
        yield _note("seeds", f"{table.seeds} runs repeat the settings of another run; each counts as a run")


def _missing_axis(table: LrBatchTable, axes: Sequence[int]) -> Iterator[Diagnostic]:
    for axis, (name, values) in enumerate((("lr", table.lr), ("batch", table.batch))):
        if axis in axes:
            continue
        other = TITLES["batch" if name == "lr" else "lr"]
        if values is None:
            message = (
                f"the table has no column for the {TITLES[name]}: the law of the {other} "
                f"holds at its {TITLES[name]}"
            )
        elif np.ptp(np.log(values)) < 1e-6:
            message = (
                f"all runs have one {TITLES[name]} ({values[0]:.4g}): the law of the {other} holds at this value"
            )
        else:
            yield Diagnostic(
                code="confounded",
                message=(
                    f"the {TITLES[name]} varies between pairs of N and D and not within them: it has no law, and "
                    f"the law of the {other} includes its effect"
                ),
            )
            continue
        yield _note("one-hyperparameter", message)


def _scales(fit: LrBatchFit, together: bool) -> Iterator[Diagnostic]:
    sizes = {round(float(np.log(cell.params)), 4) for cell in fit.cells}
    tokens = {round(float(np.log(cell.tokens)), 2) for cell in fit.cells}
    ratio = fit.center[1] / fit.center[0]
    if together:
        yield Diagnostic(
            code="not-identified",
            message=(
                f"N and D change together (D / N near {ratio:.3g}), so their exponents cannot be separated: the "
                "law in N holds at this D / N only. Add runs with another D at one N"
            ),
        )
    elif len(fit.cells) == 1:
        yield Diagnostic(
            code="not-identified",
            message="the table has one pair of N and D: the values hold there, and no exponent is fitted",
        )
    elif len(sizes) == 1:
        yield Diagnostic(
            code="not-identified",
            message=f"the table has one N ({numbers.count(fit.center[0])}): the exponent of N is "
            "unknown and set to 0",
        )
    elif len(tokens) == 1:
        yield Diagnostic(
            code="not-identified",
            message=f"the table has one D ({numbers.count(fit.center[1])}): the exponent of D is "
            "unknown and set to 0",
        )


def _edges(fit: LrBatchFit) -> Iterator[Diagnostic]:
    for name in TITLES:
        cells = [cell for cell in fit.cells if getattr(cell, f"{name}_edge") is not None]
        if not cells:
            continue
        places = ", ".join(
            f"N {numbers.count(cell.params)} D {numbers.count(cell.tokens)} ({getattr(cell, f'{name}_edge')})"
            for cell in cells[:4]
        )
        more = f" and {len(cells) - 4} more" if len(cells) > 4 else ""
        yield Diagnostic(
            code="grid-edge",
            message=(
                f"in {len(cells)} of {count_pairs(len(fit.cells))} the best {TITLES[name]} by the law lies beyond "
                f"the values tried: {places}{more}. The law there follows from the slope of their losses and from "
                "the other pairs"
            ),
            severity="warning" if len(cells) > MAX_EDGES * len(fit.cells) else "note",
        )


def _widths(fit: LrBatchFit) -> Iterator[Diagnostic]:
    for name in TITLES:
        law: HyperparameterLaw | None = getattr(fit, name)
        for letter, interval in (("N", law.params), ("D", law.tokens)) if law is not None else ():
            if interval.low is not None and interval.high is not None:
                width = interval.high - interval.low
                if width > WIDE_EXPONENT:
                    yield Diagnostic(
                        code="weakly-determined",
                        message=(
                            f"the exponent of {letter} of the {TITLES[name]} is hardly determined "
                            f"({interval.low:.2f} to {interval.high:.2f}): add pairs of N and D farther apart"
                        ),
                    )


def _intervals(fit: LrBatchFit) -> Iterator[Diagnostic]:
    if fit.interval_method == "residuals":
        yield Diagnostic(
            code="few-cells",
            message=(
                f"{count_pairs(len(fit.cells))} cannot be left out in turn: the intervals cover the noise "
                "of runs and not deviations from the power law"
            ),
        )
    elif len(fit.cells) < FEW_CELLS:
        yield _note(
            "few-cells",
            f"{count_pairs(len(fit.cells))} leave {fit.degrees_of_freedom} degrees of freedom for the intervals: "
            "further pairs make them narrower",
        )
