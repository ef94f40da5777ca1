"""The fitted law of learning rate and batch, with its intervals and diagnostics."""

from __future__ import annotations

import math
from typing import Literal

from flops_fit_core.records import Diagnostic, Interval, Record
from flops_fit_core.records.base import Positive

Side = Literal["below", "above"]


class HyperparameterLaw(Record):
    """``scale N^params D^tokens``: the best value of one hyperparameter."""

    scale: Positive
    """The value that the law gives at N = D = 1, far outside every table. Use ``center``."""
    params: Interval
    """Exponent of N. 0 if the table has one N, or N and D change together."""
    tokens: Interval
    """Exponent of D. 0 if the table has one D."""
    center: Interval
    """The best value at the geometric means of N and D over the cells."""
    refits: tuple[tuple[float, float, float], ...] = ()
    """(ln value at the center, exponent of N, exponent of D) of the fits that leave out one cell each."""
    covariance: tuple[tuple[float, ...], ...] = ()
    """Covariance of the same three numbers from the residuals, for tables without refits."""


class GridCell(Record):
    """The runs of one N and D, and the law there."""

    params: Positive
    tokens: Positive
    n_runs: int
    """Runs of the cell within the window."""
    loss: Positive
    """The lowest loss."""
    best_lr: float | None
    """Learning rate of the run with the lowest loss."""
    best_batch: float | None
    """Batch of that run, in tokens."""
    lr: Interval | None
    """Best learning rate by the law."""
    batch: Interval | None
    """Best batch by the law, in tokens."""
    lr_edge: Side | None = None
    """Set if the law's best learning rate lies below or above the rates of the cell."""
    batch_edge: Side | None = None
    regret: float | None = None
    """Relative loss above the cell's lowest run, of the settings that a law fitted without this cell gives.
    The loss is interpolated between runs. None if the law cannot be fitted without this cell."""
    held_out_lr: float | None = None
    held_out_batch: float | None = None


class LrBatchFit(Record):
    """Power laws for the best learning rate and batch, from :func:`fit_lr_batch`."""

    lr: HyperparameterLaw | None
    """None if the table has one learning rate per cell."""
    batch: HyperparameterLaw | None
    """Batch in tokens. None if the table has one batch per cell."""
    fixed_batch: float | None = None
    """The batch of all runs in tokens, if the table has one batch."""
    center: tuple[Positive, Positive]
    """(N, D): the geometric means over the cells."""
    curvature: tuple[tuple[float, ...], ...]
    """Second derivatives of ln loss at the optimum, in ln lr and ln batch (those of the two that have a law)."""
    window: Positive
    """The fit uses runs with a loss at most this much (relative) above the lowest of their cell."""
    degree: int
    """2: a quadratic in ln lr and ln batch; 3: with cubic terms."""
    residual: float
    """Standard deviation of ln loss around the surface."""
    degrees_of_freedom: int
    """Degrees of freedom of the intervals."""
    interval_method: Literal["jackknife", "residuals"]
    """``jackknife``: fits without one cell each. ``residuals``: too few cells for these."""
    level: float
    n_runs: int
    """Runs within the window."""
    n_table: int
    """Usable runs of the table."""
    cells: tuple[GridCell, ...]
    n: str = "matmul"
    """Convention of N in the recipe."""
    diagnostics: tuple[Diagnostic, ...] = ()
    excluded: dict[str, str] = {}
    """Row -> the reason why it cannot be used."""

    @property
    def mean_regret(self) -> float | None:
        """Mean regret of the cells, each by a law fitted without it."""
        values = [cell.regret for cell in self.cells if cell.regret is not None]
        return sum(values) / len(values) if values else None

    def predict_lr(self, params: float, tokens: float) -> Interval | None:
        """The best learning rate at N and D, with its interval. None without a law for the learning rate."""
        return None if self.lr is None else self._predict(self.lr, params, tokens)

    def predict_batch(self, params: float, tokens: float) -> Interval | None:
        """The best batch in tokens at N and D, with its interval. None without a law for the batch."""
        return None if self.batch is None else self._predict(self.batch, params, tokens)

    def _predict(self, law: HyperparameterLaw, params: float, tokens: float) -> Interval:
        from flops_fit_core.fitting.hyperparameters.intervals import law_interval

        at = (1.0, math.log(params / self.center[0]), math.log(tokens / self.center[1]))
        value = math.log(law.center.value) + law.params.value * at[1] + law.tokens.value * at[2]
        interval = law_interval(value, at, law.refits, law.covariance, self.degrees_of_freedom, self.level)
        ends = (interval.low, interval.high)
        low, high = (None if end is None else math.exp(end) for end in ends)
        return Interval(value=math.exp(value), low=low, high=high)
