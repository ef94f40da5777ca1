"""Schedules, the curve laws as their papers write them, and simulated curves."""

from __future__ import annotations

import numpy as np

from flops_fit_core.fitting import LearningRates, LossCurve

PEAK = 3e-4
TRUTH = {"L0": 2.65, "A": 0.6, "a": 0.45, "B": 440.0, "C": 2.1, "b": 0.6, "g": 0.65}
"""Near the published values for 100M parameters."""
ANNEALED = {"L0": 2.6, "A": 0.6, "a": 0.45, "C": 2.0, "lambda": 0.99}


def rates(name: str, steps: int, *, warmup: int = 150) -> np.ndarray:
    """Rates of a schedule, shape (steps,)."""
    done = np.arange(steps) / steps
    falling = np.clip((done - 0.8) / 0.2, 0, 1)
    shapes = {
        "constant": np.ones(steps),
        "cosine": 0.1 + 0.45 * (1 + np.cos(np.pi * done)),
        "linear": 1 - done,
        "wsd": 1 - 0.9 * falling,
        "sqrt": 1 - np.sqrt(falling),
        "exponential": 0.01**falling,
        "drop": np.where(done > 0.4, 0.3, 1.0),
        "cosine and drop": (0.75 + 0.25 * np.cos(np.pi * done)) * np.where(done > 0.7, 0.02, 1.0),
        "cycles": 0.55 + 0.45 * np.cos(40 * done),
    }
    return PEAK * shapes[name] * np.minimum(1, np.arange(steps) / warmup)


def direct_multi_power(values: np.ndarray, steps: np.ndarray, truth: dict[str, float] = TRUTH) -> np.ndarray:
    """L after each number of updates: a sum over all changes, each with a sum over later updates."""
    losses = []
    for step in steps:
        seen = values[:step]
        decay = 0.0
        for k in range(1, step):
            later = seen[k:].sum()
            rate = max(seen[k], 1e-6 * values.max())
            decay += (seen[k - 1] - seen[k]) * (1 - (1 + truth["C"] * rate ** -truth["g"] * later) ** -truth["b"])
        losses.append(truth["L0"] + truth["A"] * seen.sum() ** -truth["a"] - truth["B"] * decay)
    return np.array(losses)


def direct_annealing(values: np.ndarray, steps: np.ndarray, truth: dict[str, float]) -> np.ndarray:
    """L = L0 + A S1^-a - C S2, with S2 by the recursion m_i = lambda m_{i-1} + (eta_{i-1} - eta_i)."""
    losses = []
    for step in steps:
        momentum, area = 0.0, 0.0
        for k in range(1, step):
            momentum = truth["lambda"] * momentum + values[k - 1] - values[k]
            area += momentum
        losses.append(truth["L0"] + truth["A"] * values[:step].sum() ** -truth["a"] - truth["C"] * area)
    return np.array(losses)


def correlated_noise(
    random: np.random.Generator, log_steps: np.ndarray, deviation: float, length: float, white: float
) -> np.ndarray:
    """An Ornstein-Uhlenbeck process in ln(step) by its recursion, plus white noise."""
    values = np.empty(len(log_steps))
    values[0] = deviation * random.standard_normal()
    for row in range(1, len(log_steps)):
        kept = np.exp(-(log_steps[row] - log_steps[row - 1]) / length)
        values[row] = kept * values[row - 1] + deviation * np.sqrt(1 - kept**2) * random.standard_normal()
    return values + white * random.standard_normal(len(log_steps))


def simulate(
    random: np.random.Generator, name: str, steps: int = 6000, *, rows: int = 60, deviation: float = 2e-3, **more
) -> LossCurve:
    """A curve of the true law with noise that is correlated along the curve, sampled at equal distances."""
    values = rates(name, steps, **more)
    at = np.unique(np.linspace(steps * 0.05, steps, rows).astype(int))
    noise = correlated_noise(random, np.log(at), deviation, 0.5, 3e-4)
    return LossCurve(name, at, true_losses(values, at) * np.exp(noise), LearningRates(values))


def true_losses(values: np.ndarray, steps: np.ndarray, truth: dict[str, float] = TRUTH) -> np.ndarray:
    """The law, by direct sums over all changes at once; for long schedules."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    rate = np.maximum(values, 1e-6 * values.max())
    losses = []
    for step in steps:
        k = np.arange(1, step)
        later = sums[step] - sums[k]
        shares = 1 - (1 + truth["C"] * rate[k] ** -truth["g"] * later) ** -truth["b"]
        decay = float(((values[k - 1] - values[k]) * shares).sum())
        losses.append(truth["L0"] + truth["A"] * sums[step] ** -truth["a"] - truth["B"] * decay)
    return np.array(losses)
