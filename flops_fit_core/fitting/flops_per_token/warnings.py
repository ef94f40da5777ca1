"""Warnings about the runs' FLOPs per token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_core import numbers
from flops_fit_core.fitting.data import Floats, Ints

_MIN_SPREAD = 0.02
"""Larger relative differences between runs of equal N are reported."""
_MIN_SCATTER = 0.015
"""A larger standard deviation of sizes about the curve is reported."""
_MIN_JUMP = 0.03
"""Smallest jump between neighbouring sizes that is reported."""
_MIN_PATTERN_SIZES = 8
"""Sizes required to detect a jump."""


def describe_flops_per_token(
    ln_params: Floats, ln_tokens: Floats, ln_flops: Floats, curve: Floats
) -> tuple[str, ...]:
    """Warn if FLOPs per token are not a smooth function of N; ``curve`` is ln f of each run on that function."""
    size = np.unique(ln_params, return_inverse=True)[1]
    mean = (np.bincount(size, ln_flops) / np.bincount(size))[size]
    spread = 2 * float(np.expm1(np.max(np.abs(ln_flops - mean))))
    change = _change_with_tokens(size, ln_tokens, ln_flops)
    if spread > _MIN_SPREAD and change:
        message = (
            f"FLOPs per token change with D: at equal N by {numbers.change(1 + change)} for 10 "
            "times the tokens (a "
            "longer context?). D at a given N and C is then an average; fit runs of the same context length"
        )
        return (message,)
    warnings = []
    if spread > _MIN_SPREAD:
        warnings.append(
            f"runs of equal N differ by {numbers.share(spread)} in FLOPs per token, so D at a given N and C is an "
            "average; fit runs with the same counter and the same shape per size"
        )
    x, first = np.unique(ln_params, return_index=True)
    residuals = (mean - curve)[first]
    scatter = float(np.sqrt(np.mean(residuals**2)))
    if scatter <= _MIN_SCATTER:
        return tuple(warnings)
    jump = _find_jump(x, mean[first] - x, scatter)
    if jump is not None:
        warnings.append(
            f"FLOPs per token over N jump by {numbers.change(1 + jump.size)} between N = "
            f"{numbers.count(float(np.exp(jump.below)))} and "
            f"{numbers.count(float(np.exp(jump.above)))}, as between "
            "two model families or two counters: optima near the jump "
            "are rough; fit each family separately"
        )
        return tuple(warnings)
    warnings.append(
        f"FLOPs per token of the sizes scatter by {numbers.share(scatter)} about a smooth curve in N (shapes vary "
        f"between sizes): an optimum assumes a typical shape, and a model with {scatter:.1%} more FLOPs per token "
        f"trains on {scatter:.1%} fewer tokens"
    )
    return tuple(warnings)


def _change_with_tokens(size: Ints, ln_tokens: Floats, ln_flops: Floats) -> float | None:
    """Relative change of f for 10 times D among runs of equal size; None if D does not explain most of it."""
    count = np.bincount(size)
    x, y = (values - (np.bincount(size, values) / count)[size] for values in (ln_tokens, ln_flops))
    if int(np.sum(count - 1)) < 3 or float(x @ x) < 1e-6 or float(y @ y) < 1e-12:
        return None
    slope = float(x @ y / (x @ x))
    explained = slope**2 * float(x @ x) / float(y @ y)
    return float(np.expm1(slope * np.log(10))) if explained > 0.8 else None


@dataclass(frozen=True)
class _Jump:
    size: float
    below: float
    above: float


def _find_jump(x: Floats, ratio: Floats, scatter: float) -> _Jump | None:
    """Find a split where a line per side leaves at most a third of the scatter and the lines do not meet."""
    best = None
    for split in range(3, len(x) - 2) if len(x) >= _MIN_PATTERN_SIZES else ():
        sides = (slice(None, split), slice(split, None))
        lines = [np.polyfit(x[side], ratio[side], 1) for side in sides]
        residuals = [ratio[side] - np.polyval(line, x[side]) for side, line in zip(sides, lines, strict=True)]
        scatter_of_lines = float(np.sqrt(np.mean(np.concatenate(residuals) ** 2)))
        middle = (x[split - 1] + x[split]) / 2
        size = float(np.polyval(lines[1], middle) - np.polyval(lines[0], middle))
        if best is None or scatter_of_lines < best[0]:
            best = (scatter_of_lines, _Jump(float(np.expm1(size)), float(x[split - 1]), float(x[split])))
    if best is None or best[0] > scatter / 3 or abs(best[1].size) < max(_MIN_JUMP, 3 * best[0]):
        return None
    return best[1]
