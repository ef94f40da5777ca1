"""Optima where FLOPs per token are no multiple of N: scatter between sizes, other counts, far extrapolation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator
from scipy.optimize import minimize_scalar
from surfaces import CHINCHILLA

from flops_fit_core import LawFit, Observation, numbers
from flops_fit_core.fitting import (
    AverageFitter,
    IsoflopFitter,
    LawFitter,
    ParametricFitter,
    load_fit,
    optimum,
    write_fit,
)
from flops_fit_core.fitting.data import Runs
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken

BUDGETS = 10.0 ** np.arange(18, 23)
ALTERNATING = (-1.0) ** np.arange(24)


def observe(params, per_token, sigma=0.0, seed=0, near=8):
    """Runs of the ``near`` sizes around each budget's optimum under 6 N D."""
    random, out = np.random.default_rng(seed), []
    for budget in BUDGETS:
        for size in np.sort(np.argsort(np.abs(np.log(params / CHINCHILLA.n_opt(budget))))[:near]):
            tokens = budget / per_token[size]
            loss = CHINCHILLA.loss(params[size], tokens) * np.exp(sigma * random.standard_normal())
            values = {"params": params[size], "tokens": tokens, "flops": budget, "loss": loss, "budget": budget}
            out.append(Observation(id=f"{budget:.0e}/{size}", **values))
    return out


def gpt(width, counted_tables, blocks=lambda width: width / 64, vocabulary=50_257, context=2048):
    """N and FLOPs per token: 12 L d^2 in the blocks, V d in the head and in the embedding."""
    blocks = blocks(width)
    body, head = 12 * blocks * width**2, vocabulary * width
    return body + counted_tables * head, 6 * body + 12 * context * width * blocks + 6 * head


def best_size(flops, **convention):
    """N_opt on the ladder of all real widths."""
    width = np.geomspace(16, 2e5, 200_001)
    params, per_token = gpt(width, **convention)
    return params[np.argmin(CHINCHILLA.loss(params, flops / per_token))]


def warnings(fit: LawFit) -> list[str]:
    warnings = [
        diagnostic
        for diagnostic in fit.diagnostics
        if diagnostic.code == "flops-per-token" and diagnostic.severity == "warning"
    ]
    return [diagnostic.message for diagnostic in warnings]


@pytest.mark.parametrize("size", [0.02, 0.05])
@pytest.mark.parametrize("seed", [None, 0, 1, 2], ids=["alternating", "0", "1", "2"])
def test_scatter_of_flops_per_token_between_sizes_does_not_move_the_optimum(size, seed):
    params = np.geomspace(3e7, 1e10, 24)
    signs = ALTERNATING if seed is None else np.random.default_rng(seed).choice([-1.0, 1.0], 24)
    fit = ParametricFitter(draws=0).fit(observe(params, 6 * params * np.exp(size * signs)))
    for flops in (1e20, 1e24):
        assert optimum(fit, flops).params.value == pytest.approx(CHINCHILLA.n_opt(flops), rel=0.03)
    assert fit.exponents["a"].value == pytest.approx(CHINCHILLA.a, abs=0.005)
    (message,) = warnings(fit)
    assert "scatter by" in message
    if seed is None:
        assert f"scatter by {size:.1%}" in message


@pytest.mark.parametrize("blocks", [lambda width: width / 64, lambda width: 0 * width + 16], ids=["both", "width"])
@pytest.mark.parametrize("counted_tables", [0, 1, 2], ids=["body", "non-embedding", "total"])
def test_extrapolation_by_100_is_right_for_every_count_of_parameters(counted_tables, blocks):
    convention = {"counted_tables": counted_tables, "blocks": blocks}
    params, per_token = gpt(np.geomspace(200, 8000, 30), **convention)
    fit = ParametricFitter(draws=0).fit(observe(params, per_token))
    for flops in (1e20, 1e22, 1e24):
        assert optimum(fit, flops).params.value == pytest.approx(best_size(flops, **convention), rel=0.005)
    assert warnings(fit) == []


@pytest.mark.parametrize("counted_tables", [0, 1, 2], ids=["body", "non-embedding", "total"])
def test_whole_heads_and_blocks_are_an_ordinary_ladder(counted_tables):
    convention = {"counted_tables": counted_tables, "blocks": lambda width: 6 + width / 128}
    width = 64 * np.arange(2, 70)
    params, per_token = gpt(width, counted_tables, blocks=lambda width: np.round(6 + width / 128))
    fit = ParametricFitter(draws=0).fit(observe(params, per_token))
    assert optimum(fit, 1e24).params.value == pytest.approx(best_size(1e24, **convention), rel=0.01)
    assert warnings(fit) == []


def test_beyond_the_sizes_flops_per_token_grow_as_n():
    for counted_tables in (0, 1, 2):
        params, per_token = gpt(np.geomspace(200, 4000, 12), counted_tables)
        curve = FlopsPerToken.of(Runs.of(observe(params, per_token)))
        slopes = curve.slope(np.log(params[-1] * np.array([1.0, 1e3, 1e6, 1e9])))
        assert np.all(np.diff(np.abs(slopes - 1)) <= 0)
        assert slopes[2:] == pytest.approx(1, abs=0.003)
        grid = np.linspace(np.log(params[0]) - 5, np.log(params[-1]) + 20, 400)
        assert np.all(np.diff(curve(grid)) > 0)


