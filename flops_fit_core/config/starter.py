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
SMALL_MODELS: Mapping[str, Mapping[str, Any]] = {
    "gpt": {"depth": 3, "head_dim": 4},
    "hf": {"head_dim": 4, "config": {"num_hidden_layers": 2}},
    "vit": {"depth": 2, "patch": 4, "head_dim": 4},
}
"""Options of models for these budgets."""
SMALL_BUDGET = 1e13
DEFAULT_BUDGETS = (5e10, 1e11, 2e11, 4e11)
DIGITS: Mapping[str, Any] = {"sizes": 6, "tokens_per_param": 1.5, "allow_repeat": True, "min_steps": 50}
"""Settings for the 1,353 images of the default dataset: most runs see them many times."""
DIGITS_BUDGETS = (2.5e8, 5e8, 1e9, 2e9)
FORMULA_BUDGETS = (1e17, 1e18, 1e19)
COMPANIONS: Mapping[str, Mapping[str, str]] = {
    "vit": {"dataset": "images"},
    "surface": {"dataset": "surface"},
    "declared": {"dataset": "external", "trainer": "command"},
}
"""Model -> the other plugins that it needs."""
Tables = Mapping[str, Mapping[str, Any]]
_NOTES = {
    "budgets": "training FLOPs per IsoFLOP profile",
    "sizes": "models per budget",
    "size_ratio": "ratio of N between neighbouring sizes",
    "tokens_per_param": "a guess of D/N at the optimum, around which sizes are chosen",
    "min_steps": "sizes that a budget would train for fewer steps are skipped",
    "allow_repeat": "train on the data more than once",
}


def bare_name(plugin: str) -> str:
    """``gpt`` for ``gpt/gpt``."""
    return plugin.rpartition("/")[2]


def default_budgets(choices: Tables) -> tuple[float, ...]:
    """Budgets of minutes on a CPU for these plugins."""
    if bare_name(choices["dataset"]["name"]) == "surface":
        return FORMULA_BUDGETS
    return DIGITS_BUDGETS if _is_digits(choices["dataset"]) else DEFAULT_BUDGETS


def starter_table(name: str, choices: Tables, budgets: Sequence[float]) -> dict[str, Any]:
    """The values of a new experiment: plugins by kind, and a sweep that suits the budgets.

    Args:
        name: The experiment's name.
        choices: Kind -> table with the name of the plugin, and options.
        budgets: Training FLOPs.
    """
    is_small = max(budgets) <= SMALL_BUDGET
    is_digits = _is_digits(choices["dataset"])
    sweep = DIGITS if is_digits else SMALL_SWEEP if is_small else {}
    table: dict[str, Any] = {"name": name, "sweep": {"budgets": list(budgets), **sweep}}
    table |= {kind: dict(values) for kind, values in choices.items()}
    model = bare_name(choices["model"]["name"])
    if is_small and model in SMALL_MODELS:
        table["model"] = {"name": table["model"]["name"], **SMALL_MODELS[model], **table["model"]}
        table.setdefault("optimizer", {"name": "adamw"})
        table.setdefault("counter", {"name": "model"})
    if is_digits:
        table["dataset"].setdefault("eval_share", 0.25)
        table.setdefault("recipe", {"batch_scale": 0.25})  # small batches: the largest models train on few samples
    return table


def _is_digits(dataset: Mapping[str, Any]) -> bool:
    return bare_name(dataset["name"]) == "images" and dataset.get("source", "digits") == "digits"


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
        "# Lines with # are other options and their defaults, if any. To set one, remove the # and write a value.",
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
        meaning = plain_text(field.description or "").rstrip(".")
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        text = f"# {name} = {_toml(default)}" if _is_plain(default) else f"# {name}"
        line = f"{text}    # {meaning}" if meaning else text
        lines.append(line if len(line) <= WIDTH else f"{line[: WIDTH - 4].rpartition(' ')[0]} ...")
    return lines


def _is_plain(default: Any) -> bool:
    """Whether a default is a value, or a list of values, that a line can show."""
    items = default if isinstance(default, list | tuple) and default else [default]
    return all(isinstance(item, bool | int | float | str) for item in items)


def plain_text(description: str) -> str:
    """The description of an option in a line, with quotes instead of the marks of code."""

    def quote(match: re.Match[str]) -> str:
        code = match[1]
        return code if code.startswith('"') or re.fullmatch(r"[\w./-]+", code) else f"'{code}'"

    return re.sub(r"``(.+?)``", quote, " ".join(description.split()))


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(item)}' for key, item in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return re.sub(r"e\+?(-?)0*", r"e\1", f"{value:g}")
    return str(tomlkit.item(value).as_string())
