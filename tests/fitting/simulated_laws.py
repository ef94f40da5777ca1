"""Parameters of every bundled law, and runs simulated from them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from flops_fit_core import Observation
from flops_fit_core.plugins.registry.law_index import find_law

HOFFMANN = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
PUBLISHED_MUENNIGHOFF = {
    "E": float(np.exp(0.62548)),
    "A": float(np.exp(6.2554)),
    "alpha": 0.35266,
    "B": float(np.exp(7.3050)),
    "beta": 0.35266,
    "R_D": 15.388,
    "R_N": 5.310,
}
PUBLISHED_VOCABULARY = {
    "E": 5.53278,
    "A_1": 1.83139 * 1e6**0.446606,
    "alpha": 0.446606,
    "A_2": 0.195842 * 1e6**0.670737,
    "gamma": 0.670737,
    "B": 2.12411 * 1e9**0.446606,
}
"""Tao et al. 2024, in parameters and characters: their script has N_nv and N_v in millions, D in billions."""

TRUTH: Mapping[str, dict[str, float]] = {
    "chinchilla": HOFFMANN,
    "tied": {"E": 1.8, "A": 350.0, "B": 900.0, "alpha": 0.33},
    "skaling": {"E": 1.6, "A": 250.0, "alpha": 0.31, "B": 700.0, "beta": 0.3, "k": 0.35},
    "kaplan": {"N_c": 6.4e13, "alpha_N": 0.076, "D_c": 1.8e13, "alpha_D": 0.103},
    "farseer": {
        "s": -0.165,
        "q": 0.0968,
        "S": 1.4,
        "B": 163.0,
        "b": -0.16,
        "Q": -0.4,
        "A": -1.675,
        "a": 0.0436,
        "E": 2.906,
    },
    "muennighoff": PUBLISHED_MUENNIGHOFF,
    "bounded": {
        "E": 1.7,
        "L_0": 9.0,
        "a": 60.0,
        "alpha": 0.34,
        "b": 90.0,
        "beta": 0.3,
        "c": 2.0,
        "gamma": 0.3,
        "delta": 0.5,
    },
    "vocabulary": {**PUBLISHED_VOCABULARY, "E": -1.5},
    "clark-moe": {"a": -0.082, "b": -0.108, "c": 0.009, "d": 2.6, "E_start": 1.8, "E_max": 250.0},
    "joint-moe": {
        "A": 300.0,
        "alpha": -0.33,
        "d": -0.1,
        "g": 0.01,
        "B": 500.0,
        "beta": -0.3,
        "w": 0.15,
        "z": -0.012,
        "c": 1.7,
    },
    "parallel": {"E": 1.2, "A": 2e6, "k": 0.35, "alpha": 0.2},
}
"""Parameters from publications where tests need published values, otherwise of the usual size."""

LEVELS = {
    "params": np.geomspace(1e7, 1e10, 7),
    "tokens": np.geomspace(1e9, 1e12, 7),
    "experts": np.array([1.0, 2.0, 8.0, 32.0, 128.0]),
    "streams": np.array([1.0, 2.0, 4.0, 8.0]),
    "vocabulary_params": np.geomspace(3e6, 1e9, 5),
}


def simulate(name: str, sigma: float = 0.0, seed: int = 0) -> list[Observation]:
    """Runs at all combinations of the law's inputs, with noise of this standard deviation on ln L."""
    law, random = find_law(name), np.random.default_rng(seed)
    points = [dict(zip(law.inputs, point, strict=True)) for point in itertools.product(*_levels(law.inputs))]
    if "unique_tokens" in law.inputs:
        # The levels of the tokens are numbers of epochs.
        points = [{**point, "tokens": point["tokens"] * point["unique_tokens"]} for point in points]
    columns = {key: np.array([point[key] for point in points]) for key in law.inputs}
    losses = evaluate(name, TRUTH[name], **columns)
    losses = losses * np.exp(sigma * random.standard_normal(len(points)))
    return [
        _observe(number, point, float(loss))
        for number, (point, loss) in enumerate(zip(points, losses, strict=True))
    ]


def evaluate(name: str, values: Mapping[str, float], **inputs):
    """The loss at inputs of shape (n,)."""
    law = find_law(name)
    columns = {key: np.array([[value]]) for key, value in values.items()}
    return law.loss(*(np.atleast_1d(inputs[key]) for key in law.inputs), **columns)[0]


def _levels(inputs: tuple[str, ...]) -> list[np.ndarray]:
    levels = dict(LEVELS)
    if "unique_tokens" in inputs:
        levels |= {"unique_tokens": np.geomspace(1e8, 1e10, 4), "tokens": np.array([1.0, 3.0, 10.0, 40.0])}
    return [levels[key] for key in inputs]


def _observe(number: int, point: Mapping[str, float], loss: float) -> Observation:
    tokens = point.get("tokens", 1e10)
    further = {key: value for key, value in point.items() if key not in ("params", "tokens", "unique_tokens")}
    return Observation(
        id=f"run {number}",
        params=point["params"],
        tokens=tokens,
        flops=6 * point["params"] * tokens,
        loss=loss,
        unique_tokens=point.get("unique_tokens"),
        inputs=further,
    )
