"""The hooks for fitters and laws."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flops_fit_core.plugins.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from flops_fit_core.plugins.specs import FitterSpec, LawSpec


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
                for run in sorted(observations, key=lambda run: run.loss, reverse=True):
                    best[run.budget or run.flops] = run
                if len(best) < 2:
                    raise FitError(f"runs of {len(best)} budgets; a line needs two")
                runs = sorted(best.values(), key=lambda run: run.flops)
                x = [math.log(run.flops) for run in runs]
                a, ln_n = fit_line(x, [math.log(run.params) for run in runs])
                slope, ln_loss = fit_line(x, [math.log(run.loss) for run in runs])
                law = Law(name="best of each", parameters={"a": a, "ln_N": ln_n, "slope": slope, "ln_L": ln_loss})
                excluded = {run.id: "not the best of its budget" for run in observations if run not in runs}
                flops, params = [run.flops for run in runs], [run.params for run in runs]
                return LawFit(
                    **fit_header(self, "mine/best-of-each", flops=flops, params=params),
                    law=law, excluded=excluded, objective=0.0, n_runs=len(runs),
                    exponents={"a": Interval(value=a), "b": Interval(value=1 - a)},
                )

            def optimum(self, fit, flops):
                law, x = fit.law.parameters, math.log(flops)
                params = math.exp(law["ln_N"] + law["a"] * x)
                return Optimum(flops=flops, params=Interval(value=params),
                               tokens=Interval(value=flops / (6 * params)),
                               loss=Interval(value=math.exp(law["ln_L"] + law["slope"] * x)))

        def fit_line(x, y):
            mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
            pairs = zip(x, y, strict=True)
            slope = sum((a - mean_x) * (b - mean_y) for a, b in pairs) / sum((a - mean_x) ** 2 for a in x)
            return slope, mean_y - slope * mean_x

        @hookimpl
        def flops_fit_fitters():
            yield FitterSpec(name="best-of-each", build=lambda options: BestOfEach())
    """
    return ()


@hookspec
def flops_fit_laws() -> Iterable[LawSpec]:
    """Offer laws of the loss: ``flops-fit fit RUNS --law NAME``, and ``[fitter]`` with ``law = "NAME"``.

    ::

        from flops_fit_core.plugins import LawSpec, LossLaw, Parameter, hookimpl

        class Overfitting(LossLaw):
            # Chinchilla with a term for models that are too large for their data.
            formula = "L = E + A / N^alpha + B / D^beta + G (N / D)^gamma"
            source = "our wiki"
            parameters = (
                Parameter("E", start=(0.3, 0.7), scale="linear", low=0.0, of_loss=True),
                Parameter("A", start=(0.1, 0.4), over={"params": "alpha"}, of_loss=True),
                Parameter("alpha", start=(0.2, 0.5), high=3.0, prior=(-1.05, 0.5)),
                Parameter("B", start=(0.1, 0.4), over={"tokens": "beta"}, of_loss=True),
                Parameter("beta", start=(0.2, 0.5), high=3.0, prior=(-1.05, 0.5)),
                Parameter("G", start=(0.01,), over={"params": "-gamma", "tokens": "gamma"}, of_loss=True),
                Parameter("gamma", start=(0.3, 1.0), high=3.0),
            )

            def loss(self, params, tokens, *, E, A, alpha, B, beta, G, gamma):
                return E + A / params**alpha + B / tokens**beta + G * (params / tokens)**gamma

        @hookimpl
        def flops_fit_laws():
            yield LawSpec(name="overfitting", build=Overfitting)
    """
    return ()
