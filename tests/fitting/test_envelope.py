"""Approach 1 on training curves of known surfaces."""

from __future__ import annotations

import numpy as np
import pytest
from surfaces import CHINCHILLA

from flops_fit_core import FitError, Observation
from flops_fit_core.fitting import EnvelopeFitter, optimum, predict_loss
from flops_fit_core.plugins import Registry


def curves(count=25, sigma=0.0, named=True):
    random = np.random.default_rng(0)
    out = []
    for number, params in enumerate(np.geomspace(1e7, 1e10, count)):
        luck = np.exp(sigma * random.standard_normal())
        for tokens in np.geomspace(1e9, 1e12, 40):
            out.append(
                Observation(
                    id=f"{number}/{tokens:.3e}",
                    params=params,
                    tokens=tokens,
                    flops=6 * params * tokens,
                    loss=CHINCHILLA.loss(params, tokens) * luck,
                    trajectory=f"run {number}" if named else None,
                )
            )
    return out


def test_the_envelope_of_many_curves_follows_the_optimum():
    fit = EnvelopeFitter(draws=0).fit(curves(60))
    assert fit.exponents["a"].value == pytest.approx(CHINCHILLA.a, abs=0.01)
    assert fit.exponents["a"].value + fit.exponents["b"].value == pytest.approx(1, abs=1e-6)
    middle = 1e20
    prediction = optimum(fit, middle)
    assert prediction.params.value == pytest.approx(CHINCHILLA.n_opt(middle), rel=0.05)
    assert prediction.loss.value == pytest.approx(
        CHINCHILLA.loss(CHINCHILLA.n_opt(middle), CHINCHILLA.d_opt(middle)), rel=2e-3
    )


def test_rows_of_equal_size_are_one_curve_without_run_names():
    named, bare = (EnvelopeFitter(draws=0).fit(curves(named=flag)) for flag in (True, False))
    assert named.law == bare.law


def test_whole_curves_are_resampled():
    fit = EnvelopeFitter(draws=40).fit(curves(30, sigma=0.003))
    a = fit.exponents["a"]
    assert a.low < CHINCHILLA.a < a.high
    few = EnvelopeFitter(draws=100).fit(curves(12))
    assert few.exponents["a"].low is None
    assert "no-interval" in {diagnostic.code for diagnostic in few.diagnostics}


def test_too_few_curves_are_an_error_with_advice():
    points = curves()
    with pytest.raises(FitError, match="column trajectory"):
        EnvelopeFitter().fit([point for point in points if point.id.endswith("1.000e+09")])
    with pytest.raises(FitError, match="needs three"):
        EnvelopeFitter().fit([point for point in points if point.trajectory in ("run 1", "run 2", "run 3")])


def test_the_only_point_of_a_curve_is_excluded_by_name():
    points = curves()
    lone = points[0].model_copy(update={"id": "lone", "trajectory": "other"})
    assert EnvelopeFitter(draws=0).fit([*points, lone]).excluded == {
        "lone": "the only point of its training curve"
    }


def test_the_bundled_plugin_offers_it_and_it_predicts_no_loss_off_the_optimum():
    offer = Registry().find("fitter", "envelope")
    fit = offer.spec.build(offer.spec.options(draws=0)).fit(curves())
    with pytest.raises(FitError, match="envelope"):
        predict_loss(fit, 1e9, 1e10)
    with pytest.raises(FitError, match="law 'envelope' gives the optimum only"):
        optimum(fit, 1e21, inference_tokens=1e9)
