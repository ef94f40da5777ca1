"""The interval for the loss of one further run: the law's uncertainty, noise between runs, and the law's drift."""

from __future__ import annotations

import numpy as np
from scipy import stats

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Floats
from flops_fit_core.records import Interval, LawFit, NewRunError


def require_new_run(fit: LawFit) -> NewRunError:
    """The error of a further run. Raises FitError for a fit without an estimate of it."""
    if fit.new_run is None:
        raise FitError(
            f"{fit.fitter.name} gives no interval for a new run: fit with fitter average, or one law (--law NAME)"
        )
    return fit.new_run


def new_run_interval(fit: LawFit, loss: float, draws: Floats, flops: float) -> Interval:
    """The interval of a new run around ``loss``, the law's value, with ``draws`` (draws,) of it.

    ln L has Student's t distribution with variance sigma^2 + max(v, drift^2 ln(C / C_max)). v is the variance of
    the draws: backtests include the uncertainty of the law, so the larger of both counts. The degrees of freedom
    follow Satterthwaite 1946.

    Raises FitError for a fit without an estimate of the error of a run.
    """
    error = require_new_run(fit)
    distance = max(float(np.log(flops / fit.flops_range[1])), 0.0)
    noise, drift = error.sigma**2, error.drift**2 * distance
    spread = float(np.mean(np.log(draws / loss) ** 2)) if len(draws) else 0.0
    of_law, dof_of_law = (drift, error.drift_dof) if drift >= spread else (spread, error.sigma_dof)
    total = noise + of_law
    if total <= 0:
        return Interval(value=loss, low=loss, high=loss)
    parts = [(noise, error.sigma_dof), (of_law, dof_of_law)]
    dof = total**2 / sum(part**2 / max(dof, 1.0) for part, dof in parts if part > 0)
    half = float(stats.t.ppf((1 + fit.level) / 2, dof) * np.sqrt(total))
    return Interval(value=loss, low=loss * float(np.exp(-half)), high=loss * float(np.exp(half)))
