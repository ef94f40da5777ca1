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
from flops_fit_hf_models.reading import read_configuration

if TYPE_CHECKING:
    from torch import nn

REQUIRES = ("transformers>=5.23",)
Init = Literal["architecture", "fan_in"]
Fields = Annotated[dict[str, JsonValue], BeforeValidator(read_configuration)]


class HFOptions(Options):
    """A decoder of the library transformers, scaled by one field of its configuration. Vocabulary and positions
    come from the dataset's task. All other fields have the architecture's defaults."""

    architecture: str = "llama"
    """The configuration's ``model_type``: ``llama``, ``gpt2``, ``qwen3``, ``mamba``, ..., or any other causal
    language model of transformers."""
    width: PositiveInt = 256
    """Value of ``field``. This is what scales."""
    field: str = "hidden_size"
    """The field of the configuration that scales. ``hidden_size`` is the width in every architecture, also for
    ``n_embd`` of GPT-2. With ``hidden_size``, feed-forward parts keep the proportion of the architecture's
    defaults."""
    head_dim: PositiveInt = 64
    """Channels per attention head. There are ``width / head_dim`` heads, rounded down to a number that divides the
    width evenly. Automatic widths are multiples of it, so that all heads have the same size. To fix the number of
    heads, write ``num_attention_heads`` in ``config``."""
    queries_per_kv: PositiveInt | None = None
    """Query heads per head of keys and values, rounded to a number that divides the heads. Unset: as in the
    architecture's defaults."""
    scaled: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Other fields that scale, as multiples of ``width``: ``{ intermediate_size = 3.5 }``. Rounded to an integer,
    from 128 on to a multiple of 8."""
    config: dict[str, JsonValue] = {}
    """Fields of the configuration that are the same at every size: ``{ num_hidden_layers = 4 }``."""
    init: Init = "architecture"
    """Initial weights: those of transformers for the ``architecture``, or scaled by ``fan_in``, so that one
    learning rate is good for every width. Unset: ``fan_in`` with a recipe that scales learning rates by the width,
    for architectures for which this is verified; otherwise ``architecture``."""


class LadderOptions(Options):
    """Complete configurations of the library transformers, one per size. Vocabulary and positions come from the
    dataset's task."""

    configs: Annotated[tuple[Fields, ...], Runtime()] = ()
    """The sizes: tables of fields, JSON files, or folders with a ``config.json``. Records contain the content of a
    file, not its path."""
    config_number: Annotated[PositiveInt, Runtime()] = 1
    """Which of ``configs``, counted from 1. This is what scales."""
    architecture: str = "llama"
    """The ``model_type`` of configurations without this field."""
    config: Fields = {}
    """The selected configuration. It is set automatically and identifies a run, so that additional ``configs`` do
    not change the ids of other runs."""
    init: Init = "architecture"
    """Initial weights: those of transformers for the ``architecture``, or scaled by ``fan_in``, so that one
    learning rate is good for every width. Unset: ``fan_in`` with a recipe that scales learning rates by the width,
    for architectures for which this is verified; otherwise ``architecture``."""

    @model_validator(mode="after")
    def _select_config(self) -> Self:
        if "config" in self.model_fields_set:
            return self
        if not self.configs:
            raise ValueError('configs is empty: write configs = ["small.json", "large.json"], or tables of fields')
        if self.config_number > len(self.configs):
            raise ValueError(
                f"config_number {self.config_number} of {len(self.configs)} configs: they are counted from 1"
            )
        self.__dict__["config"] = self.configs[self.config_number - 1]  # pydantic models are frozen
        return self


def build(options: HFOptions | LadderOptions, task: Task) -> nn.Module:
    """Build a decoder: ids (batch, context) -> logits (batch, context, vocabulary)."""
    from flops_fit_hf_models.model import build_decoder

    return build_decoder(options, task)


def flops_per_token(options: HFOptions | LadderOptions, task: Task) -> float | None:
    """Training FLOPs per token; None for an architecture without a formula."""
    from flops_fit_hf_models.counting import flops_of

    dimensions = shape(options, task)
    return None if dimensions is None else flops_of(dimensions)


def shape(options: HFOptions | LadderOptions, task: Task) -> TransformerShape | None:
    """The transformer's dimensions; None for an architecture that is not a plain decoder-only transformer."""
    from flops_fit_hf_models.configuration import configure, language
    from flops_fit_hf_models.counting import shape_of

    return shape_of(configure(options, task), language(task))


def parameter_groups(module: nn.Module) -> Iterable[ParameterGroup]:
    """Groups of matrices with the width as input size, then a group of all other parameters."""
    from flops_fit_hf_models.model import groups_of

    return groups_of(module)


def width(options: Any) -> int:
    """Channels of the residual stream."""
    from flops_fit_hf_models.configuration import hidden_size

    return hidden_size(options)


def width_scaled_options(options: HFOptions | LadderOptions) -> dict[str, Any]:
    """Initial weights by fan-in, for an architecture for which this is verified."""
    from flops_fit_hf_models.transfer import width_scaled_options

    return width_scaled_options(options)


def width_transfer(options: HFOptions | LadderOptions) -> str | None:
    """The reason why one learning rate may not suit every width; None if this is verified."""
    from flops_fit_hf_models.transfer import width_transfer

    return width_transfer(options)


def ladders(options: HFOptions) -> Iterable[Ladder]:
    """Widths with heads of equal size, with complete query groups if these are fine enough; any number of layers;
    multiples of 16 for other fields and for models without heads. Raises ConfigError."""
    from flops_fit_hf_models.head_sizes import ladders_of

    return ladders_of(options)


def heads(options: HFOptions | LadderOptions) -> tuple[int, int] | None:
    """Heads per block and channels per head; None for a model without heads."""
    from flops_fit_hf_models.head_sizes import heads_of

    return heads_of(options)


def scale(options: LadderOptions, target_params: int) -> LadderOptions:
    """The configuration with the nearest N on a log scale. N counts active parameters without lookup tables, with
    the vocabulary of the configuration."""
    from flops_fit_hf_models.ladder import nearest

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
