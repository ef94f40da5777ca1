"""Kaplan's joint form and the data-constrained law."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from flops_fit_core.fitting.laws.forms import kaplan, muennighoff
from scipy.optimize import minimize_scalar
from surfaces import CHINCHILLA, study

from flops_fit_core import FitError, Observation
from flops_fit_core.fitting import JointFitter, optimum, predict_loss
from flops_fit_core.plugins import Registry

KAPLAN = {"alpha_N": 0.076, "alpha_D": 0.103, "ln_Nc": np.log(6.4e13), "ln_Dc": np.log(1.8e13)}
PUBLISHED = {
    "E": np.exp(0.62548),
    "A": np.exp(6.2554),
    "B": np.exp(7.3050),
    "alpha": 0.35266,
    "beta": 0.35266,
    "R_D": 15.388,
    "R_N": 5.310,
}


def column(law):
    return {name: np.array([[value]]) for name, value in law.items()}


def one_loss(surface, law, params, tokens):
    return float(surface(column(law), np.log([[params]]), np.log([[tokens]]))[0][0, 0])


def kaplan_runs(sigma=0.0):
    random = np.random.default_rng(0)
    return [
        Observation(
            id=f"{n:.0e}/{d:.0e}",
            params=n,
            tokens=d,
            flops=6 * n * d,
            loss=one_loss(kaplan, KAPLAN, n, d) * np.exp(sigma * random.standard_normal()),
        )
        for n, d in itertools.product(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e11, 6))
    ]


def repeated_runs(sigma=0.0):
    random = np.random.default_rng(0)
    out = []
    for params, unique, epochs in itertools.product(np.geomspace(1e7, 3e9, 6), (1e8, 1e9, 1e10), (1, 3, 10, 40)):
        law = {**PUBLISHED, "ln_unique": np.log(unique)}
        tokens = unique * epochs
        loss = one_loss(muennighoff, law, params, tokens) * np.exp(sigma * random.standard_normal())
        out.append(
            Observation(
                id=str(len(out)),
                params=params,
                tokens=tokens,
                flops=6 * params * tokens,
                loss=loss,
                unique_tokens=unique,
            )
        )
    return out


@pytest.mark.parametrize(("params", "tokens", "expected"), [(6.34e9, 242e9, 2.22564), (8.67e9, 178e9, 2.22696)])
def test_the_published_check_values_of_the_data_constrained_law(params, tokens, expected):
    law = {**PUBLISHED, "ln_unique": np.log(25e9)}
    assert f"{one_loss(muennighoff, law, params, tokens):.5f}" == f"{expected:.5f}"


@pytest.mark.parametrize(("surface", "law"), [(kaplan, KAPLAN), (muennighoff, PUBLISHED)])
def test_derivatives_agree_with_differences(surface, law):
    loss, by_params, by_tokens = (
        float(array[0, 0]) for array in surface(column(law), np.log([[3e8]]), np.log([[4e9]]))
    )
    step = 1e-5
    up, down = (one_loss(surface, law, 3e8 * np.exp(sign * step), 4e9) for sign in (1, -1))
    assert by_params == pytest.approx((up - down) / (2 * step), rel=1e-4)
    up, down = (one_loss(surface, law, 3e8, 4e9 * np.exp(sign * step)) for sign in (1, -1))
    assert by_tokens == pytest.approx((up - down) / (2 * step), rel=1e-4)
    assert loss == one_loss(surface, law, 3e8, 4e9)


def test_kaplans_form_is_recovered_and_its_optimum_is_right():
    fit = JointFitter("kaplan", draws=0).fit(kaplan_runs())
    assert fit.law.parameters == pytest.approx(KAPLAN, rel=1e-6)
    best = minimize_scalar(
        lambda x: one_loss(kaplan, KAPLAN, np.exp(x), 1e21 / 6 / np.exp(x)),
        bounds=(15, 30),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert optimum(fit, 1e21).params.value == pytest.approx(np.exp(best.x), rel=1e-6)
    # Along a power law of two power laws, N_opt ~ C^(alpha_D / (alpha_D + alpha_N)).
    assert fit.exponents["a"].value == pytest.approx(0.103 / 0.179, abs=1e-6)


def test_the_data_constrained_law_is_recovered_from_repeated_runs():
    fit = JointFitter("muennighoff", draws=0).fit(repeated_runs())
    assert fit.law.parameters == pytest.approx(PUBLISHED, rel=1e-4)
    assert predict_loss(fit, 6.34e9, 242e9, unique_tokens=25e9).value == pytest.approx(2.22564, abs=2e-5)


def test_few_unique_tokens_make_the_best_model_smaller_than_more_epochs_would_pay_for():
    fit = JointFitter("muennighoff", draws=0).fit(repeated_runs())
    plain, constrained = optimum(fit, 1e22), optimum(fit, 1e22, unique_tokens=2e9)
    law = {**PUBLISHED, "ln_unique": np.log(2e9)}
    grid = np.linspace(np.log(1e8), np.log(1e12), 20001)
    losses = [one_loss(muennighoff, law, np.exp(x), 1e22 / 6 / np.exp(x)) for x in grid[::20]]
    best = minimize_scalar(
        lambda x: one_loss(muennighoff, law, np.exp(x), 1e22 / 6 / np.exp(x)),
        bounds=(grid[::20][np.argmin(losses)] - 0.05, grid[::20][np.argmin(losses)] + 0.05),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert constrained.params.value == pytest.approx(np.exp(best.x), rel=1e-3)
    assert constrained.loss.value > plain.loss.value


def test_intervals_of_both_forms_hold_the_truth():
    fit = JointFitter("kaplan", draws=100).fit(kaplan_runs(sigma=0.005))
    a = fit.exponents["a"]
    assert a.low < 0.103 / 0.179 < a.high
    repeated = JointFitter("muennighoff", draws=60).fit(repeated_runs(sigma=0.005))
    draws = np.array(repeated.draws["R_D"])
    assert np.quantile(draws, 0.02) < PUBLISHED["R_D"] < np.quantile(draws, 0.98)


def test_the_data_constrained_law_needs_repeated_runs():
    with pytest.raises(FitError, match="no run repeats its training tokens"):
        JointFitter("muennighoff").fit(study(CHINCHILLA, (1e18, 1e19, 1e20), np.geomspace(0.2, 5, 6)))
    fit = JointFitter("kaplan", draws=0).fit(kaplan_runs())
    with pytest.raises(FitError, match="use fitter muennighoff"):
        optimum(fit, 1e20, unique_tokens=1e9)
    with pytest.raises(FitError, match="3 runs cannot fit"):
        JointFitter("kaplan").fit(kaplan_runs()[:3])


@pytest.mark.parametrize("name", ["kaplan", "muennighoff"])
def test_the_bundled_plugin_offers_them(name):
    offer = Registry().find("fitter", name)
    runs = kaplan_runs() if name == "kaplan" else repeated_runs()
    fit = offer.spec.build(offer.spec.options(draws=0)).fit(runs)
    assert (fit.fitter.name, fit.law.name) == (f"fitters/{name}", name)
