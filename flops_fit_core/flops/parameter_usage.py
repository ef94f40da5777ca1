"""How a forward pass uses each parameter: looked up, multiplied, or neither.

One pass of a module is observed operation by operation. Every tensor is followed by its storage, so views
(``weight.t()``, ``weight[:time]``, ``chunk``) and copies (a cast, a scaled or masked weight) of a parameter still
count as that parameter.
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

LOOKUPS = frozenset(
    (
        *("embedding", "_embedding_bag", "_embedding_bag_forward_only"),
        *("index", "_unsafe_index", "index_select", "gather", "take"),
    )
)
"""Operations that choose entries of their first argument by the integers of the others."""
PRODUCTS = frozenset(("mv", "addmv", "dot", "vdot"))
"""Products with a single vector, which torch's FLOPs counter counts as nothing."""
ADDED_FIRST = frozenset(("addmm", "baddbmm", "addmv"))
"""Products whose first argument is added to the product."""
SUMS = frozenset(("add", "add_", "sub", "sub_", "rsub"))
PLACED = frozenset(("cat", "stack", "copy", "copy_", "where", "index_put", "index_put_", "masked_scatter"))
"""Operations that put a parameter beside the data."""


class TraceTooLarge(Exception):
    """The pass has more FLOPs than the caller allowed."""


@dataclass
class Use:
    """What one forward pass does with one parameter."""

    dimensions: int = 0
    """Of the parameter."""
    looked_up: bool = False
    """Its rows are chosen by the batch, or by constants such as positions."""
    routed: bool = False
    """Its rows are chosen by indices that the model computes, as a router's are."""
    multiplied: bool = False
    """A matrix product multiplies activations or the batch by it."""
    by_weights: bool = False
    """A matrix product of parameters and constants alone has it."""
    placed: bool = False
    """Its entries are added to every sample position by position, or put beside the data: learned positions,
    prefixes."""
    other: bool = False
    """Any other use: a bias, a gain, a decay."""
    head: bool = False
    """The outputs are the product with this parameter, or it is the bias of that product."""
    products: float = 0.0
    """Multiply-adds of the pass over the parameter's entries times the batch's tokens: 1 if every token is
    multiplied by every entry once, less for one expert of a mixture."""

    @property
    def is_used(self) -> bool:
        """Whether the pass used it at all. A product with no rows is no use."""
        elsewhere = self.looked_up or self.routed or self.by_weights or self.placed or self.other
        return elsewhere or self.products > 0


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
        """The uses of the parameters of another size of the model; None if they are not known from this one.

        A size with other names (more layers) has the uses of the names that differ in their numbers only, if all
        of these agree.
        """
        names = list(names)
        if set(names) == set(self.uses):
            return dict(self.uses)
        uses: dict[str, Use] = {}
        for name in names:
            alike = self._patterns.get(pattern(name), [])
            if len({(use.looked_up, use.routed, use.multiplied, use.placed, use.head) for use in alike}) != 1:
                return None
            uses[name] = alike[0]
        return uses


def pattern(name: str) -> str:
    """The parameter's name with a star for each number: ``blocks.*.up.weight``."""
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)|(?<=\.)\d+$", "*", name)


@dataclass(frozen=True)
class _State:
    """What a tensor was computed from."""

    weights: frozenset[str] = frozenset()
    """Parameters that it is a view or a function of."""
    rows: bool = False
    """Of ``weights``, only rows that the batch chose."""
    data: bool = False
    """Computed from the batch."""
    active: bool = False
    """Computed from the batch and from parameters."""
    head: frozenset[str] = frozenset()
    """Parameters of the product that it is the result of."""

    @property
    def is_weight(self) -> bool:
        return bool(self.weights) and not self.rows


CONSTANT = _State()


