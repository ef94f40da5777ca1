"""The surface itself, in the place of a dataset."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field, PositiveInt

from flops_fit_core import DataError
from flops_fit_core.data import LanguageTask
from flops_fit_core.plugins import Batch, LossSurface, Options

PositiveFloat = Annotated[float, Field(gt=0)]


class SurfaceOptions(Options):
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats per token.

    The defaults are Chinchilla's constants as Besiroglu et al. 2024 ("Chinchilla Scaling: A replication
    attempt") published them, not those of Hoffmann et al. 2022 (1.69, 406.4, 410.7, 0.34, 0.28), which do
    not fit the paper's own runs.
    """

    E: Annotated[float, Field(ge=0)] = 1.8172
    """Loss that no model gets below."""
    A: PositiveFloat = 482.01
    """Of the term that falls with N."""
    B: PositiveFloat = 2085.43
    """Of the term that falls with D."""
    alpha: PositiveFloat = 0.3478
    """Exponent of N."""
    beta: PositiveFloat = 0.3658
    """Exponent of D."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of ln L from run to run; 0.01 is about 1% of the loss."""
    noise_seed: int = 0
    """Another seed gives every run another error."""
    vocab_size: PositiveInt = 32_000
    """Vocabulary of the language task that models are built and counted for."""
    context: PositiveInt = 2048
    """Tokens in one sequence of that task."""


class Surface(LossSurface):
    """A task and a formula without data."""

    def __init__(self, options: SurfaceOptions) -> None:
        self.options = options
        self.task = LanguageTask(vocab_size=options.vocab_size, context=options.context)
        self.fingerprint = (
            f"surface {options.E:.12g} + {options.A:.12g} / N^{options.alpha:.12g} + "
            f"{options.B:.12g} / D^{options.beta:.12g}, noise {options.noise:.12g} (seed {options.noise_seed})"
            + (", drawn by seed, N and D" if options.noise else "")
        )

    def loss(self, params: float, tokens: float) -> float:
        """L(N, D) in nats per token, without noise."""
        it = self.options
        return float(it.E + it.A / params**it.alpha + it.B / tokens**it.beta)

    def synthetic_loss(self, params: float, tokens: float, seed: int) -> float:
        """L(N, D) times exp(noise z). z is standard normal and depends on (noise_seed, seed, N, D) only, so
        a run has the same loss in every process."""
        z = random.Random(f"{self.options.noise_seed} {seed} {params:.17g} {tokens:.17g}").gauss(0.0, 1.0)
        return self.loss(params, tokens) * math.exp(self.options.noise * z)

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        raise DataError(_NO_DATA)

    def eval_batches(self, tokens: int, batch_size: int) -> Iterable[Batch]:
        raise DataError(_NO_DATA)


_NO_DATA = (
    "a surface has no data: its runs are computed by trainer 'surface'; leave [trainer] out, or choose a "
    "dataset that has data, such as 'text'"
)
