"""Approach 3 of Hoffmann et al. 2022: L = E + A / N^alpha + B / D^beta, fitted to ln L."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.constraint import FlopsPerToken
from flops_fit_core.fitting.data import Bools, Floats, Runs
from flops_fit_core.fitting.diagnostics import about_draws, about_runs, about_surface, no_interval, note
from flops_fit_core.fitting.guard import guarded
from flops_fit_core.fitting.laws import SURFACES
from flops_fit_core.fitting.losses import Huber, LeastSquares, Objective
from flops_fit_core.fitting.newton import EXPONENTS, Problem, Solved, derivatives
from flops_fit_core.fitting.noise import NoiseModel, fit_noise, offsets
from flops_fit_core.fitting.optima import exponents, optimum
from flops_fit_core.fitting.outliers import robust_fit
from flops_fit_core.fitting.surface import SurfaceFit, fit_surface, linearise, make_problem, refit
from flops_fit_core.records import Diagnostic, Law, LawFit, Observation, Optimum, PluginChoice

Criterion = Literal["robust", "least-squares", "huber"]
Resampling = Literal["residuals", "cases"]

MANY = 2000
"""Runs above which a draw is one Newton step from the fit: the law is as good as linear over its interval."""


@dataclass(frozen=True)
class ParametricFitter:
    """Fits Approach 3. Same observations and options, same fit."""

    level: float = 0.9
    """Of all intervals."""
    draws: int = 1000
    """Bootstrap draws; 0 for no intervals."""
    seed: int = 0
    """Of the bootstrap."""
    objective: Criterion = "robust"
    """``robust``: least squares on ln L without gross outliers, which are named. ``huber``: delta 1e-3."""
    bootstrap: Resampling = "residuals"
    """``cases`` draws runs (trunks where runs share one) with replacement, as published."""
    name: str = "fitters/parametric"
    """Qualified name under which the fit is recorded."""

    @guarded
    def fit(self, observations: Sequence[Observation]) -> LawFit:
        """Raises FitError, saying what is missing, for fewer than 6 runs or runs that do not vary."""
        runs = Runs.of(observations)
        if len(runs) < 6:
            raise FitError(f"{len(runs)} runs cannot fit a law of five parameters: train 6 or more, better 15")
        problem = make_problem(np.log(runs.params), np.log(runs.tokens), np.log(runs.loss))
        if float(np.ptp(problem.y)) < 1e-12:
            raise FitError("all runs have one loss: there is nothing to fit")
        fit, kept = self._fit(problem)
        used = runs.take(np.flatnonzero(kept))
        constraint = FlopsPerToken.of(used, self.draws > 0, self.seed)
        found = [_about_objective(self.objective), *about_runs(used, constraint)]
        found += about_surface(fit, used, runs, kept, linearise(problem, fit.theta)[0], constraint)
        law = _natural(problem, runs, fit.theta[None])
        draws, failed, more = self._uncertainty(fit, problem, used, law, constraint)
        drawn, drawn_constraint = _natural(problem, runs, draws), constraint.drawn(len(draws), self.seed)
        return LawFit(
            fitter=PluginChoice(name=self.name, options=self._options()),
            law=Law(name="parametric", parameters={key: float(values[0]) for key, values in law.items()}),
            exponents=exponents(
                SURFACES["parametric"], law, drawn, (constraint, drawn_constraint), used.flops, self.level
            ),
            level=self.level,
            objective=fit.value if self.objective == "huber" else 2 * fit.value,
            n_runs=len(used),
            excluded={runs.ids[row]: _OUTLIER for row in np.flatnonzero(~kept)},
            diagnostics=(*found, *more),
            draws={key: tuple(values.tolist()) for key, values in drawn.items()} if len(draws) else {},
            failed_draws=failed,
            flops_range=(float(used.flops.min()), float(used.flops.max())),
            params_range=(float(used.params.min()), float(used.params.max())),
            seed=self.seed,
            **constraint.fields(drawn_constraint),
        )

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        """N_opt, D_opt and L_opt for training with C = ``flops``, with intervals from the fit's draws."""
        return optimum(fit, flops)

    def _options(self) -> dict[str, Any]:
        mine = {key: getattr(self, key) for key in ("level", "draws", "seed", "objective", "bootstrap")}
        return {key: value for key, value in mine.items() if value != getattr(type(self), key)}

    @property
    def _criterion(self) -> Objective:
        return Huber() if self.objective == "huber" else LeastSquares()

    def _fit(self, problem: Problem) -> tuple[SurfaceFit, Bools]:
        if self.objective == "robust":
            return robust_fit(problem)
        return fit_surface(problem, self._criterion), np.ones(len(problem.y), dtype=bool)

    def _uncertainty(
        self, fit: SurfaceFit, problem: Problem, used: Runs, law: dict[str, Floats], constraint: FlopsPerToken
    ) -> tuple[Floats, int, list[Diagnostic]]:
        """Draws of theta, how many failed, and what to say about them."""
        nothing = np.empty((0, 5))
        if self.draws < 1:
            return nothing, 0, []
        dof = len(used) - int(fit.free.sum())
        if dof < 1:
            return nothing, 0, [no_interval("there are as many parameters as runs; train more runs")]
        if not fit.determined:
            return nothing, 0, [no_interval(_ALIKE)]
        if _at_bound(fit.theta[None])[0]:
            return nothing, 0, [no_interval(_VANISHED)]
        random = np.random.default_rng(self.seed)
        if len(used) > MANY:
            return self._one_step(fit, used, random), 0, [note("one-step", _ONE_STEP)]
        if self.bootstrap == "cases":
            solved = self._cases(fit, used, random)
        else:
            noise = _noise(fit, used, law, constraint)
            standard = None
            if len(used) >= 30:
                standard = fit.residuals / (noise.sigma() * np.sqrt(1 - np.minimum(fit.leverage, 0.99)))
                standard = (standard - standard.mean()) / standard.std()
            fitted = fit.problem.y - fit.residuals
            problem = Problem(fit.problem.u, fit.problem.v, fitted + noise.draw(self.draws, random, standard))
            solved = refit(problem, fit.theta, self._criterion)
        usable = _usable(solved)
        if self.bootstrap == "cases":
            failed = int(self.draws - usable.sum())
            if failed > 0.01 * self.draws:
                return nothing, failed, [no_interval(_FAILED.format(failed, self.draws))]
            return solved.theta[usable], failed, []
        # Refits at a bound stay: without them a study's interval rests on its lucky draws, and a rule that
        # withdraws it for their number keeps the lucky studies.
        return solved.theta, 0, about_draws(len(used), dof, int(self.draws - usable.sum()), self.draws)

    def _cases(self, fit: SurfaceFit, used: Runs, random: np.random.Generator) -> Solved:
        names, trunk = np.unique(used.trunks, return_inverse=True)
        sizes = len(np.unique(used.params))
        if len(names) < 20 or sizes < 6:
            raise FitError(
                f"bootstrap = 'cases' needs 20 independent runs (trunks) and 6 sizes; there are {len(names)} and "
                f"{sizes}: use bootstrap = 'residuals'"
            )
        weights = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=self.draws)
        problem = Problem(fit.problem.u, fit.problem.v, fit.problem.y, weights[:, trunk].astype(float))
        return refit(problem, fit.theta, self._criterion)

    def _one_step(self, fit: SurfaceFit, used: Runs, random: np.random.Generator) -> Floats:
        """Newton's first step of the case bootstrap, by trunks."""
        objective = self._criterion
        hessian = derivatives(fit.problem, fit.theta[None], objective)[1][0]
        trunk = np.unique(used.trunks, return_inverse=True)[1]
        score = objective.psi(fit.residuals)[:, None] * fit.jacobian
        by_trunk = np.stack([np.bincount(trunk, column) for column in score.T], axis=1)
        free = fit.free
        influence = np.zeros_like(by_trunk)
        influence[:, free] = by_trunk[:, free] @ np.linalg.pinv(hessian[np.ix_(free, free)])
        out: Floats = fit.theta + np.stack(
            [
                random.standard_exponential(len(influence)) @ influence - influence.sum(axis=0)
                for _ in range(self.draws)
            ]
        )
        return np.maximum(out, [0, -np.inf, EXPONENTS[0], -np.inf, EXPONENTS[0]])


