"""The conformance kit for fitters detects fitters that break their contract."""

from __future__ import annotations

import pytest
from conftest import Failures

FITTER = """
import math

from flops_fit_core import FitError, Interval, LawFit, Optimum
from flops_fit_core.plugins import Fitter, FitterSpec, hookimpl
from flops_fit_core.fitting import IsoflopFitter
from flops_fit_core.testing import FitterConformance

class Broken(Fitter):
    def __init__(self):
        self.inner = IsoflopFitter(draws=50, name="mine/broken")
        self.calls = 0

    def fit(self, observations):
        self.calls += 1
        BEFORE
        fit = self.inner.fit(observations)
        return fit.model_copy(update=dict(CHANGES))

    def optimum(self, fit, flops):
        best = self.inner.optimum(fit, FLOPS)
        return Optimum(flops=flops, params=PARAMS, tokens=TOKENS, loss=LOSS)

class Plugin:
    @hookimpl
    def flops_fit_fitters(self):
        yield FitterSpec(name="broken", build=lambda options: Broken())

class TestBroken(FitterConformance):
    name = "broken"
    plugins = {"mine": Plugin()}
"""


@pytest.mark.slow
def test_broken_fitters_fail_the_kit(failures: Failures) -> None:
    sound = {
        "BEFORE": "pass",
        "CHANGES": "",
        "FLOPS": "flops",
        "PARAMS": "best.params",
        "TOKENS": "best.tokens",
        "LOSS": "best.loss",
    }
    law, cost = (
        "test_it_finds_the_law_that_the_runs_have",
        "test_an_optimum_costs_its_budget_and_has_the_surface_s_loss",
    )
    named, same = (
        "test_every_run_is_fitted_or_named_as_left_out",
        "test_the_same_runs_in_any_order_give_the_same_fit",
    )
    few = "test_too_few_runs_are_refused"
    failed = failures(
        FITTER,
        sound,
        {
            "sound": {},
            "is wrong by a factor": {"PARAMS": "Interval(value=1.5 * best.params.value)"},
            "computes D without the factor 6": {"TOKENS": "Interval(value=flops / best.params.value)"},
            "returns ln L": {"LOSS": "Interval(value=math.log(best.loss.value))"},
            "swaps a and b": {"CHANGES": "exponents={'a': fit.exponents['b'], 'b': fit.exponents['a']}"},
            "drops runs silently": {"BEFORE": "observations = observations[:-2]"},
            "depends on the order": {
                "BEFORE": "observations = observations[:29] if self.calls == 3 else observations"
            },
            "remembers earlier fits": {"CHANGES": "seed=self.calls"},
            "has an interval without its estimate": {
                "PARAMS": "Interval(value=best.params.value, low=2 * best.params.value, high=1e99)"
            },
            "fits too few runs": {
                "BEFORE": "observations = observations if len(observations) > 2 else STUDY",
                "class Broken(Fitter):": "STUDY = FitterConformance().observations(0.0)\nclass Broken(Fitter):",
            },
            "assumes that C is 6 N D": {
                "BEFORE": "counted = [{'flops': 6 * o.params * o.tokens} for o in observations]; observations = "
                "[o.model_copy(update=flops) for o, flops in zip(observations, counted)]",
            },
            "rejects replicates": {
                "BEFORE": "assert len({(o.params, o.tokens) for o in observations}) == len(observations)",
            },
            "sorts the runs in place": {"BEFORE": "observations.sort(key=lambda run: run.loss)"},
            "swaps the ends of an interval": {
                "PARAMS": "best.params.model_copy(update={'low': best.params.high, 'high': best.params.low})"
            },
            "has the name of another fitter": {
                "CHANGES": "fitter=fit.fitter.model_copy(update={'name': 'isoflop'})"
            },
            "predicts from state outside its fit": {
                "FLOPS": "flops if fit is self.last else 10 * flops",
                "return fit.model_copy(update=dict())": "self.last = fit; return fit",
            },
        },
    )
    assert failed.pop("is wrong by a factor") >= {law, cost}
    assert failed.pop("drops runs silently") >= {named}
    assert failed == {
        "sound": set(),
        "computes D without the factor 6": {cost},
        "returns ln L": {cost},
        "swaps a and b": {"test_its_exponents_are_those_of_the_law"},
        "depends on the order": {same},
        "remembers earlier fits": {same},
        "has an interval without its estimate": {"test_intervals_hold_their_estimate"},
        "fits too few runs": {few},
        "assumes that C is 6 N D": {"test_c_is_what_the_runs_say"},
        "rejects replicates": {"test_seeds_are_several_runs_of_one_size"},
        "sorts the runs in place": {same},
        "swaps the ends of an interval": {"test_intervals_hold_their_estimate"},
        "has the name of another fitter": {"test_it_says_what_it_fitted"},
        "predicts from state outside its fit": {"test_a_fit_survives_json", same},
    }
