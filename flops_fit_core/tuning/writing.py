"""Writes one number into an experiment file and leaves everything else as it is, comments included."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flops_fit_core.config import override_value, read_table
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.utilities import write_atomically


def write_value(path: Path, table: str, option: str, value: float) -> None:
    """Write ``[table] option = value`` into a TOML, JSON or YAML file.

    Raises ConfigError, and leaves the file alone, where it cannot be read or cannot be changed safely.
    """
    path = path.resolve()
    wanted = _unshared(read_table(path))
    override_value(wanted, f"{table}.{option}={value!r}")
    text = changed_text(path, table, option, value)
    mode = stat.S_IMODE(path.stat().st_mode)
    other = path.with_name(f".{path.stem}.tuned{path.suffix}")
    try:
        write_atomically(other, text)
        if read_table(other) != wanted:
            raise ConfigError(
                f"{path}: cannot be changed without changing something else: write {table}.{option} = {value} "
                f"yourself"
            )
        other.chmod(mode)
        other.replace(path)
    finally:
        other.unlink(missing_ok=True)


def _unshared(value: Any) -> Any:
    """A copy in which no part is there twice: YAML's aliases make one object of two places."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def changed_text(path: Path, table: str, option: str, value: float) -> str:
    """The file's text with the value in it."""
    writers: dict[str, Callable[[str, str, str, float], str]] = {
        ".toml": _toml,
        ".json": _json,
        ".yaml": _yaml,
        ".yml": _yaml,
    }
    text = path.read_text(encoding="utf-8-sig")
    return writers[path.suffix.lower()](text, table, option, value)


def _toml(text: str, table: str, option: str, value: float) -> str:
    import tomlkit
    from tomlkit.items import InlineTable

    document = tomlkit.parse(text)
    place: Any = document.get(table)
    if place is None:
        place = document[table] = tomlkit.table()
    elif isinstance(place, str | InlineTable):
        inline = tomlkit.inline_table()
        inline.update({"name": str(place)} if isinstance(place, str) else place)
        place = document[table] = inline
    place[option] = value
    return tomlkit.dumps(document)


def _json(text: str, table: str, option: str, value: float) -> str:
    data = json.loads(text)
    override_value(data, f"{table}.{option}={value!r}")
    indent = re.search(r"\n([ \t]+)", text)
    return json.dumps(data, indent=indent[1] if indent else None, ensure_ascii=False) + "\n"


def _yaml(text: str, table: str, option: str, value: float) -> str:
    """Cut and put at the places that the parser names, so that the rest stays letter for letter."""
    import yaml

    root: Any = yaml.compose(text, yaml.SafeLoader)
    found = _entry(root, table)
    if found is None:
        first = root.value[0][0].start_mark
        new = f"{{{option}: {_number(value)}}}"
        if root.flow_style:
            return _spliced(text, first.index, first.index, f"{table}: {new}, ")
        return _spliced(text, first.index, first.index, f"{table}: {new}\n{' ' * first.column}")
    if isinstance(found, yaml.ScalarNode):
        old = text[found.start_mark.index : found.end_mark.index]
        new = f"{{name: {old}, {option}: {_number(value)}}}" if found.value else f" {{{option}: {_number(value)}}}"
        return _spliced(text, found.start_mark.index, found.end_mark.index, new)
    number = _entry(found, option)
    if number is not None:
        return _spliced(text, number.start_mark.index, number.end_mark.index, _number(value))
    if not found.value:
        return _spliced(text, found.start_mark.index, found.end_mark.index, f"{{{option}: {_number(value)}}}")
    first = found.value[0][0].start_mark
    after = ", " if found.flow_style else f"\n{' ' * first.column}"
    return _spliced(text, first.index, first.index, f"{option}: {_number(value)}{after}")


def _number(value: float) -> str:
    """YAML 1.1 takes 1e-05 for a text; 1.0e-05 is a number everywhere."""
    text = repr(value)
    return text if "." in text else text.replace("e", ".0e")


def _entry(node: Any, key: str) -> Any:
    return next((value for name, value in node.value if name.value == key), None)


def _spliced(text: str, start: int, end: int, new: str) -> str:
    return text[:start] + new + text[end:]
