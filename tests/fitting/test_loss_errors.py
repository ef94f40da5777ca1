"""Runs with standard errors of their losses, against independent weighted least squares."""

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize_scalar

from flops_fit_core import Observation
from flops_fit_core.fitting import AverageFitter, IsoflopFitter, LawFitter, ParametricFitter, optimum, read_table
from flops_fit_core.fitting.data import Runs
from flops_fit_core.fitting.solvers.law_problem import LawProblem
from flops_fit_core.fitting.uncertainty.holdout import root_mean_square
from flops_fit_core.fitting.uncertainty.loss_errors import solve_tau, weigh_by_errors
from flops_fit_core.fitting.uncertainty.posterior import weigh_by_drift
from flops_fit_core.plugins.registry.law_index import find_law

E, A, ALPHA, B, BETA = 1.7, 400.0, 0.34, 410.0, 0.28
N_OPT = ((ALPHA * A) / (BETA * B)) ** (1 / (ALPHA + BETA)) * (1e22 / 6) ** (BETA / (ALPHA + BETA))
"""The optimum of this surface at C = 1e22."""


def make_runs(standard_errors, tau=0.003, seed=0, bias=0.0):
    """IsoFLOP runs of Chinchilla's surface. ``standard_errors`` of ln L are cycled through, 0 for none.

    Losses have noise of ``tau`` between runs, an error of their standard error, and ``bias`` standard errors.
    """
    random = np.random.default_rng(seed)
    runs = []
    for budget in (1e18, 3e18, 1e19, 3e19, 1e20):
        centre = np.sqrt(budget / 6 / 20)
        for ratio in (0.25, 0.5, 1, 2, 4, 8):
            params, row = centre * ratio, len(runs)
            tokens, error = budget / 6 / params, standard_errors[row % len(standard_errors)]
            law = E + A / params**ALPHA + B / tokens**BETA
            loss = law * np.exp(tau * random.standard_normal() + error * (random.standard_normal() + bias))
            runs.append(
                Observation(
                    id=str(row),
                    params=params,
                    tokens=tokens,
                    flops=budget,
                    loss=loss,
                    budget=budget,
                    loss_se=loss * error if error else None,
                )
            )
    return runs


def weighted_least_squares(runs):
    """Parameters of chinchilla by weighted least squares, and the noise between runs by restricted likelihood."""
    params, tokens, loss = np.array([(run.params, run.tokens, run.loss) for run in runs]).T
    variance = np.array([(run.loss_se or 0.0) / run.loss for run in runs]) ** 2

    def residuals(theta):
        e, ln_a, alpha, ln_b, beta = theta
        law = np.exp(e) + np.exp(ln_a - alpha * np.log(params)) + np.exp(ln_b - beta * np.log(tokens))
        return np.log(loss) - np.log(law)

    def fit(tau):
        root = 1 / np.sqrt(tau**2 + variance)
        return least_squares(
            lambda theta: residuals(theta) * root,
            [np.log(E), np.log(A), ALPHA, np.log(B), BETA],
            x_scale="jac",
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
        )

    def misfit(tau):
        result = fit(tau)
        determinant = np.linalg.slogdet(result.jac.T @ result.jac)[1]
        return 2 * result.cost + determinant + np.log(tau**2 + variance).sum()

    tau = minimize_scalar(misfit, bounds=(1e-4, 0.02), method="bounded", options={"xatol": 1e-9}).x
    e, ln_a, alpha, ln_b, beta = fit(tau).x
    return {"E": np.exp(e), "A": np.exp(ln_a), "alpha": alpha, "B": np.exp(ln_b), "beta": beta}


def test_a_law_is_fitted_by_weighted_least_squares():
    runs = make_runs((0, 0.03, 0.006))
    expected = weighted_least_squares(runs)
    fitter = LawFitter("chinchilla", objective="least-squares", prior=False, draws=0)
    fit = fitter.fit(runs)
    unweighted = fitter.fit([run.model_copy(update={"loss_se": None}) for run in runs])
    for name, tolerance in (("E", 1e-3), ("alpha", 1e-3), ("beta", 1e-3)):
        assert fit.law.parameters[name] == pytest.approx(expected[name], rel=tolerance)
        assert unweighted.law.parameters[name] != pytest.approx(expected[name], rel=10 * tolerance)


def test_the_noise_between_runs_has_the_largest_restricted_likelihood():
    random = np.random.default_rng(0)
    design, variances = random.standard_normal((6000, 3)), np.tile([0.0, 1e-4, 4e-6], 2000)
    residuals = np.sqrt(0.004**2 + variances) * random.standard_normal(6000)
    assert solve_tau(residuals, design, variances) == pytest.approx(0.004, rel=0.05)
    assert solve_tau(residuals / 100, design, np.full(6000, 1e-4)) == pytest.approx(1e-5, rel=0.5)
    few, squares = residuals[:9:3], np.zeros(3)
    expected = np.linalg.lstsq(design[:3, :1], few)[1][0] / 2
    assert solve_tau(few, design[:3, :1], squares) ** 2 == pytest.approx(expected, rel=1e-4)


