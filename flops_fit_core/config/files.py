"""Experiment files, and what the command line changes in them before they are validated."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flops_fit_core.config.experiment import Experiment, make_experiment
from flops_fit_core.config.explaining import short
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import Registry


def read_table(path: Path) -> dict[str, Any]:
    """A TOML, JSON or YAML file as plain data. Raises ConfigError, with the line where there is one."""
    readers: dict[str, Callable[[str], Any]] = {
        ".toml": tomllib.loads,
        ".json": _read_json,
        ".yaml": _read_yaml,
        ".yml": _read_yaml,
    }
    if path.suffix.lower() not in readers:
        if not path.exists():
            raise ConfigError(f"{path}: there is no such experiment file or study's folder")
        raise ConfigError(f"{path}: an experiment file ends in {', '.join(readers)}")
    try:
        data = readers[path.suffix.lower()](path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        near = sorted(str(one) for one in path.parent.glob("*") if one.suffix.lower() in readers)[:8]
        there = f"; in that folder: {', '.join(near)}" if near else ""
        raise ConfigError(f"{path}: there is no such file{there}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected tables such as [sweep] and [model], found {type(data).__name__}")
    return data


def _read_json(text: str) -> Any:
    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise ValueError(f"{key!r} is there twice in one table")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=table)


def _read_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML's own takes the last of two equal keys and says nothing."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            lines: dict[str, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if (first := lines.setdefault(str(key.value), line)) != line:
                    raise ValueError(f"{key.value!r} is there twice, in line {first} and line {line}")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def experiment_name(path: Path) -> str:
    """What an experiment is called that names itself only by its file: ``my first.toml`` is ``my-first``."""
    return re.sub(r"[^\w.-]+", "-", path.stem).lstrip(".-") or "experiment"


def load_experiment(path: Path, registry: Registry, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, apply ``a.b=value`` overrides, validate.

    Raises ConfigError.
    """
    data = read_table(path)
    for override in overrides:
        override_value(data, override)
    data.setdefault("name", experiment_name(path))
    return make_experiment(data, registry, str(path))


def override_value(data: dict[str, Any], override: str) -> None:
    """Apply ``a.b=value`` in place. The value is read as TOML, or is a string where TOML cannot read it.

    A choice that is a bare string first becomes a table with that name.
    """
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not last or not all(parents):
        raise ConfigError(f"--set {override}: write --set table.option=value")
    place: Any = data
    for depth, part in enumerate(parents):
        inner = _item(place, part, override)
        if isinstance(inner, str) and (depth == 0 or (depth == 1 and parents[0] == "loggers")):
            inner = {"name": inner}
        elif inner is None:
            inner = {}
        _put(place, part, inner, override)
        place = inner
    _put(place, last, _toml_value(text.strip()), override)


def _item(place: Any, part: str, override: str) -> Any:
    if isinstance(place, dict):
        return place.get(part)
    if isinstance(place, list) and part.isdigit() and int(part) < len(place):
        return place[int(part)]
    raise ConfigError(f"--set {override}: there is nothing called {part!r} in {short(place)}")


def _put(place: Any, part: str, value: Any, override: str) -> None:
    if isinstance(place, dict):
        place[part] = value
    elif isinstance(place, list) and part.isdigit() and int(part) < len(place):
        place[int(part)] = value
    else:
        raise ConfigError(f"--set {override}: there is nothing called {part!r} in {short(place)}")


def _toml_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text


def replace_choice(data: dict[str, Any], kind: str, name: str) -> list[str]:
    """Choose another plugin of a kind, in place. Returns the options that the old table had."""
    old = data.get(kind)
    data[kind] = {"name": name}
    return sorted(set(old) - {"name"}) if isinstance(old, dict) else []
