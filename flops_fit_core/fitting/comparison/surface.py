"""The loss surface that two recipes share.

The first recipe has L = E + A (N^(-alpha / k) + R D^(-beta / k))^k: for k = 1 the form of Hoffmann et al. 2022,
for k < 1 its generalisation with a sharper valley (Skaling). The second recipe with (N, D) has the loss of the
first with (N m, D n). Its gain is the factor m n: the first recipe needs C m n for the loss of the second with C.
With u = ln(N / N_0), v = ln(D / D_0) and

    ln m = (s + delta (u + v) + w (u - v)) / 2 + t
    ln n = (s + delta (u + v) - w (u - v)) / 2 - t

the gain is a power law: ln g(C) = s + delta ln(C / C_0). delta = 0 means shared exponents. For w = delta,
alpha and beta of the second recipe are those of the first times 1 + delta; w = 0 leaves the width of the IsoFLOP
profiles unchanged. N is FLOPs per token / 6, so C = 6 N D. N_0 and D_0 are geometric means over the runs.

The solver works on z, which has a standard normal prior: parameter = centre + scale z.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, log_expit

from flops_fit_core.fitting.comparison.design import Design
from flops_fit_core.fitting.data import Floats

NAMES = ("ln_level", "logit_floor", "logit_share", "ln_alpha", "ln_beta", "ln_k", "s", "t", "delta", "w")
"""ln of the loss at (N_0, D_0), logit of E's share of it, logit of the N term's share of the bracket, the
exponents, and the four parameters of the gain."""
GAIN, TILT, CHANGE, WIDTH = 6, 7, 8, 9
CHANGE_SCALE, WIDTH_SCALE = 0.2, 0.1
TILT_SCALE, SMALLEST_TILT_SCALE = 0.25, 0.005
"""t has the scale 0.25 |s|: t = s / 2 is a gain in N alone, t = -s / 2 a gain in D alone. Runs determine t if
sizes lie on both sides of the optimum."""
_CENTRES = (0.0, 0.4, 0.0, float(np.log(0.35)), float(np.log(0.35)), float(np.log(0.5)), 0.0, 0.0, 0.0, 0.0)
_SCALES = (3.0, 1.5, 1.0, 0.5, 0.5, 0.8, 2.0, SMALLEST_TILT_SCALE, CHANGE_SCALE, WIDTH_SCALE)


@dataclass(frozen=True)
class SharedSurface:
    """ln L of the runs of a design, as a function of z."""

    size: Floats
    """ln(N / N_0) of each run."""
    tokens: Floats
    """ln(D / D_0) of each run."""
    second: Floats
    """1 for runs of the second recipe, otherwise 0."""
    centre: Floats
    scale: Floats
    ln_flops: float
    """ln C_0 = ln(6 N_0 D_0)."""

    @classmethod
    def of(cls, design: Design) -> SharedSurface:
        """The surface for a design, with a prior for gains near 1."""
        size, tokens = design.ln_size, design.ln_tokens
        ln_flops = float(np.log(6) + size.mean() + tokens.mean())
        centre = np.array(_CENTRES)
        centre[0] = design.ln_loss.mean()
        return cls(size - size.mean(), tokens - tokens.mean(), design.second, centre, np.array(_SCALES), ln_flops)

    def with_gain(self, z: Floats) -> tuple[SharedSurface, Floats]:
        """The surface with the scale of t for the gain in ``z``, and z of the same parameters."""
        scale = self.scale.copy()
        scale[TILT] = max(TILT_SCALE * abs(float(self.parameters(z)[GAIN])), SMALLEST_TILT_SCALE)
        return replace(self, scale=scale), (self.parameters(z) - self.centre) / scale

    def parameters(self, z: Floats) -> Floats:
        """Parameters in the order of NAMES, for z of shape (..., 10)."""
        parameters: Floats = self.centre + self.scale * z
        return parameters

    def predict(self, z: Floats) -> Floats:
        """Ln L of shape (..., runs), for z of shape (..., 10)."""
        p = np.moveaxis(self.parameters(z)[..., None], -2, 0)
        size, tokens = self._shifted(p)
        k = np.exp(p[5])
        bracket = np.logaddexp(
            log_expit(p[2]) - np.exp(p[3]) * size / k, log_expit(-p[2]) - np.exp(p[4]) * tokens / k
        )
        loss: Floats = p[0] + np.logaddexp(log_expit(p[1]), log_expit(-p[1]) + k * bracket)
        return loss

    def jacobian(self, z: Floats) -> Floats:
        """Derivatives of ln L by z, of shape (runs, 10), for z of shape (10,)."""
        p = self.parameters(z)
        size, tokens = self._shifted(p[:, None])
        alpha, beta, k = np.exp(p[3:6])
        first, second = log_expit(p[2]) - alpha * size / k, log_expit(-p[2]) - beta * tokens / k
        bracket = np.logaddexp(first, second)
        by_size, by_tokens = np.exp(first - bracket), np.exp(second - bracket)
        log_terms = log_expit(p[1]), log_expit(-p[1]) + k * bracket
        reducible = expit(log_terms[1] - log_terms[0])
        """(L - E) / L, by which the derivatives of ln(L - E) are multiplied."""
        gain_size, gain_tokens = -alpha * by_size * self.second, -beta * by_tokens * self.second
        middle, ratio = (self.size + self.tokens) / 2, (self.size - self.tokens) / 2
        columns = np.stack(
            [
                np.ones(len(size)),
                1 - reducible - expit(p[1]),
                reducible * k * (by_size * expit(-p[2]) - by_tokens * expit(p[2])),
                reducible * -alpha * size * by_size,
                reducible * -beta * tokens * by_tokens,
                reducible * (k * bracket + by_size * alpha * size + by_tokens * beta * tokens),
                reducible * (gain_size + gain_tokens) / 2,
                reducible * (gain_size - gain_tokens),
                reducible * (gain_size + gain_tokens) * middle,
                reducible * (gain_size - gain_tokens) * ratio,
            ],
            axis=1,
        )
        scaled: Floats = columns * self.scale
        return scaled

    def _shifted(self, p: Floats) -> tuple[Floats, Floats]:
        """ln(N m / N_0) and ln(D n / D_0), for parameters along the first axis."""
        gain = p[GAIN] / 2 + p[CHANGE] * (self.size + self.tokens) / 2
        tilt = p[TILT] + p[WIDTH] * (self.size - self.tokens) / 2
        return self.size + self.second * (gain + tilt), self.tokens + self.second * (gain - tilt)

    def direction(self, flops: float) -> Floats:
        """The vector c of shape (10,) with ln g(C) = c z; s and delta have the centre 0."""
        direction = np.zeros(len(NAMES))
        direction[GAIN] = self.scale[GAIN]
        direction[CHANGE] = self.scale[CHANGE] * (np.log(flops) - self.ln_flops)
        return direction
