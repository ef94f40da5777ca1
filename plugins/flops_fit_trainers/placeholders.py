"""Placeholders in a program's arguments and environment, and their values for a run."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any

from flops_fit_core import ConfigError, RunSpec

OptionsOf = Callable[[str], Mapping[str, Any]]
"""Kind of plugin -> all options of the run's plugin of this kind."""

NAMES = {
    "run_id": "id of the run",
    "seed": "seed of the weights and of the order of the data",
    "size": "value of the model's scaling option",
    "params": "N by the FLOPs counter",
    "tokens": "D: tokens (samples) to train on, steps x batch_size x context",
    "steps": "optimizer steps",
    "batch_size": "sequences (samples) per step",
    "context": "tokens per sequence; 1 if D counts samples",
    "tokens_per_step": "batch_size x context",
    "lr": "the optimizer's peak learning rate",
    "devices": "number of GPUs of the run: `device.devices_per_run`",
    "flops": "training FLOPs of the run",
    "flops_per_token": "training FLOPs per token",
    "budget": "nominal C of the run's IsoFLOP profile",
    "run": "a JSON file with the run and the options of its plugins",
    "result": "the JSON file that the program writes",
    "progress": "a file to which the program may append JSON lines during training",
    "checkpoint": "a folder for the run's checkpoints, kept when the run is stopped",
    "python": "the Python that runs flops-fit",
}
"""Placeholder -> description."""
KINDS = ("model", "dataset", "optimizer", "schedule")
"""Kinds of plugins with options that are also placeholders: ``{model.depth}``."""


def check_template(text: str) -> None:
    """Raises ValueError for an unknown placeholder. The message lists all placeholders."""
    for name in _names(text):
        if name not in NAMES and name.partition(".")[0] not in KINDS:
            close = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {{{close[0]}}}? " if close else ""
            available = ", ".join(f"{{{placeholder}}}" for placeholder in NAMES)
            raise ValueError(
                f"there is no placeholder {{{name}}}; {hint}available: {available}, and options of "
                f"{', '.join(KINDS)}, such as {{model.depth}}; write {{{{ for a literal brace"
            )


def values_of(run: RunSpec, options: OptionsOf) -> dict[str, Any]:
    """Values of all placeholders except files. No ``lr`` if the optimizer has no such option."""
    values: dict[str, Any] = {
        "run_id": run.id,
        "seed": run.seed,
        "size": run.size,
        "params": run.params,
        "tokens": run.tokens,
        "steps": run.steps,
        "batch_size": run.batch_size,
        "context": run.tokens_per_step // run.batch_size,
        "tokens_per_step": run.tokens_per_step,
        "lr": options("optimizer").get("lr"),
        "devices": run.devices,
        "flops": run.flops,
        "flops_per_token": run.flops_per_token,
        "budget": run.budget,
        "python": sys.executable,
    }
    return {name: value for name, value in values.items() if value is not None}


def fill(text: str, values: Mapping[str, Any], options: OptionsOf) -> str:
    """Replace the placeholders in a text. ``options(kind)`` returns the options of a plugin.

    Raises ConfigError for an option that the run's plugin does not have, and for a format that does not fit.
    """
    parts = []
    for literal, name, spec, conversion in Formatter().parse(text):
        parts.append(literal)
        if name is None:
            continue
        value = values[name] if name in values else _option(name, options)
        try:
            parts.append(format(repr(value) if conversion == "r" else value, spec or ""))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"trainer 'command': {{{name}:{spec}}} of {value!r}: {error}") from None
    return "".join(parts)


def _names(text: str) -> list[str]:
    try:
        return [name for _, name, _, _ in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}; write {{{{ for a literal brace") from None


def _option(name: str, options: OptionsOf) -> Any:
    kind, _, rest = name.partition(".")
    if kind not in KINDS:
        raise ConfigError(f"trainer 'command': {{{name}}} has no value here: the optimizer has no such option")
    value: Any = options(kind)
    for key in rest.split("."):
        if not isinstance(value, Mapping) or key not in value:
            available = ", ".join(value) if isinstance(value, Mapping) else "nothing"
            raise ConfigError(f"trainer 'command': {{{name}}}: its {kind} has no {key!r}; available: {available}")
        value = value[key]
    return value
