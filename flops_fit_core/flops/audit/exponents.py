"""How the exponent of the compute-optimal size depends on the FLOPs convention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flops_fit_core.flops.audit.comparing import Audit, Convention


@dataclass(frozen=True)
class LossExponents:
    """Exponents of L = E + A/N^alpha + B/D^beta, and their source."""

    alpha: float
    beta: float
    source: str


CHINCHILLA = LossExponents(0.33917, 0.28491, "Hoffmann et al. 2022, approach 3")


@dataclass(frozen=True)
class Scaling:
    """The exponents of the compute-optimal size under one convention, for a fixed loss.

    If FLOPs per token scale as f ~ N^phi, minimizing the loss at C = f D gives N_opt ~ C^a with
    a = beta / (alpha + phi beta), and D_opt ~ C^b with b = 1 - phi a. If the convention also counts another size
    M ~ N^psi, then M_opt ~ C^(psi a) (Pearce and Song 2024, "Reconciling Kaplan and Chinchilla scaling laws",
    where M excludes embeddings).
    """

    convention: Convention
    phi: float
    """Slope of ln f against ln N over the audited sizes, N by the study's convention."""
    psi: float
    """Slope of ln M against ln N, M by this convention."""
    a: float
    b: float

    @property
    def own_a(self) -> float:
        """Exponent of the size M that this convention counts."""
        return self.psi * self.a


def scalings(audited: Audit, law: LossExponents) -> list[Scaling]:
    """One result per convention; empty for a single size, which has no slope."""
    sizes = [math.log(count.params) for count in audited.conventions[0].counts]
    if len(set(sizes)) < 2:
        return []
    results = []
    for convention in audited.conventions:
        phi = _slope(sizes, [math.log(count.flops_per_token) for count in convention.counts])
        psi = _slope(sizes, [math.log(count.params) for count in convention.counts])
        a = law.beta / (law.alpha + phi * law.beta)
        results.append(Scaling(convention, phi, psi, a, 1 - phi * a))
    return results


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the least-squares line."""
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    covariance = math.fsum((x_value - mean_x) * (y_value - mean_y) for x_value, y_value in zip(x, y, strict=True))
    return covariance / math.fsum((x_value - mean_x) ** 2 for x_value in x)
