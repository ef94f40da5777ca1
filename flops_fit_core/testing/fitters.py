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
    """Tests for every fitter. Inherit, set ``name``, and run pytest.

    The tests fit 35 runs of five budgets from a fixed law, with and without noise. For a fitter of another law,
    override :meth:`loss`. For a fitter that needs other runs, such as training curves, override
    :meth:`observations`.

    Attributes:
        accuracy: Largest error of N_opt and the exponents without noise, as a factor minus 1. A fitter with
            another law than that of the runs has a systematic error.
        extrapolates: Whether it predicts the optimum of ten times the largest budget.
        needs: Smallest number of runs that it may fit. It must refuse fewer runs.
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
        generator = random.Random(seed)
        pairs = [(budget, self.best_params(budget) * offset) for budget in BUDGETS for offset in OFFSETS]
        return [
            Observation(
                id=f"run {number}",
                params=params,
                tokens=budget / (6 * params),
                flops=budget,
                loss=self.loss(params, budget / (6 * params)) * math.exp(noise * generator.gauss(0, 1)),
                budget=budget,
            )
            for number, (budget, params) in enumerate(pairs)
        ]

    def best_params(self, flops: float) -> float:
        """N of the lowest loss with 6 N D = ``flops``, by numerical minimization."""
        return _best_params(self.loss, flops)

    def best_loss(self, flops: float) -> float:
        """The loss at :meth:`best_params`."""
        params = self.best_params(flops)
        return self.loss(params, flops / (6 * params))

    @pytest.fixture
    def fitter(self, chosen: PluginConfig[Any]) -> Fitter:
        """The fitter with its options."""
        return build_fitter(chosen)

    @pytest.fixture
    def clean(self, fitter: Fitter) -> LawFit:
        """The fit of runs without noise."""
        return fitter.fit(self.observations(0.0))

    # ------------------------------------------------------------------ truth

    def test_it_finds_the_law_that_the_runs_have(self, fitter: Fitter, clean: LawFit) -> None:
        """The best size of every budget."""
        for flops in BUDGETS:
            estimate, truth = fitter.optimum(clean, flops).params.value, self.best_params(flops)
            assert abs(math.log(estimate / truth)) < math.log1p(self.accuracy), (
                f"N_opt({flops:.0e}) = {estimate:.4g}, the truth is {truth:.4g}"
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
        """C need not be 6 N D. With C = 8 N D, the same budget pays for fewer tokens."""
        factor = 8 / 6
        runs = [
            run.model_copy(
                update={"flops": factor * run.flops, "budget": None if run.budget is None else factor * run.budget}
            )
            for run in self.observations(0.0)
        ]
        fit = fitter.fit(runs)
        for flops in (BUDGETS[0], BUDGETS[-1]):
            estimate, truth = fitter.optimum(fit, factor * flops).params.value, self.best_params(flops)
            assert abs(math.log(estimate / truth)) < math.log1p(self.accuracy), (
                f"N_opt({factor * flops:.2e}) = {estimate:.4g} for runs with C = 8 N D, the truth is {truth:.4g}"
            )

    def test_seeds_are_several_runs_of_one_size(self, fitter: Fitter) -> None:
        """Two runs for each N and D that differ by noise."""
        replicates = [
            run.model_copy(
                update={
                    "id": f"{run.id} again",
                    "trajectory": f"{run.trajectory} again" if run.trajectory else run.trajectory,
                }
            )
            for run in self.observations(0.0003, seed=2)
        ]
        fit = fitter.fit([*self.observations(0.0003, seed=1), *replicates])
        estimate, truth = fitter.optimum(fit, 1e20).params.value, self.best_params(1e20)
        assert abs(math.log(estimate / truth)) < math.log1p(2 * self.accuracy), (
            f"{estimate:.4g}, the truth is {truth:.4g}"
        )

    def test_it_says_something_of_a_larger_budget(self, fitter: Fitter, clean: LawFit) -> None:
        """Ten times the largest budget: extrapolation is the purpose of a study."""
        if not self.extrapolates:
            pytest.skip("this fitter does not claim to extrapolate")
        flops = 10 * BUDGETS[-1]
        estimate = fitter.optimum(clean, flops).params.value
        assert abs(math.log(estimate / self.best_params(flops))) < math.log1p(2 * self.accuracy)

    # ------------------------------------------------------------------ records

    def test_every_run_is_fitted_or_named_as_left_out(self, clean: LawFit) -> None:
        """Each excluded run has a reason."""
        runs = self.observations(0.0)
        assert clean.n_runs + len(clean.excluded) == len(runs)
        assert clean.excluded.keys() <= {run.id for run in runs}
        assert all(reason.strip() for reason in clean.excluded.values())

    def test_a_fit_survives_json(self, fitter: Fitter, clean: LawFit) -> None:
        """Another process reads a stored fit and predicts from it."""
        copy = LawFit.model_validate_json(clean.model_dump_json())
        assert copy == clean
        assert fitter.optimum(copy, 1e20) == fitter.optimum(clean, 1e20)

    def test_it_says_what_it_fitted(self, chosen: PluginConfig[Any], clean: LawFit) -> None:
        """The name of the fitter, the law, and the range of the budgets."""
        assert clean.fitter.name.rpartition("/")[2] == chosen.spec.name
        assert clean.law.name.strip()
        flops = [run.flops for run in self.observations(0.0)]
        assert min(flops) <= clean.flops_range[0] < clean.flops_range[1] <= max(flops)

    # ------------------------------------------------------------------ intervals

    def test_intervals_hold_their_estimate(self, fitter: Fitter) -> None:
        """The level is between 0 and 1. Intervals widen with noise, if there are any."""
        quiet, noisy = (fitter.fit(self.observations(noise, seed=1)) for noise in (0.0003, 0.003))
        for fit in (quiet, noisy):
            assert 0 < fit.level < 1
            best = fitter.optimum(fit, 1e20)
            for interval in (*fit.exponents.values(), best.params, best.tokens, best.loss):
                low, high = (interval.value if end is None else end for end in (interval.low, interval.high))
                assert low <= interval.value <= high, f"{interval} does not contain the estimate"
        narrow, wide = (_width(fitter.optimum(fit, 1e20)) for fit in (quiet, noisy))
        if narrow is not None and wide is not None:
            assert narrow < wide, "ten times the noise did not widen the interval of N_opt"

    # ------------------------------------------------------------------ behaviour

    def test_the_same_runs_in_any_order_give_the_same_fit(self, fitter: Fitter) -> None:
        """Results arrive in the order in which runs end."""
        runs = self.observations(0.003)
        shuffled = random.Random(1).sample(runs, len(runs))
        copy = list(runs)
        first, second, reordered = (fitter.fit(order) for order in (runs, runs, shuffled))
        assert runs == copy, "the fitter changed its list of runs, which other fitters use, too"
        assert first == second, "two fits of the same runs differ: draw random numbers from a fixed seed only"
        optima = [fitter.optimum(fit, 1e20).params.value for fit in (first, reordered)]
        assert optima[0] == pytest.approx(optima[1], rel=1e-6)

    def test_too_few_runs_are_refused(self, fitter: Fitter) -> None:
        """With a FitError that names the missing runs."""
        runs = self.observations(0.0)
        cases: Sequence[Sequence[Observation]] = ([], runs[:1], runs[: self.needs - 1])
        for too_few in cases:
            with pytest.raises(FitError) as error:
                fitter.fit(too_few)
            assert str(error.value).strip()


def _best_params(loss: Callable[[float, float], float], flops: float) -> float:
    from scipy.optimize import minimize_scalar

    def loss_at(ln_params: float) -> float:
        params = math.exp(ln_params)
        return loss(params, flops / (6 * params))

    middle = 0.5 * math.log(flops / 120)
    minimum = minimize_scalar(loss_at, bounds=(middle - 6, middle + 6), method="bounded", options={"xatol": 1e-9})
    return float(math.exp(minimum.x))


def _width(best: Optimum) -> float | None:
    interval: Interval = best.params
    return None if interval.low is None or interval.high is None else math.log(interval.high / interval.low)
