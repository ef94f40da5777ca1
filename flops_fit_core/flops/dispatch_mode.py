"""A torch dispatch mode made of one function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def dispatch_mode(dispatch: Callable[..., Any]) -> Iterator[None]:
    """Give every operation that runs within to ``dispatch(mode, func, types, args, kwargs)``.

    Where the pass fails, torch's compiler forgets the pass: a function that calls the compiler itself
    (flex_attention) would fail in every later pass of the process (torch 2.13).
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        pass

    # Not in the class's body, where torch would wrap it for its compiler and import that: a second.
    Mode.__torch_dispatch__ = dispatch  # type: ignore[method-assign]
    try:
        with Mode():  # type: ignore[no-untyped-call]
            yield
    except Exception:
        if (compiler := sys.modules.get("torch._dynamo")) is not None:
            compiler.reset()
        raise
