"""The graph that a fingerprint hashes: nodes are objects, and references are numbers of nodes.

Numbers follow the order in which objects are met, so cycles end and the hash is the same in every process.
"""

from __future__ import annotations

import ast
import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

from flops_fit_core.api.fingerprint.computed_values import computed_part
from flops_fit_core.api.fingerprint.item_hash import object_state, qualified_name, unidentified
from flops_fit_core.api.fingerprint.object_parts import (
    has_stable_repr,
    is_scalar,
    is_state_attribute,
)
from flops_fit_core.api.fingerprint.source_lookup import SourceTree
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.first_party import hash_files
from flops_fit_core.records import content_hash


class MutatedVariable(NamedTuple):
    """A variable that functions change."""

    file: str
    name: str
    source: SourceTree
    expression: ast.AST | None
    """The expression that it is first set to, if a single statement sets it."""
    value: Any


class ObjectGraph(ABC):
    """Nodes for objects, and a queue of the nodes that are still to be described.

    A subclass turns values and callables into JSON (:meth:`plain`, :meth:`reference`).

    Args:
        subject: The name of the fingerprinted argument, for errors.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.is_strict = True
        """Whether an object without a fingerprint is an error. True for objects that the user passed, False for
        objects that their code refers to."""
        self.module_files: dict[str, str] = {}
        """Module name to the file of a function or class in it."""
        self.mutated_variables: deque[MutatedVariable] = deque()
        self._reached: set[tuple[str, int]] = set()
        """(file, first line) of functions in the graph, and (file, 0) of whole files."""
        self._numbers: dict[Any, int] = {}
        self._contents: list[Any] = []
        self._queue: deque[tuple[int, Callable[[], Any], bool]] = deque()
        self._alive: list[Any] = []  # keeps objects alive: Python reuses the id of a deleted object

    @abstractmethod
    def plain(self, value: Any) -> Any:
        """JSON for a value. Raises ConfigError if the value cannot be fingerprinted."""

    @abstractmethod
    def reference(self, function: Any) -> Any:
        """JSON for a callable: the node of user code, the name of installed code."""

    # ------------------------------------------------------------------ nodes

    def hash(self, root: Any) -> str:
        """The hash of ``root`` and of all nodes that it leads to."""
        while self._queue or self.mutated_variables:  # no recursion: chains of references can be long
            if not self._queue:  # after all functions: the graph must contain those that change the variable
                self._add_setting(self.mutated_variables.popleft())
                continue
            number, describe, self.is_strict = self._queue.popleft()
            try:
                self._contents[number] = describe()
            except ConfigError:
                raise
            except Exception as error:  # user code and user objects may raise anything
                raise unidentified(self.subject, f"{type(error).__name__}: {error}") from error
        return content_hash([root, self._contents])

    def node(self, key: Any, describe: Callable[[], Any]) -> list[Any]:
        """A reference to the node of ``key``; ``describe`` returns its content later."""
        if key not in self._numbers:
            self._numbers[key] = len(self._contents)
            self._queue.append((len(self._contents), describe, self.is_strict))
            self._contents.append(None)
        return ["#", self._numbers[key]]

    def object_node(self, item: Any, describe: Callable[[Any], Any]) -> list[Any]:
        self._alive.append(item)
        return self.node(id(item), partial(describe, item))

    def describe_object(self, item: Any) -> Any:
        """The class and the state of an object."""
        try:
            state = object_state(item, self.subject)
        except ConfigError:
            if self.is_strict:
                raise
            return [self.reference(type(item)), None]
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # slots
            state = {**(state[0] or {}), **state[1]}
        if isinstance(state, Mapping):
            names = [name for name in state if is_state_attribute(str(name))]
            content: Any = {str(name): self.plain_or_type(state[name]) for name in names}
        else:
            content = self.plain_or_type(state)
        return [self.reference(type(item)), content]

    # ------------------------------------------------------------------ files and settings

    def hash_files(self, files: set[Path]) -> list[str]:
        self._reached |= {(str(file), 0) for file in files}
        return hash_files(files)

    def add_function(self, file: str, line: int) -> None:
        """Note that the graph contains the function at this line."""
        self._reached.add((file, line))

    def _add_setting(self, variable: MutatedVariable) -> None:
        """Add the data of a variable that no function in the graph changes.

        This is a setting. If a function in the graph changes it, it is a cache or a counter.
        """
        file, setters = variable.file, variable.source.setters(variable.name)
        if setters is None or {(file, 0), *((file, line) for line in setters)} & self._reached:
            return
        part = computed_part(variable.expression, variable.value, self.plain_data)
        if part is not None:
            self._contents.append(["setting", variable.name, part])

    # ------------------------------------------------------------------ lenient forms of plain()

    @contextlib.contextmanager
    def lenient(self) -> Iterator[None]:
        """In this block, objects without a fingerprint are not errors."""
        before, self.is_strict = self.is_strict, False
        try:
            yield
        finally:
            self.is_strict = before

    def identifiable(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """JSON of the values that can be fingerprinted."""
        parts = {}
        with self.lenient():
            for name in sorted(values):
                with contextlib.suppress(ConfigError):
                    parts[name] = self.plain(values[name])
        return parts

    def plain_or_type(self, value: Any) -> Any:
        """JSON of a value; outside strict mode, the type of a value that cannot be fingerprinted."""
        try:
            return self.plain(value)
        except ConfigError:
            if self.is_strict:
                raise
            return ["a", qualified_name(type(value))]

    def plain_data(self, value: Any) -> Any:
        """JSON of data in a container; None for callables and for objects that cannot be fingerprinted."""
        if callable(value):
            return None
        is_plain = is_scalar(value) or isinstance(value, Enum) or has_stable_repr(value) or is_dataclass(value)
        if not is_plain and not (hasattr(value, "dtype") and hasattr(value, "shape")):
            return None
        parts = self.identifiable({"": value})
        return [parts[""]] if parts else None

    def user_callables(self, value: Any) -> Any:
        """The user's functions and classes in a container. In a registry or a cache, only these are constant."""
        if isinstance(value, Mapping):
            entries = {str(key): self.user_callables(item) for key, item in value.items()}
            return {key: entry for key, entry in sorted(entries.items()) if entry}
        if isinstance(value, list | tuple | set | frozenset):
            return sorted(filter(None, map(self.user_callables, value)), key=repr)
        if not isinstance(value, type | FunctionType | partial):
            return None
        with contextlib.suppress(ConfigError):  # from the arguments of a partial
            return self.reference(value)
