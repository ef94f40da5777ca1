"""How a forward pass uses each parameter: looked up, multiplied, or neither.

One pass of a module is observed operation by operation. Tensors are identified by their storage, so views of a
parameter (``weight.t()``, ``weight[:time]``, ``chunk``) and copies (a cast, a scaled or masked weight) count as
the parameter.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flops_fit_core.flops.dispatch_mode import dispatch_mode
from flops_fit_core.flops.product_formulas import is_product, product_formulas

if TYPE_CHECKING:
    from torch import Tensor, nn

LOOKUP_OPERATIONS = frozenset(
    (
        *("embedding", "_embedding_bag", "_embedding_bag_forward_only"),
        *("index", "_unsafe_index", "index_select", "gather", "take"),
    )
)
"""Operations that select entries of the first argument by integers in the other arguments."""
VECTOR_PRODUCTS = frozenset(("mv", "addmv", "dot", "vdot"))
"""Products with a vector, for which torch's FLOPs counter has no formula."""
BIAS_FIRST = frozenset(("addmm", "baddbmm", "addmv"))
"""Products that add their first argument to the product."""
SUM_OPERATIONS = frozenset(("add", "add_", "sub", "sub_", "rsub"))
PLACING_OPERATIONS = frozenset(
    ("cat", "stack", "copy", "copy_", "where", "index_put", "index_put_", "masked_scatter")
)
"""Operations that concatenate or insert a parameter into the data."""


class TraceTooLarge(Exception):
    """The pass has more FLOPs than the limit."""


@dataclass
class Use:
    """How a forward pass uses one parameter."""

    dimensions: int = 0
    """Dimensions of the parameter."""
    looked_up: bool = False
    """The batch, or constants such as positions, select rows of it."""
    routed: bool = False
    """Indices that the model computes, such as a router's, select rows of it."""
    multiplied: bool = False
    """A matrix product multiplies it with activations or the batch."""
    by_weights: bool = False
    """It is in a matrix product of parameters and constants only."""
    placed: bool = False
    """Its entries are added to every sample position by position, or inserted: learned positions, prefixes."""
    other: bool = False
    """Any other use: a bias, a gain, a decay."""
    head: bool = False
    """It is the matrix or the bias of the product that returns the outputs."""
    products: float = 0.0
    """Multiply-adds of the pass divided by (entries of the parameter x tokens of the batch): 1 if every token is
    multiplied by every entry once, less for an expert of a mixture."""

    @property
    def is_used(self) -> bool:
        """Whether the pass used it. A product with no rows does not count."""
        without_products = self.looked_up or self.routed or self.by_weights or self.placed or self.other
        return without_products or self.products > 0


@dataclass(frozen=True)
class ParameterUsage:
    """The uses of a module's parameters, by name."""

    uses: Mapping[str, Use]
    outputs_size: int | None = None
    """Last dimension of the outputs."""
    _patterns: dict[str, list[Use]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, use in self.uses.items():
            self._patterns.setdefault(pattern(name), []).append(use)

    def of(self, names: Iterable[str]) -> dict[str, Use] | None:
        """The uses of the parameters of another size of the model; None if they do not follow from this size.

        A parameter with a new name (of a further layer) is used like the parameters whose names differ in numbers
        only, if all of these are used alike.
        """
        names = list(names)
        if set(names) == set(self.uses):
            return dict(self.uses)
        uses: dict[str, Use] = {}
        for name in names:
            similar_uses = self._patterns.get(pattern(name), [])
            if (
                len({(use.looked_up, use.routed, use.multiplied, use.placed, use.head) for use in similar_uses})
                != 1
            ):
                return None
            uses[name] = similar_uses[0]
        return uses


def pattern(name: str) -> str:
    """A parameter's name with a star in place of each number: ``blocks.*.up.weight``."""
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)|(?<=\.)\d+$", "*", name)


@dataclass(frozen=True)
class _State:
    """The sources of a tensor."""

    weights: frozenset[str] = frozenset()
    """Parameters that it is a view or a function of."""
    chosen_rows: bool = False
    """Whether it contains only rows of ``weights`` that the batch selected."""
    from_batch: bool = False
    """Whether it was computed from the batch."""
    is_active: bool = False
    """Whether it was computed from the batch and from parameters."""
    head: frozenset[str] = frozenset()
    """Parameters of the product that returned it."""

    @property
    def is_weight(self) -> bool:
        return bool(self.weights) and not self.chosen_rows


CONSTANT = _State()


