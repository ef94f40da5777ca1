"""Fits use one BLAS thread, and leave the setting of the process as it was."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from surfaces import CHINCHILLA, study
from threadpoolctl import ThreadpoolController

from flops_fit_core import FitError
from flops_fit_core.fitting import AverageFitter, Runs
from flops_fit_core.fitting.blas_threads import one_blas_thread


def count_threads():
    """Threads of each BLAS library that is loaded."""
    assert scipy.linalg
    return {item["num_threads"] for item in ThreadpoolController().info() if item["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def two_threads():
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        assert count_threads() == {2}
        yield
        assert count_threads() == {2}


def test_a_fit_uses_one_thread_and_restores_the_setting(monkeypatch):
    seen = []
    runs_of = Runs.of

    def spy(*arguments, **options):
        seen.append(count_threads())
        return runs_of(*arguments, **options)

    monkeypatch.setattr(Runs, "of", spy)
    AverageFitter(draws=0).fit(study(CHINCHILLA, (1e18, 1e19, 1e20), np.geomspace(0.3, 3, 5), sigma=0.01))
    assert seen
    assert all(threads == {1} for threads in seen)


def test_a_fit_that_fails_restores_the_setting():
    with pytest.raises(FitError):
        AverageFitter().fit([])


def test_the_last_of_nested_fits_restores_the_setting():
    with one_blas_thread():
        with one_blas_thread():
            assert count_threads() == {1}
        assert count_threads() == {1}
    assert count_threads() == {2}
