"""What a reader must know of the runs' FLOPs per token, in plain words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flops_fit_core.fitting.data import Floats, Ints

_SPREAD = 0.02
"""Relative difference between runs of one N from which they are reported."""
_SCATTER = 0.015
"""Standard deviation of sizes about the curve from which it is reported."""
_JUMP = 0.03
"""Least jump between neighbouring sizes."""
_FEW = 8
"""Sizes without which scatter has no pattern."""


def describe_flops_per_token(
    ln_params: Floats, ln_tokens: Floats, ln_flops: Floats, curve: Floats
) -> tuple[str, ...]:
    """Warnings for runs whose FLOPs per token are no smooth function of N. ``curve`` is ln f of each run by the
    smooth curve."""
    size = np.unique(ln_params, return_inverse=True)[1]
    mean = (np.bincount(size, ln_flops) / np.bincount(size))[size]
    spread = 2 * float(np.expm1(np.max(np.abs(ln_flops - mean))))
    change = _change_with_tokens(size, ln_tokens, ln_flops)
    if spread > _SPREAD and change:
        message = (
            f"FLOPs per token change with D: at one N they are {change:+.1%} for 10 times the tokens (a longer "
            "context?). D at a given N and C is then an average; fit runs of one context length"
        )
        return (message,)
    found = []
    if spread > _SPREAD:
        found.append(
            f"runs of one N differ by {spread:.1%} in FLOPs per token, so D at a given N and C is an average; fit "
            "runs that count FLOPs in one way and share one shape a size"
        )
    x, first = np.unique(ln_params, return_index=True)
    rest = (mean - curve)[first]
    scatter = float(np.sqrt(np.mean(rest**2)))
    if scatter <= _SCATTER:
        return tuple(found)
    jump = _find_jump(x, mean[first] - x, scatter)
    if jump is not None:
        found.append(
            f"FLOPs per token over N jump by {jump.size:+.1%} between N = {np.exp(jump.below):.3g} and "
            f"{np.exp(jump.above):.3g}, as between two families of models or two ways to count: optima there are "
            "rough; fit the sizes of each family by themselves"
        )
        return tuple(found)
    found.append(
        f"FLOPs per token of the sizes scatter by {scatter:.1%} about a smooth curve in N (shapes vary between "
        f"sizes): an optimum is that of a usual shape, and a model whose shape costs {scatter:.1%} more trains on "
        f"{scatter:.1%} fewer tokens"
    )
    return tuple(found)


def _change_with_tokens(size: Ints, ln_tokens: Floats, ln_flops: Floats) -> float | None:
    """Relative change of f for 10 times D among runs of one size; None where D does not explain most of it."""
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
    """Where two straight lines, one on either side, leave a third of the scatter at most and do not meet."""
    best = None
    for split in range(3, len(x) - 2) if len(x) >= _FEW else ():
        sides = (slice(None, split), slice(split, None))
        lines = [np.polyfit(x[side], ratio[side], 1) for side in sides]
        rest = [ratio[side] - np.polyval(line, x[side]) for side, line in zip(sides, lines, strict=True)]
        left = float(np.sqrt(np.mean(np.concatenate(rest) ** 2)))
        middle = (x[split - 1] + x[split]) / 2
        size = float(np.polyval(lines[1], middle) - np.polyval(lines[0], middle))
        if best is None or left < best[0]:
            best = (left, _Jump(float(np.expm1(size)), float(x[split - 1]), float(x[split])))
    if best is None or best[0] > scatter / 3 or abs(best[1].size) < max(_JUMP, 3 * best[0]):
        return None
    return best[1]
