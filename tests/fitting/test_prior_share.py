"""The warning that a prior, rather than the runs, determines the exponent a."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from surfaces import CHINCHILLA, LOPSIDED, study

from flops_fit_core.fitting import AverageFitter, LawFitter, ParametricFitter, Runs
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.surfaces import LawSurface
from flops_fit_core.fitting.solvers.objectives import LeastSquares
from flops_fit_core.fitting.uncertainty.posterior import fit_law_point, make_law_problem
from flops_fit_core.fitting.uncertainty.prior_share import prior_share
from flops_fit_core.plugins.registry.law_index import find_law

BUDGETS = 1e18 * 2.5 ** np.arange(4)
OFFSETS = np.geomspace(0.3, 3, 5)


def runs_of(surface, sigma, seed=0):
    return study(surface, BUDGETS, OFFSETS, sigma=sigma, seed=seed)


def point_of(name, sigma):
    runs = Runs.of(runs_of(LOPSIDED, sigma))
    constraint = FlopsPerToken.of(runs)
    return fit_law_point(make_law_problem(find_law(name), runs), runs, constraint, "robust").fit, constraint, runs


@pytest.mark.parametrize("sigma", [0.01, 0.02])
def test_the_share_is_the_variance_that_draws_of_the_prior_cause(sigma):
    fit, constraint, runs = point_of("chinchilla", sigma)
    random, scale, small = np.random.default_rng(0), np.sqrt(2 * fit.value / (len(runs) - 5)), 0.1
    noise = small * scale * random.standard_normal((3000, len(runs)))
    _, precision = fit.problem.coordinates.prior
    spread = small * np.where(precision > 0, 1 / np.sqrt(np.where(precision > 0, precision, 1)), 0)
    centres = fit.problem.centre + spread * random.standard_normal((3000, 5))
    expected = []
    fitted = fit.problem.predict(fit.theta[None]) + fit.residuals  # = y: small draws around it are linear
    for part in ({"y": fitted + noise}, {"y": np.repeat(fitted, 3000, 0), "centre": centres}):
        theta = replace(fit.problem, **part).solve(np.tile(fit.theta, (3000, 1)), LeastSquares(), steps=60).theta
        values = LawSurface(fit.problem.law, fit.problem.values(theta)).values
        expected.append(np.var(values["beta"] / (values["alpha"] + values["beta"])))
    share = prior_share(fit, constraint, runs.flops)
    assert share == pytest.approx(expected[1] / sum(expected), rel=0.1)


def test_a_law_that_fixes_the_exponent_has_no_share():
    fit, constraint, runs = point_of("tied", 0.01)
    assert prior_share(fit, constraint, runs.flops) is None


@pytest.mark.parametrize("fitter", [AverageFitter(draws=50), LawFitter(law="chinchilla", draws=50)])
def test_a_fit_warns_where_the_prior_determines_the_exponent(fitter):
    noisy = fitter.fit(runs_of(LOPSIDED, 0.04))
    (warning,) = [item for item in noisy.diagnostics if item.code == "prior"]
    assert warning.severity == "warning"
    assert warning.message.startswith("the runs hardly determine a; ")
    precise = fitter.fit(runs_of(CHINCHILLA, 0.001))
    assert "prior" not in [item.code for item in precise.diagnostics]


def test_a_fit_without_a_prior_has_no_warning():
    runs = runs_of(LOPSIDED, 0.02)
    for fitter in (ParametricFitter(draws=50), LawFitter(law="chinchilla", prior=False, draws=50)):
        assert "prior" not in [item.code for item in fitter.fit(runs).diagnostics]
