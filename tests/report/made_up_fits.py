"""Runs on Chinchilla's surface, written down without the project's own planner or trainer."""

from __future__ import annotations

import math
import random

from flops_fit_core import (
    Interval,
    Law,
    LawFit,
    Observation,
    Optimum,
    PluginChoice,
    ProfileMinimum,
    RunResult,
    RunSpec,
    SweepPlan,
)

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658


def loss(params: float, tokens: float) -> float:
    return E + A / params**ALPHA + B / tokens**BETA


def best_params(flops: float) -> float:
    """Hoffmann et al. 2022, equation 4."""
    g = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return g * (flops / 6) ** (BETA / (ALPHA + BETA))


def runs(budgets, sizes=7, *, noise=0.0, shift=1.0, step=1.6) -> list[Observation]:
    """IsoFLOP runs with 6 N D = C, sizes around ``shift`` times the true optimum."""
    observations = []
    for budget in budgets:
        for k in range(sizes):
            params = best_params(budget) * shift * step ** (k - (sizes - 1) / 2)
            tokens = budget / (6 * params)
            z = random.Random(f"{budget} {k}").gauss(0, 1)
            observations.append(
                Observation(
                    id=f"{budget:.3e} {k}",
                    params=params,
                    tokens=tokens,
                    flops=budget,
                    budget=budget,
                    loss=loss(params, tokens) * math.exp(noise * z),
                    seed=0,
                )
            )
    return observations


def true_optimum(flops: float, spread: float = 1.2) -> Optimum:
    params = best_params(flops)
    tokens = flops / (6 * params)
    value = loss(params, tokens)
    return Optimum(
        flops=flops,
        params=Interval(value=params, low=params / spread, high=params * spread),
        tokens=Interval(value=tokens, low=tokens / spread, high=tokens * spread),
        loss=Interval(value=value, low=value * 0.99, high=value * 1.01),
    )


def result(params=1000, tokens=2000, loss=3.0, **changes) -> RunResult:
    """A run's result as a worker would record it."""
    spec = RunSpec(
        model=PluginChoice(name="gpt/gpt", options={"width": changes.pop("width", 16)}),
        dataset=PluginChoice(name="text/text"),
        fingerprint="abc",
        optimizer=PluginChoice(name="optim/adamw", options={"lr": 0.008}),
        schedule=PluginChoice(name="schedules/cosine"),
        counter=PluginChoice(name="counters/chinchilla"),
        trainer=PluginChoice(name="trainers/torch"),
        batch_size=10,
        steps=tokens // 10,
        tokens=tokens,
        seed=changes.pop("seed", 0),
        budget=6.0 * params * tokens,
        size=16,
        params=params,
        flops_per_token=6.0 * params,
    )
    defaults = {
        "status": "completed", "loss": loss, "tokens": changes.pop("seen", tokens),
        "flops": spec.flops, "seconds": 2.5, "params_name": "matmul parameters", "flops_name": "6 N D",
        "device": "a CPU", "precision": "float32",
        "versions": {"torch": "2.13.0", "flops-fit": "0.1.0"},
    }  # fmt: skip
    return RunResult(run=spec, **{**defaults, **changes})


def plan(results, **changes) -> SweepPlan:
    defaults = {
        "name": "study", "runs": tuple(result.run for result in results), "params_name": "matmul parameters",
        "flops_name": "6 N D", "device": PluginChoice(name="devices/cpu"),
    }  # fmt: skip
    return SweepPlan(**{**defaults, **changes})


def law_fit(**changes) -> LawFit:
    """A fit of the IsoFLOP law written down by hand: the surface's own law, without a fitter."""
    budgets = (1e18, 1e19, 1e20)
    a = BETA / (ALPHA + BETA)
    defaults = {
        "fitter": PluginChoice(name="mine/known"),
        "law": Law(name="known", parameters={"a": a}),
        "exponents": {"a": Interval(value=a, low=a - 0.01, high=a + 0.02), "b": Interval(value=1 - a)},
        "level": 0.9, "objective": 0.0, "n_runs": 21, "flops_range": (1e18, 1e20),
        "minima": tuple(minimum(budget) for budget in budgets),
        "params_name": "matmul parameters", "flops_name": "6 N D",
    }  # fmt: skip
    return LawFit(**{**defaults, **changes})


def minimum(budget: float, *, at_edge: bool = False) -> ProfileMinimum:
    """The true minimum, with the parabola in ln N that has the surface's value and curvature there."""
    params = best_params(budget)
    tokens = budget / (6 * params)
    curvature = ALPHA**2 * A / params**ALPHA + BETA**2 * B / tokens**BETA
    curve = {"centre": math.log(params), "c0": loss(params, tokens), "c1": 0.0, "c2": curvature / 2, "log": 0.0}
    curve |= {"smallest": params / 4, "largest": params * 4}
    return ProfileMinimum(
        budget=budget, params=params, tokens=tokens, loss=loss(params, tokens), at_edge=at_edge, n_runs=7,
        curve=curve,
    )  # fmt: skip
