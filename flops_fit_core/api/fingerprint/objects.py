"""What identifies Python objects in a run: equal in every process, other where other results are to be expected.

Of a function or class of the user's own: its syntax tree, what it closes over, its defaults, and in the same way
every global variable, base class and import that its code uses. What is installed counts by its name.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import inspect
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from flops_fit_core.api.fingerprint.code_names import global_names, imports, reads_attribute
from flops_fit_core.api.fingerprint.computed_values import (
    assigned_value,
    computed_part,
    default_nodes,
    keyword_default_nodes,
    reads_process,
)
from flops_fit_core.api.fingerprint.item_hash import hash_item, qualified_name, state_of, unidentified
from flops_fit_core.api.fingerprint.object_parts import (
    class_attributes,
    closure_values,
    describe_code,
    functions_of_member,
    has_value,
    holds_place,
    is_definition,
    is_generated,
    is_held,
    is_namespace,
    is_scalar,
    is_users,
    origin_of_name,
    shows_itself,
    types_in,
    undecorated,
)
from flops_fit_core.api.fingerprint.source_lookup import (
    ClassTree,
    SourceTree,
    class_tree,
    first_line,
    function_tree,
    source_file,
    source_tree,
)
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.first_party import (
    hash_files,
    imported_files,
    is_first_party,
    package_files,
    with_imports,
)
from flops_fit_core.plugins.syntax_hash import hash_syntax
from flops_fit_core.records import canonical_json, content_hash

__all__ = ["hash_item", "identify_callable", "identify_value", "qualified_name", "unidentified"]

_BUILT_IN = (Mapping, list, tuple, set, frozenset, int, float, str, bytes)
_OF_MODULES = {
    "__builtins__",
    "__cached__",
    "__doc__",
    "__file__",
    "__loader__",
    "__name__",
    "__package__",
    "__path__",
}
_COMPUTED_IMPORTS = {("importlib", "import_module"), ("sys", "modules")}


def identify_callable(function: Callable[..., Any], kwargs: Mapping[str, Any], what: str) -> str:
    """A hash of a callable with its keyword arguments and of the user's own code that it reaches.

    Raises ConfigError, asking for ``fingerprint=``, where something it depends on cannot be identified.
    """
    graph = _Graph(what)
    return graph.hash([graph.plain(dict(kwargs)), graph.reference(function)])


def identify_value(value: Any, what: str) -> str:
    """A hash of a callable, of a torch module (its classes, weights and what else it holds) or of a value that
    has JSON.

    Raises ConfigError as :func:`identify_callable` does.
    """
    graph = _Graph(what)
    return graph.hash(graph.plain(value))


class _Graph:
    """Objects and what they refer to, numbered as they are met, so that circles end."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._numbers: dict[Any, int] = {}
        self._contents: list[Any] = []
        self._queue: deque[tuple[int, Callable[[], Any], bool]] = deque()
        self._alive: list[Any] = []  # the id of an object that is gone may come again
        self._files: dict[str, str] = {}
        self._reached: set[tuple[str, int]] = set()
        """Files and first lines of the functions that were met, and (file, 0) of whole files."""
        self._settings: deque[tuple[str, str, SourceTree, ast.AST | None, Any]] = deque()
        """Variables that functions change: file, name, tree of the file, the expression and the value."""
        self._is_strict = True
        """Whether what cannot be identified is an error: what was given, not what its code names."""

    def hash(self, root: Any) -> str:
        """The hash of what a reference leads to."""
        while self._queue or self._settings:  # a queue rather than recursion: chains of references can be long
            if not self._queue:
                self._add_setting(*self._settings.popleft())
                continue
            number, describe, self._is_strict = self._queue.popleft()
            try:
                self._contents[number] = describe()
            except ConfigError:
                raise
            except Exception as error:  # code and objects of the user's own may raise anything
                raise unidentified(self._what, f"{type(error).__name__}: {error}") from error
        return content_hash([root, self._contents])

    def _add_setting(self, file: str, name: str, source: SourceTree, node: ast.AST | None, value: Any) -> None:
        """Of a variable that functions change, the data in it, if no function that was met changes it: then it is
        a setting, not a cache or a counter of the code that is identified."""
        setters = source.setters(name)
        if setters is None or (file, 0) in self._reached or any((file, line) in self._reached for line in setters):
            return
        part = computed_part(node, value, self._leaf)
        if part is not None:
            self._contents.append(["setting", name, part])

    def _leaf(self, value: Any) -> Any:
        """What stands for data in a container; None for what cannot be identified or changes with use."""
        if callable(value):
            return None
        is_plain = is_scalar(value) or isinstance(value, Enum) or shows_itself(value) or is_dataclass(value)
        if not is_plain and not (hasattr(value, "dtype") and hasattr(value, "shape")):
            return None
        found = self._identifiable({"": value})
        return [found[""]] if found else None

    def _hash_files(self, files: set[Path]) -> list[str]:
        self._reached |= {(str(file), 0) for file in files}
        return hash_files(files)

    def _node(self, key: Any, describe: Callable[[], Any]) -> list[Any]:
        if key not in self._numbers:
            self._numbers[key] = len(self._contents)
            self._queue.append((len(self._contents), describe, self._is_strict))
            self._contents.append(None)
        return ["#", self._numbers[key]]

    def _object(self, thing: Any, describe: Callable[[Any], Any]) -> list[Any]:
        self._alive.append(thing)
        return self._node(id(thing), partial(describe, thing))

    @contextlib.contextmanager
    def _lenient(self) -> Iterator[None]:
        before, self._is_strict = self._is_strict, False
        try:
            yield
        finally:
            self._is_strict = before

    # ------------------------------------------------------------------ values

    def plain(self, value: Any) -> Any:
        """JSON-able stand-in for a value. Raises ConfigError if it cannot be identified."""
        if isinstance(value, Enum):
            kind = self.reference(type(value))
            return [kind, f"{qualified_name(value)}.{value.name}", self._identifiable({"value": value.value})]
        if isinstance(value, _BUILT_IN) and type(value).__module__ != "builtins" and is_users(type(value)):
            return [self.reference(type(value)), self._plain_built_in(value)]  # a named tuple, a dict with methods
        return self._plain_built_in(value)

    def _plain_built_in(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            entries = {str(key): self.plain(item) for key, item in value.items()}
            factory = getattr(value, "default_factory", None) if isinstance(value, defaultdict) else None
            is_own = isinstance(factory, type | FunctionType) and is_users(factory)
            return [self.reference(factory), entries] if is_own else entries
        if isinstance(value, list | tuple | set | frozenset):
            items = [self.plain(item) for item in value]
            return sorted(items, key=repr) if isinstance(value, set | frozenset) else items
        if isinstance(value, ModuleType):
            return self._module(value)
        if callable(value):
            return self.reference(value)
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            return hash_item(value, self._what)
        try:
            canonical_json(value)
        except (TypeError, ValueError):
            return self._without_json(value)
        return value

    def _without_json(self, value: Any) -> Any:
        if shows_itself(value):
            return qualified_name(value) if type(value).__module__ == "dataclasses" else repr(value)
        if is_dataclass(value) or (not self._is_strict and is_users(type(value))) or is_namespace(value):
            return self._object(value, self._describe_object)
        raise unidentified(self._what, f"{value!r} has no JSON")

    def _identifiable(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Of those values that have one, the identity."""
        found = {}
        with self._lenient():
            for name in sorted(values):
                with contextlib.suppress(ConfigError):
                    found[name] = self.plain(values[name])
        return found

    def _plain_or_name(self, value: Any) -> Any:
        """Outside of what was given, what cannot be identified counts by its type."""
        try:
            return self.plain(value)
        except ConfigError:
            if self._is_strict:
                raise
            return ["a", qualified_name(type(value))]

    def _callables(self, value: Any) -> Any:
        """The user's own functions and classes in a container: of a registry or cache, what does not change with
        use."""
        if isinstance(value, Mapping):
            inner = {str(key): self._callables(item) for key, item in value.items()}
            return {key: item for key, item in sorted(inner.items()) if item}
        if isinstance(value, list | tuple | set | frozenset):
            return sorted(filter(None, map(self._callables, value)), key=repr)
        if not isinstance(value, type | FunctionType | partial):
            return None
        with contextlib.suppress(ConfigError):  # a partial's arguments
            return self.reference(value)

    # ------------------------------------------------------------------ callables

    def reference(self, function: Any) -> Any:
        """What stands for a callable: the number of a node, or the name of what is not the user's own."""
        if isinstance(function, partial):
            arguments = self.plain([list(function.args), dict(function.keywords)])
            return ["partial", self.reference(function.func), arguments]
        function = undecorated(function)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(function, torch.nn.Module):
            return self._object(function, self._describe_network)
        if isinstance(function, MethodType):
            return ["method", self.reference(function.__func__), self._holder(function.__self__)]
        if isinstance(function, type):
            return self._object(function, self._describe_class) if is_users(function) else qualified_name(function)
        if isinstance(function, FunctionType):
            is_own = is_users(function)
            return self._object(function, self._describe_function if is_own else self._describe_wrapper)
        if isinstance(function, BuiltinFunctionType):
            holder = function.__self__
            held = None if isinstance(holder, type | ModuleType | None) else self.plain(holder)  # {...}.get
            return [qualified_name(function), held]
        return self._object(function, self._describe_object)

    def _holder(self, holder: Any) -> Any:
        """Of what a method is bound to: as any value, and of another object its class and what it holds."""
        try:
            return self.plain(holder)
        except ConfigError:
            if not hasattr(holder, "__dict__") or callable(holder):
                raise
        return self._object(holder, self._describe_object)

    def _describe_object(self, thing: Any) -> Any:
        """Its class and what it holds."""
        try:
            state = state_of(thing, self._what)
        except ConfigError:
            if self._is_strict:
                raise
            return [self.reference(type(thing)), None]
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # in slots
            state = {**(state[0] or {}), **state[1]}
        if isinstance(state, Mapping):
            held: Any = {str(name): self._plain_or_name(state[name]) for name in state if is_held(str(name))}
        else:
            held = self._plain_or_name(state)
        return [self.reference(type(thing)), held]

    def _describe_wrapper(self, function: FunctionType) -> Any:
        """A function that is not the user's own: its name, and the user's own functions that it wraps."""
        inner = [getattr(function, "__wrapped__", None), *closure_values(function).values()]
        settings = {name: value for name, value in closure_values(function).items() if is_scalar(value)}
        wrapped = [self._callables(value) for value in inner]
        return [qualified_name(function), list(filter(None, wrapped)), settings]

    def _describe_function(self, function: FunctionType) -> Any:
        """Syntax tree (or compiled code), defaults, closure, and the globals and imports that its code uses."""
        self._files.setdefault(function.__module__, source_file(function))
        tree = function_tree(function)
        if isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            self._reached.add((source_file(function), first_line(tree)))
        parts: dict[str, Any] = {"name": qualified_name(function)}
        parts["code"] = hash_syntax([tree]) if tree is not None else describe_code(function.__code__)
        defaults = [
            None if tree is not None and holds_place(value) else value for value in function.__defaults__ or ()
        ]
        parts["defaults"] = [self._plain_or_name(value) for value in defaults]
        keywords = (function.__kwdefaults__ or {}).items()
        parts["keyword defaults"] = self._identifiable(
            {name: value for name, value in keywords if tree is None or not holds_place(value)}
        )
        if tree is not None:
            parts["computed defaults"] = self._computed_defaults(function, tree)
        parts["closure"] = {name: self._plain_or_name(value) for name, value in closure_values(function).items()}
        if hasattr(function, "__wrapped__"):
            parts["wrapped"] = self._plain_or_name(function.__wrapped__)
        with self._lenient():
            parts["globals"] = self._globals(function)
            parts["imports"] = self._imports(function)
        return {name: part for name, part in parts.items() if part}

    def _computed_defaults(self, function: FunctionType, tree: ast.AST) -> Any:
        """Of defaults with places in them, the other data that the source does not state."""
        values = function.__defaults__ or ()
        pairs = list(zip(default_nodes(tree, len(values)), values, strict=True))
        named = keyword_default_nodes(tree)
        pairs += [(named.get(name), value) for name, value in sorted((function.__kwdefaults__ or {}).items())]
        found = [computed_part(node, value, self._leaf) if holds_place(value) else None for node, value in pairs]
        return found if any(part is not None for part in found) else None

    def _describe_class(self, kind: type) -> Any:
        """Name, syntax tree, base classes, methods, and attributes."""
        methods = {name: list(functions_of_member(member)) for name, member in vars(kind).items()}
        functions = [function for name in methods for function in methods[name]]
        tree = class_tree(kind, functions, self._files.get(kind.__module__))
        if tree is None and not functions and kind.__module__ == "__main__" and self._is_strict:
            raise unidentified(self._what, f"{qualified_name(kind)} has no source text")
        parts: dict[str, Any] = {"name": qualified_name(kind)}
        if tree is not None:
            self._files.setdefault(kind.__module__, tree.file)
            parts["code"] = hash_syntax([tree.node])
        parts["bases"] = [self.reference(base) for base in kind.__bases__]
        parts["metaclass"] = self.reference(type(kind)) if is_users(type(kind)) else None
        parts["methods"] = {
            name: [self.reference(function) for function in written]
            for name in sorted(methods)
            if (written := [function for function in methods[name] if not is_generated(function, kind, tree)])
        }
        parts["attributes"] = self._attributes(kind, tree, has_methods=bool(functions))
        with self._lenient():
            parts["fields"] = self._fields(kind)
            parts["annotations"] = self._annotations(kind)
            parts["field names"] = [] if tree is not None else list(vars(kind).get("__dataclass_fields__", {}))
            if any(reads_attribute(function.__code__, "__subclasses__") for function in functions):
                parts["subclasses"] = self._subclasses(kind)
        return {name: part for name, part in parts.items() if part}

    def _attributes(self, kind: type, tree: ClassTree | None, *, has_methods: bool) -> dict[str, Any]:
        """What a class holds beside methods. Its source text is enough for what has no identity."""
        held = {name: value for name, value in class_attributes(kind) if tree is None or not holds_place(value)}
        mutated = tree.source.mutated & held.keys() if tree is not None else set()
        registries = {name: self._callables(held[name]) for name in sorted(mutated)}
        if tree is not None:
            registries |= self._class_settings(kind, tree, mutated)
        held = {name: value for name, value in held.items() if name not in mutated}
        is_compiled = tree is None and not has_methods  # its descriptors may not show what they are
        if is_compiled or (tree is not None and "<locals>" not in kind.__qualname__):
            found = self._identifiable(held)
        else:
            found = {name: self._plain_or_name(held[name]) for name in sorted(held)}
        return found | {name: value for name, value in registries.items() if value}

    def _class_settings(self, kind: type, tree: ClassTree, mutated: Set[str]) -> dict[str, Any]:
        """Of attributes with places in them, the other data; those that functions change are looked at later."""
        found = {}
        for name, value in class_attributes(kind):
            statements = [part for part in tree.node.body if isinstance(part, ast.Assign | ast.AnnAssign)]
            node = next(filter(None, (assigned_value([part], name) for part in statements)), None)
            if name in mutated:
                self._settings.append((tree.file, name, tree.source, node, value))
            elif holds_place(value):
                found[f"{name} (computed)"] = computed_part(node, value, self._leaf)
        return {name: part for name, part in found.items() if part is not None}

    def _fields(self, kind: type) -> dict[str, Any]:
        """Default values of a dataclass or a pydantic model."""
        fields = vars(kind).get("__dataclass_fields__") or vars(kind).get("__pydantic_fields__") or {}
        pairs = ((name, getattr(field, "default", None)) for name, field in fields.items())
        makers = ((f"{name}()", getattr(field, "default_factory", None)) for name, field in fields.items())
        return self._identifiable({name: value for name, value in (*pairs, *makers) if has_value(value)})

    def _annotations(self, kind: type) -> list[Any]:
        """The user's own classes among the types of fields: pydantic makes them."""
        try:
            annotations = inspect.get_annotations(kind, eval_str=kind.__module__ != "__main__")
        except Exception:  # evaluated, they may raise anything
            return []
        own = {id(part): part for value in annotations.values() for part in types_in(value)}
        return [self.reference(part) for part in sorted(own.values(), key=qualified_name)]

    def _subclasses(self, kind: type) -> list[Any]:
        children: list[type] = sorted(filter(is_users, kind.__subclasses__()), key=qualified_name)
        return [part for child in children for part in (self.reference(child), *self._subclasses(child))]

    # ------------------------------------------------------------------ names

    def _globals(self, function: FunctionType) -> dict[str, Any]:
        """The global variables that a function's code uses, followed through modules."""
        found: dict[str, Any] = {}
        for chain in sorted(global_names(function.__code__)):
            root, *attributes = chain
            if root in _OF_MODULES or root.startswith("@"):  # pytest's
                continue
            if root in function.__globals__:
                home = source_file(function)
                name, entry = self._follow(function.__globals__[root], root, attributes, home)
                if entry is not None:
                    found[name] = entry
            if self._is_computed(function.__globals__, root, attributes):
                found["(computed)"] = self._everything(function)
        return found

    def _is_computed(self, namespace: dict[str, Any], root: str, attributes: list[str]) -> bool:
        """Whether code reaches what no name in it leads to."""
        value = namespace.get(root, getattr(builtins, root, None))
        if isinstance(value, ModuleType):
            return bool(attributes) and (value.__name__, attributes[0]) in _COMPUTED_IMPORTS
        computed = (eval, exec, globals, __import__, importlib.import_module)
        return any(value is function for function in computed) or value is sys.modules

    def _follow(self, value: Any, name: str, attributes: list[str], home: str) -> tuple[str, Any]:
        """The dotted name as far as it was followed, and what stands for its value."""
        last = name
        while isinstance(value, ModuleType) and is_first_party(value.__name__) and attributes:
            last, attributes = attributes[0], attributes[1:]
            home = getattr(value, "__file__", None) or home
            name = f"{name}.{last}"
            try:
                value = getattr(value, last)
            except Exception:  # a module's __getattr__ may raise anything
                return name, None
        is_record = is_namespace(value) or (is_dataclass(value) and not isinstance(value, type))
        if attributes and is_record and attributes[0] in getattr(value, "__dict__", {}):
            last, value, name = attributes[0], vars(value)[attributes[0]], f"{name}.{attributes[0]}"
            return name, self._identifiable({last: value})
        if isinstance(value, type) and "__subclasses__" in attributes:
            return f"{name}.__subclasses__", [self.reference(value), self._subclasses(value)]
        return name, self._variable(value, last, home)

    def _variable(self, value: Any, name: str, home: str) -> Any:
        """What stands for a global variable: the statement that sets it, if it holds a place or a device, changes
        with use or cannot be identified; otherwise its value."""
        if isinstance(value, ModuleType):
            return self._module(value)
        if isinstance(value, type | FunctionType):
            return self.reference(value)
        name, home = origin_of_name(name, home)
        source = source_tree(home)
        try:
            if source is not None and (
                name in source.mutated
                or holds_place(value)
                or reads_process(assigned_value(source.bindings(name), name))
            ):
                return self._changed(value, name, home, source)
            if source is not None and self._is_librarys(value) and any(map(is_definition, source.bindings(name))):
                return self._statement(name, home)  # a kernel, an operator: an object around the user's function
            return self.plain(value)
        except Exception:  # a value's own code may raise anything
            return [qualified_name(type(value)), self._statement(name, home)]

    def _changed(self, value: Any, name: str, home: str, source: SourceTree) -> list[Any]:
        """What stands for a variable that functions change or that holds a place."""
        statements = source.bindings(name)
        found = [hash_syntax(statements), self._callables(value)]
        node = assigned_value(statements, name)
        if name in source.mutated:
            self._settings.append((home, name, source, node, value))
            return found
        part = computed_part(node, value, self._leaf)
        return found if part is None else [*found, part]

    def _is_librarys(self, value: Any) -> bool:
        """Whether a value is an object of a library. Raises ConfigError for a callable that does not show what it
        holds."""
        if isinstance(value, partial | BuiltinFunctionType | MethodType) or is_users(type(value)):
            return False
        if callable(value):
            state_of(value, self._what)
        return True

    def _statement(self, name: str, home: str) -> Any:
        """The syntax of the statement that sets a variable, and what the names in it stand for."""
        return self._node(("statement", name, home), partial(self._describe_statement, name, home))

    def _describe_statement(self, name: str, home: str) -> Any:
        source = source_tree(home)
        statements = source.bindings(name) if source is not None else []
        modules = [module for module in list(sys.modules.values()) if getattr(module, "__file__", None) == home]
        namespace = vars(modules[0]) if modules else {}
        names = {node.id for part in statements for node in ast.walk(part) if isinstance(node, ast.Name)} - {name}
        values = {
            other: self._variable(namespace[other], other, home) for other in sorted(names & namespace.keys())
        }
        return [hash_syntax(statements), values]

    def _module(self, module: ModuleType) -> Any:
        """A module as a value: of the user's own, all of its files."""
        if not is_first_party(module.__name__):
            return module.__name__
        file = getattr(module, "__file__", None)
        if module.__name__ == "__main__" or file is None:
            return self._node(("definitions", module.__name__), partial(self._definitions, vars(module)))
        return self._hash_files(with_imports([Path(file)]))

    def _definitions(self, namespace: Mapping[str, Any]) -> dict[str, Any]:
        """The user's own functions and classes in a namespace, and the modules that it imports."""
        found: dict[str, Any] = {}
        for name in sorted(namespace):
            value = namespace[name]
            if isinstance(value, type | FunctionType) and is_users(value):
                found[name] = self.reference(value)
            elif isinstance(value, ModuleType) and value.__name__ != "__main__" and is_first_party(value.__name__):
                found[name] = self._module(value)
        return found

    def _everything(self, function: FunctionType) -> Any:
        """What code that computes names may reach: every file of its package; of a script, all definitions in it
        and the files beside it."""
        file = Path(source_file(function))
        is_script = function.__globals__.get("__name__") == "__main__" or not file.is_file()
        try:
            files = package_files(file) if file.is_file() else set()
        except ValueError as error:
            raise unidentified(self._what, f"{qualified_name(function)} computes names, and {error}") from None
        if not is_script:
            return self._hash_files(files)
        node = self._node(("definitions", "__main__"), partial(self._definitions, function.__globals__))
        return [node, self._hash_files(files - {file})]

    def _imports(self, function: FunctionType) -> list[str]:
        """Of modules that a function imports when it is called: all of their files."""
        folder = Path(source_file(function)).parent
        files = {path for statement in imports(function.__code__) for path in imported_files(*statement, folder)}
        return self._hash_files(with_imports(files))

    # ------------------------------------------------------------------ torch modules

    def _describe_network(self, module: Any) -> Any:
        """Of each module in it its class, mode and attributes; all parameters and buffers."""
        inner = {name: self._describe_layer(layer) for name, layer in module.named_modules()}
        weights = {name: hash_item(tensor) for name, tensor in module.named_parameters(remove_duplicate=False)}
        buffers = {name: hash_item(tensor) for name, tensor in module.named_buffers(remove_duplicate=False)}
        return [inner, weights, buffers]

    def _describe_layer(self, module: Any) -> list[Any]:
        import torch

        of_every = vars(torch.nn.Module())
        held = {name: value for name, value in vars(module).items() if name not in of_every}
        hooks = [list(value.values()) for name, value in vars(module).items() if name.endswith("_hooks") and value]
        kind = self.reference(type(module))
        if not is_users(type(module)):  # what torch.compile and the like keep there changes with use
            return [kind, module.training, self._identifiable(held)]
        return [kind, module.training, self._plain_or_name(held), self._plain_or_name(hooks)]
