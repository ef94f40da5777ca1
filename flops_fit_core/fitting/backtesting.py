"""Backtest a fit: fit without the largest budgets, then predict them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Runs
from flops_fit_core.fitting.fitters.profiles import fit_profile, group_by_budget, move_to_budgets
from flops_fit_core.fitting.laws.surfaces import has_surface
from flops_fit_core.fitting.predict import predict_loss
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.records import Interval, LawFit, Observation, Record


class BacktestPoint(Record):
    """A held-out run, or the lowest loss of a held-out budget."""

    id: str
    flops: float
    loss: float
    predicted: Interval

    @property
    def error(self) -> float:
        """Relative error: predicted / measured - 1."""
        return self.predicted.value / self.loss - 1


class Backtest(Record):
    """A fit without the largest budgets, and its predictions for them."""

    fit: LawFit
    held_out: tuple[BacktestPoint, ...]
    above: float
    """Runs with more training FLOPs than this are held out."""

    @property
    def mean_abs_error(self) -> float:
        """Mean absolute relative error of the loss."""
        return float(np.mean([abs(point.error) for point in self.held_out]))

    @property
    def with_interval(self) -> int:
        """Number of held-out losses with a predicted interval."""
        return sum(point.predicted.low is not None for point in self.held_out)

    @property
    def inside(self) -> int:
        """Number of held-out losses inside their interval, which is that of the law, without seed noise."""
        ends = [(point.predicted.low, point.loss, point.predicted.high) for point in self.held_out]
        return sum(low is not None and high is not None and low <= loss <= high for low, loss, high in ends)

    @property
    def bias(self) -> float:
        """Mean relative error; positive if the fit predicts too high a loss."""
        return float(np.mean([point.error for point in self.held_out]))


def backtest(
    fitter: Fitter, observations: Sequence[Observation], budgets: int = 1, above: float | None = None
) -> Backtest:
    """Fit without the ``budgets`` largest budgets (or without runs above ``above`` FLOPs), and predict them.

    A law of L(N, D) predicts every run; a law of the optimum predicts each held-out budget's lowest loss.
    Raises FitError if no run remains to fit or to predict.
    """
    runs = Runs.of(observations)
    groups = group_by_budget(runs)
    if above is None:
        if budgets < 1 or len(groups) <= budgets:
            raise FitError(
                f"cannot hold out {budgets} of {len(groups)} budgets: hold out at least 1, and keep at least 1"
            )
        above = float(max(runs.flops[group.rows].max() for group in groups[:-budgets]))
        is_held_out = np.isin(np.arange(len(runs)), np.concatenate([group.rows for group in groups[-budgets:]]))
    else:
        is_held_out = runs.flops > above
    if is_held_out.all() or not is_held_out.any():
        raise FitError(
            f"C > {numbers.scientific(above)} holds out {int(is_held_out.sum())} of {len(runs)} runs: choose a C "
            "between the smallest and the largest C of the runs"
        )
    fit = fitter.fit([run for run, held in zip(observations, is_held_out, strict=True) if not held])
    held_out = [run for run, held in zip(observations, is_held_out, strict=True) if held]
    points = _predict_runs(fit, held_out) if has_surface(fit) else _predict_minima(fitter, fit, held_out)
    return Backtest(fit=fit, held_out=tuple(points), above=above)


def _predict_runs(fit: LawFit, held_out: Sequence[Observation]) -> list[BacktestPoint]:
    return [
        BacktestPoint(
            id=run.id, flops=run.flops, loss=run.loss, predicted=predict_loss(fit, run.params, run.tokens)
        )
        for run in held_out
    ]


def _predict_minima(fitter: Fitter, fit: LawFit, held_out: Sequence[Observation]) -> list[BacktestPoint]:
    runs = Runs.of(held_out)
    groups = group_by_budget(runs)
    moved = move_to_budgets(runs, groups)
    points = []
    for group in groups:
        profile = fit_profile(group, np.log(runs.params), moved)
        if profile.verdict == "interior":
            predicted = fitter.optimum(fit, group.budget).loss
            loss = float(np.exp(profile.lowest))
            points.append(
                BacktestPoint(
                    id=f"budget {numbers.scientific(group.budget)}",
                    flops=group.budget,
                    loss=loss,
                    predicted=predicted,
                )
            )
    if not points:
        raise FitError(
            "no held-out budget has a minimum inside its grid, so no loss can be predicted; hold out more budgets"
        )
    return points