_OUTLIER = "further from the law than noise explains: likely mistuned or mislabelled"
_ALIKE = "some parameters cannot be told apart; widen the range of N and of D / N"
_VANISHED = "a term of the law vanishes or an exponent is out of bounds; widen the range of N and of D / N"
_FAILED = (
    "{} of {} bootstrap refits ended with a term that vanishes or an exponent out of bounds: these runs do not "
    "determine all five parameters; widen the range of N and of D / N"
)
_ONE_STEP = f"more than {MANY} runs: each bootstrap draw is one Newton step from the fit"


def _about_objective(objective: Criterion) -> Diagnostic:
    return note(
        "objective",
        {
            "robust": "least squares on ln L, without runs further off than noise explains",
            "least-squares": "least squares on ln L, every run",
            "huber": "Huber loss on ln L with delta = 1e-3, summed over runs",
        }[objective],
    )


def _natural(problem: Problem, runs: Runs, theta: Floats) -> dict[str, Floats]:
    """E, A, B, alpha, beta from the solver's coordinates; one entry a row of ``theta``."""
    ln_params, ln_tokens = np.log(runs.params).mean(), np.log(runs.tokens).mean()
    e, ln_a, alpha, ln_b, beta = theta.T
    return {
        "E": e,
        "A": np.exp(ln_a + alpha * ln_params),
        "B": np.exp(ln_b + beta * ln_tokens),
        "alpha": alpha,
        "beta": beta,
    }


def _noise(fit: SurfaceFit, used: Runs, law: dict[str, Floats], constraint: FlopsPerToken) -> NoiseModel:
    trunk = np.unique(used.trunks, return_inverse=True)[1]
    offset = offsets(SURFACES["parametric"], law, constraint, used)
    return fit_noise(fit.residuals, fit.jacobian[:, fit.free], offset, trunk)


def _usable(solved: Solved) -> Bools:
    """Refits that determine the law: converged, neither exponent at a bound, neither term gone."""
    out: Bools = solved.converged & ~_at_bound(solved.theta)
    return out


def _at_bound(theta: Floats) -> Bools:
    """Where an exponent is at a bound or a term is gone; ``theta`` of shape (fits, 5)."""
    exponents = theta[:, [2, 4]]
    outside = (exponents <= EXPONENTS[0] * 1.001) | (exponents >= EXPONENTS[1] * 0.999)
    return np.asarray((outside | (theta[:, [1, 3]] <= -15)).any(axis=1))
