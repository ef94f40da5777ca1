"""The hook for laws."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flops_fit_core.plugins.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from flops_fit_core.plugins.specs import FitterSpec


@hookspec
def flops_fit_fitters() -> Iterable[FitterSpec]:
    """Offer fitters: ``[fitter]`` in an experiment.

    ::

        import math

        from flops_fit_core import FitError, Interval, Law, LawFit, Optimum
        from flops_fit_core.plugins import Fitter, FitterSpec, fit_header, hookimpl

        class BestOfEach(Fitter):
            # Straight lines through the best run of each budget: ln N and ln L against ln C.
            def fit(self, observations):
                best = {}
                for one in sorted(observations, key=lambda one: one.loss, reverse=True):
                    best[one.budget or one.flops] = one
                if len(best) < 2:
                    raise FitError(f"runs of {len(best)} budgets; a line needs two")
                runs = sorted(best.values(), key=lambda one: one.flops)
                x = [math.log(one.flops) for one in runs]
                a, params = line(x, [math.log(one.params) for one in runs])
                slope, loss = line(x, [math.log(one.loss) for one in runs])
                law = Law(name="best of each", parameters={"a": a, "ln_N": params, "slope": slope, "ln_L": loss})
                others = {one.id: "not the best of its budget" for one in observations if one not in runs}
                flops, sizes = [one.flops for one in runs], [one.params for one in runs]
                return LawFit(
                    **fit_header(self, "mine/best-of-each", flops=flops, params=sizes),
                    law=law, excluded=others, objective=0.0, n_runs=len(runs),
                    exponents={"a": Interval(value=a), "b": Interval(value=1 - a)},
                )

            def optimum(self, fit, flops):
                it, x = fit.law.parameters, math.log(flops)
                params = math.exp(it["ln_N"] + it["a"] * x)
                return Optimum(flops=flops, params=Interval(value=params),
                               tokens=Interval(value=flops / (6 * params)),
                               loss=Interval(value=math.exp(it["ln_L"] + it["slope"] * x)))

        def line(x, y):
            mean, middle = sum(x) / len(x), sum(y) / len(y)
            both = zip(x, y, strict=True)
            slope = sum((p - mean) * (q - middle) for p, q in both) / sum((p - mean) ** 2 for p in x)
            return slope, middle - slope * mean

        @hookimpl
        def flops_fit_fitters():
            yield FitterSpec(name="best-of-each", build=lambda options: BestOfEach())
    """
    return ()
