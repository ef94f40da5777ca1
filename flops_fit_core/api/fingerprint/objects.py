"""Fingerprints of values and callables: stable across processes; they change when results would change.

User code counts by its syntax tree, closure and defaults, and so does every global variable, base class and import
that it uses. Installed code counts by its name.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from flops_fit_core.api.fingerprint.classes import describe_class
from flops_fit_core.api.fingerprint.functions import describe_function, describe_wrapper
from flops_fit_core.api.fingerprint.item_hash import hash_item, qualified_name, unidentified
from flops_fit_core.api.fingerprint.object_graph import ObjectGraph
from flops_fit_core.api.fingerprint.object_parts import (
    has_stable_repr,
    is_namespace,
    is_user_code,
    without_torch_wrappers,
)
from flops_fit_core.api.fingerprint.variables import describe_module
from flops_fit_core.errors import ConfigError
from flops_fit_core.records import canonical_json

__all__ = ["hash_item", "identify_callable", "identify_value", "qualified_name", "unidentified"]

_BUILT_IN = (Mapping, list, tuple, set, frozenset, int, float, str, bytes)


def identify_callable(function: Callable[..., Any], kwargs: Mapping[str, Any], subject: str) -> str:
    """A hash of a callable, its keyword arguments and the user code that it reaches.

    Args:
        function: A function, a class, a callable object or a torch module.
        kwargs: Keyword arguments that it is called with.
        subject: The name of the argument, for errors.

    Raises ConfigError, asking for ``fingerprint=``, if a dependency cannot be fingerprinted.
    """
    graph = _Fingerprint(subject)
    return graph.hash([graph.plain(dict(kwargs)), graph.reference(function)])


def identify_value(value: Any, subject: str) -> str:
    """A hash of a callable, a torch module (classes, weights, attributes) or a value with a JSON form.

    Raises ConfigError as :func:`identify_callable` does.
    """
    graph = _Fingerprint(subject)
    return graph.hash(graph.plain(value))


class _Fingerprint(ObjectGraph):
    # ------------------------------------------------------------------ values

    def plain(self, value: Any) -> Any:
        if isinstance(value, Enum):
            kind = self.reference(type(value))
            return [kind, f"{qualified_name(value)}.{value.name}", self.identifiable({"value": value.value})]
        if isinstance(value, _BUILT_IN) and type(value).__module__ != "builtins" and is_user_code(type(value)):
            return [self.reference(type(value)), self._plain_built_in(value)]  # named tuple, dict with methods
        return self._plain_built_in(value)

    def _plain_built_in(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            entries = {str(key): self.plain(item) for key, item in value.items()}
            factory = getattr(value, "default_factory", None) if isinstance(value, defaultdict) else None
            is_user_factory = isinstance(factory, type | FunctionType) and is_user_code(factory)
            return [self.reference(factory), entries] if is_user_factory else entries
        if isinstance(value, list | tuple | set | frozenset):
            items = [self.plain(item) for item in value]
            return sorted(items, key=repr) if isinstance(value, set | frozenset) else items
        if isinstance(value, ModuleType):
            return describe_module(self, value)
        if callable(value):
            return self.reference(value)
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            return hash_item(value, self.subject)
        try:
            canonical_json(value)
        except (TypeError, ValueError):
            return self._without_json(value)
        return value

    def _without_json(self, value: Any) -> Any:
        if has_stable_repr(value):
            return qualified_name(value) if type(value).__module__ == "dataclasses" else repr(value)
        if is_dataclass(value) or (not self.is_strict and is_user_code(type(value))) or is_namespace(value):
            return self.object_node(value, self.describe_object)
        raise unidentified(self.subject, f"{value!r} has no JSON form")

    # ------------------------------------------------------------------ callables

    def reference(self, function: Any) -> Any:
        if isinstance(function, partial):
            arguments = self.plain([list(function.args), dict(function.keywords)])
            return ["partial", self.reference(function.func), arguments]
        function = without_torch_wrappers(function)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(function, torch.nn.Module):
            return self.object_node(function, self._describe_network)
        if isinstance(function, MethodType):
            return ["method", self.reference(function.__func__), self._method_owner(function.__self__)]
        if isinstance(function, type):
            is_user_class = is_user_code(function)
            return (
                self.object_node(function, partial(describe_class, self))
                if is_user_class
                else qualified_name(function)
            )
        if isinstance(function, FunctionType):
            describe = describe_function if is_user_code(function) else describe_wrapper
            return self.object_node(function, partial(describe, self))
        if isinstance(function, BuiltinFunctionType):
            owner = function.__self__
            owner_part = None if isinstance(owner, type | ModuleType | None) else self.plain(owner)  # {...}.get
            return [qualified_name(function), owner_part]
        return self.object_node(function, self.describe_object)

    def _method_owner(self, owner: Any) -> Any:
        """The object that a method is bound to: its JSON, or its class and state."""
        try:
            return self.plain(owner)
        except ConfigError:
            if not hasattr(owner, "__dict__") or callable(owner):
                raise
        return self.object_node(owner, self.describe_object)

    # ------------------------------------------------------------------ torch modules

    def _describe_network(self, network: Any) -> Any:
        """Class, mode and attributes of each module in a network; all parameters and buffers."""
        layers = {name: self._describe_layer(layer) for name, layer in network.named_modules()}
        weights = {name: hash_item(tensor) for name, tensor in network.named_parameters(remove_duplicate=False)}
        buffers = {name: hash_item(tensor) for name, tensor in network.named_buffers(remove_duplicate=False)}
        return [layers, weights, buffers]

    def _describe_layer(self, layer: Any) -> list[Any]:
        import torch

        module_attributes = vars(torch.nn.Module())
        attributes = {name: value for name, value in vars(layer).items() if name not in module_attributes}
        hooks = [list(value.values()) for name, value in vars(layer).items() if name.endswith("_hooks") and value]
        kind = self.reference(type(layer))
        if not is_user_code(type(layer)):  # attributes of torch.compile and other wrappers change with use
            return [kind, layer.training, self.identifiable(attributes)]
        return [kind, layer.training, self.plain_or_type(attributes), self.plain_or_type(hooks)]
