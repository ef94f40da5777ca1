"""The text of a new experiment file, with every option as a comment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import tomlkit
from pydantic import BaseModel

from flops_fit_core.config.experiment import Sweep
from flops_fit_core.plugins.registry import Registry

WIDTH = 110
SMALL_SWEEP: Mapping[str, Any] = {"sizes": 6, "size_ratio": 1.4, "tokens_per_param": 40, "min_steps": 500}
"""Settings for budgets of minutes on a CPU: shorter runs do not follow a power law yet."""
SMALL_GPT: Mapping[str, Any] = {"depth": 3, "head_dim": 4}
SMALL_BUDGET = 1e13
DEFAULT_BUDGETS = (5e10, 1e11, 2e11, 4e11)
_NOTES = {
    "budgets": "training FLOPs per IsoFLOP profile",
    "sizes": "models per budget",
    "size_ratio": "ratio of N between neighbouring sizes",
    "tokens_per_param": "a guess of D/N at the optimum, around which sizes are chosen",
    "min_steps": "sizes that a budget would train for fewer steps are skipped",
}


def starter_table(name: str, choices: Mapping[str, str], budgets: Sequence[float]) -> dict[str, Any]:
    """The values of a new experiment: plugins by kind, and a sweep that suits the budgets."""
    is_small = max(budgets) <= SMALL_BUDGET
    table: dict[str, Any] = {
        "name": name,
        "sweep": {"budgets": list(budgets), **(SMALL_SWEEP if is_small else {})},
    }
    table |= {kind: {"name": plugin} for kind, plugin in choices.items()}
    if is_small and choices.get("model") in ("gpt", "gpt/gpt"):
        table["model"] |= SMALL_GPT
        table.setdefault("optimizer", {"name": "adamw"})
        table.setdefault("counter", {"name": "model"})
    return table


def starter_text(table: Mapping[str, Any], registry: Registry, file: str, schema: str | None) -> str:
    """The experiment file as TOML: the values, and a comment for each option that is not set.

    Args:
        table: The experiment as plain data; tables have ``name``.
        registry: The plugins, for the meaning of their options.
        file: The file's name, for the commands in its first lines.
        schema: The schema file that editors shall use; None for none.
    """
    lines = [f"#:schema {schema}"] if schema else []
    lines += [
        "# An experiment of flops-fit.",
        f"# Look at the runs with 'flops-fit plan {file}', train them with 'flops-fit run {file}'.",
        "# Lines with # are options with their defaults. Remove the # to change one.",
        f"name = {_toml(table['name'])}",
        *(f"{kind} = {_toml(values)}" for kind, values in table.items() if isinstance(values, list)),
        "",
        "[sweep]",
        *_values(table["sweep"]),
        *_unset(Sweep, table["sweep"]),
    ]
    for kind, values in table.items():
        if kind in ("name", "sweep") or isinstance(values, list):
            continue
        if isinstance(values, str):
            values = {"name": values}
        lines += ["", f"[{kind}]", *_values(values)]
        if "name" in values:  # without a name, the plugin may depend on the model or the dataset
            lines += _unset(registry.find(kind, values["name"]).spec.options, values)
    return "\n".join(lines) + "\n"


def _values(values: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_toml(value)}{_note(name)}" for name, value in values.items()]


def _note(name: str) -> str:
    return f"    # {_NOTES[name]}" if name in _NOTES else ""


def _unset(options: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """A comment per option without a value: its default and its meaning."""
    lines = []
    for name, field in options.model_fields.items():
        if name in values:
            continue
        meaning = " ".join((field.description or "").split()).rstrip(".")
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        text = f"# {name} = {_toml(default)}" if isinstance(default, bool | int | float | str) else f"# {name}"
        line = f"{text}    # {meaning}" if meaning else text
        lines.append(line if len(line) <= WIDTH else f"{line[: WIDTH - 4].rpartition(' ')[0]} ...")
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return re.sub(r"e\+?(-?)0*", r"e\1", f"{value:g}")
    return str(tomlkit.item(value).as_string())
