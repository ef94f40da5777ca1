"""Architectures with transfer of the learning rate between widths, by muP's coordinate check.

``python tests/benchmarks/mup_coordinates.py`` prints the measurements.
"""

from __future__ import annotations

from typing import Any

from flops_fit_core import ConfigError
from flops_fit_hf_models import HFOptions, LadderOptions

VERIFIED = frozenset(
    (
        *("bert", "gpt2", "gpt_neox", "gptj", "granite", "llama", "mamba", "mamba2", "mistral", "olmo"),
        *("olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2"),
        *("aria_text", "ernie4_5_moe", "glm4_moe", "gpt_oss", "granitemoe", "granitemoeshared"),
        *("hunyuan_v1_moe", "llama4_text", "mellum", "mixtral", "qwen3_moe"),
    )
)
"""Architectures in which nothing grows by more than 1.5x from width 64 to 512, with initial weights by fan-in."""
NOT_VERIFIED = {
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3_text", "gemma4_text"), "multiplies its embeddings by the root of the width"
    ),
    "cohere2_moe": "multiplies its logits by 1/16, so that weights that start by fan-in learn too slowly",
    "deepseek_v3": "has latent attention and shared experts with outputs that grow with the width",
    "electra": "has a prediction head with activations that grow with the width",
    "inkling_text": "has shared experts with outputs that change with the width",
    "olmoe": "has routers with outputs that grow with the width",
    "qwen2_moe": "has a gate of its shared experts that grows with the width",
    "rwkv": "has time mixing that changes with the width",
}
"""Other measured architectures, with the reason why the learning rate does not transfer."""
INITIAL = ("initializer_range", "init_std")
"""Fields of a configuration for the standard deviation of initial weights."""
MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier")
"""Fields of Granite that were chosen for the initial weights of transformers."""


def width_scaled_options(options: HFOptions | LadderOptions) -> dict[str, Any]:
    """Initial weights by fan-in, for an architecture for which this is verified."""
    by_fan_in = _model_type(options) in VERIFIED and _custom_init_field(options) is None
    return {"init": "fan_in"} if by_fan_in else {}


def width_transfer(options: HFOptions | LadderOptions) -> str | None:
    """The reason why one learning rate may not suit every width; None if this is verified."""
    if options.init == "fan_in":
        return None
    name = _model_type(options)
    if name in NOT_VERIFIED:
        return f"{name!r} {NOT_VERIFIED[name]}, and its weights start as transformers draws them"
    if name not in VERIFIED:
        verified = ", ".join(sorted(VERIFIED))
        return f"{name!r} is not one of {verified}, and its weights start as transformers draws them"
    if field := _custom_init_field(options):
        return f"model.config sets {field}; leave it out for weights that start by fan-in"
    return 'model.init = "architecture"; activations grow with the width, and with "fan_in" they do not'


def require_fan_in(options: HFOptions | LadderOptions) -> None:
    """Raise ConfigError if weights by fan-in are not verified, or contradict another option."""
    name = _model_type(options)
    if name not in VERIFIED:
        raise ConfigError(
            f'model.init = "fan_in" is verified for {", ".join(sorted(VERIFIED))}, not for {name!r}: leave it out '
            f"for the weights that transformers draws"
        )
    if field := _custom_init_field(options):
        raise ConfigError(
            f'model.config: {field} is for the weights of transformers: leave it out, or init = "fan_in"'
        )


def _model_type(options: HFOptions | LadderOptions) -> str:
    if isinstance(options, LadderOptions):
        return str(options.config.get("model_type", options.architecture))
    return options.architecture


def _custom_init_field(options: HFOptions | LadderOptions) -> str | None:
    """A field by which the user changed the initial weights. ``INITIAL`` does not count for a ladder, because all
    files of transformers have it."""
    fields = MULTIPLIERS if isinstance(options, LadderOptions) else (*INITIAL, *MULTIPLIERS)
    return next((field for field in fields if field in options.config), None)
