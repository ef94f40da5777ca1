"""The kit for fitters finds those that break their contract."""

from __future__ import annotations

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
        GIVEN
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


def test_broken_fitters_are_caught(failures: Failures) -> None:
    sound = {
        "GIVEN": "pass",
        "CHANGES": "",
        "FLOPS": "flops",
        "PARAMS": "best.params",
        "TOKENS": "best.tokens",
        "LOSS": "best.loss",
    }
    finds, costs = (
        "test_it_finds_the_law_that_the_runs_have",
        "test_an_optimum_costs_its_budget_and_has_the_surface_s_loss",
    )
    named, same = (
        "test_every_run_is_fitted_or_named_as_left_out",
        "test_the_same_runs_in_any_order_give_the_same_fit",
    )
    few = "test_too_few_runs_are_refused"
    found = failures(
        FITTER,
        sound,
        {
            "sound": {},
            "is off by a factor": {"PARAMS": "Interval(value=1.5 * best.params.value)"},
            "forgets that C is 6 N D": {"TOKENS": "Interval(value=flops / best.params.value)"},
            "gives ln L": {"LOSS": "Interval(value=math.log(best.loss.value))"},
            "swaps a and b": {"CHANGES": "exponents={'a': fit.exponents['b'], 'b': fit.exponents['a']}"},
            "drops runs in silence": {"GIVEN": "observations = observations[:-2]"},
            "depends on the order": {
                "GIVEN": "observations = observations[:29] if self.calls == 3 else observations"
            },
            "remembers earlier fits": {"CHANGES": "seed=self.calls"},
            "has an interval beside its estimate": {
                "PARAMS": "Interval(value=best.params.value, low=2 * best.params.value, high=1e99)"
            },
            "fits anything": {
                "GIVEN": "observations = observations if len(observations) > 2 else STUDY",
                "class Broken(Fitter):": "STUDY = FitterConformance().observations(0.0)\nclass Broken(Fitter):",
            },
            "takes C for 6 N D": {
                "GIVEN": "counted = [{'flops': 6 * o.params * o.tokens} for o in observations]; observations = "
                "[o.model_copy(update=one) for o, one in zip(observations, counted)]",
            },
            "has no place for replicates": {
                "GIVEN": "assert len({(o.params, o.tokens) for o in observations}) == len(observations)",
            },
            "sorts the runs where they lie": {"GIVEN": "observations.sort(key=lambda one: one.loss)"},
            "swaps the ends of an interval": {
                "PARAMS": "best.params.model_copy(update={'low': best.params.high, 'high': best.params.low})"
            },
            "says the name of another": {"CHANGES": "fitter=fit.fitter.model_copy(update={'name': 'isoflop'})"},
            "keeps to itself what it needs to predict": {
                "FLOPS": "flops if fit is self.last else 10 * flops",
                "return fit.model_copy(update=dict())": "self.last = fit; return fit",
            },
        },
    )
    assert found.pop("is off by a factor") >= {finds, costs}
    assert found.pop("drops runs in silence") >= {named}
    assert found == {
        "sound": set(),
        "forgets that C is 6 N D": {costs},
        "gives ln L": {costs},
        "swaps a and b": {"test_its_exponents_are_those_of_the_law"},
        "depends on the order": {same},
        "remembers earlier fits": {same},
        "has an interval beside its estimate": {"test_intervals_hold_their_estimate"},
        "fits anything": {few},
        "takes C for 6 N D": {"test_c_is_what_the_runs_say"},
        "has no place for replicates": {"test_seeds_are_several_runs_of_one_size"},
        "sorts the runs where they lie": {same},
        "swaps the ends of an interval": {"test_intervals_hold_their_estimate"},
        "says the name of another": {"test_it_says_what_it_fitted"},
        "keeps to itself what it needs to predict": {"test_a_fit_survives_json", same},
    }
