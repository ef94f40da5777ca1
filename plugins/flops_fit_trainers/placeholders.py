"""A run's values by name, for a program's arguments and environment."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any

from flops_fit_core import ConfigError, RunSpec

OptionsOf = Callable[[str], Mapping[str, Any]]
"""All options of the run's plugin of a kind."""

NAMES = {
    "run_id": "what identifies the run",
    "seed": "of weights and of the order of the data",
    "size": "value of the model's option that scales",
    "params": "N, as the FLOPs counter counts it",
    "tokens": "D: tokens (samples) to train on, steps x batch_size x context",
    "steps": "optimizer steps",
    "batch_size": "sequences (samples) a step",
    "context": "tokens of a sequence; 1 where D counts samples",
    "tokens_per_step": "batch_size x context",
    "lr": "the optimizer's peak learning rate",
    "devices": "how many GPUs the run has: `device.devices_per_run`",
    "flops": "training FLOPs of the run",
    "flops_per_token": "training FLOPs a token",
    "budget": "nominal C of the run's IsoFLOP profile",
    "run": "a JSON file with all of the run, and with the options of its plugins",
    "result": "the JSON file that the program writes",
    "progress": "a file to which it may append lines of JSON on its way",
    "checkpoint": "a folder of the run's own, kept when it is stopped",
    "python": "the Python that runs flops-fit",
}
"""Every placeholder, and what it is."""
KINDS = ("model", "dataset", "optimizer", "schedule")
"""Plugins whose options are placeholders too: ``{model.depth}``."""


def check_template(text: str) -> None:
    """Raises ValueError, listing what there is, for a placeholder that there is not."""
    for name in _names(text):
        if name not in NAMES and name.partition(".")[0] not in KINDS:
            close = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {{{close[0]}}}? " if close else ""
            there = ", ".join(f"{{{one}}}" for one in NAMES)
            raise ValueError(
                f"there is no placeholder {{{name}}}; {hint}there is: {there}, and options of "
                f"{', '.join(KINDS)}, such as {{model.depth}}; a brace that it is to see is written twice"
            )


def values_of(run: RunSpec, options: OptionsOf) -> dict[str, Any]:
    """Of all placeholders but files. Without ``lr`` where the optimizer has none."""
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
    """The text with values in the place of placeholders; ``options(kind)`` gives a plugin's.

    Raises ConfigError for an option that the run's plugin has not, and for a format that does not fit.
    """
    done = []
    for literal, name, how, conversion in Formatter().parse(text):
        done.append(literal)
        if name is None:
            continue
        value = values[name] if name in values else _option(name, options)
        try:
            done.append(format(repr(value) if conversion == "r" else value, how or ""))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"trainer 'command': {{{name}:{how}}} of {value!r}: {error}") from None
    return "".join(done)


def _names(text: str) -> list[str]:
    try:
        return [name for _, name, _, _ in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}; a brace that it is to see is written twice") from None


def _option(name: str, options: OptionsOf) -> Any:
    kind, _, rest = name.partition(".")
    if kind not in KINDS:
        raise ConfigError(f"trainer 'command': {{{name}}} has no value here: the optimizer has no such option")
    value: Any = options(kind)
    for key in rest.split("."):
        if not isinstance(value, Mapping) or key not in value:
            there = ", ".join(value) if isinstance(value, Mapping) else "nothing"
            raise ConfigError(f"trainer 'command': {{{name}}}: its {kind} has no {key!r}; there is: {there}")
        value = value[key]
    return value
