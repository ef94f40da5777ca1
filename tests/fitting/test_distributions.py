"""Quantiles and tails without scipy.stats equal those of scipy.stats, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from flops_fit_core.fitting import distributions

CHANCES = np.array([1e-12, 1e-4, 0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.995, 0.99999])
DOF = [1, 2, 2.5, 5, 17, 1000.0, 1e6]


@pytest.mark.parametrize("dof", DOF)
def test_quantiles_and_tails_equal_those_of_scipy_stats(dof: float) -> None:
    assert np.array_equal(distributions.t_quantile(CHANCES, dof), stats.t.ppf(CHANCES, dof))
    assert np.array_equal(distributions.t_upper_quantile(CHANCES, dof), stats.t.isf(CHANCES, dof))
    for k in (1, 2, 3.5, 17):
        assert np.array_equal(distributions.f_quantile(CHANCES, k, dof), stats.f.ppf(CHANCES, k, dof))
        assert np.array_equal(distributions.f_upper_quantile(CHANCES, k, dof), stats.f.isf(CHANCES, k, dof))
        assert np.array_equal(distributions.f_tail(4 * CHANCES, k, dof), stats.f.sf(4 * CHANCES, k, dof))
    assert np.array_equal(distributions.normal_quantile(CHANCES), stats.norm.ppf(CHANCES))


@pytest.mark.parametrize("count", [-1, 0, 3, 23])
def test_the_binomial_tail_equals_that_of_scipy_stats(count: int) -> None:
    expected = stats.binom.sf(count, 23, 0.1)
    assert distributions.binomial_tail(count, 23, 0.1) == pytest.approx(expected, rel=1e-14, abs=1e-300)


def test_a_fit_does_not_import_scipy_stats() -> None:
    code = (
        "import sys; from flops_fit_core.fitting import AverageFitter, IsoflopFitter, ParametricFitter; "
        "print('scipy.stats' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "False\n"
