"""Which architectures one learning rate serves at every width, as the coordinate check of muP measures it.

``python tests/benchmarks/mup_coordinates.py`` prints the measurements.
"""

from __future__ import annotations

from typing import Any

from flops_fit_core import ConfigError
from flops_fit_transformers import HFOptions, LadderOptions

VERIFIED = frozenset(
    (
        *("gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo", "olmo2", "opt", "phi", "phi3"),
        *("qwen2", "qwen3", "smollm3", "stablelm", "starcoder2"),
    )
)
"""Nothing in them grows by more than 1.5x from width 64 to 512 when their weights start by fan-in."""
ROOT_OF_WIDTH = "multiplies its embeddings by the root of the width"
NOT_VERIFIED = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), ROOT_OF_WIDTH),
}
"""What grows with the width in others that were measured."""
INITIAL = ("initializer_range", "init_std")
"""Fields of a configuration that give the standard deviation of starting weights."""


def width_scaled_options(options: HFOptions | LadderOptions) -> dict[str, Any]:
    """Weights by fan-in, in an architecture for which that is verified."""
    by_fan_in = _model_type(options) in VERIFIED and _own_start(options) is None
    return {"init": "fan_in"} if by_fan_in else {}


def width_transfer(options: HFOptions | LadderOptions) -> str | None:
    """Why one learning rate may not serve every width; None where it does."""
    if options.init == "fan_in":
        return None
    name = _model_type(options)
    if name in NOT_VERIFIED:
        return f"{name!r} {NOT_VERIFIED[name]}, and its weights start as transformers draws them"
    if name not in VERIFIED:
        return (
            f"{name!r} is none of {', '.join(sorted(VERIFIED))}, and its weights start as transformers draws them"
        )
    if field := _own_start(options):
        return f"model.config sets {field}; leave it out for weights that start by fan-in"
    return 'model.init = "architecture"; activations grow with the width, and with "fan_in" they do not'


def require_fan_in(options: HFOptions | LadderOptions) -> None:
    """Raises ConfigError where weights by fan-in are not verified, or contradict another option."""
    name = _model_type(options)
    if name not in VERIFIED:
        raise ConfigError(
            f'model.init = "fan_in" is verified for {", ".join(sorted(VERIFIED))}, not for {name!r}: leave it out '
            f"for the weights that transformers draws"
        )
    if field := _own_start(options):
        raise ConfigError(f'model.config: {field} has no effect with init = "fan_in": leave one of them out')


def _model_type(options: HFOptions | LadderOptions) -> str:
    if isinstance(options, LadderOptions):
        return str(options.config.get("model_type", options.architecture))
    return options.architecture


def _own_start(options: HFOptions | LadderOptions) -> str | None:
    """The field with which the user chose the size of starting weights. Files of a ladder all have it."""
    if isinstance(options, LadderOptions):
        return None
    return next((field for field in INITIAL if field in options.config), None)
