"""Refuse to put a second experiment into the folder of a study.

The name identifies an experiment. It stays the same when its options change: further budgets, seeds or sizes,
another executor or fitter, a corrected learning rate. Two names in one folder are a mistake, because the second
experiment would replace the files of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flops_fit_core.config import Experiment
from flops_fit_core.errors import ConfigError

MOST_FIELDS = 8
"""The most fields that a message names."""
_MISSING = object()

Table = Mapping[str, Any]


def experiment_table(experiment: Experiment) -> dict[str, Any]:
    """The options that the user set, as plain data, in the order of the experiment's fields."""
    options = {
        **experiment.model_dump(mode="json", exclude_unset=True),
        # Resolved: its default depends on whether the experiment was a file.
        **experiment.model_dump(mode="json", include={"optimizer"}),
    }
    return {name: options[name] for name in type(experiment).model_fields if name in options}


def name_of(table: Table) -> str:
    """The name in an experiment's table, or the default name."""
    return str(table.get("name", Experiment.model_fields["name"].default))


def refuse_other_experiment(folder: str, recorded: Table, experiment: Experiment) -> None:
    """Raises ConfigError, with both names and the fields that differ, if the names differ.

    Args:
        folder: The folder, as shown to the user.
        recorded: The table in the folder's experiment.json.
        experiment: The experiment to plan in this folder.
    """
    other = name_of(recorded)
    if other == experiment.name:
        return
    fields = different_fields(recorded, experiment_table(experiment))
    shown = ", ".join(fields[:MOST_FIELDS]) or "the name only"
    more = f" and {len(fields) - MOST_FIELDS} more" if len(fields) > MOST_FIELDS else ""
    raise ConfigError(
        f"{folder} has the experiment {other!r}, and {experiment.name!r} would replace its plan. They differ in: "
        f"{shown}{more}. Choose another folder: --out FOLDER (output_dir= or out= in Python). If both are the "
        f'same experiment, write name = "{other}" (in the experiment file, or as an argument)'
    )


def different_fields(before: Table, now: Table) -> list[str]:
    """Keys (``optimizer.lr``) with different values in two experiments; ``model`` if another model is chosen."""
    names: list[str] = []
    for kind in dict.fromkeys([*before, *now]):
        old, new = _as_table(before.get(kind, _MISSING)), _as_table(now.get(kind, _MISSING))
        if kind == "name" or old == new:
            continue
        if not isinstance(old, Mapping) or not isinstance(new, Mapping) or old.get("name") != new.get("name"):
            names.append(kind)
            continue
        keys = dict.fromkeys([*old, *new])
        names += [f"{kind}.{key}" for key in keys if old.get(key, _MISSING) != new.get(key, _MISSING)]
    return names


def _as_table(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value
