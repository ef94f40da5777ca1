"""The isoflop fitter against parabolas known exactly, against scipy, and on simulated studies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit
from surfaces import CHINCHILLA, LOPSIDED, Surface, study

from flops_fit_core import FitError, LawFit, Observation
from flops_fit_core.fitting import IsoflopFitter, profile_loss
from flops_fit_core.fitting.data import Runs
from flops_fit_core.fitting.fitters.minima import seed_noise
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


def test_exact_parabolas_are_recovered():
    fit = IsoflopFitter().fit(parabolas())
    assert fit.exponents["a"].value == pytest.approx(0.46, abs=1e-10)
    assert fit.exponents["b"].value == pytest.approx(0.54, abs=1e-10)
    assert fit.law.parameters["ln_kN"] == pytest.approx(np.log(0.2), abs=1e-8)
    assert fit.objective < 1e-20
    for minimum in fit.minima:
        assert minimum.params == pytest.approx(0.2 * minimum.budget**0.46, rel=1e-8)
        assert minimum.params * minimum.tokens * 6 == pytest.approx(minimum.budget, rel=1e-8)
        assert minimum.curve["c2"] == pytest.approx(0.05, rel=1e-8)
        assert profile_loss(minimum, np.array([minimum.params]))[0] == pytest.approx(minimum.loss, rel=1e-10)


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
    # All budgets have one design here but turn at different places of it; the weights follow.
    equal = np.polyfit(np.log(BUDGETS), minima, 1)[0]
    assert fit.exponents["a"].value == pytest.approx(equal, abs=0.01)


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
    assert "1e+20" in diagnostic.message
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


def test_three_runs_per_budget_give_no_interval_for_unknown_noise():
    fit = IsoflopFitter().fit(study(CHINCHILLA, BUDGETS, (0.3, 1, 3)))
    assert fit.exponents["a"].low is None
    assert {"few-sizes", "no-interval"} <= codes(fit)


def test_four_budgets_give_a_loss_law_with_an_irreducible_term_and_three_do_not():
    four, three = (IsoflopFitter(draws=0).fit(study(CHINCHILLA, BUDGETS[:n], OFFSETS)) for n in (4, 3))
    assert four.law.parameters["E"] == pytest.approx(1.69, abs=0.02)
    assert three.law.parameters["E"] == 0
    assert any("irreducible" in diagnostic.message for diagnostic in three.diagnostics)


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
def test_parabolas_have_the_published_bias(surface, reach, bias):
    """What noise-free parabolas in L miss D_opt(1e24) by, from five budgets of 15 sizes each."""
    runs = study(surface, 10.0 ** np.arange(17, 22), np.geomspace(1 / reach, reach, 15))
    fit = IsoflopFitter(draws=0, response="loss").fit(runs)
    tokens = IsoflopFitter().optimum(fit, 1e24).tokens.value
    assert tokens / surface.d_opt(1e24) - 1 == pytest.approx(bias, abs=5e-4 if bias < -0.1 else 6e-5)


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
