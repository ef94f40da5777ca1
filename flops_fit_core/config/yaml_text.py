"""Reads YAML. A syntax error, a key that occurs twice and a value of another type are ValueErrors with a line."""

from __future__ import annotations

from typing import Any

import yaml

from flops_fit_core.config.explaining import short
from flops_fit_core.plugins import limits


def parse_yaml(text: str) -> Any:
    """The value of a document. Raises ValueError, also for more values than an experiment file may have."""
    return _parse(_Loader, text)


def parse_settings(text: str) -> Any:
    """As :func:`parse_yaml`, for settings that another program wrote: unknown tags are ignored."""
    return _parse(_SettingsLoader, text)


def _parse(loader_type: type[_Loader], text: str) -> Any:
    try:
        loader = loader_type(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded_nodes(node) > limits.EXPERIMENT_VALUES:
            raise ValueError(
                f"an experiment file has at most {limits.EXPERIMENT_VALUES:,} keys and values, each alias (*name) "
                "expanded"
            )
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except OverflowError:  # PyYAML calls chr() with any number
        raise ValueError(f"line {loader.line + 1}: a character is above \\U0010FFFF") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's loader would silently use the last of equal keys, and raises IndexError for ``!!int ""``."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if str(key.value) in lines:
                first = lines[str(key.value)]
                raise ValueError(f"the key {key.value!r} is in line {first} and again in line {line}")
            lines[str(key.value)] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, ValueError):
            line, kind = node.start_mark.line + 1, node.tag.rpartition(":")[2]
            raise ValueError(f"line {line}: {short(node.value)} is not a valid {kind}") from None


class _SettingsLoader(_Loader):
    """Reads the content of a value with an unknown tag, such as ``!!python/object:argparse.Namespace``."""

    def construct_content(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return self.construct_sequence(node, deep=True)
        return node.value


_SettingsLoader.add_constructor(None, _SettingsLoader.construct_content)


def _expanded_nodes(root: yaml.Node) -> int:
    """The nodes of a YAML document with aliases expanded. Raises ValueError for an alias that contains itself."""
    counts: dict[int, int | None] = {}

    def count(node: yaml.Node) -> int:
        if id(node) in counts:
            earlier_total = counts[id(node)]
            if earlier_total is None:
                raise ValueError(f"the alias in line {node.start_mark.line + 1} contains itself")
            return earlier_total
        counts[id(node)] = None
        children = node.value if isinstance(node.value, list) else []
        parts = (part for child in children for part in (child if isinstance(child, tuple) else (child,)))
        counts[id(node)] = total = 1 + sum(count(part) for part in parts)
        return total

    return count(root)
