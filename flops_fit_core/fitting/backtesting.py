"""A fit held against what it has not seen: the largest budgets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Runs
from flops_fit_core.fitting.fitters.profiles import fit_profile, group_by_budget, move_to_budgets
from flops_fit_core.fitting.laws.forms import SURFACES
from flops_fit_core.fitting.predict import predict_loss
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.records import Interval, LawFit, Observation, Record


class BacktestPoint(Record):
    """One run (or one budget's lowest loss) that the fit did not see."""

    id: str
    flops: float
    loss: float
    predicted: Interval

    @property
    def error(self) -> float:
        """Relative: predicted over measured less 1."""
        return self.predicted.value / self.loss - 1


class Backtest(Record):
    """How well a fit without the largest budgets predicts them."""

    fit: LawFit
    held_out: tuple[BacktestPoint, ...]
    above: float
    """Runs of more FLOPs than this were held out."""

    @property
    def mean_abs_error(self) -> float:
        """Mean absolute relative error of the loss."""
        return float(np.mean([abs(one.error) for one in self.held_out]))

    @property
    def bias(self) -> float:
        """Mean relative error: positive where the fit promised too high a loss."""
        return float(np.mean([one.error for one in self.held_out]))


def backtest(
    fitter: Fitter, observations: Sequence[Observation], budgets: int = 1, above: float | None = None
) -> Backtest:
    """Fit without the ``budgets`` largest budgets (or without all runs of more than ``above`` FLOPs), and predict.

    A law of L(N, D) predicts every run; a law of the optimum predicts each held-out budget's lowest loss.
    Raises FitError where nothing is left to fit or to predict.
    """
    runs = Runs.of(observations)
    groups = group_by_budget(runs)
    if above is None:
        if budgets < 1 or len(groups) <= budgets:
            raise FitError(f"there are {len(groups)} budgets: hold out at least 1 and fewer than that")
        above = float(max(runs.flops[group.rows].max() for group in groups[:-budgets]))
        out = np.isin(np.arange(len(runs)), np.concatenate([group.rows for group in groups[-budgets:]]))
    else:
        out = runs.flops > above
    if out.all() or not out.any():
        raise FitError(
            f"C > {above:.3g} holds out {int(out.sum())} of {len(runs)} runs: choose a C between theirs"
        )
    seen = [one for one, held in zip(observations, out, strict=True) if not held]
    fit = fitter.fit(seen)
    unseen = [one for one, held in zip(observations, out, strict=True) if held]
    held = _runs(fit, unseen) if fit.law.name in SURFACES else _lowest(fitter, fit, unseen)
    return Backtest(fit=fit, held_out=tuple(held), above=above)


def _runs(fit: LawFit, unseen: Sequence[Observation]) -> list[BacktestPoint]:
    return [
        BacktestPoint(
            id=one.id, flops=one.flops, loss=one.loss, predicted=predict_loss(fit, one.params, one.tokens)
        )
        for one in unseen
    ]


def _lowest(fitter: Fitter, fit: LawFit, unseen: Sequence[Observation]) -> list[BacktestPoint]:
    runs = Runs.of(unseen)
    groups = group_by_budget(runs)
    moved = move_to_budgets(runs, groups)
    out = []
    for group in groups:
        profile = fit_profile(group, np.log(runs.params), moved)
        if profile.verdict == "interior":
            predicted = fitter.optimum(fit, group.budget).loss
            loss = float(np.exp(profile.lowest))
            out.append(
                BacktestPoint(id=f"budget {group.budget:.3g}", flops=group.budget, loss=loss, predicted=predicted)
            )
    if not out:
        raise FitError("no held-out budget has a minimum inside its grid to predict")
    return out
