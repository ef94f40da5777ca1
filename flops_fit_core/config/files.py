"""Read experiment files, and apply changes from the command line before validation."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flops_fit_core.config.experiment import Experiment, make_experiment
from flops_fit_core.config.explaining import short
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins import limits
from flops_fit_core.plugins.registry import Registry


def read_table(path: Path) -> dict[str, Any]:
    """A TOML, JSON or YAML file as plain data.

    Raises ConfigError with the line of a syntax error, and for a file above the limits of
    :mod:`flops_fit_core.plugins.limits`.
    """
    readers: dict[str, Callable[[str], Any]] = {
        ".toml": _read_toml,
        ".json": _read_json,
        ".yaml": _read_yaml,
        ".yml": _read_yaml,
    }
    if path.suffix.lower() not in readers:
        if not path.exists():
            raise ConfigError(f"{path} is neither an experiment file nor a study's folder: it does not exist")
        raise ConfigError(f"{path}: the name of an experiment file must end in {', '.join(readers)}")
    try:
        data = readers[path.suffix.lower()](_read_text(path))
        _check_extent(data)
    except FileNotFoundError:
        files = sorted(str(file) for file in path.parent.glob("*") if file.suffix.lower() in readers)[:8]
        hint = f"; the folder has {', '.join(files)}" if files else ""
        raise ConfigError(f"{path} does not exist{hint}") from None
    except RecursionError:
        raise ConfigError(f"{path}: {_TOO_DEEP}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected tables such as [sweep] and [model], not {type(data).__name__}")
    return data


_LARGEST = 10**400
"""Python refuses to print integers of more than 4,300 digits; hexadecimal and base 60 can have them."""
_TOO_DEEP = f"its tables and lists are nested too deeply (at most {limits.EXPERIMENT_DEPTH} levels)"


def _read_text(path: Path) -> str:
    """The text of a file. Raises ValueError for a file that is too large or not UTF-8."""
    with path.open("rb") as file:
        data = file.read(limits.EXPERIMENT_BYTES + 1)
    if len(data) > limits.EXPERIMENT_BYTES:
        raise ValueError(f"an experiment file has at most {limits.EXPERIMENT_BYTES:,} bytes")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("the text is UTF-16 instead of utf-8: save the file as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} has a byte that is not UTF-8: save the file as UTF-8") from None


def _check_extent(data: Any) -> None:
    """Raises ValueError for too many or too deeply nested values, or too large integers.

    Shared values (YAML aliases) count each time.
    """
    values, level, depth = 0, [data], 0
    while level:
        values += len(level)
        if values > limits.EXPERIMENT_VALUES:
            raise ValueError(f"an experiment file has at most {limits.EXPERIMENT_VALUES:,} values")
        if depth > limits.EXPERIMENT_DEPTH:
            raise ValueError(_TOO_DEEP)
        if any(isinstance(value, int) and abs(value) > _LARGEST for value in level):
            raise ValueError("an integer has more than 400 digits")
        level = [item for value in level for item in _items(value)]
        depth += 1


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple | set) else ()


def _read_toml(text: str) -> Any:
    # Python's parser takes quadratic time for a dotted key, so a deep one is refused before it is parsed.
    if re.search(rf"(?<![\w\"'-])(?:[\w\"'-]+[ \t]*\.[ \t]*){{{limits.EXPERIMENT_DEPTH},}}", text):
        raise ValueError(_TOO_DEEP)
    return tomllib.loads(text)


def _read_json(text: str) -> Any:
    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise ValueError(f"a table has the key {key!r} twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=table)


def _read_yaml(text: str) -> Any:
    from flops_fit_core.config.yaml_text import parse_yaml

    return parse_yaml(text)


def experiment_name(path: Path) -> str:
    """The default name of an experiment, from its file: ``my first.toml`` gives ``my-first``."""
    return re.sub(r"[^\w.-]+", "-", path.stem).lstrip(".-") or "experiment"


def load_experiment(path: Path, registry: Registry) -> Experiment:
    """Read and validate an experiment file. Raises ConfigError."""
    data = read_table(path)
    data.setdefault("name", experiment_name(path))
    return make_experiment(data, registry, str(path))


def override_value(data: dict[str, Any], override: str) -> None:
    """Apply ``a.b=value`` in place. The value is TOML, or a string if it is not valid TOML.

    A choice that is a bare string becomes a table with that name first. Raises ConfigError.
    """
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not last or not all(parents):
        raise ConfigError(f"--set {override}: write --set table.option=value")
    table: Any = data
    for depth, part in enumerate(parents):
        inner = _item(table, part, override)
        if isinstance(inner, str) and (depth == 0 or (depth == 1 and parents[0] == "loggers")):
            inner = {"name": inner}
        elif inner is None:
            inner = {}
        _put(table, part, inner, override)
        table = inner
    _put(table, last, _toml_value(text.strip()), override)


def _item(table: Any, part: str, override: str) -> Any:
    if isinstance(table, dict):
        return table.get(part)
    if isinstance(table, list) and part.isdigit() and int(part) < len(table):
        return table[int(part)]
    raise ConfigError(f"--set {override}: {short(table)} has no {part!r}")


def _put(table: Any, part: str, value: Any, override: str) -> None:
    if isinstance(table, dict):
        table[part] = value
    elif isinstance(table, list) and part.isdigit() and int(part) < len(table):
        table[int(part)] = value
    else:
        raise ConfigError(f"--set {override}: {short(table)} has no {part!r}")


def _toml_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
        _check_extent(table)
    except RecursionError:
        raise ConfigError(f"--set: the value {short(text)} is nested too deeply") from None
    except ValueError:  # also a number of thousands of digits
        return text
    return table["value"] if len(table) == 1 else text


def replace_choice(data: dict[str, Any], kind: str, name: str) -> list[str]:
    """Choose another plugin of a kind, in place. Returns the options that the old table had."""
    old = data.get(kind)
    data[kind] = {"name": name}
    return sorted(set(old) - {"name"}) if isinstance(old, dict) else []
