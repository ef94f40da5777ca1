"""The public function: the compute-equivalent gain of one recipe over another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.errors import FitError
from flops_fit_core.fitting.comparison.checks import common_range, largest_common_budget, refuse_different_units
from flops_fit_core.fitting.comparison.design import Design, join_runs
from flops_fit_core.fitting.comparison.gains import (
    gain_at,
    gain_interval,
    interval,
    pair_correlation,
    probability_of_shared_exponents,
)
from flops_fit_core.fitting.comparison.outliers import reject_outliers
from flops_fit_core.fitting.comparison.posterior import Posterior, find_posterior
from flops_fit_core.fitting.comparison.result import Comparison, GainAt
from flops_fit_core.fitting.diagnostics import no_interval, note
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.fitting.uncertainty.refits import OUTLIER
from flops_fit_core.records import Diagnostic, Observation

_CURVE_POINTS = 13
_FAR = 1.5
"""Factor in C beyond which an extrapolation is reported."""


@convert_numerical_errors
def compare(
    first: Sequence[Observation],
    second: Sequence[Observation],
    flops: Sequence[float] = (),
    *,
    gate: float = 1.0,
    level: float = 0.9,
    names: tuple[str, str] = ("A", "B"),
) -> Comparison:
    """The compute-equivalent gain of the second recipe over the first.

    The gain at C is C' / C, where the first recipe needs C' for the lowest loss that the second reaches with C.
    Both recipes share a surface, and the gain is a power of C (:mod:`flops_fit_core.fitting.comparison.surface`).
    Runs with equal N and D (and seed) in both recipes share an estimated part of their noise.

    Args:
        first: Runs of the first recipe, at least 3.
        second: Runs of the second recipe, on the same held-out set, with N, D, C and loss in the same units.
        flops: Budgets; by default the largest that both recipes have.
        gate: Gain that the second recipe must exceed to be promoted.
        level: Level of the intervals.
        names: Names of the recipes.

    Raises FitError for too few runs, budgets that do not overlap, or losses in different units.
    """
    if not (0 < level < 1 and gate > 0):
        raise FitError(f"level {level} and gate {gate}: the level must lie between 0 and 1, the gate above 0")
    complete = join_runs(first, second)
    common = common_range(complete, names)
    refuse_different_units(complete, names)
    design, outliers = reject_outliers(complete)
    posterior = find_posterior(design)
    budgets = tuple(flops) or (largest_common_budget(complete),)
    gains = tuple(gain_at(posterior, budget, gate, level) for budget in budgets)
    change = posterior.change()
    variance = posterior.weights @ posterior.sigmas**2
    return Comparison(
        first=names[0],
        second=names[1],
        level=level,
        gate=gate,
        gains=gains,
        change=interval(change, level),
        shared_exponents=probability_of_shared_exponents(posterior),
        noise=float(np.sqrt(variance)),
        pair_correlation=pair_correlation(posterior),
        n_runs=(int((design.second == 0).sum()), int((design.second == 1).sum())),
        n_pairs=design.count_pairs(),
        n_shared_cells=design.count_shared_cells(),
        flops_range=common,
        excluded=dict.fromkeys(outliers, OUTLIER),
        curve=_curve(posterior, common, level),
        diagnostics=(*_describe_outliers(outliers), *_describe_gains(complete, gains, common)),
    )


def _curve(
    posterior: Posterior, common: tuple[float, float], level: float
) -> tuple[tuple[float, float, float, float], ...]:
    points = []
    for flops in np.geomspace(*common, _CURVE_POINTS if common[1] > 1.01 * common[0] else 1):
        gain = gain_interval(posterior.ln_gain(float(flops)), level)
        points.append((float(flops), gain.value, gain.low or 0.0, gain.high or 0.0))
    return tuple(points)


def _describe_outliers(outliers: list[str]) -> list[Diagnostic]:
    if not outliers:
        return []
    shown = ", ".join(outliers[:5]) + (f" and {len(outliers) - 5} more" if len(outliers) > 5 else "")
    return [Diagnostic(code="outliers", message=f"left out as outliers: {shown}. Look at these runs")]


def _describe_gains(design: Design, gains: Sequence[GainAt], common: tuple[float, float]) -> list[Diagnostic]:
    """Missing intervals, extrapolations, and a single budget."""
    diagnostics = []
    if sorted(design.ln_loss[design.second == 0]) == sorted(design.ln_loss[design.second == 1]):
        message = "A and B have the same losses: check that they are two recipes"
        diagnostics.append(Diagnostic(code="same-losses", message=message))
    largest = float(design.runs.flops[design.second == 0].max())
    smallest = float(design.runs.flops[design.second == 0].min())
    for item in gains:
        if item.lower is None:
            diagnostics.append(
                no_interval(
                    f"the runs do not determine the gain at C = {numbers.scientific(item.flops)}; train more"
                )
            )
        if not common[0] / _FAR < item.flops < common[1] * _FAR:
            text = (
                f"C = {numbers.scientific(item.flops)} lies outside the common budgets, "
                f"{numbers.span(*common, numbers.scientific)}"
            )
            diagnostics.append(Diagnostic(code="extrapolation", message=f"{text}: the gain is extrapolated"))
        needed = item.flops * item.gain.value
        if not smallest / _FAR < needed < largest * _FAR and common[0] / _FAR < item.flops < common[1] * _FAR:
            text = (
                f"A needs C = {numbers.scientific(needed)} for the loss of B at C = "
                f"{numbers.scientific(item.flops)}"
            )
            text += (
                ", outside its budgets of "
                f"{numbers.span(smallest, largest, numbers.scientific)}: its law is extrapolated"
            )
            diagnostics.append(Diagnostic(code="extrapolation", message=text))
    if common[1] < 1.5 * common[0]:
        message = (
            "both recipes share one budget only: the slope of the loss rests on the other budgets or on the prior"
        )
        diagnostics.append(note("single-budget", message))
    return diagnostics
