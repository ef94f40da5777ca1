"""Hashes of data: items of datasets, tensors, and objects by class and state. Stable across processes."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from pickle import PickleError
from types import FunctionType
from typing import Any

from flops_fit_core.errors import ConfigError


def qualified_name(item: Any) -> str:
    """Module and name of a function or class; for other objects, of their class."""
    module = getattr(item, "__module__", "")
    return f"{module}.{getattr(item, '__qualname__', type(item).__qualname__)}"


def object_state(item: Any, subject: str) -> Any:
    """The attributes of an object, slots included. For objects implemented in C, the state that pickle stores.

    Raises ConfigError, asking for ``fingerprint=``, for objects that cannot be pickled.
    """
    state = object.__getstate__(item) or getattr(item, "__dict__", None)
    if not state and not isinstance(inspect.getattr_static(type(item), "__call__", None), FunctionType):
        try:
            return item.__reduce_ex__(2)
        except (TypeError, PickleError):
            raise unidentified(subject, f"the state of {item!r} cannot be read") from None
    return state or {}


def unidentified(subject: str, reason: str) -> ConfigError:
    """The error for an object that cannot be fingerprinted.

    Args:
        subject: The argument that contains the object, such as ``dataset``.
        reason: The object and its problem.
    """
    return ConfigError(
        f"{subject} cannot be identified ({reason}), so finished runs could not be matched to it later. Pass "
        f'fingerprint="...", a text of your choice, and change it whenever results would change'
    )


def hash_item(item: Any, subject: str = "dataset") -> str:
    """A hash of an item of a dataset: nested tuples, lists and dicts of tensors, arrays, numbers and objects.

    Raises ConfigError, asking for ``fingerprint=``, for objects with hidden state.
    """
    digest = hashlib.sha256()
    try:
        _feed(digest, item, subject)
    except RecursionError:
        raise unidentified(subject, f"{type(item).__name__} contains itself") from None
    return digest.hexdigest()[:16]


def _feed(digest: Any, item: Any, subject: str) -> None:
    if isinstance(item, Mapping):
        for key in sorted(item, key=str):
            digest.update(f"{key}:".encode())
            _feed(digest, item[key], subject)
    elif isinstance(item, list | tuple):
        digest.update(f"[{len(item)}".encode())
        for part in item:
            _feed(digest, part, subject)
    elif isinstance(item, set | frozenset):
        _feed(digest, sorted(item, key=repr), subject)
    elif hasattr(item, "detach"):
        _feed_tensor(digest, item)
    elif hasattr(item, "tobytes"):
        digest.update(f"{getattr(item, 'dtype', '')}{getattr(item, 'shape', '')}".encode())
        if getattr(getattr(item, "dtype", None), "hasobject", False):  # the bytes are addresses
            _feed(digest, item.tolist(), subject)
        else:
            digest.update(item.tobytes())
    elif getattr(type(item), "__repr__", None) is object.__repr__ or is_dataclass(item):
        digest.update(qualified_name(type(item)).encode())
        _feed(digest, object_state(item, subject), subject)
    else:
        digest.update(f"{_stable_repr(item, subject)},".encode())  # the comma separates 1, 23 from 12, 3


def _stable_repr(item: Any, subject: str) -> str:
    text = repr(item)
    if " at 0x" in text and not isinstance(item, str):  # an address, which differs between processes
        raise unidentified(subject, f"{text} does not show its state")
    return text


def _feed_tensor(digest: Any, item: Any) -> None:
    tensor = item.detach().cpu()
    tensor = (tensor.to_dense() if tensor.is_sparse else tensor).contiguous().resolve_conj().resolve_neg()
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    is_narrow = tensor.is_floating_point() and tensor.itemsize < 4  # numpy lacks bfloat16 and 8-bit floats
    digest.update((tensor.float() if is_narrow else tensor).numpy().tobytes())