class UsageTracer:
    """Observes a forward pass of a module inside :meth:`mode`.

    Args:
        module: The module with the observed parameters.
        samples: Samples in the batch.
        tokens: Tokens in the batch.
        limit: Above this many FLOPs, :class:`TraceTooLarge` is raised.
    """

    def __init__(self, module: nn.Module, samples: int, tokens: int, limit: float = math.inf) -> None:
        self.uses = {name: Use(parameter.ndim) for name, parameter in module.named_parameters()}
        self._shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        self._samples = samples
        self._tokens = tokens
        self._limit = limit
        self._flops = 0.0
        self._formulas = product_formulas()
        self._states: dict[int, _State] = {}
        self._storages: list[Any] = []  # keeps storages alive: torch reuses the address of a freed storage
        self._parameter_keys: set[int] = set()
        by_storage: dict[int, set[str]] = defaultdict(set)
        for name, parameter in module.named_parameters():
            by_storage[_key(parameter)].add(name)
        for key, names in by_storage.items():
            self._states[key] = _State(weights=frozenset(names))
        self._parameter_keys = set(by_storage)

    def mark_batch(self, batch: Any) -> None:
        """Mark the tensors of the batch as data."""
        from torch.utils._pytree import tree_leaves

        for tensor in _tensors(tree_leaves(batch)):
            self._set(tensor, _State(from_batch=True))

    def mark_outputs(self, outputs: Tensor) -> None:
        """Mark the parameters of the product that returned the outputs as the head."""
        for name in self._state(outputs).head:
            self.uses[name].head = True

    def mode(self) -> AbstractContextManager[Any]:
        """Observe all operations in the block."""

        def run(func: Any, args: Any, kwargs: Any) -> Any:
            result = func(*args, **kwargs)
            self._observe(func, args, kwargs, result)
            return result

        return dispatch_mode(run, self._formulas)

    # ------------------------------------------------------------------ one operation

    def _observe(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        from torch.utils._pytree import tree_leaves

        name = str(func._overloadpacket).removeprefix("aten.")
        inputs = _tensors(tree_leaves((args, kwargs)))
        states = [self._state(tensor) for tensor in inputs]
        if all(state == CONSTANT for state in states):
            state = CONSTANT
        elif self._is_product(func, name):
            state = self._product(func, name, args, kwargs, inputs, states, result)
        elif name in LOOKUP_OPERATIONS and states[0].weights:
            state = self._lookup(states)
        else:
            state = self._other(name, inputs, states, result)
        for tensor in _tensors(tree_leaves(result)):
            self._set(tensor, state)

    def _is_product(self, func: Any, name: str) -> bool:
        return func._overloadpacket in self._formulas or name in VECTOR_PRODUCTS or is_product(func)

    def _product(
        self, func: Any, name: str, args: Any, kwargs: Any, inputs: Any, states: list[_State], result: Any
    ) -> _State:
        flops = self._count(func, args, kwargs, result, inputs)
        biases = _biases(name, args)
        matrices = [state for tensor, state in zip(inputs, states, strict=True) if id(tensor) not in biases]
        added = [state for tensor, state in zip(inputs, states, strict=True) if id(tensor) in biases]
        computed = any(state.is_active or state.from_batch for state in matrices)
        head: set[str] = set()
        for state in matrices:
            if state.chosen_rows:
                if computed:  # for rows x activations, the multiplied share of the table decides
                    self._add_products(state.weights, flops)
                continue
            for weight in state.weights:
                use = self.uses[weight]
                if computed or any(other.chosen_rows for other in matrices):
                    use.multiplied = True
                    head.add(weight)
                else:
                    use.by_weights = True
            self._add_products(state.weights, flops)
        for state in added:
            for weight in state.weights if not state.chosen_rows else ():
                self.uses[weight].other = True
                head.add(weight)
        factors = [*matrices, *added]
        if not any(state.is_active or state.from_batch or state.chosen_rows for state in factors):
            return _State(weights=frozenset().union(*(state.weights for state in factors)))
        return _State(
            from_batch=True,
            is_active=any(state.is_active or state.weights for state in factors),
            head=frozenset(head),
        )

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any, inputs: Any) -> float:
        """FLOPs of a product. Without a formula: every entry of the largest argument times every token."""
        formula = self._formulas.get(func._overloadpacket)
        flops = float(formula(*args, **kwargs, out_val=result)) if formula is not None else 0.0
        if formula is None and inputs and inputs[0].numel():
            flops = 2.0 * max(tensor.numel() for tensor in inputs) * self._tokens
        self._flops += flops
        if self._flops > self._limit:
            raise TraceTooLarge
        return flops

    def _add_products(self, weights: Iterable[str], flops: float) -> None:
        for weight in weights:
            entries = max(1, self._shapes[weight].numel())
            self.uses[weight].products += flops / (2.0 * entries * self._tokens)

    def _lookup(self, states: list[_State]) -> _State:
        source, *indices = states
        weights = source.weights
        if any(state.is_active or state.weights for state in indices):
            for weight in weights if source.is_weight else ():
                self.uses[weight].routed = True
            return source
        for weight in weights:
            self.uses[weight].looked_up = True
        chosen = source.chosen_rows or any(state.from_batch for state in indices)
        return _State(weights=weights, chosen_rows=chosen)

    def _other(self, name: str, inputs: list[Any], states: list[_State], result: Any) -> _State:
        weights = frozenset().union(*(state.weights for state in states if state.is_weight))
        row_states = [state for state in states if state.chosen_rows]
        if not any(state.is_active or state.from_batch for state in states) and (not row_states or not weights):
            tables = {state.weights for state in row_states}
            if len(tables) > 1:
                return _State(from_batch=True, is_active=True)
            return _State(weights=weights or next(iter(tables), frozenset()), chosen_rows=bool(row_states))
        for tensor, state in zip(inputs, states, strict=True):
            is_placed = name in PLACING_OPERATIONS or (
                name in SUM_OPERATIONS and self._is_per_position(tensor, result)
            )
            for weight in state.weights if state.is_weight else ():
                use = self.uses[weight]
                use.placed, use.other = use.placed or is_placed, use.other or not is_placed
        is_active = bool(weights or row_states) or any(state.is_active for state in states)
        head = frozenset().union(*(state.head for state in states))
        return _State(from_batch=True, is_active=is_active, head=head | weights if head else head)

    def _is_per_position(self, tensor: Tensor, result: Any) -> bool:
        """Whether a sum has one entry of this tensor per position and channel of a sample.

        True for learned positions, False for biases, which are broadcast over positions.
        """
        shape = tensor.shape[1:] if tensor.ndim == result.ndim else tensor.shape
        broadcast = tensor.ndim < result.ndim or tensor.shape[0] == 1
        return result.shape[0] == self._samples and broadcast and shape == result.shape[1:]

    # ------------------------------------------------------------------ tensors

    def _state(self, tensor: Tensor) -> _State:
        return self._states.get(_key(tensor), CONSTANT)

    def _set(self, tensor: Tensor, state: _State) -> None:
        key = _key(tensor)
        if key in self._parameter_keys or (state == CONSTANT and key not in self._states):
            return
        if key not in self._states:
            self._storages.append(tensor.untyped_storage())
        self._states[key] = state


