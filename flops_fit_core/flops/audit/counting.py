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
"""Operations with which control flow that depends on data starts."""


class OperationCounter:
    """Counts the FLOPs of the operations that run under :meth:`mode`.

    Args:
        limit: FLOPs above which :class:`TraceTooLarge` is raised.

    The formulas are those of ``torch.utils.flop_counter.FlopCounterMode``, except for the two in
    :mod:`flops_fit_core.flops.product_formulas`. On the meta device ``FlopCounterMode`` takes 1.1 to 8 times as
    long, 3.8 in all over 20 models: torch computes shapes in Python there, and again in each equal layer. Here
    the shape of a result is computed once for arguments of the same shapes. Operations of higher order, such as
    ``torch.cond``, raise.

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
        self._operations: dict[Any, Operation] = {}
        self._results: dict[Any, Any] = {}

    @property
    def total(self) -> int:
        """FLOPs until now."""
        return self.flops.total()

    def mode(self) -> AbstractContextManager[Any]:
        """Counts the operations that run within."""
        return dispatch_mode(self._count, self._formulas)

    def _count(self, func: Any, args: Any, kwargs: Any) -> Any:
        operation = self._operations.get(func) or self._add_operation(func)
        result = (self._recall if operation.makes_tensor else self._run)(operation, args, kwargs)
        if operation.formula is not None:
            self.flops[operation.name] += operation.formula(*args, **kwargs, out_val=result)
            if self.total > self.limit:
                raise TraceTooLarge
        return result

    def _recall(self, operation: Operation, args: Any, kwargs: Any) -> Any:
        """A tensor of the remembered shape, if the operation ran on the meta device with such arguments before."""
        from torch import Tensor, ops

        key = (operation.func, _described(args), _described([*kwargs.items()]))
        if key in self._results:
            shape, stride, dtype, device = self._results[key]
            return ops.aten.empty_strided.default(shape, stride, dtype=dtype, device=device)
        result = self._run(operation, args, kwargs)
        if type(result) is Tensor and result.is_meta:
            self._results[key] = _described(result)
        return result

    def _run(self, operation: Operation, args: Any, kwargs: Any) -> Any:
        try:
            if operation.name == "_grouped_mm" and args[0].is_meta:
                return grouped_result(*args, **kwargs)
            return operation.func(*args, **kwargs)
        except Exception as error:
            self.failed = error, operation.func.name()
            raise

    def _add_operation(self, func: Any) -> Operation:
        operation = self._operations[func] = Operation.of(func, self._formulas)
        if operation.formula is None and is_product(func):
            self.unknown.add(func.name())
        if func.name() in READS_VALUES:
            self.reads.add(func.name())
        return operation


@dataclass(frozen=True)
class Operation:
    """Properties of one of torch's operations, the same at every call."""

    func: Any
    name: str
    formula: Callable[..., int] | None
    makes_tensor: bool
    """The result is one new tensor, not a view or an argument that was changed."""

    @classmethod
    def of(cls, func: Any, formulas: Mapping[Any, Callable[..., int]]) -> Operation:
        """Looks up the formula and the schema."""
        returns = func._schema.returns
        makes_tensor = not func._schema.is_mutable and len(returns) == 1 and returns[0].alias_info is None
        name = str(func._overloadpacket).removeprefix("aten.")
        return cls(func, name, formulas.get(func._overloadpacket), makes_tensor)


def _described(value: Any) -> Any:
    """Everything in an argument on which the shape of a result depends."""
    if hasattr(value, "stride"):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(_described(item) for item in value)
    return type(value), value


class AttentionCalls:
    """Calls of torch's attention under :meth:`mode`, and how many of them the count missed."""

    def __init__(self, counter: OperationCounter) -> None:
        self.counter = counter
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
                before = watch.counter.total
                result = func(*args, **(kwargs or {}))
                watch.calls += 1
                watch.missed += watch.counter.total == before
                return result

        return Mode()
