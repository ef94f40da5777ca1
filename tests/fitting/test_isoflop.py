"""The isoflop fitter against parabolas known exactly, against scipy, and on simulated studies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit, least_squares
from surfaces import CHINCHILLA, LOPSIDED, Surface, study

from flops_fit_core import FitError, LawFit, Observation
from flops_fit_core.fitting import IsoflopFitter, profile_loss
from flops_fit_core.fitting.data import Runs
from flops_fit_core.fitting.fitters.minima import seed_noise
from flops_fit_core.fitting.fitters.profile_law import ProfileRuns, fit_profiles
from flops_fit_core.fitting.fitters.profile_noise import fit_draws
from flops_fit_core.fitting.fitters.profiles import group_by_budget, move_to_budgets
from flops_fit_core.fitting.laws.power_law import fit_line, fit_saturating
from flops_fit_core.plugins import Registry

BUDGETS = (1e17, 1e18, 1e19, 1e20)
OFFSETS = tuple(1.6 ** (step - 2.5) for step in range(6))


def parabolas(slopes=(0.46, 0.54), curvature=0.05, budgets=BUDGETS, centre=0.3) -> list[Observation]:
    """Runs with ln L an exact parabola in ln N, with N_opt = 0.2 C^a and 6 N D = C."""
    out = []
    for budget in budgets:
        best = np.log(0.2) + slopes[0] * np.log(budget)
        for number, step in enumerate(np.linspace(-1.2, 1.2, 6) + centre):
            params = float(np.exp(best + step))
            loss = float(np.exp(1 + 20 * budget**-0.1 + curvature * step**2))
            tokens = budget / (6 * params)
            out.append(
                Observation(
                    id=f"{budget}/{number}", params=params, tokens=tokens, flops=budget, loss=loss, budget=budget
                )
            )
    return out


def codes(fit: LawFit) -> set[str]:
    return {diagnostic.code for diagnostic in fit.diagnostics}


def test_the_minima_of_exact_parabolas_are_recovered():
    fit = IsoflopFitter().fit(parabolas())
    for minimum in fit.minima:
        assert minimum.params == pytest.approx(0.2 * minimum.budget**0.46, rel=1e-8)
        assert minimum.params * minimum.tokens * 6 == pytest.approx(minimum.budget, rel=1e-8)
        assert minimum.curve["c2"] == pytest.approx(0.05, rel=1e-8)
        assert profile_loss(minimum, np.array([minimum.params]))[0] == pytest.approx(minimum.loss, rel=1e-10)
    # Parabolas in ln L with these lowest losses are not exactly a law of the regression.
    assert fit.exponents["a"].value == pytest.approx(0.46, abs=5e-5)
    assert fit.exponents["b"].value == pytest.approx(0.54, abs=5e-5)
    assert fit.objective < 1e-5


@pytest.mark.parametrize("response", ["log-loss", "loss"])
@pytest.mark.parametrize("surface", [CHINCHILLA, LOPSIDED])
def test_the_optima_of_exact_surfaces_are_recovered(surface, response):
    fit = IsoflopFitter(response=response).fit(study(surface, BUDGETS, OFFSETS))
    assert fit.exponents["a"].value == pytest.approx(surface.a, abs=1e-7)
    assert fit.exponents["b"].value == pytest.approx(1 - surface.a, abs=1e-7)
    best = IsoflopFitter().optimum(fit, 1e22)
    assert best.params.value == pytest.approx(surface.n_opt(1e22), rel=1e-6)
    assert best.loss.value == pytest.approx(surface.loss(surface.n_opt(1e22), surface.d_opt(1e22)), rel=1e-6)
    assert fit.law.parameters["gamma"] == pytest.approx(surface.alpha * surface.a, rel=1e-5)


def test_the_slopes_of_the_profiles_agree_with_differences():
    random = np.random.default_rng(1)
    x, number = random.normal(size=12), np.repeat(np.arange(3), 4)
    for is_log in (True, False):
        runs = ProfileRuns(x, np.array([-2.0, 0.0, 2.5])[number], number, np.ones(12), is_log)
        theta = np.array([3.1, 2.8, 2.5, np.log(0.2), 0.3, 0.4, 0.12, -0.8, -1.3, -0.5])
        slopes = runs.evaluate_errors(theta, 0.1)[1]
        for column in range(len(theta)):
            step = np.zeros(len(theta))
            step[column] = 1e-6
            above, below = (runs.evaluate_errors(point, 0.1)[0] for point in (theta + step, theta - step))
            assert slopes[:, column] == pytest.approx((above - below) / 2e-6, abs=1e-8)
        many = runs.evaluate_errors(np.stack([theta, theta + 0.1]), 0.1)
        for row, point in enumerate((theta, theta + 0.1)):
            assert many[0][row] == pytest.approx(runs.evaluate_errors(point, 0.1)[0], abs=1e-14)
            assert many[1][row] == pytest.approx(runs.evaluate_errors(point, 0.1)[1], abs=1e-14)


def test_the_regression_agrees_with_scipys_curve_fit():
    """With the prior as six rows of known weight, curve_fit finds the same optimum by finite differences."""
    runs = study(CHINCHILLA, BUDGETS, OFFSETS, sigma=0.005, seed=3)
    number = np.repeat(np.arange(4), 6)
    x = np.log([run.params for run in runs])
    z = np.log([run.budget for run in runs])
    y = np.log([run.loss for run in runs])
    fit = fit_profiles(ProfileRuns(x - x.mean(), z - z.mean(), number, y, True))
    budget_z = np.log(BUDGETS) - np.log(BUDGETS).mean()

    def model(_, *theta):
        levels, (ln_c, n0, a, gamma, ln_p, ln_q, ln_k) = np.array(theta[:4]), theta[4:]
        u = x - x.mean() - n0 - a * (z - z.mean())
        p, q, k = np.exp([ln_p, ln_q, ln_k])
        sides = (q * np.exp(-p * u / k) + p * np.exp(q * u / k)) / (p + q)
        loss = levels[number] + np.exp(ln_c - gamma * (z - z.mean())) * k / (p * q) * (sides**k - 1)
        fall = np.polyfit(np.exp(-p * q / (p + q) * budget_z), levels, 1)[0]
        relations = [gamma - p * q / (p + q), a - q / (p + q), ln_c - np.log(fall * p * q / k)]
        return np.concatenate([np.log(loss), [ln_p, ln_q, ln_k], relations])

    prior = np.array([(np.log(0.35), 0.5), (np.log(0.35), 0.5), (np.log(0.5), 0.7), (0, 0.05), (0, 0.1), (0, 0.5)])
    sigma = np.concatenate([np.full(24, fit.sigma), prior[:, 1]])
    solution = curve_fit(
        model, np.arange(30), np.concatenate([y, prior[:, 0]]), p0=fit.theta + 0.02, sigma=sigma, maxfev=20000
    )[0]
    assert fit.theta == pytest.approx(solution, abs=2e-3)
    assert fit.line == pytest.approx(solution[5:7], abs=1e-5)


def test_the_degrees_of_freedom_are_those_of_the_hat_matrix():
    runs = study(CHINCHILLA, BUDGETS, OFFSETS, sigma=0.005, seed=3)
    x, z = np.log([run.params for run in runs]), np.log([run.budget for run in runs])
    y = np.log([run.loss for run in runs])
    fit = fit_profiles(ProfileRuns(x - x.mean(), z - z.mean(), np.repeat(np.arange(4), 6), y, True))
    slopes = fit.jacobian[:24]
    rest = np.eye(24) - slopes @ np.linalg.solve(fit.jacobian.T @ fit.jacobian, slopes.T)
    assert fit.dof == pytest.approx(np.trace(rest @ rest), abs=1e-6)
    assert 24 - 11 <= fit.dof <= 24 - 7


def test_every_draw_is_the_least_squares_fit_of_its_own_responses():
    runs = study(CHINCHILLA, BUDGETS, OFFSETS, sigma=0.01, seed=3)
    x, z = np.log([run.params for run in runs]), np.log([run.budget for run in runs])
    y = np.log([run.loss for run in runs])
    data = ProfileRuns(x - x.mean(), z - z.mean(), np.repeat(np.arange(4), 6), y, True)
    fit = fit_profiles(data)
    errors = np.random.default_rng(0).normal(size=(20, 30)) * fit.sigma
    for theta, error in zip(fit_draws(fit, errors), errors, strict=True):

        def residuals(point, error=error):
            return data.evaluate_errors(point, fit.sigma)[0] - error

        solution = least_squares(residuals, fit.theta, xtol=1e-12, ftol=1e-12).x
        assert np.sum(residuals(theta) ** 2) == pytest.approx(np.sum(residuals(solution) ** 2), rel=1e-3)
        assert theta[5:7] == pytest.approx(solution[5:7], abs=0.03)


def test_minima_agree_with_polyfit_and_the_line_with_weighted_curve_fit():
    runs = study(CHINCHILLA, BUDGETS, OFFSETS, sigma=0.003, seed=3)
    fit = IsoflopFitter(draws=0).fit(runs)
    minima = []
    for budget in BUDGETS:
        chosen = [run for run in runs if run.budget == budget]
        bend, slope, _ = np.polyfit(
            np.log([run.params for run in chosen]), np.log([run.loss for run in chosen]), 2
        )
        minima.append(-slope / (2 * bend))
    assert [np.log(minimum.params) for minimum in fit.minima] == pytest.approx(minima, rel=1e-9)
    assert fit.exponents["a"].value == pytest.approx(np.polyfit(np.log(BUDGETS), minima, 1)[0], abs=0.01)


def test_the_weighted_line_agrees_with_curve_fit():
    random = np.random.default_rng(0)
    x, y, weights = np.arange(7.0), random.normal(size=7), random.uniform(0.2, 3, 7)
    (intercept, slope), _ = curve_fit(lambda x, k, m: k + m * x, x, y, sigma=weights**-0.5)
    assert fit_line(x, y, weights) == (pytest.approx(intercept, rel=1e-6), pytest.approx(slope, rel=1e-6))


def test_an_irreducible_loss_is_recovered():
    x = np.log(np.array([1e17, 1e18, 1e19, 1e20, 1e21]))
    y = np.stack([1.7 + 900 * np.exp(-0.15 * x), 0.4 + 50 * np.exp(-0.08 * x)])
    fit = fit_saturating(x, y)
    assert fit.e == pytest.approx([1.7, 0.4], rel=1e-5)
    assert fit.gamma == pytest.approx([0.15, 0.08], rel=1e-5)
    assert np.exp(fit.ln_k) == pytest.approx([900, 50], rel=1e-4)


def test_tokens_come_from_the_runs_own_flops_per_token():
    surface = Surface(1.69, 406.4, 410.7, 0.34, 0.28, factor=60.0, phi=0.88)
    fit = IsoflopFitter(draws=0).fit(study(surface, BUDGETS, OFFSETS))
    assert fit.exponents["a"].value == pytest.approx(surface.a, abs=2e-3)
    assert fit.exponents["a"].value * 0.88 + fit.exponents["b"].value == pytest.approx(1, abs=1e-6)
    for minimum in fit.minima:
        assert minimum.tokens == pytest.approx(surface.tokens(minimum.budget, minimum.params), rel=1e-6)


def test_a_run_off_its_budget_is_moved_to_it():
    on, off = (study(CHINCHILLA, BUDGETS, OFFSETS, miss=miss) for miss in (0.0, 0.01))
    runs = Runs.of(off)
    raw = np.abs(np.log(runs.loss) - np.log(Runs.of(on).loss)).max()
    moved = np.abs(move_to_budgets(runs, group_by_budget(runs)) - np.log(Runs.of(on).loss)).max()
    assert raw > 5e-4
    assert moved < raw / 10


def test_a_systematic_miss_does_not_move_the_exponent():
    """Small models 1% over their budget and large ones 1% under it: the bias that moving removes."""
    runs = [
        run.model_copy(
            update={"flops": flops, "tokens": tokens, "loss": float(CHINCHILLA.loss(run.params, tokens))}
        )
        for run in study(CHINCHILLA, BUDGETS, OFFSETS)
        for flops in [run.budget * (run.params / CHINCHILLA.n_opt(run.budget)) ** -0.01]
        for tokens in [flops / (6 * run.params)]
    ]
    nominal = [run.model_copy(update={"flops": run.budget}) for run in runs]
    truth = IsoflopFitter(draws=0).fit(study(CHINCHILLA, BUDGETS, OFFSETS)).minima
    moved, unmoved = (IsoflopFitter(draws=0).fit(table).minima for table in (runs, nominal))
    errors = [
        max(abs(np.log(minimum.params / other.params)) for minimum, other in zip(minima, truth, strict=True))
        for minima in (moved, unmoved)
    ]
    assert errors[0] < errors[1] / 10


def test_same_runs_same_fit_and_it_survives_json():
    runs = study(CHINCHILLA, BUDGETS, OFFSETS, sigma=0.003, miss=0.01)
    fit = IsoflopFitter().fit(runs)
    assert IsoflopFitter().fit(runs) == fit
    assert IsoflopFitter(seed=1).fit(runs) != fit
    assert LawFit.model_validate_json(fit.model_dump_json()) == fit
    assert all(len(values) == 1000 for values in fit.draws.values())
    assert set(fit.draws) == set(fit.law.parameters)


@pytest.mark.parametrize(
    ("drop", "side", "word"), [(slice(0, 3), "smallest", "below"), (slice(3, 6), "largest", "above")]
)
def test_a_minimum_at_the_edge_is_flagged_with_the_side_to_extend(drop, side, word):
    runs = study(CHINCHILLA, BUDGETS, OFFSETS)
    cut = {run.id for run in runs if run.budget == 1e20} & {f"1.0e+20/{number}" for number in range(6)[drop]}
    fit = IsoflopFitter().fit([run for run in runs if run.id not in cut])
    (diagnostic,) = [diagnostic for diagnostic in fit.diagnostics if diagnostic.code == "minimum-at-edge"]
    assert "1e20" in diagnostic.message
    assert side in diagnostic.message
    assert f"{word} N = " in diagnostic.message
    assert [minimum.at_edge for minimum in fit.minima] == [False, False, False, True]
    assert set(fit.excluded) == {run.id for run in runs if run.budget == 1e20} - cut
    assert fit.n_runs == 18
    assert fit.flops_range == (1e17, 1e19)


def test_a_concave_profile_is_reported():
    runs = parabolas()
    shape = [1.2, 1.1, 1.15, 1.3, 1.25, 1.2]  # the lowest inside, the parabola concave
    bent = [run.model_copy(update={"loss": shape[int(run.id[-1])]}) if run.budget == 1e18 else run for run in runs]
    fit = IsoflopFitter().fit(bent)
    assert "not-convex" in codes(fit)
    assert len(fit.excluded) == 6
    assert all("bends downwards" in reason for reason in fit.excluded.values())


def test_one_usable_budget_is_an_error_with_advice():
    runs = study(CHINCHILLA, (1e18,), OFFSETS) + study(CHINCHILLA, (1e19,), OFFSETS[3:])
    with pytest.raises(FitError, match="only one budget has a minimum") as caught:
        IsoflopFitter().fit(runs)
    assert "add sizes below" in str(caught.value)
    assert "at least three budgets" in str(caught.value)


def test_two_usable_budgets_give_exponents_without_intervals():
    fit = IsoflopFitter().fit(study(CHINCHILLA, (1e18, 1e20), OFFSETS, sigma=0.001))
    assert fit.exponents["a"].low is None
    assert fit.draws == {}
    assert "no-interval" in codes(fit)
    assert IsoflopFitter().optimum(fit, 1e22).params.low is None


def test_three_runs_per_budget_give_an_interval_from_the_shape_that_budgets_share():
    hits = []
    for seed in range(20):
        fit = IsoflopFitter(draws=200).fit(study(CHINCHILLA, BUDGETS, (0.3, 1, 3), sigma=0.003, seed=seed))
        interval = fit.exponents["a"]
        hits.append(interval.low <= CHINCHILLA.a <= interval.high)
        assert "few-sizes" in codes(fit)
    assert np.mean(hits) >= 0.7  # 90% of 20 has a standard error of 6.7%


def test_the_loss_law_has_an_irreducible_term_and_three_budgets_lean_on_its_prior():
    four, three = (IsoflopFitter(draws=0).fit(study(CHINCHILLA, BUDGETS[:n], OFFSETS)) for n in (4, 3))
    for fit in (four, three):
        assert fit.law.parameters["E"] == pytest.approx(1.69, abs=1e-3)
    assert any("prior" in diagnostic.message for diagnostic in three.diagnostics)
    assert not any("prior" in diagnostic.message for diagnostic in four.diagnostics)


def test_noise_that_hides_the_curvature_gives_no_interval_and_the_reason():
    fit = IsoflopFitter().fit(study(CHINCHILLA, BUDGETS, np.geomspace(0.6, 1.7, 5), sigma=0.02, seed=0))
    assert fit.exponents["a"].low is None
    assert fit.draws == {}
    (reason,) = [item.message for item in fit.diagnostics if item.code == "no-interval"]
    assert "noise of the runs hides the curvature" in reason


def test_runs_that_are_mistuned_are_left_out_and_named():
    runs = study(CHINCHILLA, BUDGETS, OFFSETS, sigma=0.003, seed=5)
    bad = {"1.0e+18/2": 1.05, "1.0e+20/4": 1.04}
    spoilt = [run.model_copy(update={"loss": run.loss * bad.get(run.id, 1)}) for run in runs]
    fit, clean = IsoflopFitter(draws=0).fit(spoilt), IsoflopFitter(draws=0).fit(runs)
    assert set(fit.excluded) == set(bad)
    assert clean.excluded == {}
    (message,) = [item.message for item in fit.diagnostics if item.code == "outliers"]
    assert "1.0e+18/2 (+4.51%), 1.0e+20/4 (+4.18%)" in message
    rest = IsoflopFitter(draws=0).fit([run for run in runs if run.id not in bad])
    # The noise that scales the prior is iterated to .1%.
    assert fit.exponents["a"].value == pytest.approx(rest.exponents["a"].value, abs=1e-5)
    assert IsoflopFitter(draws=0, objective="least-squares").fit(spoilt).excluded == {}


def test_runs_far_from_the_optimum_are_left_out():
    runs = study(CHINCHILLA, BUDGETS, np.geomspace(1 / 30, 30, 13))
    bent = [
        run.model_copy(update={"loss": run.loss * 1.5}) if run.params > 10 * CHINCHILLA.n_opt(run.budget) else run
        for run in runs
    ]
    fit = IsoflopFitter(draws=0).fit(bent)
    assert fit.exponents["a"].value == pytest.approx(CHINCHILLA.a, abs=1e-5)
    far = {run.id for run in bent if run.params > 10 * CHINCHILLA.n_opt(run.budget)}
    assert far <= set(fit.excluded)
    assert sum("too far from the optimum" in reason for reason in fit.excluded.values()) >= 11
    assert fit.n_runs + len(fit.excluded) == len(runs)


def test_a_budget_whose_lowest_loss_is_at_an_edge_by_noise_is_used():
    runs = study(CHINCHILLA, BUDGETS, OFFSETS, sigma=0.01, seed=3)
    fit = IsoflopFitter().fit(runs)
    assert [minimum.at_edge for minimum in fit.minima] == [False, False, False, True]
    assert fit.n_runs == len(runs)
    (text,) = [item.message for item in fit.diagnostics if item.code == "no-own-minimum"]
    assert "budget 1e20: its lowest loss is at its smallest size" in text
    assert fit.exponents["a"].low < CHINCHILLA.a < fit.exponents["a"].high


def test_runs_without_budgets_are_grouped_by_flops():
    runs = [run.model_copy(update={"budget": None}) for run in study(CHINCHILLA, BUDGETS, OFFSETS, miss=0.05)]
    fit = IsoflopFitter(draws=0).fit(runs)
    assert [minimum.n_runs for minimum in fit.minima] == [6, 6, 6, 6]
    assert [minimum.budget for minimum in fit.minima] == pytest.approx(BUDGETS, rel=0.05)
    assert fit.exponents["a"].value == pytest.approx(CHINCHILLA.a, abs=5e-3)


def test_seeds_with_different_sizes_are_reported():
    runs = study(CHINCHILLA, BUDGETS, OFFSETS)
    mixed = [run.model_copy(update={"seed": int(run.id[-1]) % 2}) for run in runs]
    assert "mixed-seeds" in codes(IsoflopFitter(draws=0).fit(mixed))
    crossed = [run.model_copy(update={"seed": seed, "id": f"{run.id}/{seed}"}) for run in runs for seed in (0, 1)]
    assert "mixed-seeds" not in codes(IsoflopFitter(draws=0).fit(crossed))


def test_minima_off_the_line_widen_the_interval_and_are_reported():
    runs = study(CHINCHILLA, (*BUDGETS, 1e21), OFFSETS, sigma=0.0003)
    shifted = [
        run.model_copy(update={"params": run.params * 1.3, "tokens": run.tokens / 1.3})
        if run.budget == 1e19
        else run
        for run in runs
    ]
    straight, bent = IsoflopFitter().fit(runs), IsoflopFitter().fit(shifted)
    assert "scatter" not in codes(straight)
    assert "scatter" in codes(bent)
    width = [fit.exponents["a"].high - fit.exponents["a"].low for fit in (straight, bent)]
    assert width[1] > 3 * width[0]


def test_extrapolation_is_reported_with_its_factor():
    fitter = IsoflopFitter(draws=0)
    fit = fitter.fit(study(CHINCHILLA, BUDGETS, OFFSETS))
    assert "100 times the largest" in fitter.optimum(fit, 1e22).notes[0]
    assert "1/10 of the smallest" in fitter.optimum(fit, 1e16).notes[0]
    assert fitter.optimum(fit, 1e18).notes == ()
    with pytest.raises(FitError, match="positive"):
        fitter.optimum(fit, -1.0)


def test_intervals_of_a_four_by_six_study_have_nominal_coverage():
    hits = []
    for seed in range(16):
        runs = study(CHINCHILLA, BUDGETS, OFFSETS, sigma=0.002, miss=0.005, seed=seed)
        interval = IsoflopFitter(draws=100).fit(runs).exponents["a"]
        hits.append(interval.low <= CHINCHILLA.a <= interval.high)
    assert np.mean(hits) >= 0.65  # 90% of 16 has a standard error of 7.5%


@pytest.mark.parametrize(
    ("surface", "reach", "bias"),
    [
        (CHINCHILLA, 2, -0.0033),
        (CHINCHILLA, 4, -0.0130),
        (CHINCHILLA, 8, -0.0290),
        (CHINCHILLA, 16, -0.0510),
        (LOPSIDED, 16, -0.231),
    ],
)
def test_the_regression_has_none_of_the_published_bias_of_parabolas(surface, reach, bias):
    """Error of D_opt(1e24) from five noise-free budgets of 15 sizes each, by separate parabolas and by the law."""
    runs = study(surface, 10.0 ** np.arange(17, 22), np.geomspace(1 / reach, reach, 15))
    ln_tokens = []
    for budget in 10.0 ** np.arange(17, 22):
        chosen = [run for run in runs if run.budget == budget]
        bend, slope, _ = np.polyfit(np.log([run.params for run in chosen]), [run.loss for run in chosen], 2)
        ln_tokens.append(np.log(budget / 6) + slope / (2 * bend))
    line = np.polyfit(np.log(10.0) * np.arange(17, 22), ln_tokens, 1)
    parabolas = np.exp(np.polyval(line, np.log(1e24))) / surface.d_opt(1e24) - 1
    assert parabolas == pytest.approx(bias, abs=5e-4 if bias < -0.1 else 6e-5)
    fit = IsoflopFitter(draws=0, response="loss").fit(runs)
    assert IsoflopFitter().optimum(fit, 1e24).tokens.value / surface.d_opt(1e24) - 1 == pytest.approx(0, abs=1e-6)


def test_the_bundled_plugin_offers_it_with_typed_options():
    offer = Registry().find("fitter", "isoflop")
    fitter = offer.spec.build(offer.spec.options(level=0.8, draws=50))
    fit = fitter.fit(study(CHINCHILLA, BUDGETS, OFFSETS, sigma=0.001))
    assert fit.level == 0.8
    assert fit.fitter.name == "fitters/isoflop"
    assert fit.fitter.options == {"level": 0.8, "draws": 50}
    assert len(fit.draws["a"]) == 50


@pytest.mark.parametrize("shape", ["cubic", "akima"])
def test_other_shapes_find_the_minimum_of_a_skewed_profile_that_a_parabola_misses(shape):
    runs = study(LOPSIDED, BUDGETS, np.geomspace(1 / 6, 6, 9))
    errors = {}
    for fitted_shape in ("parabola", shape):
        fit = IsoflopFitter(draws=0, shape=fitted_shape).fit(runs)
        errors[fitted_shape] = max(
            abs(np.log(minimum.params / LOPSIDED.n_opt(minimum.budget))) for minimum in fit.minima
        )
    assert errors[shape] < errors["parabola"] / 5


def test_the_minimum_of_a_cubic_agrees_with_polyfit():
    runs = study(CHINCHILLA, BUDGETS, OFFSETS, sigma=0.003, seed=8)
    fit = IsoflopFitter(draws=0, shape="cubic").fit(runs)
    for minimum in fit.minima:
        chosen = [run for run in runs if run.budget == minimum.budget]
        x = np.log([run.params for run in chosen])
        cubic = np.polynomial.Polynomial.fit(x, np.log([run.loss for run in chosen]), 3)
        turns = [t.real for t in cubic.deriv().roots() if cubic.deriv(2)(t.real) > 0]
        assert np.log(minimum.params) == pytest.approx(turns[0], abs=1e-6)
        grid = np.exp(np.linspace(x.min(), x.max(), 7))
        assert np.log(profile_loss(minimum, grid)) == pytest.approx(cubic(np.log(grid)), abs=1e-9)


def test_akima_passes_through_the_runs_and_assumes_the_published_seed_noise():
    runs = study(CHINCHILLA, BUDGETS, OFFSETS, sigma=0.0003)
    fit = IsoflopFitter(shape="akima").fit(runs)
    for minimum in fit.minima:
        chosen = [run for run in runs if run.budget == minimum.budget]
        losses = profile_loss(minimum, np.array([run.params for run in chosen]))
        assert losses == pytest.approx([run.loss for run in chosen], rel=1e-6)
    assert fit.exponents["a"].low < CHINCHILLA.a < fit.exponents["a"].high
    assert seed_noise(np.array([2.5, 3.0, 7.0, 9.0]), "loss") == pytest.approx([0.002, 0.002, 0.05, 0.05])
