"""Model families ``hf`` and ``hf-ladder``: the decoders of the library transformers, from their configurations.

Weights are random and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, PositiveInt, model_validator

from flops_fit_core.plugins import (
    Ladder,
    ModelSpec,
    Options,
    ParameterGroup,
    Runtime,
    Task,
    TransformerShape,
    hookimpl,
)
from flops_fit_transformers.reading import read_configuration

if TYPE_CHECKING:
    from torch import nn

REQUIRES = ("transformers>=5.23",)
Init = Literal["architecture", "fan_in"]
Fields = Annotated[dict[str, JsonValue], BeforeValidator(read_configuration)]


class HFOptions(Options):
    """A decoder of the library transformers, scaled by one field of its configuration. Vocabulary and positions
    come from the dataset's task; what is not said here is the architecture's default."""

    architecture: str = "llama"
    """The configuration's ``model_type``: ``llama``, ``gpt2``, ``qwen3``, ``mamba``, ..., any of those that
    transformers has as a causal language model."""
    width: PositiveInt = 256
    """Value of ``field``. This is what scales."""
    field: str = "hidden_size"
    """The field of the configuration that scales. ``hidden_size`` is the width in every architecture, ``n_embd``
    of GPT-2 too. With it, feed-forward parts keep their proportion in the architecture's defaults."""
    head_dim: PositiveInt = 64
    """Channels an attention head; there are ``width / head_dim`` heads, rounded down to a number that divides the
    width evenly. Automatic widths are multiples of it, so that all have heads of one size. For a fixed number
    write ``num_attention_heads`` in ``config``."""
    queries_per_kv: PositiveInt | None = None
    """Query heads that share one head of keys and values, rounded to a number that divides the heads. Unset: as
    in the architecture's defaults."""
    scaled: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Fields that follow, as multiples of ``width``: ``{ intermediate_size = 3.5 }``. Rounded to an integer, and
    from 128 on to a multiple of 8."""
    config: dict[str, JsonValue] = {}
    """Fields of the configuration that are the same at every size: ``{ num_hidden_layers = 4 }``."""
    init: Init = "architecture"
    """Starting weights: as transformers draws them for the ``architecture``, or by ``fan_in``, with which one
    learning rate is to serve every width. Unset: ``fan_in`` under a recipe that scales learning rates by the
    width, for the architectures whose activations it keeps of one size; otherwise ``architecture``."""


class LadderOptions(Options):
    """Whole configurations of the library transformers, one a size. Vocabulary and positions come from the
    dataset's task."""

    configs: Annotated[tuple[Fields, ...], Runtime()] = ()
    """The sizes: tables of fields, JSON files, or folders with a ``config.json``. What is in a file goes into the
    records, not its path."""
    config_number: Annotated[PositiveInt, Runtime()] = 1
    """Which of ``configs``, counted from 1. This is what scales."""
    architecture: str = "llama"
    """Of configurations that have no ``model_type`` of their own."""
    config: Fields = {}
    """The one that ``config_number`` chooses: filled in. It identifies a run, so that further ``configs`` leave others as
    they are."""
    init: Init = "architecture"
    """Starting weights: as transformers draws them for the ``architecture``, or by ``fan_in``, with which one
    learning rate is to serve every width. Unset: ``fan_in`` under a recipe that scales learning rates by the
    width, for the architectures whose activations it keeps of one size; otherwise ``architecture``."""

    @model_validator(mode="after")
    def _choose(self) -> Self:
        if "config" in self.model_fields_set:
            return self
        if not self.configs:
            raise ValueError('configs is empty: write configs = ["small.json", "large.json"], or tables of fields')
        if self.config_number > len(self.configs):
            raise ValueError(
                f"config_number {self.config_number} of {len(self.configs)} configs: they are counted from 1"
            )
        self.__dict__["config"] = self.configs[self.config_number - 1]  # the model is frozen for everyone else
        return self


def build(options: HFOptions | LadderOptions, task: Task) -> nn.Module:
    """Logits of shape (batch, context, vocabulary) from ids of shape (batch, context)."""
    from flops_fit_transformers.model import build_decoder

    return build_decoder(options, task)


def flops_per_token(options: HFOptions | LadderOptions, task: Task) -> float | None:
    """Training FLOPs a token by ``flops_fit_transformers.counting``; None for an architecture it does not know."""
    from flops_fit_transformers.counting import flops_of

    known = shape(options, task)
    return None if known is None else flops_of(known)


def shape(options: HFOptions | LadderOptions, task: Task) -> TransformerShape | None:
    """What formulas need to know of it; None for an architecture that is no plain decoder-only transformer."""
    from flops_fit_transformers.configuration import configure, language
    from flops_fit_transformers.counting import shape_of

    return shape_of(configure(options, task), language(task))


def parameter_groups(module: nn.Module) -> Iterable[ParameterGroup]:
    """Matrices fed by the width; then embeddings, gains, biases and what is neither."""
    from flops_fit_transformers.model import groups_of

    return groups_of(module)


def width(options: Any) -> int:
    """Channels of the residual stream."""
    from flops_fit_transformers.configuration import hidden_size

    return hidden_size(options)


def width_scaled_options(options: HFOptions | LadderOptions) -> dict[str, Any]:
    """Starting weights by fan-in, in an architecture for which that is verified."""
    from flops_fit_transformers.transfer import width_scaled_options

    return width_scaled_options(options)


def width_transfer(options: HFOptions | LadderOptions) -> str | None:
    """Why one learning rate may not serve every width; None where it does."""
    from flops_fit_transformers.transfer import width_transfer

    return width_transfer(options)


def ladders(options: HFOptions) -> Iterable[Ladder]:
    """Widths whose heads are all of one size, with whole groups of queries where that is fine enough; any number
    of layers; of other fields and of models without heads, multiples of 16. Raises ConfigError."""
    from flops_fit_transformers.head_sizes import ladders_of

    return ladders_of(options)


def heads(options: HFOptions | LadderOptions) -> tuple[int, int] | None:
    """Heads of a block, and channels of each; None for a model without them."""
    from flops_fit_transformers.head_sizes import heads_of

    return heads_of(options)


def scale(options: LadderOptions, target_params: int) -> LadderOptions:
    """The rung whose N (without lookup tables and experts that a token is not sent to), at its own vocabulary, is
    nearest on a log scale."""
    from flops_fit_transformers.ladder import nearest

    return nearest(options, target_params)


@hookimpl
def flops_fit_models() -> Iterable[ModelSpec]:
    """Offer ``hf`` and ``hf-ladder``."""
    common: dict[str, Any] = {
        "build": build,
        "width": width,
        "flops_per_token": flops_per_token,
        "shape": shape,
        "parameter_groups": parameter_groups,
        "width_scaled_options": width_scaled_options,
        "width_transfer": width_transfer,
        "optimizer": "optim/adamw",
        "heads": heads,
        "requires": REQUIRES,
        "extra": "transformers",
    }
    yield ModelSpec(name="hf", options=HFOptions, size="width", multiple_of=16, ladders=ladders, **common)
    yield ModelSpec(name="hf-ladder", options=LadderOptions, size="config_number", scale=scale, **common)
