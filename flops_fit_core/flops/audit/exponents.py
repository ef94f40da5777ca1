"""How the exponent of the compute-optimal size moves with the convention by which FLOPs are counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flops_fit_core.flops.audit.comparing import Audit, Convention


@dataclass(frozen=True)
class LossExponents:
    """Of L = E + A/N^alpha + B/D^beta, and where they come from."""

    alpha: float
    beta: float
    source: str


CHINCHILLA = LossExponents(0.33917, 0.28491, "Hoffmann et al. 2022, approach 3")


@dataclass(frozen=True)
class Scaling:
    """What a convention makes of one and the same loss.

    Where FLOPs a token f ~ N^phi, minimizing the loss at C = f D gives N_opt ~ C^a with
    a = beta / (alpha + phi beta), and D_opt ~ C^b with b = 1 - phi a. Who also counts another size M ~ N^psi
    finds M_opt ~ C^(psi a) (the argument of Pearce and Song 2024, "Reconciling Kaplan and Chinchilla scaling
    laws", where M leaves out embeddings).
    """

    convention: Convention
    phi: float
    """Slope of ln f in ln N over the audited sizes, N by the study's convention."""
    psi: float
    """Slope of ln M in ln N, M by this convention."""
    a: float
    b: float

    @property
    def own_a(self) -> float:
        """Exponent of the convention's own size."""
        return self.psi * self.a


def scalings(audited: Audit, law: LossExponents) -> list[Scaling]:
    """One a convention; none where there is one size only, which has no slope."""
    sizes = [math.log(count.params) for count in audited.conventions[0].counts]
    if len(set(sizes)) < 2:
        return []
    found = []
    for convention in audited.conventions:
        phi = _slope(sizes, [math.log(count.flops_per_token) for count in convention.counts])
        psi = _slope(sizes, [math.log(count.params) for count in convention.counts])
        a = law.beta / (law.alpha + phi * law.beta)
        found.append(Scaling(convention, phi, psi, a, 1 - phi * a))
    return found


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line."""
    middle_x, middle_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    covariance = math.fsum((one - middle_x) * (other - middle_y) for one, other in zip(x, y, strict=True))
    return covariance / math.fsum((one - middle_x) ** 2 for one in x)
