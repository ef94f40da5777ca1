"""The conformance kit for fitters.

::

    from flops_fit_core.testing import FitterConformance

    class TestMyFitter(FitterConformance):
        name = "mine"
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest

from flops_fit_core.config import PluginConfig, build_fitter
from flops_fit_core.errors import FitError
from flops_fit_core.plugins.protocols import Fitter
from flops_fit_core.records import Interval, LawFit, Observation, Optimum
from flops_fit_core.testing.kit import Kit

Build = Callable[[], Fitter]

BUDGETS = (1e19, 3e19, 1e20, 3e20, 1e21)
OFFSETS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)


class FitterConformance(Kit):
    """What every fitter must do. Inherit, set ``name``, and run pytest.

    It is given 35 runs of five budgets whose law is known, with and without noise. A fitter of another law
    overrides :meth:`loss`; one that needs other runs, such as training curves, :meth:`observations`.

    Attributes:
        accuracy: How far N_opt and the exponents may be from the truth without noise, as a factor less one:
            a fitter whose law is another than that of the runs is off by something.
        extrapolates: Whether it says something of ten times the largest budget.
        needs: Fewest runs that it may fit. Below, it has to refuse.
    """

    kind: ClassVar[str] = "fitter"
    accuracy = 0.1
    extrapolates = True
    needs = 3

    # ------------------------------------------------------------------ runs

    def loss(self, params: float, tokens: float) -> float:
        """The law of the runs: by default approach 3 of Hoffmann et al. 2022, as rounded in the paper."""
        return float(1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28)

    def observations(self, noise: float, seed: int = 0) -> list[Observation]:
        """Runs around each budget's optimum, with noise of this standard deviation on ln L."""
        source = random.Random(seed)
        pairs = [(budget, self.best_params(budget) * offset) for budget in BUDGETS for offset in OFFSETS]
        return [
            Observation(
                id=f"run {number}",
                params=params,
                tokens=budget / (6 * params),
                flops=budget,
                loss=self.loss(params, budget / (6 * params)) * math.exp(noise * source.gauss(0, 1)),
                budget=budget,
            )
            for number, (budget, params) in enumerate(pairs)
        ]

    def best_params(self, flops: float) -> float:
        """Where the law is lowest with 6 N D = ``flops``, found by looking."""
        return _best_params(self.loss, flops)

    def best_loss(self, flops: float) -> float:
        """The law there."""
        params = self.best_params(flops)
        return self.loss(params, flops / (6 * params))

    @pytest.fixture
    def fitter(self, chosen: PluginConfig[Any]) -> Fitter:
        """With its options."""
        return build_fitter(chosen)

    @pytest.fixture
    def clean(self, fitter: Fitter) -> LawFit:
        """The fit of runs without noise."""
        return fitter.fit(self.observations(0.0))

    # ------------------------------------------------------------------ truth

    def test_it_finds_the_law_that_the_runs_have(self, fitter: Fitter, clean: LawFit) -> None:
        """The best size of every budget that was trained."""
        for flops in BUDGETS:
            found, truth = fitter.optimum(clean, flops).params.value, self.best_params(flops)
            assert abs(math.log(found / truth)) < math.log1p(self.accuracy), (
                f"N_opt({flops:.0e}) = {found:.4g}, the truth is {truth:.4g}"
            )

    def test_its_exponents_are_those_of_the_law(self, clean: LawFit) -> None:
        """``a`` of N_opt ~ C^a and ``b`` of D_opt ~ C^b."""
        assert {"a", "b"} <= clean.exponents.keys()
        ends = self.best_params(BUDGETS[0]), self.best_params(BUDGETS[-1])
        truth = math.log(ends[1] / ends[0]) / math.log(BUDGETS[-1] / BUDGETS[0])
        assert clean.exponents["a"].value == pytest.approx(truth, rel=self.accuracy)
        assert clean.exponents["b"].value == pytest.approx(1 - truth, rel=self.accuracy)

    def test_an_optimum_costs_its_budget_and_has_the_surface_s_loss(self, fitter: Fitter, clean: LawFit) -> None:
        """6 N D = C within 2%, and the loss within 2%."""
        for flops in (BUDGETS[0], 5e19, BUDGETS[-1]):
            best = fitter.optimum(clean, flops)
            assert best.flops == flops
            assert 6 * best.params.value * best.tokens.value == pytest.approx(flops, rel=0.02)
            assert best.loss.value == pytest.approx(self.best_loss(flops), rel=0.02)

    def test_c_is_what_the_runs_say(self, fitter: Fitter) -> None:
        """Their FLOPs counter need not count 6 N D: here it counts 8 N D, and a budget buys fewer tokens."""
        more = 8 / 6
        runs = [
            one.model_copy(
                update={"flops": more * one.flops, "budget": None if one.budget is None else more * one.budget}
            )
            for one in self.observations(0.0)
        ]
        fit = fitter.fit(runs)
        for flops in (BUDGETS[0], BUDGETS[-1]):
            found, truth = fitter.optimum(fit, more * flops).params.value, self.best_params(flops)
            assert abs(math.log(found / truth)) < math.log1p(self.accuracy), (
                f"N_opt({more * flops:.2e}) = {found:.4g} of runs with C = 8 N D, the truth is {truth:.4g}"
            )

    def test_seeds_are_several_runs_of_one_size(self, fitter: Fitter) -> None:
        """Two runs of each N and D, which differ by noise."""
        again = [one.model_copy(update={"id": f"{one.id} again"}) for one in self.observations(0.0003, seed=2)]
        again = [
            one.model_copy(update={"trajectory": f"{one.trajectory} again"}) if one.trajectory else one
            for one in again
        ]
        fit = fitter.fit([*self.observations(0.0003, seed=1), *again])
        found, truth = fitter.optimum(fit, 1e20).params.value, self.best_params(1e20)
        assert abs(math.log(found / truth)) < math.log1p(2 * self.accuracy), (
            f"{found:.4g}, the truth is {truth:.4g}"
        )

    def test_it_says_something_of_a_larger_budget(self, fitter: Fitter, clean: LawFit) -> None:
        """Ten times the largest: what a study is made for."""
        if not self.extrapolates:
            pytest.skip("this fitter does not claim to extrapolate")
        flops = 10 * BUDGETS[-1]
        found = fitter.optimum(clean, flops).params.value
        assert abs(math.log(found / self.best_params(flops))) < math.log1p(2 * self.accuracy)

    # ------------------------------------------------------------------ records

    def test_every_run_is_fitted_or_named_as_left_out(self, clean: LawFit) -> None:
        """With the reason."""
        runs = self.observations(0.0)
        assert clean.n_runs + len(clean.excluded) == len(runs)
        assert clean.excluded.keys() <= {one.id for one in runs}
        assert all(reason.strip() for reason in clean.excluded.values())

    def test_a_fit_survives_json(self, fitter: Fitter, clean: LawFit) -> None:
        """It is kept, and predicted from in another process."""
        again = LawFit.model_validate_json(clean.model_dump_json())
        assert again == clean
        assert fitter.optimum(again, 1e20) == fitter.optimum(clean, 1e20)

    def test_it_says_what_it_fitted(self, chosen: PluginConfig[Any], clean: LawFit) -> None:
        """The fitter by its name, the law, and the range of the budgets."""
        assert clean.fitter.name.rpartition("/")[2] == chosen.spec.name
        assert clean.law.name.strip()
        flops = [one.flops for one in self.observations(0.0)]
        assert min(flops) <= clean.flops_range[0] < clean.flops_range[1] <= max(flops)

    # ------------------------------------------------------------------ intervals

    def test_intervals_hold_their_estimate(self, fitter: Fitter) -> None:
        """At a level between 0 and 1; wider with noise, or none at all."""
        quiet, noisy = (fitter.fit(self.observations(noise, seed=1)) for noise in (0.0003, 0.003))
        for fit in (quiet, noisy):
            assert 0 < fit.level < 1
            best = fitter.optimum(fit, 1e20)
            for interval in (*fit.exponents.values(), best.params, best.tokens, best.loss):
                low, high = (interval.value if end is None else end for end in (interval.low, interval.high))
                assert low <= interval.value <= high, f"{interval} does not hold its own estimate"
        narrow, wide = (_width(fitter.optimum(fit, 1e20)) for fit in (quiet, noisy))
        if narrow is not None and wide is not None:
            assert narrow < wide, "ten times the noise did not widen the interval of N_opt"

    # ------------------------------------------------------------------ behaviour

    def test_the_same_runs_in_any_order_give_the_same_fit(self, fitter: Fitter) -> None:
        """Results arrive in the order in which runs happened to end."""
        runs = self.observations(0.003)
        shuffled = random.Random(1).sample(runs, len(runs))
        kept = list(runs)
        one, again, other = (fitter.fit(given) for given in (runs, runs, shuffled))
        assert runs == kept, "it has changed the list that it was given, which other fitters are given too"
        assert one == again, "the same runs, fitted again, give another fit: no number may be drawn without a seed"
        ends = [fitter.optimum(fit, 1e20).params.value for fit in (one, other)]
        assert ends[0] == pytest.approx(ends[1], rel=1e-6)

    def test_too_few_runs_are_refused(self, fitter: Fitter) -> None:
        """With FitError, which says what is missing."""
        runs = self.observations(0.0)
        given: Sequence[Sequence[Observation]] = ([], runs[:1], runs[: self.needs - 1])
        for few in given:
            with pytest.raises(FitError) as refused:
                fitter.fit(few)
            assert str(refused.value).strip()


def _best_params(loss: Callable[[float, float], float], flops: float) -> float:
    from scipy.optimize import minimize_scalar

    def at(ln_params: float) -> float:
        params = math.exp(ln_params)
        return loss(params, flops / (6 * params))

    middle = 0.5 * math.log(flops / 120)
    found = minimize_scalar(at, bounds=(middle - 6, middle + 6), method="bounded", options={"xatol": 1e-9})
    return float(math.exp(found.x))


def _width(best: Optimum) -> float | None:
    interval: Interval = best.params
    return None if interval.low is None or interval.high is None else math.log(interval.high / interval.low)
