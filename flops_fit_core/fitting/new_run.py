"""The interval for the loss of one further run: the law's uncertainty, noise between runs, and the law's drift."""

from __future__ import annotations

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Floats
from flops_fit_core.records import Interval, LawFit, NewRunError

_SAMPLES = 20_000


def require_new_run(fit: LawFit) -> NewRunError:
    """The error of a further run. Raises FitError for a fit without an estimate of it."""
    if fit.new_run is None:
        raise FitError(
            f"{fit.fitter.name} gives no interval for a new run: fit with fitter average, or one law (--law NAME)"
        )
    return fit.new_run


def covers_new_run(fit: LawFit, flops: float) -> bool:
    """Whether the error of a further run is known at C = ``flops``: beyond the runs, it needs a backtest."""
    return fit.new_run is not None and (fit.new_run.drift_dof > 0 or flops <= 1.01 * fit.flops_range[1])


def new_run_interval(fit: LawFit, loss: float, draws: Floats, flops: float) -> Interval:
    """The interval of a new run around ``loss``, the law's value, with ``draws`` (draws,) of it.

    Each draw of the law gets errors of ln L from Student's t: between runs with sigma, and of the law beyond C_max
    with drift ln(C / C_max). The drift is the part of the backtests' errors that draws do not explain.

    Raises FitError for a fit without an estimate of the error of a run, and beyond the runs without a backtest.
    """
    error = require_new_run(fit)
    if not covers_new_run(fit, flops):
        raise FitError(
            f"no interval for a new run at C = {numbers.scientific(flops)}: the runs allow no "
            "backtest, so the error beyond "
            f"C = {numbers.scientific(fit.flops_range[1])} is unknown; train runs of more budgets"
        )
    distance = max(float(np.log(flops / fit.flops_range[1])), 0.0)
    ln_draws = np.log(draws / loss) if len(draws) else np.zeros(1)
    ln_losses = np.tile(ln_draws, -(-_SAMPLES // len(ln_draws)))
    random = np.random.default_rng(fit.seed)
    ln_losses = ln_losses + error.sigma * random.standard_t(max(error.sigma_dof, 1.0), len(ln_losses))
    ln_losses += error.drift_rate * distance * random.standard_t(max(error.drift_dof, 1.0), len(ln_losses))
    low, high = np.quantile(ln_losses, [(1 - fit.level) / 2, (1 + fit.level) / 2])
    return Interval(value=loss, low=loss * float(np.exp(min(low, 0.0))), high=loss * float(np.exp(max(high, 0.0))))
