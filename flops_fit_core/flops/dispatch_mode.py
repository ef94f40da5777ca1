"""A torch dispatch mode from a function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def dispatch_mode(run: Callable[[Any, Any, Any], Any], atomic: Container[Any]) -> Iterator[None]:
    """Call ``run(func, args, kwargs)`` for every operation in the block; it returns the operation's result.

    Args:
        run: Runs the operation.
        atomic: Operations (overload packets) that are not decomposed. Every other composite operation reaches
            ``run`` as its parts.

    After an exception, torch's compiler is reset: otherwise a function that calls the compiler (flex_attention)
    fails in every later pass of the process (torch 2.13).
    """
    from torch import _C
    from torch.utils._python_dispatch import TorchDispatchMode

    kind = _C.DispatchKey.CompositeImplicitAutograd
    is_composite: dict[Any, bool] = {}

    def dispatch(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in is_composite:
            has_kernel = _C._dispatch_has_kernel_for_dispatch_key(func.name(), kind)
            is_composite[func] = has_kernel and func._overloadpacket not in atomic
        if is_composite[func]:
            with mode:
                return func.decompose(*args, **kwargs)
        return run(func, args, kwargs)

    class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        pass

    # Set after the class: in the class body, torch wraps it for its compiler and imports that, which takes 1 s.
    Mode.__torch_dispatch__ = dispatch  # type: ignore[method-assign]
    try:
        with Mode():  # type: ignore[no-untyped-call]
            yield
    except Exception:
        if (compiler := sys.modules.get("torch._dynamo")) is not None:
            compiler.reset()
        raise
