"""``power-law``: learning rate and batch from N and D, with your own constants."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flops_fit_core import Hyperparameters
from flops_fit_core.plugins import RecipeInput
from flops_fit_recipes.published import Beta, Positive, in_samples, require_positive
from flops_fit_recipes.warmup import WarmupOptions, warmup_tokens


class PowerLawOptions(WarmupOptions):
    """``lr = lr_scale N^lr_params D^lr_tokens``, and a batch of ``batch_scale N^batch_params D^batch_tokens``
    tokens, with constants fitted to your own runs by ``flops-fit fit TABLE --law lr-batch``.

    The constants apply to the optimizer with which the runs were trained. All parameters have one learning rate.
    """

    n: Literal["matmul", "total", "non-embedding"] = "matmul"
    """N of the law. ``matmul``: all parameters except lookup tables; ``non-embedding``: without embeddings and
    output head."""
    lr_scale: Positive | None = None
    """Factor of the learning rate. Unset: the optimizer's default."""
    lr_params: float = 0.0
    """Exponent of N in the learning rate."""
    lr_tokens: float = 0.0
    """Exponent of D in the learning rate."""
    batch_scale: Positive | None = None
    """Factor of the batch, in tokens (samples). Unset: ``sweep.batch_size``."""
    batch_params: float = 0.0
    """Exponent of N in the batch."""
    batch_tokens: float = 0.0
    """Exponent of D in the batch."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay of the fitted runs. Unset: the optimizer's default."""
    betas: tuple[Beta, Beta] | None = None
    """Betas of an Adam-like optimizer. Unset: the optimizer's default."""


def power_law_recipe(options: PowerLawOptions, run: RecipeInput) -> Hyperparameters:
    """The power laws at the run's N and D. A batch has at least one sample and at most all samples of the run.

    Raises ConfigError for a model without parameters of the chosen kind.
    """
    counts = run.parameters
    by_name = {"matmul": counts.matmul, "total": counts.total, "non-embedding": counts.non_embedding}
    params = require_positive(by_name[options.n], "power-law")
    lr = batch_size = None
    if options.lr_scale is not None:
        lr = options.lr_scale * params**options.lr_params * run.tokens**options.lr_tokens
    if options.batch_scale is not None:
        batch = options.batch_scale * params**options.batch_params * run.tokens**options.batch_tokens
        batch_size = min(in_samples(batch, run), in_samples(run.tokens, run))
    return Hyperparameters(
        lr=lr,
        batch_size=batch_size,
        weight_decay=options.weight_decay,
        betas=None if run.width_scaling == "none" else options.betas,
        warmup_tokens=warmup_tokens(options, run),
    )
