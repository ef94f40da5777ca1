"""Counts the operations that torch runs, by torch's own formulas."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from flops_fit_core.flops.dispatch_mode import dispatch_mode
from flops_fit_core.flops.parameter_usage import TraceTooLarge
from flops_fit_core.flops.product_formulas import grouped_result, is_product, product_formulas

READS_VALUES = frozenset(
    f"aten::{name}"
    for name in (
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"),
        *("_unique", "_unique2", "unique_dim", "unique_consecutive"),
    )
)
"""What control flow that depends on data starts with."""


class Counted:
    """What was run under :meth:`mode`.

    Args:
        limit: FLOPs from which on :class:`TraceTooLarge` is raised.

    It is what ``torch.utils.flop_counter.FlopCounterMode`` counts, with the same formulas but those of
    :mod:`flops_fit_core.flops.product_formulas`, and in half of the time: operations without a formula are passed
    on at once, and the result of one that was run before with arguments of the same shapes is reused.
    A model is made of equal layers, and shapes on the meta device are computed in Python. Operations of higher
    order, such as ``torch.cond``, raise.

    Attributes:
        flops: By operation: ``mm``, ``bmm``, ``convolution``, ...
        unknown: Names of operations that may multiply and have no formula.
        reads: Names of operations that give values to Python, or shapes that depend on values.
        failed: The last error that an operation raised, and the operation's name.
    """

    def __init__(self, limit: float = math.inf) -> None:
        self.limit = limit
        self.flops: Counter[str] = Counter()
        self.unknown: set[str] = set()
        self.reads: set[str] = set()
        self.failed: tuple[Exception, str] | None = None
        self._formulas = product_formulas()
        self._met: dict[Any, Operation] = {}
        self._results: dict[Any, Any] = {}

    @property
    def total(self) -> int:
        """FLOPs until now."""
        return self.flops.total()

    def mode(self) -> AbstractContextManager[Any]:
        """Counts what is run within."""

        def dispatch(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            about = self._met.get(func) or self._meet(func)
            if about.is_composite:
                with mode:
                    return func.decompose(*args, **(kwargs or {}))
            return self._count(about, args, kwargs or {})

        return dispatch_mode(dispatch)

    def _count(self, about: Operation, args: Any, kwargs: Any) -> Any:
        result = (self._made if about.makes_one else self._run)(about, args, kwargs)
        if about.formula is not None:
            self.flops[about.name] += about.formula(*args, **kwargs, out_val=result)
            if self.total > self.limit:
                raise TraceTooLarge
        return result

    def _made(self, about: Operation, args: Any, kwargs: Any) -> Any:
        """The new tensor, from memory where there was one like it."""
        from torch import Tensor, ops

        key = (about.func, _described(args), _described([*kwargs.items()]))
        if key in self._results:
            shape, stride, dtype, device = self._results[key]
            return ops.aten.empty_strided.default(shape, stride, dtype=dtype, device=device)
        result = self._run(about, args, kwargs)
        if type(result) is Tensor and result.is_meta:
            self._results[key] = _described(result)
        return result

    def _run(self, about: Operation, args: Any, kwargs: Any) -> Any:
        try:
            if about.name == "_grouped_mm" and args[0].is_meta:
                return grouped_result(*args, **kwargs)
            return about.func(*args, **kwargs)
        except Exception as error:
            self.failed = error, about.func.name()
            raise

    def _meet(self, func: Any) -> Operation:
        about = self._met[func] = Operation.of(func, self._formulas)
        if about.formula is None and not about.is_composite and is_product(func):
            self.unknown.add(func.name())
        if func.name() in READS_VALUES:
            self.reads.add(func.name())
        return about


@dataclass(frozen=True)
class Operation:
    """What is the same at every call of one of torch's operations."""

    func: Any
    name: str
    formula: Callable[..., int] | None
    is_composite: bool
    """Made of others, by which it is counted."""
    makes_one: bool
    """Its result is one new tensor, and no view or change of another."""

    @classmethod
    def of(cls, func: Any, formulas: Mapping[Any, Callable[..., int]]) -> Operation:
        """Look it up."""
        from torch import _C

        kind = _C.DispatchKey.CompositeImplicitAutograd
        formula = formulas.get(func._overloadpacket)
        composite = formula is None and _C._dispatch_has_kernel_for_dispatch_key(func.name(), kind)
        returns = func._schema.returns
        makes_one = not func._schema.is_mutable and len(returns) == 1 and returns[0].alias_info is None
        return cls(func, str(func._overloadpacket).removeprefix("aten."), formula, composite, makes_one)


def _described(value: Any) -> Any:
    """All that the shape of a result depends on."""
    if hasattr(value, "stride"):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(_described(item) for item in value)
    return type(value), value


class AttentionCalls:
    """Calls of torch's attention under :meth:`mode`, and how many of them the count missed."""

    def __init__(self, counted: Counted) -> None:
        self.counted = counted
        self.calls = self.missed = 0

    def mode(self) -> AbstractContextManager[Any]:
        """Watches what is called within."""
        from torch.nn import functional
        from torch.overrides import TorchFunctionMode

        watch = self

        class Mode(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func is not functional.scaled_dot_product_attention:
                    return func(*args, **(kwargs or {}))
                before = watch.counted.total
                result = func(*args, **(kwargs or {}))
                watch.calls += 1
                watch.missed += watch.counted.total == before
                return result

        return Mode()
