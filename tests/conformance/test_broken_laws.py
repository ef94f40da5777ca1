"""The conformance kit for laws detects laws that the solver cannot fit."""

from __future__ import annotations

from conftest import Failures

LAW = """
import numpy as np

from flops_fit_core.plugins import LawSpec, LossLaw, Parameter, hookimpl, log_sum_exp
from flops_fit_core.testing import LawConformance

class Broken(LossLaw):
    formula = "L = E + A / N^alpha + B / D^beta"
    inputs = INPUTS
    parameters = (
        Parameter("E", start=(0.3, 0.7), scale="linear", of_loss=True, BOUNDS),
        Parameter("A", start=(0.1, 0.4), over={"params": OVER}, of_loss=True),
        Parameter("alpha", start=STARTS, high=3.0),
        Parameter("B", start=(0.1, 0.4), over={"tokens": "beta"}, of_loss=True),
        Parameter("beta", start=(0.2, 0.5), high=3.0),
    )

    def loss(self, params, tokens, *, E, A, alpha, B, BETA):
        beta = BETA
        return FORMULA

    def gradient(self, params, tokens, *, E, A, alpha, B, beta):
        n, d = params**-alpha, tokens**-beta
        slopes = {"E": 1 + 0 * n, "A": n, "alpha": -A * n * np.log(params), "B": d}
        slopes["beta"] = -B * d * np.log(tokens)
        return GRADIENT

class Plugin:
    @hookimpl
    def flops_fit_laws(self):
        yield LawSpec(name="broken", build=Broken)

class TestBroken(LawConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


def test_broken_laws_fail_the_kit(failures: Failures) -> None:
    sound = {
        "INPUTS": '("params", "tokens")',
        "BOUNDS": "low=0.0",
        "OVER": '"alpha"',
        "STARTS": "(0.2, 0.5)",
        "BETA": "beta",
        "FORMULA": "E + A * params**-alpha + B * tokens**-beta",
        "GRADIENT": "slopes",
    }
    failed = failures(
        LAW,
        sound,
        {
            "sound": {},
            "sound without a gradient": {"GRADIENT": "None"},
            "takes an absolute value": {"FORMULA": "E + np.abs(A * params**-alpha) + B * tokens**-beta"},
            "takes the absolute value of D": {"FORMULA": "E + A * params**-alpha + B * np.abs(tokens)**-beta"},
            "uses logaddexp": {
                "FORMULA": "E + np.exp(np.logaddexp(np.log(A) - alpha * np.log(params), "
                "np.log(B) - beta * np.log(tokens)))"
            },
            "has the wrong sign in its gradient": {"GRADIENT": "{**slopes, 'alpha': -slopes['alpha']}"},
            "forgets a derivative": {"GRADIENT": "{key: slopes[key] for key in ('E', 'A', 'B', 'beta')}"},
            "is over an exponent that does not exist": {"OVER": '"alpha_n"'},
            "is over an input that does not exist": {"OVER": '"alpha"', '"params": "alpha"': '"size": "alpha"'},
            "calls a parameter by another name": {"BETA": "gamma", "beta = gamma": "beta = gamma"},
            "has no loss at its starting points": {"FORMULA": "E + A * params**-alpha + B * np.log(-beta)"},
            "has negative losses at its starting points": {
                "FORMULA": "E + A * params**-alpha + B * tokens**-beta - 20 + 0 * alpha"
            },
            "starts outside its bounds": {"BOUNDS": "low=5.0"},
            "ignores the rows of its parameters": {"FORMULA": "(E + A * params**-alpha + B * tokens**-beta)[0]"},
            "needs an input that loss does not take": {"INPUTS": '("params", "tokens", "experts")'},
        },
    )
    exact = "test_its_formula_has_exact_derivatives_by_complex_steps"
    gradient = "test_its_gradient_is_that_of_its_formula"
    points = "test_its_starting_points_give_losses"
    over = "test_its_terms_are_over_inputs_and_parameters"
    arguments = "test_its_parameters_are_the_keyword_arguments_of_its_formula"
    recovered = "test_its_losses_are_recovered_from_runs_without_noise"
    rows = "test_its_losses_have_a_row_per_fit"
    assert failed.pop("sound") == set()
    assert failed.pop("sound without a gradient") == set()
    assert failed.pop("takes the absolute value of D") == {exact}
    assert failed.pop("starts outside its bounds") == {points}
    expected = {
        "takes an absolute value": {exact},
        "uses logaddexp": {exact},
        "has the wrong sign in its gradient": {gradient, recovered},
        "forgets a derivative": {gradient},
        "is over an exponent that does not exist": {over},
        "is over an input that does not exist": {over},
        "calls a parameter by another name": {arguments},
        "has no loss at its starting points": {points, recovered},
        "has negative losses at its starting points": {points, recovered},
        "ignores the rows of its parameters": {rows},
        "needs an input that loss does not take": {arguments},
    }
    assert failed.keys() == expected.keys()
    assert {name: tests & expected[name] for name, tests in failed.items()} == expected