def _key(tensor: Tensor) -> int:
    """The address of a tensor's storage, which its views share."""
    key: int = tensor.untyped_storage()._cdata
    return key


def _tensors(leaves: Iterable[Any]) -> list[Any]:
    """The tensors with a storage: no sparse or nested tensors."""
    from torch import Tensor, strided

    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout == strided and not leaf.is_nested]


def _biases(name: str, args: Any) -> set[int]:
    """Ids of the arguments that a product adds."""
    if name in BIAS_FIRST:
        return {id(args[0])}
    if name == "convolution" and len(args) > 2 and args[2] is not None:
        return {id(args[2])}
    return set()


def trace_usage(
    module: nn.Module,
    batch: Any,
    run: Callable[[], Any],
    samples: int,
    tokens: int,
    limit: float = math.inf,
) -> ParameterUsage:
    """The use of every parameter in one forward pass.

    Args:
        module: The module with the observed parameters.
        batch: The batch that ``run`` passes to the module.
        run: Runs the module and returns its outputs: a tensor, or an object with ``.logits``.
        samples: Samples in the batch.
        tokens: Tokens in the batch.
        limit: Above this many FLOPs, the pass is stopped.

    Raises TraceTooLarge, and all errors of the module.
    """
    from torch import Tensor

    tracer = UsageTracer(module, samples, tokens, limit)
    tracer.mark_batch(batch)
    with tracer.mode():
        outputs = run()
    logits = getattr(outputs, "logits", outputs)
    if not isinstance(logits, Tensor):
        return ParameterUsage(tracer.uses)
    tracer.mark_outputs(logits)
    return ParameterUsage(tracer.uses, logits.shape[-1] if logits.ndim else None)
