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
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

from flops_fit_core.errors import ConfigError
from flops_fit_core.records import canonical_json, content_hash


def identify_callable(function: Callable[..., Any], kwargs: Mapping[str, Any], what: str) -> str:
    """A hash of what a callable is: its name, source, defaults, closure and keyword arguments; of a class,
    those of its base classes too.

    Raises ConfigError, asking for ``fingerprint=``, where something it depends on cannot be identified.
    """
    if isinstance(function, partial):
        inner = identify_callable(function.func, {**function.keywords, **kwargs}, what)
        return content_hash([inner, _plain(list(function.args), what)])
    function = _undecorated(function)
    parts: list[Any] = [_plain(dict(kwargs), what)]
    if isinstance(function, MethodType):
        parts += [identify_callable(function.__func__, {}, what), identify_value(function.__self__, what)]
    elif isinstance(function, type):
        parts += [qualified_name(function), *(_describe(one, what) for one in function.__mro__ if _is_own(one))]
    elif isinstance(function, FunctionType | BuiltinFunctionType):
        parts.append(_describe(function, what) if _is_own(function) else qualified_name(function))
    else:  # an object with __call__: its class and what it holds
        parts += [identify_callable(type(function), {}, what), _plain(getattr(function, "__dict__", {}), what)]
    return content_hash(parts)


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
    """Name, source text (at a prompt, compiled code), defaults and closures; of a class, those of its methods."""
    parts: dict[str, Any] = {"name": qualified_name(function)}
    methods = list(_functions(function))
    try:
        parts["source"] = inspect.getsource(function)
    except (OSError, TypeError):
        # Compiled code and code typed at a prompt have no source. Installed modules are named well enough.
        parts["code"] = [_describe_code(one.__code__) for one in methods]
        if not methods and getattr(function, "__module__", "__main__") == "__main__":
            raise _unidentified(what, f"{qualified_name(function)} has no source text") from None
    parts["defaults"] = [_plain(list(one.__defaults__), what) for one in methods if one.__defaults__]
    parts["closure"] = [_plain(value, what) for one in methods for value in _closure(one)]
    return parts


def _functions(function: Callable[..., Any]) -> Iterator[FunctionType]:
    members = vars(function).values() if isinstance(function, type) else [function]
    for member in members:
        inner = _undecorated(getattr(member, "__func__", getattr(member, "fget", member)))
        if isinstance(inner, FunctionType) and _is_own(inner):
            yield inner


def _closure(function: FunctionType) -> Iterator[Any]:
    """What it closes over, but for the class that it is a method of (Python's own ``__class__``)."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__":
            with contextlib.suppress(ValueError):  # not yet filled
                yield cell.cell_contents


def _describe_code(code: CodeType) -> list[Any]:
    constants = [_describe_code(one) if isinstance(one, CodeType) else _constant(one) for one in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def _constant(value: Any) -> str:
    # A set of texts shows itself in another order in every process.
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def identify_value(value: Any, what: str) -> str:
    """A hash of a callable, of a torch module (its structure and weights) or of a JSON-able value."""
    import torch

    if isinstance(value, torch.nn.Module):
        weights = [hash_item(tensor) for tensor in value.state_dict().values()]
        return content_hash([qualified_name(type(value)), repr(value), weights])
    if callable(value):
        return identify_callable(value, {}, what)
    return content_hash(_plain(value, what))


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
        return hash_item(value)
    try:
        canonical_json(value)
    except (TypeError, ValueError):
        raise _unidentified(what, f"{value!r} has no JSON") from None
    return value


def _unidentified(what: str, why: str) -> ConfigError:
    return ConfigError(
        f"{what} cannot be identified ({why}), so a later call could not tell whether its runs are the same: "
        f'pass fingerprint="...", a name of your own that you change whenever it changes'
    )


def hash_item(item: Any) -> str:
    """A hash of one item of a dataset: nested tuples, lists and dicts of tensors, arrays and numbers."""
    digest = hashlib.sha256()
    _feed(digest, item)
    return digest.hexdigest()[:16]


def _feed(digest: Any, item: Any) -> None:
    if isinstance(item, Mapping):
        for key in sorted(item, key=str):
            digest.update(str(key).encode())
            _feed(digest, item[key])
    elif isinstance(item, list | tuple):
        digest.update(f"[{len(item)}".encode())
        for part in item:
            _feed(digest, part)
    elif hasattr(item, "detach"):
        tensor = item.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.float().numpy().tobytes() if tensor.is_floating_point() else tensor.numpy().tobytes())
    elif hasattr(item, "tobytes"):
        digest.update(f"{getattr(item, 'dtype', '')}{getattr(item, 'shape', '')}".encode())
        digest.update(item.tobytes())
    else:
        digest.update(repr(item).encode())


def qualified_name(thing: Any) -> str:
    """With its module; of an object, its class's."""
    module = getattr(thing, "__module__", "")
    return f"{module}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
