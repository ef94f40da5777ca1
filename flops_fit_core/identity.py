"""What identifies Python objects in a run: equal in every process, other where other results are to be expected.

Of a callable, its qualified name, source text, JSON-able defaults, closure values and keyword arguments; of a
dataset's item, its numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import is_dataclass
from enum import Enum
from functools import cached_property, partial, partialmethod
from pathlib import PurePath
from pickle import PickleError
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from flops_fit_core.errors import ConfigError
from flops_fit_core.records import canonical_json, content_hash

_WITHIN: ContextVar[tuple[int, ...]] = ContextVar("_WITHIN", default=())
"""What is being identified, outermost first, by ``id``."""


def identify_callable(function: Callable[..., Any], kwargs: Mapping[str, Any], what: str) -> str:
    """A hash of what a callable is: its name, source, defaults, closure and keyword arguments; of a class,
    those of its base classes too.

    Raises ConfigError, asking for ``fingerprint=``, where something it depends on cannot be identified.
    """
    return _once(function, lambda: _identify(function, kwargs, what))


def _once(thing: Any, identify: Callable[[], str]) -> str:
    """The identity; of what is being identified already (a function that calls itself, or super(Net, self)), how
    far outwards that is."""
    within = _WITHIN.get()
    if id(thing) in within:
        return f"{len(within) - within.index(id(thing))} outwards"
    token = _WITHIN.set((*within, id(thing)))
    try:
        return identify()
    finally:
        _WITHIN.reset(token)


def _identify(function: Callable[..., Any], kwargs: Mapping[str, Any], what: str) -> str:
    if isinstance(function, partial):
        inner = identify_callable(function.func, {**function.keywords, **kwargs}, what)
        return content_hash([inner, _plain(list(function.args), what)])
    function = _undecorated(function)
    parts: list[Any] = [_plain(dict(kwargs), what)]
    if isinstance(function, MethodType):
        parts += [identify_callable(function.__func__, {}, what), _identify_holder(function.__self__, what)]
    elif isinstance(function, type):
        parts += [qualified_name(function), *(_describe(one, what) for one in function.__mro__ if _is_own(one))]
    elif isinstance(function, FunctionType | BuiltinFunctionType):
        parts.append(_describe(function, what) if _is_own(function) else qualified_name(function))
        holder = getattr(function, "__self__", None)
        if holder is not None and not isinstance(holder, type | ModuleType):  # {...}.get
            parts.append(_plain(holder, what))
    else:  # an object with __call__: its class and what it holds
        parts += [identify_callable(type(function), {}, what), _plain(_state(function, what), what)]
    return content_hash(parts)


def _identify_holder(holder: Any, what: str) -> str:
    """Of what a method is bound to: as any value, and of another object its class and what it holds."""
    try:
        return identify_value(holder, what)
    except ConfigError:
        if not hasattr(holder, "__dict__") or callable(holder):
            raise
    return content_hash([identify_callable(type(holder), {}, what), _plain(_state(holder, what), what)])


def _state(thing: Any, what: str) -> Any:
    """What an object holds, in slots too; of one that is not made in Python, what pickle makes it again from."""
    state = object.__getstate__(thing) or getattr(thing, "__dict__", None)
    if not state and not isinstance(inspect.getattr_static(type(thing), "__call__", None), FunctionType):
        try:
            return thing.__reduce_ex__(2)
        except (TypeError, PickleError):
            raise unidentified(what, f"{thing!r} does not show what it holds") from None
    return state or {}


def _is_own(one: Any) -> bool:
    """Whether a class or function may change under its name: one of Python's or torch's own does not."""
    package = (getattr(one, "__module__", None) or "__main__").partition(".")[0]
    return package != "torch" and (package == "__main__" or package not in sys.stdlib_module_names)


def _undecorated(function: Any) -> Any:
    """Without what torch has put around it: ``torch.no_grad()`` and the like, and around an optimizer's ``step``
    something of its own as soon as there is an instance."""
    while (
        isinstance(function, FunctionType)
        and hasattr(function, "__wrapped__")
        and str(function.__globals__.get("__name__")).partition(".")[0] == "torch"
    ):
        function = function.__wrapped__
    return function


def _describe(function: Callable[..., Any], what: str) -> dict[str, Any]:
    """Name, source text (at a prompt, compiled code), defaults and closures; of a class, those of its methods.

    The attributes of a class count where its source text does not say what they are.
    """
    parts: dict[str, Any] = {"name": qualified_name(function)}
    methods = list(_functions(function))
    source = _source(function)
    if source is not None:
        parts["source"] = source.text
    else:
        # Compiled code and code typed at a prompt have no source. Installed modules are named well enough.
        parts["code"] = [_code(one) for one in methods]
        if not methods and getattr(function, "__module__", "__main__") == "__main__":
            raise unidentified(what, f"{qualified_name(function)} has no source text")
    if isinstance(function, type):
        elsewhere = [one for one in methods if source is not None and not source.has(one)]
        if elsewhere:
            parts["elsewhere"] = [own.text if (own := _source(one)) else _code(one) for one in elsewhere]
        is_other = bool(elsewhere) and len(elsewhere) == len(methods)  # inspect found one of the same name
        if source is None or is_other or "<locals>" in function.__qualname__:
            held = dict(_attributes(function))
            is_compiled = source is None and not methods  # its descriptors may not show what they are
            if found := _identifiable(held, what) if is_compiled else _plain(held, what):
                parts["attributes"] = found
    elif hasattr(function, "__wrapped__"):
        parts["wrapped"] = _plain(function.__wrapped__, what)
    parts["defaults"] = [_plain(list(one.__defaults__), what) for one in methods if one.__defaults__]
    parts["defaults"] += [_identifiable(one.__kwdefaults__, what) for one in methods if one.__kwdefaults__]
    parts["closure"] = [_plain(value, what) for one in methods for value in _closure(one)]
    return parts


class _Source(NamedTuple):
    """Source text, and the number of its first line."""

    text: str
    first: int

    def has(self, method: FunctionType) -> bool:
        """Whether a method is of these lines. What is generated (by a dataclass) follows from them."""
        lines = self.text.splitlines(keepends=True)
        offset = method.__code__.co_firstlineno - self.first
        if method.__name__ == "<lambda>":
            return 0 <= offset < len(lines)
        own = _source(method)
        return own is None or (offset >= 0 and "".join(lines[offset:]).startswith(own.text))


def _source(function: Callable[..., Any]) -> _Source | None:
    """None where there is none, and of a lambda, whose line may have others and what is no part of it."""
    if isinstance(function, FunctionType) and function.__name__ == "<lambda>":
        return None
    # Of the function itself: inspect would take what functools.wraps says that it wraps.
    where = function.__code__ if isinstance(function, FunctionType) else function
    try:
        lines, first = inspect.getsourcelines(where)
    except (OSError, TypeError):
        return None
    return _Source("".join(lines), first)


def _attributes(kind: type) -> Iterator[tuple[str, Any]]:
    """What a class holds beside methods and what Python puts there."""
    for name, value in vars(kind).items():
        is_pythons = (name.startswith("_") and name.endswith("_")) or name == "_abc_impl"
        if not is_pythons and not list(_of_member(value)) and not inspect.isdatadescriptor(value):
            yield name, value


def _functions(function: Callable[..., Any]) -> Iterator[FunctionType]:
    members = vars(function).values() if isinstance(function, type) else [function]
    for member in members:
        yield from (one for one in _of_member(member) if _is_own(one))


def _of_member(member: Any) -> Iterator[FunctionType]:
    """The functions of a method, also of a static or cached one and of a property."""
    is_wrapper = isinstance(member, (staticmethod, classmethod, property, cached_property, partialmethod))
    names = ("__func__", "fget", "fset", "fdel", "func") if is_wrapper else ()
    for one in (member, *(getattr(member, name, None) for name in names)):
        inner = _undecorated(one)
        if isinstance(inner, FunctionType):
            yield inner


def _closure(function: FunctionType) -> Iterator[Any]:
    """What it closes over, but for the class that it is a method of (Python's own ``__class__``)."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__":
            with contextlib.suppress(ValueError):  # not yet filled
                yield cell.cell_contents


def _code(function: FunctionType) -> list[Any]:
    return _describe_code(function.__code__)


def _describe_code(code: CodeType) -> list[Any]:
    constants = [_describe_code(one) if isinstance(one, CodeType) else _constant(one) for one in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def _constant(value: Any) -> str:
    # A set of texts shows itself in another order in every process.
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def identify_value(value: Any, what: str) -> str:
    """A hash of a callable, of a torch module (its classes, weights and what else it holds) or of a value that
    has JSON."""
    import torch

    if isinstance(value, torch.nn.Module):
        return _once(value, lambda: _identify_module(value, what))
    if callable(value):
        return identify_callable(value, {}, what)
    return content_hash(_plain(value, what))


def _identify_module(module: Any, what: str) -> str:
    """Of each module in it its class, mode and attributes; all parameters and buffers."""
    inner = {name: _describe_module(one, what) for name, one in module.named_modules()}
    weights = {name: hash_item(tensor, what) for name, tensor in module.named_parameters(remove_duplicate=False)}
    buffers = {name: hash_item(tensor, what) for name, tensor in module.named_buffers(remove_duplicate=False)}
    return content_hash([inner, weights, buffers])


def _describe_module(module: Any, what: str) -> list[Any]:
    import torch

    of_every = vars(torch.nn.Module())
    held = {name: value for name, value in vars(module).items() if name not in of_every}
    hooks = [list(value.values()) for name, value in vars(module).items() if name.endswith("_hooks") and value]
    if not _is_own(type(module)):  # what torch.compile and the like keep there changes with use
        return [qualified_name(module), module.training, _identifiable(held, what)]
    return [identify_callable(type(module), {}, what), module.training, _plain(held, what), _plain(hooks, what)]


def _identifiable(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Of those values that have one, the identity."""
    found = {}
    for name, value in values.items():
        with contextlib.suppress(ConfigError):
            found[name] = _plain(value, what)
    return found


def _plain(value: Any, what: str) -> Any:
    """JSON-able stand-in for a value; callables by their identity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, what) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [_plain(item, what) for item in value]
        return sorted(items, key=repr) if isinstance(value, set | frozenset) else items
    if callable(value):
        return identify_value(value, what)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return hash_item(value, what)
    if isinstance(value, Enum):
        return [f"{qualified_name(value)}.{value.name}", _identifiable({"value": value.value}, what)]
    try:
        canonical_json(value)
    except (TypeError, ValueError):
        if not _shows_itself(value):
            raise unidentified(what, f"{value!r} has no JSON") from None
        return qualified_name(value) if type(value).__module__ == "dataclasses" else repr(value)
    return value


def _shows_itself(value: Any) -> bool:
    """Whether a value without JSON is all in its ``repr``, in every process."""
    import torch

    known = float | complex | bytes | range | PurePath | torch.dtype | torch.device
    return isinstance(value, known) or type(value).__module__ == "dataclasses"  # its marks in what it generates


def unidentified(what: str, why: str) -> ConfigError:
    """The error for what cannot be identified."""
    return ConfigError(
        f"{what} cannot be identified ({why}), so a later call could not tell whether its runs are the same: "
        f'pass fingerprint="...", a name of your own that you change whenever it changes'
    )


def hash_item(item: Any, what: str = "dataset") -> str:
    """A hash of one item of a dataset: nested tuples, lists and dicts of tensors, arrays and numbers, and objects
    that hold such.

    Raises ConfigError, asking for ``fingerprint=``, for what does not show what it holds.
    """
    digest = hashlib.sha256()
    try:
        _feed(digest, item, what)
    except RecursionError:
        raise unidentified(what, f"{type(item).__name__} holds itself") from None
    return digest.hexdigest()[:16]


def _feed(digest: Any, item: Any, what: str) -> None:
    if isinstance(item, Mapping):
        for key in sorted(item, key=str):
            digest.update(f"{key}:".encode())
            _feed(digest, item[key], what)
    elif isinstance(item, list | tuple):
        digest.update(f"[{len(item)}".encode())
        for part in item:
            _feed(digest, part, what)
    elif isinstance(item, set | frozenset):
        _feed(digest, sorted(item, key=repr), what)
    elif hasattr(item, "detach"):
        _feed_tensor(digest, item)
    elif hasattr(item, "tobytes"):
        digest.update(f"{getattr(item, 'dtype', '')}{getattr(item, 'shape', '')}".encode())
        if getattr(getattr(item, "dtype", None), "hasobject", False):  # its bytes are addresses
            _feed(digest, item.tolist(), what)
        else:
            digest.update(item.tobytes())
    elif getattr(type(item), "__repr__", None) is object.__repr__ or is_dataclass(item):
        digest.update(qualified_name(type(item)).encode())
        _feed(digest, _state(item, what), what)
    else:
        digest.update(f"{_shown(item, what)},".encode())  # 1, 23 is not 12, 3


def _shown(item: Any, what: str) -> str:
    text = repr(item)
    if " at 0x" in text and not isinstance(item, str):  # an address, other in every process
        raise unidentified(what, f"{text} does not show what it holds")
    return text


def _feed_tensor(digest: Any, item: Any) -> None:
    tensor = item.detach().cpu()
    tensor = (tensor.to_dense() if tensor.is_sparse else tensor).contiguous().resolve_conj().resolve_neg()
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    is_narrow = tensor.is_floating_point() and tensor.itemsize < 4  # numpy does not have them all
    digest.update((tensor.float() if is_narrow else tensor).numpy().tobytes())


def qualified_name(thing: Any) -> str:
    """With its module; of an object, its class's."""
    module = getattr(thing, "__module__", "")
    return f"{module}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
