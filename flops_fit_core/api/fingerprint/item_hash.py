"""Hashes of values: an item of a dataset, a tensor, an object by what it holds. Equal in every process."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from pickle import PickleError
from types import FunctionType
from typing import Any

from flops_fit_core.errors import ConfigError


def qualified_name(thing: Any) -> str:
    """With its module; of an object, its class's."""
    module = getattr(thing, "__module__", "")
    return f"{module}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def state_of(thing: Any, what: str) -> Any:
    """What an object holds, in slots too; of one that is not made in Python, what pickle makes it again from."""
    state = object.__getstate__(thing) or getattr(thing, "__dict__", None)
    if not state and not isinstance(inspect.getattr_static(type(thing), "__call__", None), FunctionType):
        try:
            return thing.__reduce_ex__(2)
        except (TypeError, PickleError):
            raise unidentified(what, f"{thing!r} does not show what it holds") from None
    return state or {}


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
        _feed(digest, state_of(item, what), what)
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
