"""Writes a number, or the recipe, into an experiment file and changes nothing else, not even comments."""

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

    Raises ConfigError and leaves the file unchanged if it cannot be read or changed safely.
    """
    path = path.resolve()
    expected = _unshared(read_table(path))
    override_value(expected, f"{table}.{option}={value!r}")
    text = changed_text(path, table, option, value)
    mode = stat.S_IMODE(path.stat().st_mode)
    temporary = path.with_name(f".{path.stem}.tuned{path.suffix}")
    try:
        write_atomically(temporary, text)
        if read_table(temporary) != expected:
            raise ConfigError(
                f"{path}: flops-fit cannot change this value alone. Write {table}.{option} = {value} by hand"
            )
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_recipe(path: Path, recipe: str) -> None:
    """Write a ``[recipe]`` table, as TOML text, into a TOML file in place of its present recipe.

    A file that does not exist is created. Raises ConfigError and leaves the file unchanged if it is not TOML.
    """
    import tomlkit

    path = path.resolve()
    if path.suffix.lower() != ".toml":
        raise ConfigError(f"{path}: a recipe is written to a TOML file: write --out recipe.toml")
    if not path.exists():
        write_atomically(path, recipe)
        return
    read_table(path)
    document = tomlkit.parse(path.read_text(encoding="utf-8-sig"))
    table = tomlkit.parse(recipe)["recipe"]
    if "recipe" in document:
        document["recipe"] = table
    else:
        document.add(tomlkit.nl())
        document.add("recipe", table)
    mode = stat.S_IMODE(path.stat().st_mode)
    write_atomically(path, tomlkit.dumps(document))
    path.chmod(mode)


def _unshared(value: Any) -> Any:
    """A copy without shared parts: YAML aliases make one object of two places."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def changed_text(path: Path, table: str, option: str, value: float) -> str:
    """The file's text with the new value."""
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
    entry: Any = document.get(table)
    if entry is None:
        entry = document[table] = tomlkit.table()
    elif isinstance(entry, str | InlineTable):
        inline = tomlkit.inline_table()
        inline.update({"name": str(entry)} if isinstance(entry, str) else entry)
        entry = document[table] = inline
    entry[option] = value
    return tomlkit.dumps(document)


def _json(text: str, table: str, option: str, value: float) -> str:
    data = json.loads(text)
    override_value(data, f"{table}.{option}={value!r}")
    indent = re.search(r"\n([ \t]+)", text)
    return json.dumps(data, indent=indent[1] if indent else None, ensure_ascii=False) + "\n"


def _yaml(text: str, table: str, option: str, value: float) -> str:
    """Replaces text at the positions that the parser reports, so that the rest stays unchanged."""
    import yaml

    root: Any = yaml.compose(text, yaml.SafeLoader)
    node = _entry(root, table)
    if node is None:
        first = root.value[0][0].start_mark
        new = f"{{{option}: {_number(value)}}}"
        if root.flow_style:
            return _splice(text, first.index, first.index, f"{table}: {new}, ")
        return _splice(text, first.index, first.index, f"{table}: {new}\n{' ' * first.column}")
    if isinstance(node, yaml.ScalarNode):
        old = text[node.start_mark.index : node.end_mark.index]
        new = f"{{name: {old}, {option}: {_number(value)}}}" if node.value else f" {{{option}: {_number(value)}}}"
        return _splice(text, node.start_mark.index, node.end_mark.index, new)
    number = _entry(node, option)
    if number is not None:
        return _splice(text, number.start_mark.index, number.end_mark.index, _number(value))
    if not node.value:
        return _splice(text, node.start_mark.index, node.end_mark.index, f"{{{option}: {_number(value)}}}")
    first = node.value[0][0].start_mark
    after = ", " if node.flow_style else f"\n{' ' * first.column}"
    return _splice(text, first.index, first.index, f"{option}: {_number(value)}{after}")


def _number(value: float) -> str:
    """YAML 1.1 reads 1e-05 as text and 1.0e-05 as a number."""
    text = repr(value)
    return text if "." in text else text.replace("e", ".0e")


def _entry(node: Any, key: str) -> Any:
    return next((value for name, value in node.value if name.value == key), None)


def _splice(text: str, start: int, end: int, new: str) -> str:
    return text[:start] + new + text[end:]
