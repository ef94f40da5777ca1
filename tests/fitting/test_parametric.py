"""The parametric fitter against surfaces known exactly, scipy, finite differences, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize, minimize_scalar
from surfaces import CHINCHILLA, LOPSIDED, Surface, study

from flops_fit_core import FitError, LawFit
from flops_fit_core.fitting import ParametricFitter, optimum
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.optima import minimise
from flops_fit_core.fitting.laws.surfaces import LawSurface
from flops_fit_core.fitting.solvers.newton import ChinchillaProblem, derivatives, value
from flops_fit_core.fitting.solvers.objectives import Huber, LeastSquares
from flops_fit_core.fitting.solvers.surface_fit import fit_surface, make_problem, refit
from flops_fit_core.fitting.uncertainty.noise import build_covariates, fit_noise
from flops_fit_core.plugins import Registry
from flops_fit_core.plugins.registry.law_index import find_law

BUDGETS = 10.0 ** np.arange(17, 22)
WIDE = np.geomspace(1 / 16, 16, 15)
LOCAL_FLOPS = Surface(1.69, 406.4, 410.7, 0.34, 0.28, factor=60.0, phi=0.88)


def codes(fit: LawFit) -> set[str]:
    return {diagnostic.code for diagnostic in fit.diagnostics}


def problem_of(runs):
    return make_problem(*(np.log([getattr(run, name) for run in runs]) for name in ("params", "tokens", "loss")))


@pytest.mark.parametrize("objective", ["least-squares", "huber", "robust"])
@pytest.mark.parametrize("surface", [CHINCHILLA, LOPSIDED], ids=["chinchilla", "3:1"])
@pytest.mark.parametrize("shift", [1.0, 3.0], ids=["centred", "off centre"])
def test_a_surface_without_noise_is_recovered_to_rounding(surface, shift, objective):
    fit = ParametricFitter(objective=objective, draws=0).fit(study(surface, BUDGETS, WIDE * shift))
    for name, estimate in fit.law.parameters.items():
        assert estimate == pytest.approx(getattr(surface, name), rel=1e-7)
    assert optimum(fit, 1e24).params.value == pytest.approx(surface.n_opt(1e24), rel=1e-6)
    assert fit.exponents["a"].value == pytest.approx(surface.a, abs=1e-9)


def test_approach_3_lacks_the_bias_of_approach_2():
    fit = ParametricFitter(draws=0).fit(study(LOPSIDED, BUDGETS, WIDE))
    assert optimum(fit, 1e24).tokens.value == pytest.approx(LOPSIDED.d_opt(1e24), rel=1e-9)


@pytest.mark.parametrize("objective", [LeastSquares(), Huber(0.01)], ids=["least squares", "Huber"])
def test_derivatives_agree_with_finite_differences(objective):
    problem = problem_of(study(CHINCHILLA, BUDGETS, WIDE, sigma=0.02))
    weights = np.random.default_rng(0).uniform(0.5, 2, len(problem.y))
    problem = ChinchillaProblem(problem.u, problem.v, problem.y, weights)
    theta = np.array([[1.5, -1.0, 0.4, -0.8, 0.3]])
    gradient, hessian = derivatives(problem, theta, objective)
    for number in range(5):
        step = np.zeros((1, 5))
        step[0, number] = 1e-6
        slope = (value(problem, theta + step, objective) - value(problem, theta - step, objective)) / 2e-6
        assert gradient[0, number] == pytest.approx(slope[0], rel=1e-5, abs=1e-8)
        bend = [derivatives(problem, theta + sign * step, objective)[0] for sign in (1, -1)]
        assert hessian[0, number] == pytest.approx((bend[0] - bend[1])[0] / 2e-6, rel=1e-3, abs=1e-4)


def test_least_squares_agrees_with_scipy():
    runs = study(CHINCHILLA, BUDGETS, WIDE, sigma=0.02, seed=5)
    problem = problem_of(runs)
    solution = fit_surface(problem, LeastSquares())

    def residuals(theta):
        e, a, alpha, b, beta = theta
        return problem.y - np.log(e + np.exp(a - alpha * problem.u) + np.exp(b - beta * problem.v))

    other = least_squares(residuals, [1.5, -1, 0.3, -1, 0.3], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert solution.theta == pytest.approx(other.x, rel=1e-6)
    assert solution.value == pytest.approx(other.cost, rel=1e-12)


def test_huber_is_nowhere_above_scipy_from_many_starts():
    for seed in range(2):
        runs = study(CHINCHILLA, BUDGETS, WIDE[::5], sigma=0.02, seed=seed)
        problem = problem_of(runs)
        solution = fit_surface(problem, Huber())
        objective = Huber()
        random = np.random.default_rng(seed)

        def total(theta, problem=problem, objective=objective):
            return value(problem, np.abs(theta[None]), objective)[0]

        best = min(
            minimize(total, solution.theta * random.uniform(0.7, 1.3, 5), method="L-BFGS-B").fun for _ in range(5)
        )
        polished = minimize(
            total, solution.theta, method="Nelder-Mead", options={"fatol": 1e-16, "xatol": 1e-10}
        ).fun
        assert solution.value <= best
        assert solution.value <= polished * (1 + 1e-9)


def test_vectorised_refits_equal_single_fits():
    runs = study(CHINCHILLA, BUDGETS, WIDE, sigma=0.02)
    problem = problem_of(runs)
    random = np.random.default_rng(0)
    for objective in (LeastSquares(), Huber()):
        fit = fit_surface(problem, objective)
        losses = problem.y + 0.01 * random.standard_normal((5, len(runs)))
        refits = refit(ChinchillaProblem(problem.u, problem.v, losses), fit.theta, objective)
        single_fits = [
            fit_surface(ChinchillaProblem(problem.u, problem.v, loss), objective).value for loss in losses
        ]
        assert refits.value == pytest.approx(single_fits, rel=1e-8)


def test_a_fit_is_deterministic_and_survives_json():
    runs = study(CHINCHILLA, BUDGETS, WIDE, sigma=0.01)
    fit = ParametricFitter(draws=100).fit(runs)
    assert ParametricFitter(draws=100).fit(runs) == fit
    assert ParametricFitter(draws=100, seed=1).fit(runs).draws != fit.draws
    reread = LawFit.model_validate_json(fit.model_dump_json())
    assert reread == fit
    assert optimum(reread, 1e23) == optimum(fit, 1e23)
    assert set(fit.draws) == {"E", "A", "B", "alpha", "beta"}


def test_the_optimum_follows_the_runs_own_flops_per_token():
    fit = ParametricFitter(draws=0).fit(study(LOCAL_FLOPS, BUDGETS, WIDE))
    assert fit.exponents["a"].value == pytest.approx(LOCAL_FLOPS.a, abs=1e-6)
    assert fit.exponents["a"].value * 0.88 + fit.exponents["b"].value == pytest.approx(1, abs=1e-6)
    prediction = optimum(fit, 1e24)
    assert prediction.params.value == pytest.approx(LOCAL_FLOPS.n_opt(1e24), rel=1e-5)
    assert prediction.tokens.value == pytest.approx(LOCAL_FLOPS.d_opt(1e24), rel=1e-5)
    assert "flops-per-token" in codes(fit)


def test_the_closed_form_is_used_for_6nd_and_agrees_with_the_numerical_minimum():
    law = {name: np.array([getattr(LOPSIDED, name)]) for name in ("E", "A", "B", "alpha", "beta")}
    nearly = FlopsPerToken.from_knots([(1.0, 6.0 * 1.02), (10.0, 60.0 * 1.02)])
    surface = LawSurface(find_law("chinchilla"), law)
    exact = minimise(surface, FlopsPerToken.from_knots(()), 1e22)
    numerical = minimise(surface, nearly, 1.02e22)
    for minimum, other in zip(exact, numerical, strict=True):
        assert minimum == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("surface", [CHINCHILLA, LOPSIDED, LOCAL_FLOPS])
def test_the_optimum_of_the_test_surfaces_is_right(surface):
    for flops in (1e18, 1e21, 1e25):
        best = minimize_scalar(
            lambda x, flops=flops: surface.loss(np.exp(x), surface.tokens(flops, np.exp(x))),
            bounds=(np.log(surface.n_opt(flops)) - 3, np.log(surface.n_opt(flops)) + 4),
            method="bounded",
            options={"xatol": 1e-12},
        )
        assert np.exp(best.x) == pytest.approx(surface.n_opt(flops), rel=1e-6)


def test_inference_makes_the_best_model_smaller_and_trains_it_longer():
    fit = ParametricFitter(draws=0).fit(study(CHINCHILLA, BUDGETS, WIDE))
    plain, served = optimum(fit, 1e23), optimum(fit, 1e23, inference_tokens=1e12)
    best = minimize_scalar(
        lambda x: CHINCHILLA.loss(np.exp(x), np.maximum(1e23 / (6 * np.exp(x)) - 1e12 / 3, 1e3)),
        bounds=(np.log(1e8), np.log(4e10)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert served.params.value == pytest.approx(np.exp(best.x), rel=1e-4)
    assert served.params.value < plain.params.value
    total = 6 * served.params.value * served.tokens.value + 2 * served.params.value * 1e12
    assert total == pytest.approx(1e23, rel=1e-9)


def test_mistuned_runs_are_excluded_by_name():
    runs = study(CHINCHILLA, BUDGETS, WIDE, sigma=0.01, seed=2)
    bad = {7, 23, 41}
    spoilt = [
        run.model_copy(update={"loss": run.loss * (1.2 if row in bad else 1.0)}) for row, run in enumerate(runs)
    ]
    fit = ParametricFitter(draws=0).fit(spoilt)
    assert set(fit.excluded) == {runs[row].id for row in bad}
    assert all(runs[row].id in next(d.message for d in fit.diagnostics if d.code == "outliers") for row in bad)
    clean = ParametricFitter(draws=0).fit(runs)
    assert clean.excluded == {}
    plain = ParametricFitter(draws=0, objective="least-squares").fit(spoilt)
    errors = [
        abs(np.log(optimum(law_fit, 1e24).params.value / CHINCHILLA.n_opt(1e24))) for law_fit in (fit, plain)
    ]
    assert errors[0] < errors[1] / 2


def test_without_outliers_the_default_is_least_squares():
    runs = study(CHINCHILLA, BUDGETS, WIDE, sigma=0.01, seed=4)
    robust, plain = (
        ParametricFitter(draws=0, objective=objective).fit(runs) for objective in ("robust", "least-squares")
    )
    assert robust.law.parameters == pytest.approx(plain.law.parameters, rel=1e-9)


def test_noise_on_the_undertrained_side_is_detected():
    random = np.random.default_rng(0)
    offset = random.uniform(-1, 1, 60)
    design = np.stack([np.ones(60), random.normal(size=60), offset], axis=1)
    errors = random.normal(size=60) * np.where(offset > 0, 0.05, 0.01)
    residuals = errors - design @ np.linalg.lstsq(design, errors, rcond=None)[0]
    sigma = fit_noise(residuals, design, build_covariates(offset), np.arange(60)).sigma()
    ratio = sigma[offset > 0.1].mean() / sigma[offset < -0.1].mean()
    assert 3 < ratio < 7


def test_correlation_within_a_trunk_is_detected():
    random = np.random.default_rng(1)
    trunk = np.repeat(np.arange(12), 5)
    design = np.stack([np.ones(60), random.normal(size=60)], axis=1)
    for share in (0.0, 0.8):
        errors = np.sqrt(share) * random.normal(size=12)[trunk] + np.sqrt(1 - share) * random.normal(size=60)
        residuals = errors - design @ np.linalg.lstsq(design, errors, rcond=None)[0]
        covariates = build_covariates(random.uniform(-1, 1, 60))
        correlation = fit_noise(residuals, design, covariates, trunk).correlation
        assert abs(correlation - share) < 0.25


def test_intervals_have_nominal_coverage():
    hits = []
    for seed in range(20):
        runs = study(CHINCHILLA, BUDGETS, WIDE[::3], sigma=0.01, seed=seed)
        interval = ParametricFitter(draws=100).fit(runs).exponents["a"]
        hits.append(interval.low <= CHINCHILLA.a <= interval.high)
    assert np.mean(hits) >= 0.7  # 90% of 20 has a standard error of 6.7%


def hardly_determined(seed):
    """Nine runs with 6% noise."""
    return study(LOPSIDED, BUDGETS[:3], (0.3, 1.0, 3.0), sigma=0.06, seed=seed)


def test_refits_that_lose_a_term_stay_in_the_interval_and_are_counted():
    fit = ParametricFitter(draws=200).fit(hardly_determined(2))
    (warning,) = [diagnostic for diagnostic in fit.diagnostics if diagnostic.code == "weakly-determined"]
    alpha, beta = np.array(fit.draws["alpha"]), np.array(fit.draws["beta"])
    outside = np.sum((np.minimum(alpha, beta) < 0.00501) | (np.maximum(alpha, beta) > 2.99))
    assert warning.severity == "warning"
    assert int(warning.message.split()[0]) >= max(outside, 3)
    assert len(alpha) == 200
    assert fit.exponents["a"].high - fit.exponents["a"].low > 0.4
    prediction = optimum(fit, 1e25)
    assert 1 <= prediction.params.low < prediction.params.high <= 1e25


def test_few_runs_report_an_assumed_noise():
    assert "few-runs" in codes(ParametricFitter(draws=50).fit(hardly_determined(2)))
    many = study(CHINCHILLA, BUDGETS, WIDE[::4], sigma=0.01)
    assert not {"few-runs", "weakly-determined"} & codes(ParametricFitter(draws=50).fit(many))


def test_a_law_that_lost_a_term_has_no_interval():
    flat = Surface(1.69, 1e-9, 410.7, 0.3, 0.3)
    grid = CHINCHILLA
    runs = [
        run.model_copy(update={"loss": flat.loss(run.params, run.tokens) * float(np.exp(0.01 * noise))})
        for run, noise in zip(
            study(grid, BUDGETS, WIDE[::5]), np.random.default_rng(0).standard_normal(15), strict=True
        )
    ]
    fit = ParametricFitter(draws=50).fit(runs)
    assert fit.exponents["a"].low is None
    assert "term of the law vanishes" in next(d.message for d in fit.diagnostics if d.code == "no-interval")


def test_case_resampling_whose_refits_fail_has_no_interval():
    runs = study(LOPSIDED, BUDGETS[:3], np.geomspace(0.3, 3, 7), sigma=0.08, seed=2)
    fit = ParametricFitter(draws=100, bootstrap="cases").fit(runs)
    assert fit.failed_draws > 1
    assert fit.exponents["a"].low is None
    assert f"{fit.failed_draws} of 100 bootstrap refits" in next(
        d.message for d in fit.diagnostics if d.code == "no-interval"
    )


def test_case_resampling_needs_many_independent_runs():
    runs = study(CHINCHILLA, BUDGETS, WIDE, sigma=0.01)
    fitter = ParametricFitter(bootstrap="cases", draws=100)
    assert fitter.fit(runs).exponents["a"].low is not None
    shared = [run.model_copy(update={"trajectory": run.id[-1]}) for run in runs]
    with pytest.raises(FitError, match="20 independent runs"):
        fitter.fit(shared)


def test_a_single_ratio_of_tokens_to_params_is_reported():
    fit = ParametricFitter(draws=0).fit(study(CHINCHILLA, 10.0 ** np.arange(17, 24), (0.9, 1.0, 1.1), sigma=0.001))
    assert "one-ratio" in codes(fit)


def test_a_shape_unlike_the_law_is_reported():
    runs = study(CHINCHILLA, BUDGETS, WIDE, sigma=0.002)
    bent = [
        run.model_copy(update={"loss": run.loss * float(np.exp(0.01 * np.log(run.tokens / run.params / 20) ** 2))})
        for run in runs
    ]
    assert "lack-of-fit" in codes(ParametricFitter(draws=0).fit(bent))
    assert "lack-of-fit" not in codes(ParametricFitter(draws=0).fit(runs))


def test_too_few_or_equal_runs_are_errors():
    runs = study(CHINCHILLA, BUDGETS, WIDE)
    with pytest.raises(FitError, match="5 runs cannot fit"):
        ParametricFitter().fit(runs[:5])
    with pytest.raises(FitError, match="all runs have the same loss"):
        ParametricFitter().fit([run.model_copy(update={"loss": 3.0}) for run in runs])
    with pytest.raises(FitError, match="all runs have the same N"):
        ParametricFitter().fit([run.model_copy(update={"params": 1e8}) for run in runs])
    with pytest.raises(FitError, match="no completed runs"):
        ParametricFitter().fit([])


def test_five_thousand_runs_are_fitted():
    runs = study(CHINCHILLA, np.geomspace(1e17, 1e21, 100), np.geomspace(1 / 16, 16, 50), sigma=0.01)
    fit = ParametricFitter(draws=200).fit(runs)
    assert fit.law.parameters["alpha"] == pytest.approx(0.34, abs=0.01)
    assert fit.exponents["a"].low < CHINCHILLA.a < fit.exponents["a"].high
    assert len(fit.draws["E"]) == 200


def test_flops_per_token_of_the_runs_is_a_smooth_function_of_n():
    knots = [(1e5, 1.8 * 6e5), (1e6, 1.5 * 6e6), (1e7, 1.3 * 6e7), (1e8, 1.15 * 6e8)]
    constraint = FlopsPerToken.from_knots(knots)
    x = np.linspace(np.log(1e4), np.log(1e10), 200)
    slopes = np.gradient(constraint(x), x)
    assert constraint.slope(x)[3:-3] == pytest.approx(slopes[3:-3], abs=0.02)
    assert np.exp(constraint(np.log([1e6]))) == pytest.approx([9e6])
    assert FlopsPerToken.from_knots(()).is_6n


def test_the_bundled_plugin_offers_it():
    offer = Registry().find("fitter", "parametric")
    fit = offer.spec.build(offer.spec.options(draws=0)).fit(study(CHINCHILLA, BUDGETS, WIDE))
    assert fit.fitter.name == "fitters/parametric"
    assert fit.law.name == "chinchilla"