def test_understated_standard_errors_hardly_move_the_noise_between_runs():
    random = np.random.default_rng(1)
    variances = np.tile([0.0, 0.0, 0.0, 0.05**2], 8)
    residuals = np.where(variances > 0, 3 * 0.05, 0.002) * random.standard_normal(32)
    assert solve_tau(residuals, np.ones((32, 1)), variances) == pytest.approx(0.002, rel=0.4)


def test_equal_standard_errors_change_nothing():
    runs = make_runs((0.004,))
    for fitter in (AverageFitter(draws=50), LawFitter("skaling", draws=50)):
        fit = fitter.fit(runs)
        other = fitter.fit([run.model_copy(update={"loss_se": None}) for run in runs])
        assert optimum(fit, 1e22).params.value == pytest.approx(optimum(other, 1e22).params.value, rel=1e-3)


@pytest.mark.parametrize("fitter", [AverageFitter(draws=100), LawFitter("chinchilla", draws=100)])
def test_biased_forecasts_with_large_standard_errors_hardly_move_the_answer(fitter):
    runs = make_runs((0, 0, 0, 0.05), tau=0.001, bias=2.0)
    fit = fitter.fit(runs)
    answer = optimum(fit, 1e22).params
    assert answer.low < N_OPT < answer.high
    exact, unweighted = (
        optimum(fitter.fit(part), 1e22).params.value
        for part in (
            [run for run in runs if run.loss_se is None],
            [run.model_copy(update={"loss_se": None}) for run in runs],
        )
    )
    assert abs(np.log(answer.value / exact)) < 0.3 * abs(np.log(unweighted / exact))


def test_precise_forecasts_narrow_the_interval_and_imprecise_ones_do_not():
    def width(errors):
        runs = make_runs(errors, tau=0.002)
        interval = LawFitter("chinchilla", draws=400).fit(runs).exponents["a"]
        return interval.high - interval.low

    runs = [run for run in make_runs((0, 0.05), tau=0.002) if run.loss_se is None]
    interval = LawFitter("chinchilla", draws=400).fit(runs).exponents["a"]
    alone = interval.high - interval.low
    assert width((0, 0.0005)) < 0.85 * alone
    assert width((0, 0.05)) == pytest.approx(alone, rel=0.25)


def test_rows_of_a_trajectory_share_the_mean_of_their_variances():
    runs = make_runs((0, 0.02))
    runs = [run.model_copy(update={"trajectory": str(row // 2)}) for row, run in enumerate(runs)]
    noise = weigh_by_errors(Runs.of(runs), [find_law("chinchilla")]).noise
    assert noise == pytest.approx(np.ones(len(runs)), rel=1e-6)


def test_a_noisy_run_has_a_smaller_share_of_drift():
    runs = Runs.of(make_runs((0,)))
    law, trunk = find_law("chinchilla"), np.arange(len(runs))
    problem = LawProblem.of(law, runs, runs.inputs_of(law))
    noisy = problem.changed(noise=np.where(trunk == 0, 10.0, 1.0))
    weights = weigh_by_drift(problem, runs.flops, trunk, 3.0).weights
    changed = weigh_by_drift(noisy, runs.flops, trunk, 3.0).weights
    distance = np.log(100)
    assert changed[0] / weights[0] * weights[-1] / changed[-1] == pytest.approx(
        (1 + 9 * distance) / (1 + 9 * distance / 100)
    )


def test_held_out_runs_count_by_their_precision():
    errors = np.array([0.01, 0.05])
    assert root_mean_square(errors, np.ones(2)) == pytest.approx(np.sqrt(0.0013))
    assert root_mean_square(errors, np.array([1.0, 1e4])) == pytest.approx(0.01)


def test_a_fit_reports_the_weights_and_the_fitters_that_do_not_use_them():
    runs = make_runs((0, 0.03))
    messages = {
        type(fitter): [item.message for item in fitter.fit(runs).diagnostics if item.code == "loss-errors"]
        for fitter in (AverageFitter(draws=0), ParametricFitter(draws=0), IsoflopFitter(draws=0))
    }
    assert "15 of 30 losses have a standard error" in messages[AverageFitter][0]
    assert "are not used" in messages[ParametricFitter][0]
    assert "are not used" in messages[IsoflopFitter][0]
    plain = AverageFitter(draws=0).fit(make_runs((0,)))
    assert "loss-errors" not in {item.code for item in plain.diagnostics}


def test_a_table_has_standard_errors_in_a_column(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,loss,loss_se\n1e8,2e9,3.1,0.02\n2e8,2e9,3.0,\n3e8,2e9,2.9,0\n4e8,2e9,2.8,-1\n")
    table = read_table(path)
    assert [run.loss_se for run in table.observations] == [0.02, None, 0.0]
    assert "loss_se is -1; a standard error must be finite and not negative" in str(table.excluded)
