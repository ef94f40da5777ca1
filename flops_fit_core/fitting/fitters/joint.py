"""Further laws of L(N, D), fitted by least squares on ln L: Kaplan's joint form and the data-constrained form."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Floats, Ints, Runs
from flops_fit_core.fitting.diagnostics import check_runs, no_interval, note
from flops_fit_core.fitting.fitters.base import BootstrapFitter
from flops_fit_core.fitting.flops_per_token.constraint import FlopsPerToken
from flops_fit_core.fitting.laws.chinchilla import fit_surface, make_problem
from flops_fit_core.fitting.laws.forms import SURFACES, Parameters
from flops_fit_core.fitting.laws.optima import exponents
from flops_fit_core.fitting.numerical_errors import convert_numerical_errors
from flops_fit_core.fitting.solvers.marquardt import Model, jacobian, least_squares
from flops_fit_core.fitting.solvers.objectives import LeastSquares
from flops_fit_core.fitting.uncertainty.noise import build_covariates, fit_noise, optimum_offsets
from flops_fit_core.plugins.utilities import fit_header
from flops_fit_core.records import Diagnostic, Law, LawFit, Observation

Form = Literal["kaplan", "muennighoff"]


class _Shape(Protocol):
    """A law in coordinates that scale all parameters to similar size."""

    bounds: tuple[Floats, Floats]

    def starting_points(self) -> Floats: ...
    def to_parameters(self, theta: Floats) -> dict[str, Floats]: ...
    def extra_parameters(self) -> Parameters: ...


class _Kaplan:
    """theta = (alpha_N, alpha_D, and the logarithms of both terms at the runs' mean ln N and ln D)."""

    bounds = (np.array([1e-3, 1e-3, -200.0, -200.0]), np.array([3.0, 3.0, 200.0, 200.0]))

    def __init__(self, runs: Runs) -> None:
        self.x, self.z = np.log(runs.params).mean(), np.log(runs.tokens).mean()
        self.level = float(np.log(runs.loss).mean())

    def starting_points(self) -> Floats:
        exponents = [0.03, 0.07, 0.15, 0.3, 0.6]
        pairs = [(n, d, self.level / d + np.log(0.5)) for n, d in itertools.product(exponents, exponents)]
        return np.array([(n, d, half, half) for n, d, half in pairs])

    def to_parameters(self, theta: Floats) -> dict[str, Floats]:
        alpha_n, alpha_d, a, b = theta.T
        return {
            "alpha_N": alpha_n,
            "alpha_D": alpha_d,
            "ln_Nc": self.x + a * alpha_d / alpha_n,
            "ln_Dc": self.z + b,
        }

    def extra_parameters(self) -> Parameters:
        return {}


class _Muennighoff:
    """theta = (E, ln A', alpha, ln B', beta, ln R_D, ln R_N)."""

    bounds = (
        np.array([0.0, -60.0, 0.01, -60.0, 0.01, np.log(0.05), np.log(0.05)]),
        np.array([np.inf, 60.0, 3.0, 60.0, 3.0, np.log(1e4), np.log(1e4)]),
    )

    def __init__(self, runs: Runs) -> None:
        if float(np.max(runs.tokens / runs.unique)) < 1.01:
            raise FitError(
                "no run repeats its training tokens, so repetition cannot be fitted: use fitter parametric, or "
                "add a column unique_tokens"
            )
        self.x, self.z = np.log(runs.params).mean(), np.log(runs.tokens).mean()
        self.ln_unique = np.log(runs.unique)
        unrepeated = np.flatnonzero(runs.tokens <= 1.5 * runs.unique)
        base = unrepeated if len(unrepeated) >= 8 else np.arange(len(runs))
        ln_params, ln_tokens = np.log(runs.params[base]), np.log(runs.unique[base])
        start = fit_surface(
            make_problem(ln_params, ln_tokens, np.log(runs.loss[base])), LeastSquares()
        ).theta.copy()
        start[1] -= start[2] * (self.x - ln_params.mean())
        start[3] -= start[4] * (self.z - ln_tokens.mean())
        self.start = start

    def starting_points(self) -> Floats:
        ends = np.log([2.0, 6.0, 20.0, 80.0])
        return np.array([(*self.start, d, n) for d, n in itertools.product(ends, ends)])

    def to_parameters(self, theta: Floats) -> dict[str, Floats]:
        e, a, alpha, b, beta, d, n = theta.T
        return {
            "E": e,
            "A": np.exp(a + alpha * self.x),
            "B": np.exp(b + beta * self.z),
            "alpha": alpha,
            "beta": beta,
            "R_D": np.exp(d),
            "R_N": np.exp(n),
        }

    def extra_parameters(self) -> Parameters:
        return {"ln_unique": self.ln_unique}


MAX_START_RUNS = 2000
"""With more runs, starting points are tried on a sample of them."""
_SHAPES: dict[str, Any] = {"kaplan": _Kaplan, "muennighoff": _Muennighoff}


@dataclass(frozen=True)
class JointFitter(BootstrapFitter):
    """Fits the law that ``form`` names."""

    form: Form
    """The fit is recorded under ``fitters/<form>``, unless ``name`` is set."""

    @convert_numerical_errors
    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Fit the law. Raises FitError, with advice, for too few runs or runs that do not vary."""
        runs = Runs.of(observations)
        free = 4 if self.form == "kaplan" else 7
        if len(runs) <= free:
            raise FitError(f"{len(runs)} runs cannot fit a law of {free} parameters: train {free + 1} or more")
        make_problem(np.log(runs.params), np.log(runs.tokens), np.log(runs.loss))
        shape: _Shape = _SHAPES[self.form](runs)
        model, y = self._make_model(shape, runs), np.log(runs.loss)
        thetas, rss, converged = least_squares(model, self._find_starts(shape, runs), y, shape.bounds)
        best = int(np.argmin(rss))
        theta = thetas[best : best + 1]
        law = shape.to_parameters(theta)
        constraint = FlopsPerToken.of(runs, self.draws > 0, self.seed)
        diagnostics = [
            note("objective", "least squares on ln L; all runs are used"),
            *check_runs(runs, constraint),
        ]
        if not converged[best]:
            diagnostics.append(
                Diagnostic(code="not-converged", message="the solver did not converge: do not rely on this fit")
            )
        draws, failed = self._bootstrap(model, shape, runs, theta, law, constraint)
        if failed > 0.01 * self.draws:
            draws = draws[:0]
            diagnostics.append(
                no_interval(f"{failed} of {self.draws} bootstrap refits ended on a bound; train more runs")
            )
        drawn, drawn_constraint = shape.to_parameters(draws), constraint.drawn(len(draws), self.seed)
        name = self.name or f"fitters/{self.form}"
        return LawFit(
            **fit_header(self, name, flops=runs.flops, params=runs.params, draws=drawn),
            law=Law(name=self.form, parameters={key: float(value[0]) for key, value in law.items()}),
            exponents=exponents(
                SURFACES[self.form], law, drawn, (constraint, drawn_constraint), runs.flops, self.level
            ),
            objective=float(rss[best]),
            n_runs=len(runs),
            diagnostics=tuple(diagnostics),
            failed_draws=failed,
            **constraint.fields(drawn_constraint),
        )

    def _find_starts(self, shape: _Shape, runs: Runs) -> Floats:
        """Starting points; with many runs, the best fit to a sample of them."""
        if len(runs) <= MAX_START_RUNS:
            return shape.starting_points()
        sample = np.sort(np.random.default_rng(0).choice(len(runs), MAX_START_RUNS // 2, replace=False))
        model = self._make_model(shape, runs, sample)
        theta, rss, _ = least_squares(model, shape.starting_points(), np.log(runs.loss[sample]), shape.bounds)
        return theta[np.argsort(rss)[:1]]

    def _make_model(self, shape: _Shape, runs: Runs, sample: Ints | None = None) -> Model:
        surface, rows = SURFACES[self.form], np.arange(len(runs)) if sample is None else sample
        extra = {key: values[rows] for key, values in shape.extra_parameters().items()}
        x, z = np.log(runs.params[rows]), np.log(runs.tokens[rows])

        def model(theta: Floats) -> Floats:
            law = {key: values[:, None] for key, values in shape.to_parameters(theta).items()}
            return np.log(surface({**law, **extra}, x, z)[0])

        return model

    def _bootstrap(
        self,
        model: Model,
        shape: _Shape,
        runs: Runs,
        theta: Floats,
        law: dict[str, Floats],
        constraint: FlopsPerToken,
    ) -> tuple[Floats, int]:
        """Refits to losses drawn from the noise model, and the number that ended on a bound."""
        is_free = ((theta > shape.bounds[0]) & (theta < shape.bounds[1]))[0]
        if self.draws < 1 or len(runs) <= int(is_free.sum()):
            return theta[:0], 0
        random = np.random.default_rng(self.seed)
        fitted = model(theta)[0]
        slopes = jacobian(model, theta)[0][:, is_free]
        trunk = np.unique(runs.trunks, return_inverse=True)[1]
        offset = optimum_offsets(SURFACES[self.form], law, constraint, runs)
        covariates = build_covariates(offset, np.log(runs.params), np.log(runs.flops))
        noise = fit_noise(np.log(runs.loss) - fitted, slopes, covariates, trunk)
        y = fitted + noise.draw(self.draws, random)
        start = np.repeat(theta, self.draws, axis=0)
        drawn, _, converged = least_squares(model, start, y, shape.bounds, steps=60)
        valid = converged & ((drawn > shape.bounds[0]) & (drawn < shape.bounds[1]))[:, is_free].all(axis=1)
        return drawn[valid], int(self.draws - valid.sum())
