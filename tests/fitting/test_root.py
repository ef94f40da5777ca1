"""Roots of many functions at the same time, and optima of a part of the rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.optima import minimise
from flops_fit_core.fitting.laws.root import find_roots
from flops_fit_core.fitting.laws.surfaces import Average, LawSurface, Stack
from flops_fit_core.plugins.registry.law_index import find_law

TOLERANCE = 1e-12


def test_roots_of_several_functions_agree_with_brent():
    powers = np.array([[1.0], [3.0], [9.0]])
    targets = np.array([[0.3, 1.0, 7.0]])
    left, right = np.full((3, 3), 1e-3), np.full((3, 3), 20.0)
    roots, is_solved = find_roots(lambda x: np.log(x**powers / targets), left, right, TOLERANCE)
    assert is_solved.all()
    for (row, column), root in np.ndenumerate(roots):
        power, target = powers[row, 0], targets[0, column]
        assert root == pytest.approx(brentq(lambda x, p, t: x**p - t, 1e-3, 20, args=(power, target)), rel=1e-10)


def test_the_middle_of_the_ends_is_no_root_by_itself():
    left, right = np.array([[-1.0]]), np.array([[1.0]])
    function = lambda x: np.where(x < 0.5, x - 0.9, 3 * x - 1.9) - 0.05  # noqa: E731
    roots, is_solved = find_roots(function, left, right, TOLERANCE)
    assert is_solved.all()
    assert roots[0, 0] == pytest.approx(0.65)
    odd = lambda x: np.where(np.abs(x) == 1, x, x - 0.4)  # noqa: E731
    assert find_roots(odd, left, right, TOLERANCE)[0][0, 0] == pytest.approx(0.4)


def test_a_root_that_rounding_hides_is_the_nearest_number():
    scale = 1e6  # values change by 2e-10 between neighbouring numbers: none is below the tolerance
    roots, is_solved = find_roots(lambda x: scale * (x - np.pi) + 1e-11, *np.array([[[3.0]], [[4.0]]]), TOLERANCE)
    assert is_solved.all()
    assert roots[0, 0] == pytest.approx(np.pi, rel=1e-15)


def test_functions_without_a_change_of_sign_are_not_solved():
    levels = np.array([[-5.0], [5.0], [np.nan], [np.inf], [-np.inf], [0.5]])
    left, right = np.zeros((6, 1)), np.ones((6, 1))
    roots, is_solved = find_roots(lambda x: x - levels, left, right, TOLERANCE)  # without a warning
    assert is_solved[:, 0].tolist() == [False, False, False, False, False, True]
    assert roots[5, 0] == pytest.approx(0.5)


VALUES = {
    "chinchilla": {"E": 1.8, "A": 480.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37},
    "skaling": {"E": 1.7, "A": 480.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37, "k": 0.8},
}


def stack(rows: int) -> Stack:
    spread = np.linspace(0.9, 1.1, rows)
    columns = {
        name: {key: np.full(rows, value) for key, value in values.items()} for name, values in VALUES.items()
    }
    varied = {name: {**column, "beta": column["beta"] * spread} for name, column in columns.items()}
    return Stack([LawSurface(find_law(name), column) for name, column in varied.items()])


def curves(rows: int) -> FlopsPerToken:
    knots = np.linspace(np.log(1e4), np.log(1e12), 80)
    value = np.log(6) + knots + 2 / (1 + np.exp((knots - 15) / 2))
    modes = np.stack([np.tanh(knots - 18), np.cos(knots)]) * 0.01
    scores = np.random.default_rng(0).standard_normal((rows, 2))
    return FlopsPerToken(knots, value, modes=modes, scores=scores, is_drawn=True)


def test_every_curve_is_the_sum_of_its_modes():
    drawn, x = curves(5), np.linspace(5, 35, 40)[None, :]
    for number in range(5):
        single = drawn.row(number)
        value, slope = drawn.evaluate(x)
        assert value[number] == pytest.approx(single(x)[0], rel=1e-12)
        assert slope[number] == pytest.approx(np.maximum(single.slope(x)[0], 0.02), rel=1e-10)


def test_optima_of_some_rows_are_those_of_all_rows():
    surface, constraint, flops = stack(4), curves(8), 1e19
    everything = minimise(surface, constraint, flops)
    for rows in (np.array([0]), np.array([3, 4]), np.array([1, 2, 6, 7]), np.arange(8)):
        part = minimise(surface.take(rows), constraint.take(rows), flops)
        for all_rows, some in zip(everything, part, strict=True):
            assert some == pytest.approx(all_rows[rows], rel=1e-9)
    average = Average(stack(1).parts, [0.5, 0.5])
    assert average.take(np.array([0])) is average


@pytest.mark.parametrize("serving", [0.0, 1e10])
def test_every_optimum_is_the_lowest_loss_of_its_own_law_and_curve(serving):
    surface, constraint, flops = stack(3), curves(6), 3e19
    with np.errstate(over="ignore"):  # fewer tokens than one
        ln_params, ln_tokens, ln_loss = minimise(surface, constraint, flops, serving)
    for number in range(6):
        law, curve = surface.take(np.array([number])), constraint.row(number)

        def loss(x, law=law, curve=curve):
            tokens = flops / np.exp(curve(np.array([[x]]))) - serving / 3
            return float(law.loss(np.array([[x]]), np.log(tokens))[0, 0])

        best = minimize_scalar(loss, bracket=(ln_params[number] - 0.5, ln_params[number], ln_params[number] + 0.5))
        assert ln_params[number] == pytest.approx(best.x, abs=1e-5)
        assert np.exp(ln_loss[number]) == pytest.approx(best.fun, rel=1e-12)
        grid = [loss(x) for x in np.linspace(8, ln_params[number] + 0.5, 300)]
        assert np.exp(ln_loss[number]) <= min(grid) + 1e-9
        assert np.exp(ln_tokens[number]) == pytest.approx(
            flops / np.exp(curve(ln_params[[number]])[0]) - serving / 3, rel=1e-9
        )
