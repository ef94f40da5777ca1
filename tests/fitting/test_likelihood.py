"""Profile-likelihood intervals."""

from __future__ import annotations

import numpy as np
import pytest
from surfaces import CHINCHILLA, study

from flops_fit_core import FitError
from flops_fit_core.fitting import IsoflopFitter, ParametricFitter, profile_intervals

BUDGETS = (1e17, 1e18, 1e19, 1e20)
OFFSETS = np.geomspace(1 / 6, 6, 6)


def test_they_agree_with_the_bootstrap_where_the_law_is_nearly_linear():
    runs = study(CHINCHILLA, BUDGETS, OFFSETS, sigma=0.002)
    fit = ParametricFitter(objective="least-squares", draws=600).fit(runs)
    intervals = profile_intervals(fit, runs, flops=[1e22])
    assert set(intervals) == {"E", "alpha", "beta", "a", "params@1e+22"}
    for name in ("alpha", "beta"):
        draws = np.array(fit.draws[name])
        width = np.quantile(draws, 0.95) - np.quantile(draws, 0.05)
        assert intervals[name].high - intervals[name].low == pytest.approx(width, rel=0.4)
        assert intervals[name].value == pytest.approx(fit.law.parameters[name], rel=1e-5)
    assert intervals["a"].low < CHINCHILLA.a < intervals["a"].high
    assert intervals["params@1e+22"].low < CHINCHILLA.n_opt(1e22) < intervals["params@1e+22"].high


def test_a_refit_at_the_end_is_just_significantly_worse():
    runs = study(CHINCHILLA, BUDGETS, OFFSETS, sigma=0.01)
    fit = ParametricFitter(objective="least-squares", draws=0).fit(runs)
    high = profile_intervals(fit, runs)["alpha"].high

    from scipy import stats
    from scipy.optimize import least_squares

    x, z, y = (np.log([getattr(run, name) for run in runs]) for name in ("params", "tokens", "loss"))

    def residuals(theta):
        e, a, b, beta = theta
        return y - np.log(e + np.exp(a - high * (x - x.mean())) + np.exp(b - beta * (z - z.mean())))

    refit = least_squares(residuals, [1.7, -1, -1, 0.3], xtol=1e-14, ftol=1e-14)
    ratio = (2 * refit.cost - fit.objective) / (fit.objective / 19)
    assert ratio == pytest.approx(stats.f.ppf(0.9, 1, 19), rel=0.02)


def test_another_law_is_an_error():
    runs = study(CHINCHILLA, BUDGETS, OFFSETS)
    with pytest.raises(FitError, match="for law chinchilla, not 'isoflop': use fitter parametric"):
        profile_intervals(IsoflopFitter(draws=0).fit(runs), runs)
