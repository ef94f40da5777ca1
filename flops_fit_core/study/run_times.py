"""A model of the time that a run takes, fitted to measured times.

The time of a run is ``a tokens + b activations + c FLOPs + d steps + e`` with a, b, c, d, e >= 0: the cost of a
token for any model, of reading and writing activations, of arithmetic, of a step, and of a run. The activations
of a token grow with the width, so they are ``sqrt(FLOPs per token)``. Without them, the times of the smallest
models are overestimated as long as only larger ones have run. A token of an evaluation costs a third of a
training token. Each size has a further factor, which is shrunk towards that of all sizes. This module imports
neither numpy nor scipy, because ``flops-fit status`` needs it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from flops_fit_core.records import RunSpec

SIZE_RUNS = 1.0
"""A size with so many runs has half of the factor that its runs alone would give it."""

PRIOR_WEIGHT = 0.15
"""Weight of each prior; the latest finished run has 1."""

Vector = list[float]


@dataclass(frozen=True)
class Sample:
    """A measured time and the quantities that explain it."""

    features: Vector
    """Tokens, activations, FLOPs, steps and runs."""
    seconds: float
    weight: float
    params: int


class RunTimes:
    """The seconds that runs take.

    Args:
        samples: Measured times.
        eval_tokens: Held-out tokens that a run evaluates, in all of its evaluations.
    """

    def __init__(self, samples: Sequence[Sample], eval_tokens: float) -> None:
        self._coefficients = solve(samples)
        self._eval_tokens = eval_tokens
        self._log_factor = 0.0
        self._log_factors: dict[int, float] = {}

    def correct_sizes(self, samples: Sequence[Sample]) -> None:
        """Correct each size by its own samples, and sizes without samples by all of them."""
        by_size: dict[int, list[Sample]] = defaultdict(list)
        for sample in samples:
            by_size[sample.params].append(sample)
        self._log_factor = self.mean_log_ratio(samples, prior=0.5)
        for params, group in by_size.items():
            weight = math.fsum(sample.weight for sample in group)
            excess = self.mean_log_ratio(group) - self._log_factor
            self._log_factors[params] = self._log_factor + excess * weight / (weight + SIZE_RUNS)

    def mean_log_ratio(self, samples: Sequence[Sample], prior: float = 0.0) -> float:
        """Weighted mean of ln(measured / uncorrected time); ``prior``: weight of a further sample with ratio 1."""
        total = math.fsum(sample.weight for sample in samples) + prior
        logs = (
            sample.weight * math.log(sample.seconds / max(_dot(self._coefficients, sample.features), 1e-12))
            for sample in samples
        )
        return math.fsum(logs) / total if total else 0.0

    def training_seconds(self, run: RunSpec, steps: int) -> float:
        """Time of some of a run's steps."""
        return self._predict(run, training_features(run, steps / run.steps))

    def evaluation_seconds(self, run: RunSpec) -> float:
        """Time of a run's evaluations, and of its start and end."""
        return self._predict(run, evaluation_features(run, self._eval_tokens))

    def _predict(self, run: RunSpec, features: Vector) -> float:
        factor = math.exp(self._log_factors.get(run.params, self._log_factor))
        return factor * _dot(self._coefficients, features)


def training_features(run: RunSpec, share: float = 1.0) -> Vector:
    """Features of a share of a run's training, without its evaluations."""
    return [*_token_features(run, share * run.tokens), share * run.steps, 0.0]


def evaluation_features(run: RunSpec, tokens: float) -> Vector:
    """Features of a run's evaluations on ``tokens`` tokens, and of the run itself."""
    return [*_token_features(run, tokens / 3), 0.0, 1.0]


def _token_features(run: RunSpec, tokens: float) -> Vector:
    """Tokens, activations and FLOPs on each device."""
    per_device = tokens / run.devices
    return [per_device, per_device * math.sqrt(run.flops_per_token), per_device * run.flops_per_token]


def solve(samples: Sequence[Sample]) -> Vector:
    """Nonnegative coefficients with the least weighted squared relative errors.

    Weak priors decide as long as the samples do not: of the time of a run, a third each grows with its tokens, its
    activations and its FLOPs, and none with its steps.
    """
    rows = [[value / sample.seconds for value in sample.features] for sample in samples]
    typical = [statistics.median(column) for column in zip(*rows, strict=True)]
    equations = [
        ([sample.weight * value for value in row], sample.weight)
        for row, sample in zip(rows, samples, strict=True)
    ]
    for k in range(3):
        prior = [0.0] * len(typical)
        prior[k] = PRIOR_WEIGHT * typical[k]
        equations.append((prior, PRIOR_WEIGHT / 3))
    equations += [
        ([0.0, 0.0, 0.0, typical[3], 0.0], 0.0),
        ([0.0, 0.0, 0.0, 0.0, 0.05], 0.0),
    ]
    scales = [max(abs(row[k]) for row, _ in equations) or 1.0 for k in range(len(typical))]
    scaled = [([value / scale for value, scale in zip(row, scales, strict=True)], y) for row, y in equations]
    places = range(len(typical))
    gram = [[math.fsum(row[i] * row[j] for row, _ in scaled) for j in places] for i in places]
    target = [math.fsum(row[i] * y for row, y in scaled) for i in places]
    return [value / scale for value, scale in zip(_nonnegative(gram, target), scales, strict=True)]


def _nonnegative(gram: list[Vector], target: Vector) -> Vector:
    """The x >= 0 with the least ``x gram x / 2 - target x``: the best of all choices of nonzero entries."""
    best, best_value = [0.0] * len(target), 0.0
    for size in range(1, len(target) + 1):
        for chosen in itertools.combinations(range(len(target)), size):
            part = _linear([[gram[i][j] for j in chosen] for i in chosen], [target[i] for i in chosen])
            if part is None or min(part) < 0:
                continue
            value = -math.fsum(target[i] * x for i, x in zip(chosen, part, strict=True))
            if value < best_value:
                best_value = value
                best = [0.0] * len(target)
                for i, x in zip(chosen, part, strict=True):
                    best[i] = x
    return best


def _linear(matrix: list[Vector], target: Vector) -> Vector | None:
    """Solve a small symmetric positive system by elimination; None if it is singular."""
    rows = [[*row, value] for row, value in zip(matrix, target, strict=True)]
    size = len(rows)
    for k in range(size):
        pivot = max(range(k, size), key=lambda i: abs(rows[i][k]))
        rows[k], rows[pivot] = rows[pivot], rows[k]
        if abs(rows[k][k]) < 1e-14:
            return None
        for i in range(k + 1, size):
            factor = rows[i][k] / rows[k][k]
            rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    solution = [0.0] * size
    for k in reversed(range(size)):
        solution[k] = (rows[k][size] - math.fsum(rows[k][j] * solution[j] for j in range(k + 1, size))) / rows[k][
            k
        ]
    return solution


def _dot(first: Vector, second: Vector) -> float:
    return math.fsum(a * b for a, b in zip(first, second, strict=True))