def test_a_power_law_and_any_multiple_of_n_are_kept_exactly():
    params = np.geomspace(3e7, 1e10, 24)
    for per_token in (60 * params**0.88, 7.5 * params, 1.3 * params):
        curve = FlopsPerToken.of(Runs.of(observe(params, per_token)))
        assert curve(np.log(params)) == pytest.approx(np.log(per_token), abs=1e-4)


def test_an_interval_holds_the_uncertainty_of_flops_per_token():
    params, per_token = gpt(np.geomspace(300, 4000, 10), 0)
    scatter = np.exp(0.05 * np.random.default_rng(3).standard_normal(10))
    runs = observe(params, per_token * scatter, sigma=0.0005, near=5)
    fit = ParametricFitter().fit(runs)
    without_draws = fit.model_copy(update={"flops_per_token_modes": (), "flops_per_token_draws": ()})
    wide, narrow = (optimum(law_fit, 1e20).params for law_fit in (fit, without_draws))
    assert wide.value == narrow.value
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    assert {len(draw) for draw in fit.flops_per_token_draws} == {len(fit.draws["E"])}
    assert len(fit.flops_per_token_modes) == len(fit.flops_per_token_draws)


@pytest.mark.parametrize("fitter", [ParametricFitter(), LawFitter(law="kaplan"), IsoflopFitter(), AverageFitter()])
def test_every_fitter_takes_runs_whose_flops_per_token_scatter(fitter, tmp_path):
    params, per_token = gpt(np.geomspace(300, 8000, 16), 0)
    runs = observe(params, per_token * np.exp(0.05 * ALTERNATING[:16]), sigma=0.002)
    fit = fitter.fit(runs)
    prediction = fitter.optimum(fit, 1e20)
    assert prediction.params.low < prediction.params.value < prediction.params.high
    assert warnings(fit)
    write_fit(fit, tmp_path / "fit.json")
    assert fitter.optimum(load_fit(tmp_path / "fit.json"), 1e20) == prediction


def test_a_saved_fit_with_knots_only_gives_the_same_optimum(tmp_path):
    params, per_token = gpt(np.geomspace(300, 8000, 9), 0)
    knots = np.stack([params, per_token], axis=1)
    record = {
        "fitter": {"name": "fitters/parametric"},
        "law": {
            "name": "parametric",
            "parameters": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
        },
        "exponents": {},
        "level": 0.9,
        "objective": 0.0,
        "n_runs": 40,
        "draws": {name: [value] * 3 for name, value in zip("EAB", (1.69, 406.4, 410.7), strict=True)}
        | {"alpha": [0.34, 0.33, 0.35], "beta": [0.28] * 3},
        "flops_range": [1e18, 1e22],
        "flops_per_token": knots.tolist(),
    }
    path = tmp_path / "old.json"
    path.write_text(json.dumps(record))
    ln_f = PchipInterpolator(*np.log(knots).T)

    def loss(x):
        return CHINCHILLA.loss(np.exp(x), np.exp(np.log(1e20) - ln_f(x)))

    at = np.linspace(np.log(1e8), np.log(4e9), 4000)
    start = at[np.argmin([loss(x) for x in at])]
    best = minimize_scalar(loss, bounds=(start - 0.01, start + 0.01), method="bounded", options={"xatol": 1e-10})
    prediction = optimum(load_fit(path), 1e20)
    assert prediction.params.value == pytest.approx(np.exp(best.x), rel=1e-5)
    assert prediction.params.low < prediction.params.value < prediction.params.high


def test_two_families_in_a_table_are_reported():
    params = np.geomspace(3e7, 1e10, 24)
    runs = observe(params, params * np.where(params < 6e8, 6.0, 7.5))
    (message,) = warnings(ParametricFitter(draws=0).fit(runs))
    assert "jump by +25.0%" in message
    below, above = params[params < 6e8][-1], params[params >= 6e8][0]
    assert f"between N = {numbers.count(below)} and {numbers.count(above)}" in message


def test_flops_per_token_that_change_with_d_are_reported():
    runs = [
        run.model_copy(update={"flops": run.flops * (run.tokens / 1e9) ** 0.05})
        for run in observe(np.geomspace(3e7, 1e10, 24), 6 * np.geomspace(3e7, 1e10, 24))
    ]
    (message,) = warnings(ParametricFitter(draws=0).fit(runs))
    assert "change with D" in message
    assert f"{10**0.05 - 1:+.1%} for 10 times the tokens" in message


def test_sizes_with_two_counts_of_flops_are_reported():
    runs = observe(np.geomspace(3e7, 1e10, 24), 6 * np.geomspace(3e7, 1e10, 24))
    twice = [run.model_copy(update={"id": f"{run.id} again", "tokens": run.tokens / 1.1}) for run in runs]
    (message,) = warnings(ParametricFitter(draws=0).fit([*runs, *twice]))
    assert "runs of equal N differ by" in message


@pytest.mark.parametrize("sizes", [1, 2, 3, 4, 6, 12])
def test_6nd_is_recognised_from_any_number_of_sizes(sizes):
    params = np.geomspace(1e7, 1e9, sizes)
    runs = Runs.of(
        [
            Observation(
                id=f"{size:g}-{ratio}", params=size, tokens=ratio * size, flops=6 * ratio * size**2, loss=3
            )
            for size in params
            for ratio in (5, 20, 80)
        ]
    )
    constraint = FlopsPerToken.of(runs, draws=True)
    assert constraint.is_6n
    assert not constraint.warnings
