"""The average of laws: weights, backtests, pooled draws, and studies simulated from each of its laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from simulated_laws import TRUTH, evaluate
from surfaces import CHINCHILLA

from flops_fit_core import FitError, Observation
from flops_fit_core.fitting import (
    AverageFitter,
    LawFitter,
    Runs,
    backtest,
    load_fit,
    member_answers,
    optimum,
    predict_loss,
    write_fit,
)
from flops_fit_core.fitting.uncertainty.holdout import fold_weights, make_folds, predict_fold, weigh_laws
from flops_fit_core.plugins import Registry
from flops_fit_core.plugins.registry.law_index import find_law
from flops_fit_core.records import LawFit

BUDGETS = 10.0 ** np.arange(18, 22.1, 0.8)
OFFSETS = np.geomspace(0.25, 4, 6)
NAMES = ("chinchilla", "tied", "skaling")


def best_params(name, flops):
    """N_opt of a law of TRUTH, by an independent scalar search."""
    return float(
        np.exp(
            minimize_scalar(
                lambda x: evaluate(name, TRUTH[name], params=np.exp(x), tokens=flops / 6 / np.exp(x))[0],
                bounds=(np.log(flops) / 2 - 8, np.log(flops) / 2 + 5),
                method="bounded",
                options={"xatol": 1e-10},
            ).x
        )
    )


def best_loss(name, flops):
    params = best_params(name, flops)
    return float(evaluate(name, TRUTH[name], params=params, tokens=flops / 6 / params)[0])


def runs_of(name, sigma, seed=0, budgets=BUDGETS, offsets=OFFSETS):
    """IsoFLOP profiles around the optimum of a law, with noise on ln L."""
    random = np.random.default_rng(seed)
    runs = []
    for budget, offset in itertools.product(budgets, offsets):
        params = best_params(name, budget) * offset
        tokens = budget / 6 / params
        loss = float(evaluate(name, TRUTH[name], params=params, tokens=tokens)[0])
        noise = np.exp(sigma * random.standard_normal())
        runs.append(
            Observation(id=f"run {len(runs)}", params=params, tokens=tokens, flops=budget, loss=loss * noise)
        )
    return runs


@pytest.fixture(scope="module")
def runs():
    return runs_of("skaling", sigma=0.003)


@pytest.fixture(scope="module")
def fit(runs):
    return AverageFitter(draws=200).fit(runs)


def test_the_default_fitter_is_the_average():
    offer = Registry().find("fitter", "average")
    fitter = offer.spec.build(offer.spec.options())
    assert isinstance(fitter, AverageFitter)
    assert fitter.laws == NAMES


def test_the_weights_sum_to_1_and_the_draws_are_shared_by_them(fit):
    assert sum(member.weight for member in fit.members) == pytest.approx(1, abs=1e-12)
    assert {member.law.name for member in fit.members} == set(NAMES)
    assert fit.draw_count == 200
    for member in fit.members:
        drawn = len(next(iter(member.draws.values()), ()))
        assert drawn == pytest.approx(200 * member.weight, abs=1.01)


def test_equal_observations_give_equal_fits(runs, fit):
    assert AverageFitter(draws=200).fit(runs) == fit
    reordered = [runs[row] for row in np.random.default_rng(1).permutation(len(runs))]
    other = AverageFitter(draws=0).fit(reordered)
    assert optimum(other, 1e23).params.value == pytest.approx(optimum(fit, 1e23).params.value, rel=1e-6)


def test_the_average_is_the_weighted_geometric_mean_of_its_laws(fit):
    ln_losses = [
        member.weight * np.log(evaluate(member.law.name, member.law.parameters, params=2e9, tokens=3e10)[0])
        for member in fit.members
    ]
    assert predict_loss(fit, 2e9, 3e10).value == pytest.approx(np.exp(sum(ln_losses)), rel=1e-12)


def test_the_interval_covers_the_answers_of_the_likely_laws(fit):
    target = 10 * fit.flops_range[1]
    answers = [answer for answer in member_answers(fit, target) if answer["weight"] > 0.15]
    interval = optimum(fit, target).loss
    assert answers
    assert all(interval.low < answer["loss"] < interval.high for answer in answers)


def test_the_diagnostic_names_the_laws_and_the_backtests(fit):
    (message,) = [item.message for item in fit.diagnostics if item.code == "laws"]
    assert message == f"weighted mean of chinchilla, tied, skaling, by {len(fit.members[0].errors)} backtests"


def test_a_saved_average_gives_bit_equal_optima(fit, tmp_path):
    write_fit(fit, tmp_path / "fit.json")
    loaded = load_fit(tmp_path / "fit.json")
    assert loaded == fit
    for flops in (1e19, 1e22, 1e24):
        assert optimum(loaded, flops) == optimum(fit, flops)
    assert predict_loss(loaded, 1e9, 1e11, new_run=True) == predict_loss(fit, 1e9, 1e11, new_run=True)


def test_without_draws_there_are_no_intervals_of_the_law(runs):
    plain = AverageFitter(draws=0).fit(runs)
    assert plain.draw_count == 0
    assert optimum(plain, 1e22).params.low is None
    assert plain.exponents["a"].low is None
    assert plain.new_run is not None


@pytest.mark.parametrize("name", NAMES)
def test_runs_without_noise_give_the_optimum_of_their_law(name):
    """The prior and the other laws leave an error below that of 0.1% of noise."""
    fit = AverageFitter(draws=0).fit(runs_of(name, sigma=0.0))
    target = 10 * BUDGETS[-1]
    best = optimum(fit, target)
    assert best.params.value == pytest.approx(best_params(name, target), rel=0.02)
    assert best.loss.value == pytest.approx(best_loss(name, target), rel=1e-3)


# ---------------------------------------------------------------------------- few runs


def test_laws_with_too_many_parameters_are_left_out():
    runs = runs_of("chinchilla", sigma=0.002)
    fit = AverageFitter(draws=20).fit(runs[:36:5][:7])
    assert {member.law.name for member in fit.members} == {"chinchilla", "tied"}
    (message,) = [item.message for item in fit.diagnostics if item.code == "laws"]
    assert message.endswith("too few runs for skaling")
    assert "equal weights, because the runs allow no backtest" in message


def test_too_few_runs_are_an_error_with_advice():
    runs = runs_of("chinchilla", sigma=0.002)
    with pytest.raises(FitError, match="5 runs cannot fit a law of 4 parameters: train 6 or more, preferably 15"):
        AverageFitter().fit(runs[:5])


def test_a_law_with_further_inputs_is_not_averaged():
    runs = runs_of("chinchilla", sigma=0.002)
    message = "law 'joint-moe' also depends on experts: fit it with --law joint-moe"
    with pytest.raises(FitError, match=message):
        AverageFitter(laws=("chinchilla", "joint-moe")).fit(runs)


def test_runs_of_a_single_ratio_get_no_interval():
    """With one D / N, the laws fit as well with N and D swapped."""
    runs = []
    for number, params in enumerate(np.geomspace(1e7, 1e10, 20)):
        tokens = 20 * params
        loss = CHINCHILLA.loss(params, tokens)
        runs.append(
            Observation(id=str(number), params=params, tokens=tokens, flops=6 * params * tokens, loss=loss)
        )
    fit = AverageFitter(draws=20).fit(runs)
    assert optimum(fit, 1e22).params.low is None
    assert "no-interval" in {item.code for item in fit.diagnostics}


def test_an_outlier_is_left_out_by_name():
    runs = runs_of("skaling", sigma=0.002)
    runs[20] = runs[20].model_copy(update={"loss": runs[20].loss * 1.2})
    fit = AverageFitter(draws=0).fit(runs)
    assert set(fit.excluded) == {"run 20"}
    clean = AverageFitter(draws=0).fit(runs[:20] + runs[21:])
    assert optimum(fit, 1e23).loss.value == pytest.approx(optimum(clean, 1e23).loss.value, rel=1e-3)


def test_the_laws_of_the_average_can_be_chosen_and_the_fit_records_them():
    runs = runs_of("chinchilla", sigma=0.002)
    fit = AverageFitter(laws=("chinchilla", "kaplan"), draws=20).fit(runs)
    assert {member.law.name for member in fit.members} == {"chinchilla", "kaplan"}
    assert LawFit.model_validate_json(fit.model_dump_json()).fitter.options["laws"] == ["chinchilla", "kaplan"]


# ---------------------------------------------------------------------------- backtests


def test_rows_of_a_trajectory_are_on_one_side_of_a_backtest():
    random = np.random.default_rng(0)
    runs = [
        run.model_copy(update={"id": f"{run.id}/{row}", "trajectory": str(random.integers(12))})
        for row, run in enumerate(runs_of("chinchilla", sigma=0.002))
    ]
    folds = make_folds(Runs.of(runs), 8)
    assert folds
    names = np.array([run.trajectory for run in runs])
    for fold in folds:
        assert not set(names[fold.fitted]) & set(names[fold.held_out])
        assert (fold.fitted | fold.held_out).all()
        assert (fold.distance >= 0).all()


def test_backtests_hold_out_the_largest_runs_and_equal_flops_stay_together():
    runs = runs_of("chinchilla", sigma=0.002)
    data = Runs.of(runs)
    folds = make_folds(data, 8)
    assert [int(fold.fitted.sum()) for fold in folds] == sorted({int(fold.fitted.sum()) for fold in folds})
    for fold in folds:
        assert data.flops[fold.fitted].max() < data.flops[fold.held_out].min()
        expected = np.log(data.flops[fold.held_out] / data.flops[fold.fitted].max())
        assert fold.distance == pytest.approx(expected)


def test_a_backtest_does_not_use_the_runs_that_it_predicts():
    data = Runs.of(runs_of("chinchilla", sigma=0.002))
    fold = make_folds(data, 8)[0]
    changed = data.loss.copy()
    changed[fold.held_out] *= 1.1
    law = find_law("chinchilla")
    errors = predict_fold(law, data, fold, 0.0).errors
    moved = predict_fold(law, Runs(**{**vars(data), "loss": changed}), fold, 0.0).errors
    assert moved == pytest.approx(errors - np.log(1.1), abs=1e-12)


def test_weights_follow_from_the_errors_of_the_backtests():
    """Each backtest has the likelihood 1 / error; the last counts most, and the sum of counts is their number."""
    weights = fold_weights(3)
    assert weights == pytest.approx(np.array([1, 2, 4]) * 3 / 7)
    errors = [[np.full(4, size) for size in sizes] for sizes in ((0.01, 0.02, 0.01), (0.02, 0.02, 0.02))]
    first, second = weigh_laws(errors)
    assert first / second == pytest.approx(2 ** (weights[0] + weights[2]))
    assert weigh_laws([[], [], []]) == pytest.approx(np.full(3, 1 / 3))
    assert weigh_laws([[np.array([np.nan])], [np.array([0.1])]]) == pytest.approx([0, 1])


def test_the_law_of_the_runs_gets_more_weight_than_a_law_that_cannot_fit_them():
    """Chinchilla's surface with alpha = 3 beta contradicts equal exponents."""
    steep = {"E": 1.69, "A": 3000.0, "alpha": 0.465, "B": 60.0, "beta": 0.155}
    runs = []
    for params, tokens in itertools.product(np.geomspace(1e7, 1e10, 7), np.geomspace(1e9, 1e12, 7)):
        loss = float(evaluate("chinchilla", steep, params=params, tokens=tokens)[0])
        runs.append(
            Observation(id=str(len(runs)), params=params, tokens=tokens, flops=6 * params * tokens, loss=loss)
        )
    fit = AverageFitter(draws=0).fit(runs)
    weights = dict.fromkeys(NAMES, 0.0)
    for member in fit.members:
        weights[member.law.name] += member.weight
    assert weights["tied"] < 0.02


def test_the_public_backtest_accepts_the_average(runs):
    tested = backtest(AverageFitter(draws=20), runs)
    assert len(tested.held_out) == len(OFFSETS)
    assert tested.mean_abs_error < 0.02
    single = backtest(LawFitter(law="skaling", draws=20), runs)
    assert single.mean_abs_error < 0.02


# ---------------------------------------------------------------------------- coverage


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_90_percent_intervals_hold_the_truth_in_80_of_100_studies(name):
    target = 10 * BUDGETS[-1]
    truth = best_loss(name, target)
    sizes = [best_params(name, budget) for budget in (BUDGETS[0], BUDGETS[-1])]
    exponent = np.log(sizes[1] / sizes[0]) / np.log(BUDGETS[-1] / BUDGETS[0])
    covered = np.zeros(2)
    for seed in range(100):
        fit = AverageFitter(draws=150).fit(runs_of(name, sigma=0.005, seed=seed))
        loss, a = optimum(fit, target).loss, fit.exponents["a"]
        covered += [a.low <= exponent <= a.high, loss.low <= truth <= loss.high]
    assert covered[0] >= 80, covered
    assert covered[1] >= 80, covered