class UsageTracer:
    """Observes one forward pass of a module within :meth:`mode`.

    Args:
        module: Its parameters are followed.
        samples: Samples of the batch.
        tokens: Tokens of the batch.
        limit: FLOPs from which on :class:`TraceTooLarge` is raised.
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
        self._kept: list[Any] = []  # a storage that is freed would give its address to another
        self._of_parameters: set[int] = set()
        by_storage: dict[int, set[str]] = defaultdict(set)
        for name, parameter in module.named_parameters():
            by_storage[_key(parameter)].add(name)
        for key, names in by_storage.items():
            self._states[key] = _State(weights=frozenset(names))
        self._of_parameters = set(by_storage)

    def mark_batch(self, batch: Any) -> None:
        """The tensors of the batch are data."""
        from torch.utils._pytree import tree_leaves

        for tensor in _tensors(tree_leaves(batch)):
            self._set(tensor, _State(data=True))

    def mark_outputs(self, outputs: Tensor) -> None:
        """The outputs' product is the head."""
        for name in self._state(outputs).head:
            self.uses[name].head = True

    def mode(self) -> AbstractContextManager[Any]:
        """Observes what is run within."""

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
        elif name in LOOKUPS and states[0].weights:
            state = self._lookup(states)
        else:
            state = self._other(name, inputs, states, result)
        for tensor in _tensors(tree_leaves(result)):
            self._set(tensor, state)

    def _is_product(self, func: Any, name: str) -> bool:
        return func._overloadpacket in self._formulas or name in PRODUCTS or is_product(func)

    def _product(
        self, func: Any, name: str, args: Any, kwargs: Any, inputs: Any, states: list[_State], result: Any
    ) -> _State:
        flops = self._count(func, args, kwargs, result, inputs)
        biases = _biases(name, args)
        matrices = [state for tensor, state in zip(inputs, states, strict=True) if id(tensor) not in biases]
        added = [state for tensor, state in zip(inputs, states, strict=True) if id(tensor) in biases]
        computed = any(state.active or state.data for state in matrices)
        head: set[str] = set()
        for state in matrices:
            if state.rows:
                if computed:  # of rows times activations, the share of the table that was multiplied decides
                    self._add_products(state.weights, flops)
                continue
            for weight in state.weights:
                use = self.uses[weight]
                if computed or any(other.rows for other in matrices):
                    use.multiplied = True
                    head.add(weight)
                else:
                    use.by_weights = True
            self._add_products(state.weights, flops)
        for state in added:
            for weight in state.weights if not state.rows else ():
                self.uses[weight].other = True
                head.add(weight)
        everything = [*matrices, *added]
        if not any(state.active or state.data or state.rows for state in everything):
            return _State(weights=frozenset().union(*(state.weights for state in everything)))
        return _State(
            data=True, active=any(state.active or state.weights for state in everything), head=frozenset(head)
        )

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any, inputs: Any) -> float:
        """FLOPs of a product. One without a formula multiplies every entry of its largest argument by each row."""
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
        if any(state.active or state.weights for state in indices):
            for weight in weights if source.is_weight else ():
                self.uses[weight].routed = True
            return source
        for weight in weights:
            self.uses[weight].looked_up = True
        chosen = source.rows or any(state.data for state in indices)
        return _State(weights=weights, rows=chosen)

    def _other(self, name: str, inputs: list[Any], states: list[_State], result: Any) -> _State:
        weights = frozenset().union(*(state.weights for state in states if state.is_weight))
        rows = [state for state in states if state.rows]
        if not any(state.active or state.data for state in states) and (not rows or not weights):
            tables = {state.weights for state in rows}
            if len(tables) > 1:
                return _State(data=True, active=True)
            return _State(weights=weights or next(iter(tables), frozenset()), rows=bool(rows))
        for tensor, state in zip(inputs, states, strict=True):
            is_placed = name in PLACED or (name in SUMS and self._is_per_position(tensor, result))
            for weight in state.weights if state.is_weight else ():
                use = self.uses[weight]
                use.placed, use.other = use.placed or is_placed, use.other or not is_placed
        active = bool(weights or rows) or any(state.active for state in states)
        head = frozenset().union(*(state.head for state in states))
        return _State(data=True, active=active, head=head | weights if head else head)

    def _is_per_position(self, tensor: Tensor, result: Any) -> bool:
        """Whether a sum has an entry of this tensor for every position and channel of each sample, as it has of
        learned positions and not of biases, which are broadcast over positions."""
        shape = tensor.shape[1:] if tensor.ndim == result.ndim else tensor.shape
        broadcast = tensor.ndim < result.ndim or tensor.shape[0] == 1
        return result.shape[0] == self._samples and broadcast and shape == result.shape[1:]

    # ------------------------------------------------------------------ tensors

    def _state(self, tensor: Tensor) -> _State:
        return self._states.get(_key(tensor), CONSTANT)

    def _set(self, tensor: Tensor, state: _State) -> None:
        key = _key(tensor)
        if key in self._of_parameters or (state == CONSTANT and key not in self._states):
            return
        if key not in self._states:
            self._kept.append(tensor.untyped_storage())
        self._states[key] = state


def _key(tensor: Tensor) -> int:
    """The address of its storage, which its views share."""
    key: int = tensor.untyped_storage()._cdata
    return key


def _tensors(leaves: Iterable[Any]) -> list[Any]:
    """The tensors that have a storage; sparse and nested ones have none."""
    from torch import Tensor, strided

    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout == strided and not leaf.is_nested]


def _biases(name: str, args: Any) -> set[int]:
    """Ids of a product's arguments that are added to it."""
    if name in ADDED_FIRST:
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
        module: Whose parameters are followed.
        batch: What ``run`` gives to the module.
        run: Runs the module forward and returns its outputs: a tensor, or an object with such ``.logits``.
        samples: Samples of the batch.
        tokens: Tokens of the batch.
        limit: FLOPs from which on the pass is given up.

    Raises TraceTooLarge, and whatever the module raises.
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
