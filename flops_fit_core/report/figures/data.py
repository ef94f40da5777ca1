"""The data of a study's figures: runs, law, backtest and loss curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting import Backtest, profile_minima
from flops_fit_core.fitting.laws.optimum_solver import OptimumSolver
from flops_fit_core.records import LawFit, Observation, Optimum, ProfileMinimum
from flops_fit_core.report.axes import plain_text
from flops_fit_core.report.datatable import on_set, singular

GRID_POINTS = 33
"""Points of a curve against C: an average of laws takes a tenth of a second or more per point."""


@dataclass(frozen=True)
class TrainingCurve:
    """The held-out loss of a run during training."""

    flops: Sequence[float]
    """Training FLOPs so far, ascending."""
    loss: Sequence[float]
    budget: float | None
    """Nominal C of the run; None without a budget."""


@dataclass(frozen=True)
class Names:
    """The conventions of N, C, D and L, as text for a figure."""

    params: str = "as given"
    flops: str = "as given"
    unit: str = "tokens"
    eval_set: str | None = None

    @property
    def loss(self) -> str:
        """The loss with its unit."""
        return f"held-out loss{on_set(self.eval_set)} (nats per {singular(self.unit)})"


@dataclass(frozen=True)
class FigureData:
    """The data of all kinds of figures. Missing parts are left out, or their kinds are refused."""

    observations: Sequence[Observation] = ()
    law: LawFit | None = None
    optimum_at: Callable[[float], Optimum] | None = None
    """The optimum of a budget in FLOPs by ``law``."""
    budgets: Sequence[float] = ()
    """Budgets with a predicted optimum in the figures against C."""
    run_backtest: Callable[[], Backtest] | None = None
    read_curves: Callable[[], Sequence[TrainingCurve]] | None = None
    conventions: Names | None = None
    """None for the names of ``law``."""
    no_law: str = ""
    """Why the data have no law."""
    synthetic: bool = False

    @property
    def fit(self) -> LawFit:
        """The law. Raises FitError without one."""
        if self.law is None:
            raise FitError(self.no_law or "this figure needs a fitted law")
        return self.law

    @property
    def has_flops_range(self) -> bool:
        """Whether the runs have more than one budget; C of a single one varies by a few per cent."""
        low, high = self.fit.flops_range
        return high > 1.1 * low

    @cached_property
    def names(self) -> Names:
        """The conventions, without control characters and formulas."""
        names, law = self.conventions, self.law
        if names is None and law is not None:
            names = Names(law.params_name, law.flops_name, law.unit, law.eval_set)
        names = names or Names()
        eval_set = None if names.eval_set is None else plain_text(names.eval_set)
        return Names(plain_text(names.params), plain_text(names.flops), plain_text(names.unit), eval_set)

    @cached_property
    def minima(self) -> list[ProfileMinimum]:
        """The IsoFLOP minima by the law, or by a parabola per budget of the runs; ascending in C."""
        minima = list(self.law.minima) if self.law is not None and self.law.minima else []
        if not minima and self.observations:
            minima = [item for item in profile_minima(self.observations)[0] if item.n_runs >= 3]
        return sorted(minima, key=lambda minimum: minimum.budget)

    @cached_property
    def optima(self) -> list[Optimum]:
        """The optimum along C, over the runs, the minima and ``budgets``. Raises FitError without a law."""
        ends = [*self.fit.flops_range, *self.budgets, *(minimum.budget for minimum in self.fit.minima)]
        grid = np.geomspace(min(ends), max(ends) * (1 + 1e-9), GRID_POINTS)
        if isinstance(self.optimum_at, OptimumSolver):
            return self.optimum_at.many(grid.tolist(), new_run=False)
        return [self.optimum(float(flops)) for flops in grid]

    @cached_property
    def backtest(self) -> Backtest | None:
        """The backtest of the largest budget; None if too few budgets exist or the fit without it fails."""
        if self.run_backtest is None:
            return None
        try:
            return self.run_backtest()
        except FitError:
            return None

    @cached_property
    def predicted(self) -> list[Optimum]:
        """The optimum of each of ``budgets``."""
        return [self.optimum(flops) for flops in self.budgets]

    def optimum(self, flops: float) -> Optimum:
        """The optimum of a budget. Raises FitError without a law of the optimum."""
        if self.optimum_at is None:
            raise FitError(self.no_law or "this figure needs a fitted law")
        return self.optimum_at(flops)
